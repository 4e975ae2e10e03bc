//! The embedded broker: one process, in memory, bounded, nothing on disk.
//!
//! It is what `millstream ask` and `millstream dev` run on when no Redis is configured, and what
//! applications test with. Every answer is the one that Redis gives, down to entry IDs and fences;
//! the conformance suite runs each behaviour on both.
//!
//! All of it is one `State` behind one `std::sync::Mutex`. Each operation holds the lock from its
//! first check to its last effect and never across an `.await`, so it is as indivisible as a
//! script. That includes publishing: sinks run under the lock, which keeps messages in the order
//! of their events. A sink therefore must not block, and must not call the broker.
//!
//! What this broker cannot do is survive its process, or lose its memory while the process lives:
//! a feed is never closed, and a log is never missing unless [`Memory::forget`] drops it.

mod admit;
mod attempt;
mod control;
mod feed;
mod inspect;
mod log;
mod queue;
mod read;
mod run;
mod state;
mod tenancy;
mod verdict;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::{read::Reader, state::State};
use super::{
    Attempt, Begin, Cancel, Claim, Claimer, Control, Correction, Crashes, DeadLetter, Enqueue,
    Entry, Error, Limits, Order, Outcome, Partition, Place, Promoted, Receipt, Reconcile, Refusal,
    Renewed, Reopened, Result, Run, Settle, Settled, Spent, Submission, Sweep, Swept, Topic, Wake,
    WorkerId, Written,
};
use crate::{
    event::Frame,
    job::{JobId, Lane, Timestamp},
};

/// The bounds of the embedded broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Most jobs in lanes and parked; beyond it an enqueue is refused with [`Error::Full`].
    pub max_jobs: usize,
    /// Most bytes of payloads and logs together, 512 added for each job's record. At the limit the
    /// oldest finished jobs are dropped, then the oldest dead letters; where that is not enough an
    /// enqueue is refused with [`Error::Full`]. Attempts that run already may write beyond it.
    pub max_bytes: usize,
    /// How long a finished job's record and log are kept.
    #[serde(with = "humantime_serde")]
    pub result_ttl: Duration,
    /// How long the record of a finished job with an idempotency key is kept, at the least.
    #[serde(with = "humantime_serde")]
    pub key_ttl: Duration,
    /// Most dead letters of a partition; beyond it the oldest is dropped.
    pub dead_max: usize,
    /// How long a dead letter is kept.
    #[serde(with = "humantime_serde")]
    pub dead_ttl: Duration,
    /// Most recent jobs that are remembered of a tenant.
    pub recent_jobs: usize,
    /// The bounds of each queue, beside those of the whole.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_jobs: 10_000,
            max_bytes: 64 * 1024 * 1024,
            result_ttl: Duration::from_hours(24),
            key_ttl: Duration::from_hours(7 * 24),
            dead_max: 1_000,
            dead_ttl: Duration::from_hours(30 * 24),
            recent_jobs: 1_000,
            limits: Limits::default(),
        }
    }
}

/// The embedded broker. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// A std mutex: it is never held across an await, and holding it is a matter of microseconds.
    state: Mutex<State>,
    /// Rung whenever a lane of any partition has gained an entry.
    arrived: Notify,
    /// Numbers the feeds.
    feeds: AtomicU64,
}

impl Inner {
    /// The state, with what has outlived its time removed. A poisoned lock is taken over: state
    /// changes only after every check, so a panic in a sink leaves nothing half done that matters.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(Timestamp::now());
        state
    }
}

impl Memory {
    /// An empty broker.
    pub fn new(options: Options) -> Self {
        let state = Mutex::new(State::new(options));
        Self { inner: Arc::new(Inner { state, arrived: Notify::new(), feeds: AtomicU64::new(0) }) }
    }

