//! The producer: checks jobs at the door, adds them in batches, and trims lanes now and then.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{self, Partition, Receipt, Shared, Submission},
    job::{Invalid, Job, Lane, QueueName, Timestamp},
    retry::Backoff,
};

/// A batch that a lane refuses as full brings the lane's turn nearer by this part of `trim_every`:
/// what was only acknowledged may be all that fills it.
const TRIM_FULL: u64 = 10;

/// How a producer behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// A lane is trimmed once every so many enqueues.
    pub trim_every: u64,
    /// Largest job, in bytes of JSON.
    pub max_payload: usize,
    /// Most jobs that go to the broker at once.
    pub batch: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { trim_every: 1000, max_payload: 1024 * 1024, batch: 256 }
    }
}

/// Why a job was not enqueued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The job is not acceptable.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The job is too large.
    #[error("job of {bytes} bytes; allowed: {max} (producer.max_payload)")]
    TooLarge {
        /// Bytes of JSON.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The job's time has passed.
    #[error("not_before is {due}, which has passed (it is {now}); leave it out to run at once")]
    PastSchedule {
        /// The time asked for.
        due: Timestamp,
        /// The time it is.
        now: Timestamp,
    },
    /// The job's last moment to begin has passed.
    #[error("expires_at is {at}, which has passed (it is {now}); the job could never run")]
    Expired {
        /// The time asked for.
        at: Timestamp,
        /// The time it is.
        now: Timestamp,
    },
    /// The broker refused it, or cannot be reached.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

impl Error {
    /// A name that does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_job",
            Self::TooLarge { .. } => "job_too_large",
            Self::PastSchedule { .. } => "past_schedule",
            Self::Expired { .. } => "expired",
            Self::Broker(error) => error.code(),
        }
    }
}

/// Enqueues jobs.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::Arc;
/// use millstream::{broker::memory::{self, Memory}, job::{ChatRequest, Job}, producer::Producer};
///
/// let broker = Arc::new(Memory::new(memory::Options::default()));
/// let producer = Producer::new(broker, Default::default());
/// let receipt = producer.enqueue(Job::new(ChatRequest::ask("any", "Hello?"))).await?;
/// assert!(!receipt.duplicate);
/// # Ok::<(), millstream::producer::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct Producer {
    broker: Shared,
    options: Options,
    /// Enqueues since the last trim, by lane. It starts anywhere, so that many short-lived
    /// producers trim as often in all as one that lives long.
    since_trim: Mutex<HashMap<(Partition, Lane), u64>>,
}

/// Some jobs at the door: those that are good, and for each whether it is.
struct Checked {
    submissions: Vec<Submission>,
    verdicts: Vec<Result<(), Error>>,
}

impl Producer {
    /// A producer of jobs for `broker`.
    pub fn new(broker: Shared, options: Options) -> Self {
        Self { broker, options, since_trim: Mutex::default() }
    }

    /// Enqueues one job. `Ok` means that it is durable, as far as the broker is.
    pub async fn enqueue(&self, job: Job) -> Result<Receipt, Error> {
        let mut results = self.enqueue_all(vec![job]).await;
        results.pop().unwrap_or_else(|| {
            Err(broker::Error::Protocol("no answer for the job".to_owned()).into())
        })
    }

    /// Enqueues jobs in order, in batches; one result each. One that is refused at the door keeps
    /// none of the others back.
    pub async fn enqueue_all(&self, jobs: Vec<Job>) -> Vec<Result<Receipt, Error>> {
        let (now, most) = (Timestamp::now(), self.options.batch.max(1));
        let mut results = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.into_iter();
        let mut next = self.check_some(&mut jobs, most, now);
        while !next.verdicts.is_empty() {
            let Checked { submissions, verdicts } = next;
            // While one batch is on its way, the next is checked and encoded.
            let following = async { self.check_some(&mut jobs, most, now) };
            let answers = async {
                match submissions.as_slice() {
                    [] => Vec::new(),
                    submissions => self.submit(submissions).await,
                }
            };
            let (answers, following) = tokio::join!(answers, following);
            let mut answers = answers.into_iter();
            results.extend(verdicts.into_iter().map(|verdict| {
                verdict?;
                let missing = || Err(broker::Error::Protocol("no answer for the job".to_owned()));
                Ok(answers.next().unwrap_or_else(missing)?)
            }));
            next = following;
        }
        results
    }

    /// Checks up to `most` jobs.
    fn check_some(
        &self,
        jobs: &mut impl Iterator<Item = Job>,
        most: usize,
        now: Timestamp,
    ) -> Checked {
        let mut checked = Checked { submissions: Vec::new(), verdicts: Vec::new() };
        for job in jobs.take(most) {
            let verdict = self.check(job, now);
            checked.verdicts.push(verdict.map(|submission| checked.submissions.push(submission)));
        }
        checked
    }

