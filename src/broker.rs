//! The broker's ports: what can happen to a job, named as transitions and split by role.
//!
//! Two adapters implement them: [`redis`] (shared, durable) and [`memory`] (embedded, one process).
//! One conformance suite runs every behaviour on both, so that they cannot drift apart.
//!
//! The order of effects is the callers' side of the contract. [`Settle::conclude`] and
//! [`Settle::refuse`] write the job's record and log; only then do [`Settle::remove`],
//! [`Settle::park`] and [`Settle::bury`] end the entry. Whoever claims an entry again after a crash
//! between the two learns from [`Claim::begin`] which second step is still owed.

mod entry;
mod error;
pub mod memory;
pub mod redis;
mod view;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
pub use entry::{Attempt, DeadLetter, Entry, Partition, Place, Submission, WorkerId};
pub use error::{Error, Result};
use tokio_util::sync::CancellationToken;
pub use view::{Depth, LaneDepth, Record, WorkerSeen};

use crate::{
    error::Failure,
    event::{Event, EventId, Frame},
    job::{JobId, Lane, Timestamp},
};

/// Every port in one, as applications hold it.
pub trait Broker: Enqueue + Claim + Settle + Log + Inspect {}

impl<T: Enqueue + Claim + Settle + Log + Inspect> Broker for T {}

/// A broker shared by the parts of a process.
pub type Shared = Arc<dyn Broker>;

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The job's ID.
    pub id: JobId,
    /// Whether it waits for a time instead of a worker.
    pub parked: bool,
    /// Whether the job was there already, under the same idempotency key.
    pub duplicate: bool,
}

/// The producer's side.
#[async_trait]
pub trait Enqueue: Send + Sync {
    /// Adds jobs, in order and in one round trip where none has an idempotency key; one result
    /// each. `Ok` is a promise: the job reaches a terminal event. A submission whose `not_before`
    /// lies ahead is parked.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a key that another request holds, [`Error::Full`] where a bound is
    /// reached, [`Error::Unavailable`] where nothing is known.
    async fn enqueue(&self, jobs: &[Submission]) -> Vec<Result<Receipt>>;

    /// Removes the entries that lie before every unread and every pending one: what is left when
    /// settling was interrupted or a consumer only acks. Returns how many. A lane without a group,
    /// or with more than one, is left alone.
    async fn trim(&self, partition: &Partition, lane: Lane) -> Result<u64>;
}

/// What a worker is to do with an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Begin {
    /// The attempt is open: run it.
    Begun(Attempt),
    /// The job's run is over, or another entry carries it: remove this entry.
    Remove,
    /// The last attempt asked for a retry and its entry was not parked: park it until then.
    Park {
        /// Attempts made so far.
        attempt: u32,
        /// When the next may begin.
        due: Timestamp,
    },
    /// The job has failed and its entry was not buried: bury it.
    Bury {
        /// Why it failed.
        error: Failure,
        /// Attempts made.
        attempts: u32,
        /// The fence under which it failed.
        fence: u64,
    },
}

/// What a promotion did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promoted {
    /// Jobs moved to their lanes.
    pub count: usize,
    /// How long until the next parked job is due; `None` when none is parked.
    pub next_in: Option<Duration>,
}

/// The worker's side: from entry to running attempt.
#[async_trait]
pub trait Claim: Send + Sync {
    /// Opens a reader of a partition's lanes, with a connection of its own.
    async fn claimer(&self, partition: &Partition, worker: &WorkerId) -> Result<Box<dyn Claimer>>;

    /// Opens an attempt: checks that this entry carries the job, raises the fence, sets `running`,
    /// and appends and publishes `started`, all or nothing. Repeating it (a lost reply) by the same
    /// worker for the same entry gives the same attempt, as long as nothing follows its `started`.
    async fn begin(&self, entry: &Entry, worker: &WorkerId) -> Result<Begin>;

