//! The entries in a worker's hands: what it renews, what it may be told to end, and what reading its
//! own pending entries again must not start twice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Entry, Partition, Place},
    job::JobId,
};

/// How an attempt is ended from outside, or told to look.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop {
    /// The job is to be cancelled.
    pub(super) cancel: CancellationToken,
    /// Another worker's attempt counts: nothing more may be written.
    pub(super) fenced: CancellationToken,
    /// The broker may have forgotten the attempt: it is to see, and to write it again.
    pub(super) look: Arc<Notify>,
}

/// An entry in this worker's hands.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) job: JobId,
    /// The attempt that runs, once one does.
    pub(super) fence: Option<u64>,
    /// When the lease began at the earliest, or was last renewed; `None` where nobody knows.
    pub(super) renewed: Option<Instant>,
    pub(super) stop: Stop,
}

/// All of them. The lock is held for moments and never across an await.
#[derive(Debug, Default)]
pub(super) struct Hands(Mutex<HashMap<Place, Held>>);

impl Hands {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Place, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an entry, which was given to this worker no earlier than `since`; `false` when it is
    /// there already.
    pub(super) fn take(&self, entry: &Entry, since: Option<Instant>) -> bool {
        let mut held = self.lock();
        if held.contains_key(&entry.place) {
            return false;
        }
        let (job, stop) = (entry.id, Stop::default());
        held.insert(entry.place.clone(), Held { job, fence: None, renewed: since, stop });
        true
    }

    /// Whether any entry of a partition is there.
    pub(super) fn any_of(&self, partition: &Partition) -> bool {
        self.lock().keys().any(|place| place.partition == *partition)
    }

    /// The jobs in hand.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        self.lock().values().map(|held| held.job).collect()
    }

    /// Has every attempt see whether the broker still knows of it.
    pub(super) fn look_again(&self) {
        self.lock().values().for_each(|held| held.stop.look.notify_one());
    }

    /// Takes out everything: what no task sees to.
    pub(super) fn leave(&self) -> Vec<(Place, JobId)> {
        self.lock().drain().map(|(place, held)| (place, held.job)).collect()
    }

    /// Ends a job's attempt as cancelled, where it is in hand.
    pub(super) fn cancel(&self, job: JobId) {
        for held in self.lock().values().filter(|held| held.job == job) {
            held.stop.cancel.cancel();
        }
    }

    /// An entry's hold; its end takes the entry out of these hands, whatever ends it.
    pub(super) fn hold(&self, place: &Place) -> Hold<'_> {
        let stop = self.lock().get(place).map(|held| held.stop.clone());
        Hold { hands: self, place: place.clone(), stop: stop.unwrap_or_default() }
    }
}

/// A claim on an entry in hand, for as long as its job is seen to.
#[derive(Debug)]
pub(super) struct Hold<'a> {
    hands: &'a Hands,
    place: Place,
    pub(super) stop: Stop,
}

impl Hold<'_> {
    /// Notes the attempt that runs.
    pub(super) fn begun(&self, fence: u64) {
        if let Some(held) = self.hands.lock().get_mut(&self.place) {
            held.fence = Some(fence);
        }
    }

    /// Notes that the lease was renewed at `at`.
    pub(super) fn renewed(&self, at: Instant) {
        if let Some(held) = self.hands.lock().get_mut(&self.place) {
            held.renewed = Some(at);
        }
    }

    /// Notes that nobody knows whether the entry is still this worker's.
    pub(super) fn doubt(&self) {
        if let Some(held) = self.hands.lock().get_mut(&self.place) {
            held.renewed = None;
        }
    }

    /// How long ago the lease may have begun.
    pub(super) fn age(&self) -> Duration {
        let age = |held: &Held| held.renewed.map_or(Duration::MAX, |at| at.elapsed());
        self.hands.lock().get(&self.place).map(age).unwrap_or_default()
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(place = %self.place.entry, "a job's task failed; its lease runs out");
        }
        self.hands.lock().remove(&self.place);
    }
}

/// When each partition's workers were last told that there is work: whoever takes some just then
/// need not tell them again.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<HashMap<Partition, Instant>>);

impl Wakes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn heard(&self, partition: &Partition) {
        self.lock().insert(partition.clone(), Instant::now());
    }

    pub(super) fn within(&self, partition: &Partition, time: Duration) -> bool {
        self.lock().get(partition).is_some_and(|at| at.elapsed() < time)
    }
}
