//! The broker's ports: what can happen to a job, named as transitions and split by role.
//!
//! Two adapters implement them: [`redis`] (shared, durable) and [`memory`] (embedded, one process).
//! One conformance suite runs every behaviour on both, so that they cannot drift apart.
//!
//! The order of effects is the callers' side of the contract. [`Settle::conclude`] and
//! [`Settle::refuse`] write the job's record and log; only then do [`Settle::remove`],
//! [`Settle::park`] and [`Settle::bury`] end the entry. In the same order [`Control::cancel`] comes
//! before [`Control::unpark`], and [`Control::reopen`] before [`Control::requeue`]. Whoever claims an entry again after a crash
//! between the two learns from [`Claim::begin`] which second step is still owed. What ends an entry shows
//! the session ([`Log::session`]) under which the first step was seen: a broker that has forgotten that
//! one must not be given the second.

mod answer;
mod control;
mod dead_letter;
mod entry;
mod error;
mod limits;
pub mod memory;
mod proof;
pub mod redis;
mod tenancy;
mod topic;
mod trouble;
mod view;

use std::{fmt, sync::Arc, time::Duration};

pub use answer::{
    Begin, Crashes, Opened, Outcome, Page, Promoted, Receipt, Refusal, Refused, Renewed, Settled,
    Sweep, Swept, Window, Written,
};
use async_trait::async_trait;
pub use control::{Cancel, Control, Order, Reopened, Run};
pub use dead_letter::{DeadLetter, Setback};
pub use entry::{Attempt, Entry, Load, Over, Partition, Place, Spent, Submission, WorkerId};
pub use error::{Error, Result};
pub use limits::{Correction, Counted, Limits};
#[cfg(feature = "gateway")]
pub(crate) use tenancy::Buckets;
pub use tenancy::{Rate, Recent, Tenancy};
use tokio_util::sync::CancellationToken;
pub use topic::{Next, Signal, Topic, Wake};
pub use trouble::Trouble;
pub use view::{Depth, LaneDepth, Record, WorkerSeen};

use crate::{
    event::{Event, EventId, Frame},
    job::{JobId, Lane, Tenant, Timestamp},
};

/// Every port in one, as applications hold it.
pub trait Broker: Enqueue + Claim + Settle + Log + Control + Inspect + Reconcile + Tenancy {}

impl<T: Enqueue + Claim + Settle + Log + Control + Inspect + Reconcile + Tenancy> Broker for T {}

/// A broker shared by the parts of a process.
pub type Shared = Arc<dyn Broker>;

/// The producer's side.
#[async_trait]
pub trait Enqueue: Send + Sync {
    /// Adds jobs, in order and in one round trip where none has an idempotency key; one result
    /// each. `Ok` is a promise: the job reaches a terminal event. A submission whose `not_before`
    /// lies ahead is parked. A full queue refuses; a later job may still fit, because it is smaller
    /// or another tenant's.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a key that another request holds, [`Error::Full`] where a bound is
    /// reached, [`Error::Unavailable`] where nothing is known.
    async fn enqueue(&self, jobs: &[Submission]) -> Vec<Result<Receipt>>;

    /// As [`Enqueue::enqueue`], but nothing overtakes: once a partition refuses a job as full, it
    /// refuses every later one of the batch. Those refused can be tried again in their order.
    async fn enqueue_in_order(&self, jobs: &[Submission]) -> Vec<Result<Receipt>>;

    /// Removes the entries that lie before every unread and every pending one: what is left when
    /// settling was interrupted or a consumer only acks. Returns how many; of very many the next call
    /// removes more. A lane without a group, or with more than one, is left alone.
    async fn trim(&self, partition: &Partition, lane: Lane) -> Result<u64>;
}