    /// Moves up to `most` jobs whose time has come to their lanes; each exactly once however many
    /// workers promote. Time is the broker's.
    async fn promote(&self, partition: &Partition, most: usize) -> Result<Promoted>;

    /// Renews the leases of entries of one partition that this worker runs; never of one that has
    /// gone to another. Returns those that are not its own any more.
    async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Vec<Place>>;

    /// Takes over up to `most` entries whose lease has run out, and tells every worker of the
    /// partition that it has looked. Within one lease of the last disturbance of its own connection
    /// it takes only what was given back, and tells nobody: the time an entry lay idle runs on while
    /// the broker is away, and live workers need time to renew. With `ask` it also tells whether anything is in flight.
    async fn sweep(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
        most: usize,
        ask: bool,
    ) -> Result<Swept>;

    /// Tells the workers of a partition that there is something to do.
    async fn wake(&self, partition: &Partition, why: Wake) -> Result<()>;
}

/// What a sweep found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Swept {
    /// Entries that are this worker's now.
    pub entries: Vec<Entry>,
    /// Whether any entry is in a worker's hands; `None` when that was not asked.
    pub in_flight: Option<bool>,
}

/// Why a partition's workers are woken: the message of [`Topic::Wake`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// A job was parked.
    Parked,
    /// An idle worker holds work: somebody must sweep from now on.
    Claimed,
    /// A worker has swept: nobody else need do it now.
    Swept,
    /// An entry was released: it can be taken over at once.
    Released,
}

impl Wake {
    const ALL: [Self; 4] = [Self::Parked, Self::Claimed, Self::Swept, Self::Released];

    /// The message.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Claimed => "claimed",
            Self::Swept => "swept",
            Self::Released => "released",
        }
    }

    /// Reads a message; `None` for one of a newer version.
    pub fn read(message: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|wake| wake.as_str().as_bytes() == message)
    }
}

/// Reads one partition for one worker.
#[async_trait]
pub trait Claimer: Send {
    /// Up to `most` entries of one lane, without waiting.
    async fn read(&mut self, lane: Lane, most: usize) -> Result<Vec<Entry>>;

    /// Waits until any lane has an entry, `block` has passed or `stop` is cancelled; at most one
    /// entry of each lane. No polling. An entry that arrives together with `stop` is returned.
    async fn wait(&mut self, block: Duration, stop: &CancellationToken) -> Result<Vec<Entry>>;

    /// What this worker was given and has not settled: after an error the reply that carried it
    /// may be lost. Entries that are running are among them.
    async fn pending(&mut self) -> Result<Vec<Entry>>;
}

/// How an attempt ends.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The answer is whole.
    Done {
        /// Why the model stopped.
        finish_reason: Option<String>,
        /// The model's own count, as JSON.
        usage: Option<String>,
    },
    /// No attempt follows.
    Failed(Failure),
    /// Another attempt follows after a delay.
    Retry {
        /// Why.
        error: Failure,
        /// How long the job is parked.
        delay: Duration,
    },
}

/// What became of a write under a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is in the log, in the record and published.
    Yes,
    /// A higher fence rules: this attempt is over and must change nothing.
    Fenced,
    /// The log's last event is not the one before these frames: read [`Log::last`].
    Behind,
    /// The log is gone: rebuild it with [`Log::heal`].
    Missing,
}

/// The worker's side: from the end of an attempt to the end of its entry.
#[async_trait]
pub trait Settle: Send + Sync {
    /// Ends an attempt: appends and publishes `frames`, of which the last is the `done`, `failed`
    /// or `retrying` event, and sets the state, all or nothing. Repeating it is harmless. Sessions
    /// count as in [`Log::append`].
    async fn conclude(
        &self,
        attempt: &Attempt,
        frames: &[Frame],
        outcome: &Outcome,
    ) -> Result<Written>;

    /// Fails a job whose entry cannot be run, under a new fence: appends and publishes `failed`,
    /// the only event of `frame`. The answer says what the entry is owed: [`Begin::Bury`] unless
    /// it is none of the job's.
    async fn refuse(&self, entry: &Entry, error: &Failure, frame: &Frame) -> Result<Begin>;

