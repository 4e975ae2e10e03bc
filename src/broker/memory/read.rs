//! A worker's reader of one partition.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Inner,
    queue::{Fields, Overdue},
};
use crate::{
    broker::{Claimer, Entry, Partition, Place, Result, WorkerId},
    job::Lane,
};

/// Reads for one worker. What it was given stays the worker's, also after the reader is dropped.
pub(super) struct Reader {
    inner: Arc<Inner>,
    partition: Partition,
    worker: WorkerId,
}

impl Reader {
    pub(super) fn new(inner: Arc<Inner>, partition: Partition, worker: WorkerId) -> Self {
        Self { inner, partition, worker }
    }

    /// Up to `most` unread entries of each of `lanes`.
    fn take(&self, lanes: &[Lane], most: usize) -> Vec<Entry> {
        let mut taken = Vec::new();
        {
            let mut state = self.inner.lock();
            let queue = state.queue(&self.partition);
            for lane in lanes {
                let entries = queue.take(*lane, most, &self.worker);
                taken.extend(entries.into_iter().map(|(id, fields)| (*lane, id, fields)));
            }
        }
        self.entries(taken)
    }

    fn entries(&self, taken: Vec<(Lane, String, Fields)>) -> Vec<Entry> {
        entries(&self.partition, taken)
    }
}

/// The same text as the lane's key in Redis: a derived job ID is the same on both.
fn key(Partition { queue, index }: &Partition, lane: Lane) -> String {
    format!("ms:{{q:{queue}:{index}}}:{lane}")
}

/// Parses what was taken; after the lock is released, since payloads may be large.
fn entries(partition: &Partition, taken: Vec<(Lane, String, Fields)>) -> Vec<Entry> {
    let read = |(lane, entry, fields): (Lane, String, Fields)| {
        let place = Place { partition: partition.clone(), lane, entry };
        Entry::read(place, &key(partition, lane), fields)
    };
    taken.into_iter().map(read).collect()
}

/// Parses what was taken over, unless it was delivered too often for that.
pub(super) fn overdue(partition: &Partition, taken: Overdue, most: u32) -> Entry {
    let Overdue { lane, entry, fields, deliveries, given_back, taking } = taken;
    let (place, key) = (Place { partition: partition.clone(), lane, entry }, key(partition, lane));
    let mut entry = if deliveries > most {
        Entry::unread(place, &key, fields, deliveries)
    } else {
        Entry::read(place, &key, fields)
    };
    (entry.crashed, entry.taking) = (!given_back, taking);
    entry
}

#[async_trait]
impl Claimer for Reader {
    async fn read(&mut self, lane: Lane, most: usize) -> Result<Vec<Entry>> {
        Ok(self.take(&[lane], most))
    }

    async fn wait(&mut self, block: Duration, stop: &CancellationToken) -> Result<Vec<Entry>> {
        let deadline = Instant::now() + block;
        let mut last = false;
        loop {
            let arrived = self.inner.arrived.notified();
            tokio::pin!(arrived);
            // Enlisted before the look: an entry added in between still rings.
            arrived.as_mut().enable();
            let taken = self.take(&Lane::ALL, 1);
            if last || !taken.is_empty() {
                return Ok(taken);
            }
            tokio::select! {
                () = arrived => {}
                () = stop.cancelled() => last = true,
                () = sleep_until(deadline) => last = true,
            }
        }
    }

    async fn pending(&mut self) -> Result<Vec<Entry>> {
        let (held, taking) = self.inner.lock().queue(&self.partition).pending_of(&self.worker);
        let mut entries = self.entries(held);
        for entry in &mut entries {
            entry.taking = taking;
        }
        Ok(entries)
    }
}
