//! Room for jobs: a worker runs as many at once as it has slots, whichever of its queues they are of.
//!
//! A reader that waits for entries holds no slot, lest a quiet queue keep it from a busy one. It is told
//! when the last slot goes to a job that does not end at once, and ends its wait: from there on an entry is
//! better off with another worker.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// A slot that comes free so soon is worth waiting for.
const MOMENT: Duration = Duration::from_millis(5);

/// All slots of a worker.
#[derive(Debug)]
pub(super) struct Slots {
    free: Arc<Semaphore>,
    /// Slots that jobs run in. Those that are only held, as for the time of a sweep, do not count.
    running: watch::Sender<usize>,
    most: usize,
}

/// One of them; it comes back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    runs: bool,
    // Given back after the count, which is done as this struct is dropped: whoever is given a slot
    // finds that not all of them run.
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let most = most.max(1);
        let free = Arc::new(Semaphore::new(most));
        Arc::new(Self { free, running: watch::Sender::new(0), most })
    }

    /// The next slot that is free, in the order of asking.
    pub(super) async fn take(self: &Arc<Self>) -> Slot {
        match Arc::clone(&self.free).acquire_owned().await {
            Ok(permit) => self.slot(permit),
            // Nobody closes the semaphore.
            Err(_) => std::future::pending().await,
        }
    }

    /// A slot, where one is free now.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Slot> {
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| self.slot(permit))
    }

    fn slot(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Slot {
        Slot { slots: Arc::clone(self), runs: false, _permit: permit }
    }

    /// Waits until a job runs in every slot, and none comes free for a moment: where jobs are short, a reader
    /// that ended its wait each time would cost more than the entry that it might be given.
    pub(super) async fn stay_full(&self) {
        let mut running = self.running.subscribe();
        loop {
            if running.wait_for(|running| *running >= self.most).await.is_err() {
                std::future::pending::<()>().await;
            }
            let freed = running.wait_for(|running| *running < self.most);
            if tokio::time::timeout(MOMENT, freed).await.is_err() {
                return;
            }
        }
    }
}

impl Slot {
    /// A job runs in it from here on.
    pub(super) fn run(&mut self) {
        if !std::mem::replace(&mut self.runs, true) {
            self.slots.running.send_modify(|running| *running += 1);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.runs {
            self.slots.running.send_modify(|running| *running -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slots_are_full_when_jobs_run_in_all_of_them() {
        let slots = Slots::new(2);
        let (mut first, mut second) = (slots.take().await, slots.take().await);
        assert!(slots.try_take().is_none());
        first.run();
        let full = slots.stay_full();
        tokio::pin!(full);
        assert!(
            tokio::time::timeout(MOMENT * 9, full.as_mut()).await.is_err(),
            "the second is only held"
        );
        second.run();
        assert!(tokio::time::timeout(MOMENT / 2, full.as_mut()).await.is_err(), "for a moment");
        drop(first);
        assert!(tokio::time::timeout(MOMENT * 9, full.as_mut()).await.is_err(), "one was free");
        let mut third = slots.try_take().unwrap();
        third.run();
        full.await;
    }
}
