//! What operators and owners do to jobs and workers. Everything is returned, nothing printed.

use std::time::Duration;

use futures_util::{Stream, stream};
use serde::Serialize;

use crate::{
    broker::{self, Cancel, DeadLetter, Order, Partition, Reopened, Settled, Shared, WorkerId},
    error::Code,
    job::{JobId, Tenant, Timestamp},
    state::State,
};

/// Dead letters read at once.
const PAGE: usize = 128;

/// What became of a wish to cancel a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "cancel", rename_all = "snake_case")]
pub enum Cancelled {
    /// It had not begun, or was between two attempts: it is cancelled.
    Cancelled,
    /// It runs: it will end as cancelled, at once where its worker hears of it.
    Asked {
        /// The worker that runs it.
        worker: String,
        /// Whether it had been asked before.
        again: bool,
    },
    /// It had ended before; nothing was changed.
    Over {
        /// How.
        state: State,
    },
    /// There is no such job, or its record has expired.
    Unknown,
}

/// What became of a dead letter that was to be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "requeue", rename_all = "snake_case")]
pub enum Requeued {
    /// The job waits for its next run.
    Requeued {
        /// Which run, from 2.
        run: u32,
    },
    /// The letter was gone: somebody else has put it back, or purged it.
    Gone,
    /// The job is not dead; nothing was changed.
    Alive {
        /// Where it stands.
        state: State,
    },
}

/// Which dead letters are meant. An empty filter means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// These jobs.
    pub jobs: Vec<JobId>,
    /// That failed for this reason.
    pub reason: Option<Code>,
    /// That were buried so long ago.
    pub older_than: Option<Duration>,
    /// That ask for this model.
    pub model: Option<String>,
    /// Of this tenant.
    pub tenant: Option<Tenant>,
}

impl Filter {
    /// Whether a letter is meant, `now` being the time.
    pub fn means(&self, letter: &DeadLetter, now: Timestamp) -> bool {
        let asks_job = self.model.is_some() || self.tenant.is_some();
        let job = if asks_job { letter.job() } else { None };
        let of_job = |wanted: bool, found: bool| !wanted || found;
        (self.jobs.is_empty() || self.jobs.contains(&letter.id))
            && self.reason.is_none_or(|reason| reason == letter.error.code)
            && self.older_than.is_none_or(|age| letter.buried_at().after(age) <= now)
            && of_job(
                self.model.is_some(),
                job.as_ref().is_some_and(|job| Some(job.request.model()) == self.model),
            )
            && of_job(
                self.tenant.is_some(),
                job.as_ref().is_some_and(|job| Some(&job.tenant) == self.tenant.as_ref()),
            )
    }
}

/// Acts on jobs, dead letters and workers.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::Arc;
/// use millstream::{admin::{Admin, Cancelled}, broker::memory::{self, Memory}};
/// use millstream::{job::{ChatRequest, Job}, producer::Producer};
///
/// let broker = Arc::new(Memory::new(memory::Options::default()));
/// let producer = Producer::new(broker.clone(), Default::default());
/// let id = producer.enqueue(Job::new(ChatRequest::ask("any", "Hello?"))).await?.id;
/// assert_eq!(Admin::new(broker).cancel(id).await?, Cancelled::Cancelled);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Admin {
    broker: Shared,
}

impl Admin {
    /// Acts on what `broker` holds.
    pub fn new(broker: Shared) -> Self {
        Self { broker }
    }

    /// Cancels a job, wherever it is. Repeating it is harmless.
    pub async fn cancel(&self, job: JobId) -> broker::Result<Cancelled> {
        let mut first = None;
        loop {
            let session = self.broker.session();
            let (partition, run, again) = match self.broker.cancel(job).await? {
                Cancel::Cancelled { partition, run, again } => (partition, run, again),
                Cancel::Asked { worker, again } => return Ok(Cancelled::Asked { worker, again }),
                Cancel::Over(state) => return Ok(Cancelled::Over { state }),
                Cancel::Unknown => return Ok(Cancelled::Unknown),
            };
            let again = *first.get_or_insert(again);
            // Left there it would only be dropped later: when its time comes. Whoever cancelled it
            // before may have died before this.
            let forgotten = match partition {
                Some(partition) => {
                    self.broker.unpark(&partition, job, run, session).await? == Settled::Stale
                }
                None => false,
            };
            // The broker may have forgotten that the job is cancelled.
            if !forgotten {
                let state = State::Cancelled;
                return Ok(if again { Cancelled::Over { state } } else { Cancelled::Cancelled });
            }
        }
    }

    /// Tells a worker to claim nothing more and to stop; whether anyone heard it.
    pub async fn drain(&self, worker: &WorkerId) -> broker::Result<bool> {
        Ok(self.broker.tell(worker, Order::Drain).await? > 0)
    }

    /// The dead letters of a partition, the oldest first, read in pages.
    pub fn dead_letters(
        &self,
        partition: &Partition,
    ) -> impl Stream<Item = broker::Result<DeadLetter>> + Send + Unpin {
        let start = (self.broker.clone(), partition.clone(), Vec::new().into_iter(), Some(None));
        Box::pin(stream::try_unfold(start, async |(broker, partition, mut page, mut after)| {
            loop {
                if let Some(letter) = page.next() {
                    return Ok(Some((letter, (broker, partition, page, after))));
                }
                let Some(from) = after.take() else { return Ok(None) };
                let from: Option<String> = from;
                let letters = broker.dead_letters(&partition, from.as_deref(), PAGE).await?;
                after = match letters.last() {
                    Some(last) if letters.len() == PAGE => Some(Some(last.letter.clone())),
                    _ => None,
                };
                page = letters.into_iter();
            }
        }))
    }

    /// Puts a dead letter back: a new run of its job begins, with a new budget of attempts.
    /// Repeating it after a crash is harmless.
    pub async fn requeue(
        &self,
        partition: &Partition,
        letter: &DeadLetter,
    ) -> broker::Result<Requeued> {
        // One that was put back or deleted since it was read opens nothing.
        if self.broker.letter(partition, &letter.letter).await?.is_none() {
            return Ok(Requeued::Gone);
        }
        let run = match self.broker.reopen(partition, letter).await? {
            Reopened::No(state) => return Ok(Requeued::Alive { state }),
            Reopened::Yes(run) => run,
        };
        let added = self.broker.requeue(partition, letter, run).await?;
        Ok(if added { Requeued::Requeued { run: run.number } } else { Requeued::Gone })
    }

    /// Deletes dead letters for good; how many there were.
    pub async fn purge(
        &self,
        partition: &Partition,
        letters: &[DeadLetter],
    ) -> broker::Result<u64> {
        let mut purged = 0;
        for page in letters.chunks(PAGE) {
            let names: Vec<String> = page.iter().map(|letter| letter.letter.clone()).collect();
            purged += self.broker.purge(partition, &names).await?;
        }
        Ok(purged)
    }
}