/// The worker's side: from entry to running attempt.
#[async_trait]
pub trait Claim: Send + Sync {
    /// Notes how long the leases of a worker last. Nobody takes an entry from it before that, whatever the
    /// lease of the one that sweeps: a worker announces its lease before it reads.
    async fn announce(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<()>;

    /// Opens a reader of a partition's lanes, with a connection of its own.
    async fn claimer(&self, partition: &Partition, worker: &WorkerId) -> Result<Box<dyn Claimer>>;

    /// Opens an attempt: checks that this entry carries the job, raises the fence, sets `running`,
    /// and appends and publishes `started`, all or nothing. One taking ([`Entry::taking`]) has one attempt:
    /// repeating the call (a lost reply), or its arriving behind its own repeat and what followed, gives the
    /// same attempt as long as it runs, and changes nothing. A call of an earlier taking changes nothing.
    /// A job that was lost too often with its workers is refused, and one that may be lost only once
    /// more has to run alone.
    async fn begin(&self, entry: &Entry, worker: &WorkerId, crashes: Crashes) -> Result<Begin>;

    /// Moves up to `most` jobs whose time has come to their lanes; each exactly once however many
    /// workers promote. Time is the broker's. Every worker of the partition is told when the next is due
    /// ([`Wake::Next`]), as by whoever parks a job that is due before all others.
    async fn promote(&self, partition: &Partition, most: usize) -> Result<Promoted>;

    /// Renews the leases of entries of one partition that this worker runs; never of one that has
    /// gone to another. Returns those that are not its own any more.
    async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Renewed>;

    /// Keeps records and logs of running jobs for the whole time that jobs have, from now on. One that
    /// has ended meanwhile keeps the time that its end has set.
    async fn keep(&self, jobs: &[JobId]) -> Result<()>;

    /// Takes over entries whose lease has run out, the worker's own that holds it and the one that the sweep
    /// names, and tells every worker of the partition that it
    /// has looked. Within one lease of the last disturbance of its own connection it takes only what
    /// was given back, and tells nobody: the time an entry lay idle runs on while the broker is away,
    /// and live workers need time to renew. An entry taken over in the wake of such a disturbance is
    /// not held against its job ([`Entry::crashed`]).
    async fn sweep(&self, partition: &Partition, worker: &WorkerId, sweep: &Sweep)
    -> Result<Swept>;

    /// Forgets workers that hold nothing: `worker`, which leaves, or else all that have not read for
    /// `idle` and do not hear what they are told. Returns how many names went.
    async fn retire(
        &self,
        partition: &Partition,
        worker: Option<&WorkerId>,
        idle: Duration,
    ) -> Result<u64>;

    /// Tells the workers of a partition that there is something to do.
    async fn wake(&self, partition: &Partition, why: Wake) -> Result<()>;
}

/// Reads one partition for one worker.
#[async_trait]
pub trait Claimer: Send {
    /// Up to `most` entries of one lane, without waiting.
    async fn read(&mut self, lane: Lane, most: usize) -> Result<Vec<Entry>>;

    /// Waits until any lane has an entry, `block` has passed or `stop` is cancelled; at most one
    /// entry of each lane. No polling. An entry that arrives together with `stop` is returned; where the
    /// broker cannot end a wait but by closing its connection, with all that [`Claimer::pending`] returns.
    async fn wait(&mut self, block: Duration, stop: &CancellationToken) -> Result<Vec<Entry>>;

    /// What this worker was given and has not settled: after an error the reply that carried it
    /// may be lost. Entries that are running are among them.
    async fn pending(&mut self) -> Result<Vec<Entry>>;
}

/// The worker's side: from the end of an attempt to the end of its entry.
#[async_trait]
pub trait Settle: Send + Sync {
    /// Ends an attempt: appends and publishes `frames`, of which the last is the `done`, `failed`,
    /// `cancelled` or `retrying` event, and sets the state, all or nothing. Repeating it is harmless. Sessions
    /// count as in [`Log::append`].
    async fn conclude(
        &self,
        attempt: &Attempt,
        frames: &[Frame],
        outcome: &Outcome,
    ) -> Result<Written>;

    /// Ends a job whose entry cannot or may not be run, under a new fence: appends and publishes
    /// `frame`, its only event. The answer says what the entry is owed: [`Begin::Bury`] or
    /// [`Begin::Remove`], or [`Begin::Refuse`] where the job is to be cancelled instead.
    async fn refuse(&self, entry: &Entry, refusal: &Refusal, frame: &Frame) -> Result<Begin>;

    /// Ends entries whose jobs are over, of any lanes, and gives back what they count, once however
    /// often it is repeated. Until then a record is kept as that of a job that is not over, whatever the
    /// time that finished ones are kept: an entry that comes again must find it. `false` where the
    /// `session` is over under which the jobs were seen so: then some are left, and have to be looked at
    /// again.
    async fn remove(&self, spent: &[Spent], session: u64) -> Result<bool>;

    /// Moves an entry to the parked jobs until `due`, where the `session` is not over under which its
    /// job was seen to be parked; it still counts.
    async fn park(
        &self,
        entry: &Entry,
        attempt: u32,
        due: Timestamp,
        session: u64,
    ) -> Result<Settled>;

