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

/// Dead letters read at once; each has its payload.
pub(crate) const PAGE: usize = 32;

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

/// What became of dead letters that were to be deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// How many were deleted.
    pub purged: u64,
    /// Jobs whose letters were left: a requeue has opened their next run, and puts the letter back as
    /// soon as it is repeated.
    pub left: Vec<JobId>,
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

    /// The dead letters of a partition, the oldest first, read in pages: as many as there are at the
    /// first read, so that it ends where letters are put back and come again.
    pub fn dead_letters(
        &self,
        partition: &Partition,
    ) -> impl Stream<Item = broker::Result<DeadLetter>> + Send + Unpin + use<> {
        let (broker, partition) = (self.broker.clone(), partition.clone());
        let pages =
            Pages { broker, partition, page: Vec::new().into_iter(), after: None, left: None };
        Box::pin(stream::try_unfold(pages, async |mut pages| {
            Ok(pages.next().await?.map(|letter| (letter, pages)))
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

    /// Deletes dead letters for good. One that a requeue has begun to put back is left: its job waits
    /// for the entry that only the letter has.
    pub async fn purge(
        &self,
        partition: &Partition,
        letters: &[DeadLetter],
    ) -> broker::Result<Purged> {
        let mut all = Purged::default();
        for page in letters.chunks(PAGE) {
            let mut names = Vec::new();
            for (letter, unfinished) in page.iter().zip(self.broker.unfinished(page).await?) {
                if unfinished {
                    all.left.push(letter.id);
                } else {
                    names.push(letter.letter.clone());
                }
            }
            all.purged += self.broker.purge(partition, &names).await?;
        }
        Ok(all)
    }
}

/// Dead letters of a partition, a page at a time.
struct Pages {
    broker: Shared,
    partition: Partition,
    page: std::vec::IntoIter<DeadLetter>,
    after: Option<String>,
    /// How many are still to come, once that is known.
    left: Option<u64>,
}

impl Pages {
    async fn next(&mut self) -> broker::Result<Option<DeadLetter>> {
        let left = match self.left {
            Some(left) => left,
            None => self.broker.depth(&self.partition).await?.dead,
        };
        self.left = Some(left.saturating_sub(1));
        if left == 0 {
            return Ok(None);
        }
        if self.page.len() == 0 {
            let most = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            let after = self.after.as_deref();
            self.page = self.broker.dead_letters(&self.partition, after, most).await?.into_iter();
        }
        let letter = self.page.next();
        match &letter {
            Some(letter) => self.after = Some(letter.letter.clone()),
            None => self.left = Some(0),
        }
        Ok(letter)
    }
}