    /// Adds an entry with these fields and no record, as a plain `XADD LANE * …` does. Gives the entry's ID.
    ///
    /// # Errors
    /// [`Error::Full`] at a bound.
    pub fn add_raw(
        &self,
        partition: &Partition,
        lane: Lane,
        fields: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<String> {
        let added = self.inner.lock().add_raw(partition, lane, fields, Timestamp::now());
        self.inner.arrived.notify_waiters();
        added
    }

    /// Drops a job's record and log and leaves its entry, as a `DEL` of its keys or a lost second does.
    pub fn forget(&self, job: JobId) {
        self.inner.lock().forget(job);
    }
}

impl Memory {
    fn take_in(&self, jobs: &[Submission], in_order: bool) -> Vec<Result<Receipt>> {
        // Fingerprints are hashes over whole requests: they are made before the lock is taken.
        let prints = jobs
            .iter()
            .map(|job| job.job.idempotency_key.as_ref().map(|_| job.job.request.fingerprint()));
        let prints: Vec<_> = prints.collect();
        let mut state = self.inner.lock();
        let now = Timestamp::now();
        let mut full = HashSet::new();
        let mut results = Vec::with_capacity(jobs.len());
        for (job, print) in jobs.iter().zip(prints) {
            let behind = in_order && full.contains(&job.partition);
            let result = state.enqueue(job, print, now, behind);
            if matches!(result, Err(Error::Full { .. })) {
                full.insert(&job.partition);
            }
            results.push(result);
        }
        drop(state);
        self.inner.arrived.notify_waiters();
        results
    }
}

#[async_trait]
impl Enqueue for Memory {
    async fn enqueue(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.take_in(jobs, false)
    }

    async fn enqueue_in_order(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.take_in(jobs, true)
    }

    /// Always 0: an entry is deleted in the same step that takes it from its worker, so nothing is
    /// ever left behind.
    async fn trim(&self, _partition: &Partition, _lane: Lane) -> Result<u64> {
        Ok(0)
    }
}

#[async_trait]
impl Claim for Memory {
    async fn announce(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<()> {
        self.inner.lock().queue(partition).announce(worker, lease);
        Ok(())
    }

    async fn claimer(&self, partition: &Partition, worker: &WorkerId) -> Result<Box<dyn Claimer>> {
        Ok(Box::new(Reader::new(self.inner.clone(), partition.clone(), worker.clone())))
    }

    async fn begin(&self, entry: &Entry, worker: &WorkerId, crashes: Crashes) -> Result<Begin> {
        self.inner.lock().begin(entry, worker, crashes, Timestamp::now())
    }

    async fn promote(&self, partition: &Partition, most: usize) -> Result<Promoted> {
        let promoted = self.inner.lock().promote(partition, most, Timestamp::now());
        if promoted.count > 0 {
            self.inner.arrived.notify_waiters();
        }
        Ok(promoted)
    }

    async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Renewed> {
        let mut state = self.inner.lock();
        let gone = |place: &&Place| !state.queue(&place.partition).renew(worker, place);
        Ok(Renewed { gone: places.iter().filter(gone).cloned().collect(), lost: 0 })
    }

    /// Nothing to do: a job that is not over is kept whatever its age.
    async fn keep(&self, _jobs: &[JobId]) -> Result<()> {
        Ok(())
    }

    async fn sweep(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        sweep: &Sweep,
    ) -> Result<Swept> {
        let (taken, in_flight) = {
            let mut state = self.inner.lock();
            let queue = state.queue(partition);
            let taken = queue.take_over(worker, sweep.lease, (sweep.most, sweep.deliveries));
            let found = (taken, sweep.ask.then(|| queue.in_flight()));
            state.wake(partition, Wake::Swept);
            found
        };
        let read = |overdue| read::overdue(partition, overdue, sweep.deliveries);
        Ok(Swept { entries: taken.into_iter().map(read).collect(), in_flight, lost: 0 })
    }

    async fn retire(
        &self,
        partition: &Partition,
        worker: Option<&WorkerId>,
        idle: Duration,
    ) -> Result<u64> {
        let mut state = self.inner.lock();
        let listening = state.topics.workers();
        Ok(state.queue(partition).retire(worker, idle, &listening))
    }

    async fn wake(&self, partition: &Partition, why: Wake) -> Result<()> {
        self.inner.lock().wake(partition, why);
        Ok(())
    }
}

#[async_trait]
impl Settle for Memory {
    async fn conclude(
        &self,
        attempt: &Attempt,
        frames: &[Frame],
        outcome: &Outcome,
    ) -> Result<Written> {
        Ok(self.inner.lock().conclude(attempt, frames, outcome, Timestamp::now()))
    }