    /// Gives an entry back, which keeps its place: the next sweep takes it. The `attempt`, where one
    /// runs, is not counted; its fence stays. `false` when the entry was not this worker's.
    async fn release(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool>;

    /// Moves an entry to the dead letters, which count nothing, where the `session` is not over under
    /// which its job was seen to have failed. Where the failure was `told` by the record, another entry of
    /// the job may have been buried for it: then no second letter is written.
    async fn bury(
        &self,
        entry: &Entry,
        letter: &DeadLetter,
        told: bool,
        session: u64,
    ) -> Result<Settled>;

    /// Drops dead letters of a partition that have outlived their time; how many, which are counted
    /// as dropped.
    async fn expire(&self, partition: &Partition) -> Result<u64>;
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

    /// Writes again what the broker has forgotten of a running attempt: the record, with all that the
    /// attempt's `entry` tells of the job (its tenant above all), and the log. `frames` are all that the
    /// attempt has sent, from `started` (sequence 0). Only what is missing is appended. Refused
    /// when a higher fence rules.
    async fn heal(&self, attempt: &Attempt, entry: &Entry, frames: &[Frame]) -> Result<Written>;

    /// The events after `after`, in order, as many as the window shows.
    async fn page(&self, job: JobId, after: EventId, window: Window) -> Result<Page>;

    /// The record, and then the events after `after`, in one round trip.
    async fn open(&self, job: JobId, after: EventId, window: Window) -> Result<Opened>;

    /// As [`Log::open`] for a tenant: `None` where the job is another's, or where there is none. It takes the
    /// same time and the same commands in both cases, so that nobody learns which.
    async fn open_for(
        &self,
        tenant: &Tenant,
        job: JobId,
        after: EventId,
        window: Window,
    ) -> Result<Option<Opened>>;

    /// Up to `most` events after `after`, in order, read.
    async fn read(&self, job: JobId, after: EventId, most: usize) -> Result<Vec<Event>> {
        Ok(self.page(job, after, Window::of(most)).await?.decode())
    }

    /// Opens a subscriber connection.
    async fn feed(&self, sink: Sink) -> Result<Box<dyn Feed>>;
}

/// What operators ask.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// Whether a job would be taken now, as far as that does not depend on the job: it writes where
    /// nothing is, and changes nothing.
    ///
    /// # Errors
    /// Those that an enqueue would meet: [`Error::Unavailable`], or [`Error::Trouble`] where the
    /// broker answers and takes no writes.
    async fn ready(&self) -> Result<()>;

    /// A job's record.
    async fn job(&self, id: JobId) -> Result<Option<Record>>;

    /// A job's record for a tenant: `None` where the job is another's, or where there is none. It takes the same
    /// time and the same commands in both cases, so that nobody learns which.
    async fn job_for(&self, tenant: &Tenant, id: JobId) -> Result<Option<Record>>;

    /// The records of these jobs, in one round trip; one answer each: none where there is no record, or one
    /// that this version cannot read. It hides no other.
    async fn records(&self, jobs: &[JobId]) -> Result<Vec<Option<Record>>>;

    /// How much longer a job's record is kept if nothing more happens to the job. `None` where there
    /// is no record, or where its time is not limited.
    async fn ttl(&self, job: JobId) -> Result<Option<Duration>>;

    /// How much waits, runs, is parked and is dead in a partition.
    async fn depth(&self, partition: &Partition) -> Result<Depth>;

    /// The workers that have read a partition, the most recent first. One that lives is among them,
    /// however long it has had nothing to do.
    async fn workers(&self, partition: &Partition) -> Result<Vec<WorkerSeen>>;

    /// Up to `most` dead letters of a partition, the oldest first, behind the one called `after`.
    async fn dead_letters(
        &self,
        partition: &Partition,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<DeadLetter>>;
}

/// Keeps what is counted for [`Limits`] true, whatever others do to the entries.
#[async_trait]
pub trait Reconcile: Send + Sync {
    /// As [`Reconcile::reconcile`], but only where more jobs are counted than there are entries and
    /// parked jobs: that refuses jobs for which there is room, and is never right. Of many who look at
    /// once, one corrects. Cheap where nothing is found. What counts too
    /// little, and what entries that do not count hide, is left to [`Reconcile::reconcile`].
    async fn mend(&self, partition: &Partition) -> Result<Correction>;

    /// Counts what a partition really holds, in short steps between which others go on, and sets its
    /// counters right. The answer tells what was wrong. Where jobs end all the time while very many are
    /// counted, a counter that is off by no more than have ended meanwhile stays.
    async fn reconcile(&self, partition: &Partition) -> Result<Correction>;
}

impl fmt::Debug for dyn Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broker")
    }
}