    /// Ends entries whose jobs are over. Entries of one partition, any lanes.
    async fn remove(&self, places: &[Place]) -> Result<()>;

    /// Moves an entry to the parked jobs until `due`. `false` when the entry was gone.
    async fn park(&self, entry: &Entry, attempt: u32, due: Timestamp) -> Result<bool>;

    /// Gives an entry back, which keeps its place: the next sweep takes it. The `attempt`, where one
    /// runs, is not counted; its fence stays. `false` when the entry was not this worker's.
    async fn release(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool>;

    /// Moves an entry to the dead letters. `false` when the entry was gone.
    async fn bury(&self, entry: &Entry, letter: &DeadLetter) -> Result<bool>;
}

/// A channel of the broker's live messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The events of one job, each `fence-seq kind payload`.
    Job(JobId),
    /// "Something to sweep, promote or claim" in a partition.
    Wake(Partition),
}

/// What a feed hands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// A message of a subscribed topic.
    Message(Topic, Vec<u8>),
    /// The connection is gone, and every subscription with it.
    Closed,
}

/// Takes signals, in order. Called from the connection's own task: it must not block.
pub type Sink = Arc<dyn Fn(Signal) + Send + Sync>;

/// One subscriber connection.
#[async_trait]
pub trait Feed: Send + Sync {
    /// Subscribes; once it returns, every later message arrives.
    async fn subscribe(&self, topic: &Topic) -> Result<()>;
    /// Unsubscribes.
    async fn unsubscribe(&self, topic: &Topic) -> Result<()>;
    /// Asks whether the connection still lives.
    async fn ping(&self) -> Result<()>;
}

/// What a reader finds when it opens a job's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Where the job stood just before the events were read.
    pub record: Option<Record>,
    /// The first page of events after the cursor.
    pub events: Vec<Event>,
}

/// The job's log and its live messages.
#[async_trait]
pub trait Log: Send + Sync {
    /// A number that rises whenever the broker may have forgotten something, because a connection
    /// to it was made. A writer shows the number under which it last saw the log whole.
    fn session(&self) -> u64;

    /// Appends and publishes frames of a running attempt, which follow the log's last event.
    /// [`Written::Behind`] also where the attempt's session is over: the broker may have forgotten
    /// events, and would take these without those.
    async fn append(&self, attempt: &Attempt, frames: &[Frame]) -> Result<Written>;

    /// The ID of the log's last event.
    async fn last(&self, job: JobId) -> Result<Option<EventId>>;

    /// Writes again what the broker has forgotten of a running attempt: `frames` are all that the
    /// attempt has sent, from `started` (sequence 0). Only what is missing is appended. Refused
    /// when a higher fence rules.
    async fn heal(&self, attempt: &Attempt, frames: &[Frame]) -> Result<Written>;

    /// Up to `most` events after `after`, in order.
    async fn read(&self, job: JobId, after: EventId, most: usize) -> Result<Vec<Event>>;

    /// The record, and then the events after `after`, in one round trip.
    async fn open(&self, job: JobId, after: EventId, most: usize) -> Result<Opened>;

    /// Opens a subscriber connection.
    async fn feed(&self, sink: Sink) -> Result<Box<dyn Feed>>;
}

/// What operators ask.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// A job's record.
    async fn job(&self, id: JobId) -> Result<Option<Record>>;

    /// How much waits, runs, is parked and is dead in a partition.
    async fn depth(&self, partition: &Partition) -> Result<Depth>;

    /// The workers that have read a partition, the most recent first.
    async fn workers(&self, partition: &Partition) -> Result<Vec<WorkerSeen>>;

    /// Up to `most` dead letters of a partition, the oldest first.
    async fn dead_letters(&self, partition: &Partition, most: usize) -> Result<Vec<DeadLetter>>;
}

impl fmt::Debug for dyn Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broker")
    }
}