    async fn refuse(&self, entry: &Entry, refusal: &Refusal, frame: &Frame) -> Result<Begin> {
        Ok(self.inner.lock().refuse(entry, refusal, frame, Timestamp::now()))
    }

    async fn remove(&self, spent: &[Spent], _session: u64) -> Result<bool> {
        self.inner.lock().remove(spent);
        Ok(true)
    }

    async fn park(
        &self,
        entry: &Entry,
        attempt: u32,
        due: Timestamp,
        _session: u64,
    ) -> Result<Settled> {
        Ok(self.inner.lock().park(entry, attempt, due).into())
    }

    async fn release(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool> {
        Ok(self.inner.lock().release(worker, place, attempt))
    }

    async fn bury(
        &self,
        entry: &Entry,
        letter: &DeadLetter,
        told: bool,
        _session: u64,
    ) -> Result<Settled> {
        Ok(self.inner.lock().bury(entry, letter, told, Timestamp::now()).into())
    }

    async fn expire(&self, partition: &Partition) -> Result<u64> {
        Ok(self.inner.lock().expire_dead(partition, Timestamp::now()))
    }
}

#[async_trait]
impl Control for Memory {
    async fn cancel(&self, job: JobId) -> Result<Cancel> {
        self.inner.lock().cancel(job, Timestamp::now())
    }

    async fn unpark(
        &self,
        partition: &Partition,
        job: JobId,
        run: u32,
        _session: u64,
    ) -> Result<Settled> {
        Ok(self.inner.lock().queue(partition).remove_parked(job, run).into())
    }

    async fn cancelled(&self, jobs: &[JobId]) -> Result<Vec<JobId>> {
        let state = self.inner.lock();
        Ok(jobs.iter().copied().filter(|job| state.is_to_be_cancelled(*job)).collect())
    }

    async fn tell(&self, worker: &WorkerId, order: Order) -> Result<u64> {
        let topic = Topic::Worker(worker.clone());
        Ok(self.inner.lock().topics.publish(&topic, order.message().as_bytes()))
    }

    async fn reopen(&self, partition: &Partition, letter: &DeadLetter) -> Result<Reopened> {
        self.inner.lock().reopen(partition, letter, Timestamp::now())
    }

    async fn requeue(&self, partition: &Partition, letter: &DeadLetter, run: Run) -> Result<bool> {
        let added = self.inner.lock().requeue(partition, letter, run, Timestamp::now());
        self.inner.arrived.notify_waiters();
        Ok(added)
    }

    async fn letter(&self, partition: &Partition, letter: &str) -> Result<Option<DeadLetter>> {
        Ok(self.inner.lock().queue(partition).letter(letter).cloned())
    }

    async fn unfinished(&self, letters: &[DeadLetter]) -> Result<Vec<bool>> {
        let state = self.inner.lock();
        Ok(letters.iter().map(|letter| state.is_unfinished(letter)).collect())
    }

    async fn purge(&self, partition: &Partition, letters: &[String]) -> Result<u64> {
        let mut state = self.inner.lock();
        let queue = state.queue(partition);
        Ok(letters.iter().map(|letter| u64::from(queue.unbury(letter))).sum())
    }
}

#[async_trait]
impl Reconcile for Memory {
    async fn mend(&self, partition: &Partition) -> Result<Correction> {
        Ok(self.inner.lock().mend(partition))
    }

    async fn reconcile(&self, partition: &Partition) -> Result<Correction> {
        Ok(self.inner.lock().reconcile(partition))
    }
}

#[cfg(test)]
mod tests;