    /// Enqueues one job, and while its queue is full tries again with growing pauses, no sooner than
    /// the broker says. Once `stop` is cancelled the refusal stands.
    pub async fn enqueue_waiting(
        &self,
        job: Job,
        stop: &CancellationToken,
    ) -> Result<Receipt, Error> {
        let submission = [self.check(job, Timestamp::now())?];
        let (mut backoff, mut waits) = (Backoff::waiting(), false);
        loop {
            let missing = || Err(broker::Error::Protocol("no answer for the job".to_owned()));
            let result = self.submit(&submission).await.pop().unwrap_or_else(missing);
            let Err(broker::Error::Full { message, retry_after }) = result else {
                return Ok(result?);
            };
            if !std::mem::replace(&mut waits, true) {
                tracing::warn!(%message, "queue full; waiting for room");
            }
            tokio::select! {
                () = tokio::time::sleep(retry_after + backoff.next_delay()) => {}
                () = stop.cancelled() => {
                    return Err(broker::Error::Full { message, retry_after }.into());
                }
            }
        }
    }

    /// Enqueues, at once, what [`Producer::check`] has passed; one result each.
    pub async fn submit(&self, batch: &[Submission]) -> Vec<broker::Result<Receipt>> {
        let results = self.broker.enqueue(batch).await;
        self.trim(batch, &results).await;
        results
    }

    /// As [`Producer::submit`], but in each queue nothing overtakes a job that found no room: those
    /// refused can be submitted again in their order.
    pub async fn submit_in_order(&self, batch: &[Submission]) -> Vec<broker::Result<Receipt>> {
        let results = self.broker.enqueue_in_order(batch).await;
        self.trim(batch, &results).await;
        results
    }

    /// Checks a job as [`Producer::enqueue`] does, without enqueuing it.
    pub fn check(&self, job: Job, now: Timestamp) -> Result<Submission, Error> {
        job.check()?;
        if let Some(due) = job.not_before.filter(|due| *due < now) {
            return Err(Error::PastSchedule { due, now });
        }
        if let Some(at) = job.expires_at.filter(|at| *at <= now) {
            return Err(Error::Expired { at, now });
        }
        let payload = serde_json::to_vec(&job)
            .map_err(|e| Error::Invalid(Invalid(format!("the job cannot be encoded: {e}"))))?;
        let max = self.options.max_payload;
        if payload.len() > max {
            return Err(Error::TooLarge { bytes: payload.len(), max });
        }
        let partition = Partition::first(job.queue.clone());
        Ok(Submission { id: job.assign_id(), job, payload, partition })
    }

    /// Largest job, in bytes of JSON.
    pub fn max_payload(&self) -> usize {
        self.options.max_payload
    }

    /// Workers that serve a queue, as far as the broker can tell.
    pub async fn live_workers(&self, queue: &QueueName) -> broker::Result<usize> {
        let workers = self.broker.workers(&Partition::first(queue.clone())).await?;
        Ok(workers.iter().filter(|worker| worker.is_live()).count())
    }

    /// Counts what was added, and trims the lanes whose turn has come. A trim that fails costs
    /// space, not jobs: the next one makes up for it.
    async fn trim(&self, batch: &[Submission], results: &[broker::Result<Receipt>]) {
        for (partition, lane) in self.due_for_trim(batch, results) {
            match self.broker.trim(&partition, lane).await {
                Ok(0) => {}
                Ok(removed) => {
                    tracing::info!(%partition, %lane, removed, "settled entries trimmed");
                }
                Err(error) => tracing::warn!(%partition, %lane, %error, "lane not trimmed"),
            }
        }
    }

    fn due_for_trim(
        &self,
        batch: &[Submission],
        results: &[broker::Result<Receipt>],
    ) -> Vec<(Partition, Lane)> {
        let every = self.options.trim_every.max(1);
        let mut counts = self.since_trim.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut due, mut full) = (Vec::new(), BTreeSet::new());
        for (submission, result) in batch.iter().zip(results) {
            let lane = (submission.partition.clone(), submission.job.lane);
            let step = match result {
                Ok(receipt) if !receipt.duplicate => 1,
                Err(broker::Error::Full { .. }) if full.insert(lane.clone()) => {
                    every.div_ceil(TRIM_FULL)
                }
                _ => continue,
            };
            let count = counts.entry(lane.clone()).or_insert_with(|| anywhere_below(every));
            *count += step;
            if *count >= every {
                *count = 0;
                due.push(lane);
            }
        }
        due
    }
}

fn anywhere_below(limit: u64) -> u64 {
    u64::try_from(uuid::Uuid::new_v4().as_u128() % u128::from(limit)).unwrap_or(0)
}
