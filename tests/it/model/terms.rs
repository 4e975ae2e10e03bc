//! The words in which a case is told: calls to a broker and their answers, with numbers in place of
//! the names that a broker gives.

use millstream::{
    broker::{Refused, Written},
    error::Code,
    job::Lane,
    state::State,
};

/// A job of the case.
pub type JobNo = usize;
/// An entry, in the order in which entries come into lanes.
pub type EntryNo = usize;
/// A worker's incarnation.
pub type WorkerNo = usize;
/// An attempt, in the order in which attempts open.
pub type AttemptNo = usize;
/// A dead letter, in the order in which entries are buried.
pub type LetterNo = usize;

/// What a job asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    pub lane: Lane,
    /// Whether it has an idempotency key.
    pub keyed: bool,
    pub when: When,
    /// Whether its time is over before it begins.
    pub expired: bool,
}

/// When a job may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Now,
    /// A moment after it is enqueued; the moment passes before the next call.
    Soon,
    /// Not during the case.
    Far,
}

/// The time of a parked job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// It has come; the number gives the order.
    Passed(u64),
    /// It does not come during the case.
    Far,
}

/// An entry as a worker was given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    pub entry: EntryNo,
    pub crashed: bool,
    /// How often the entry was given to a worker before.
    pub taking: u32,
}

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    Failed,
    Retry { far: bool },
    Cancelled,
}

/// How a job ends without an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Failed(Code),
    Cancelled,
}

/// Frames of an attempt: deltas from `first`, up to but without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deltas {
    pub first: u64,
    pub end: u64,
}

/// A call, complete: it can be made at any time, by anyone, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Enqueue { job: JobNo, conflicting: bool },
    Promote,
    Read { worker: WorkerNo, lane: Lane, most: usize },
    Pending { worker: WorkerNo },
    Sweep { worker: WorkerNo, ran_out: bool },
    Renew { worker: WorkerNo, entries: Vec<EntryNo> },
    Begin { worker: WorkerNo, delivery: Delivery },
    Append { attempt: AttemptNo, deltas: Deltas },
    Heal { attempt: AttemptNo, deltas: Deltas },
    Conclude { attempt: AttemptNo, deltas: Deltas, end: End },
    Refuse { delivery: Delivery, how: Refusal },
    Remove { entry: EntryNo },
    Park { entry: EntryNo, attempt: u32, due: Due },
    Bury { entry: EntryNo, attempts: u32, fence: u32 },
    Release { worker: WorkerNo, entry: EntryNo, attempt: Option<AttemptNo> },
    Cancel { job: JobNo },
    Unpark { job: JobNo, run: u32 },
    Reopen { letter: LetterNo },
    Requeue { letter: LetterNo, run: u32, fresh: bool },
    Purge { letter: LetterNo },
}

/// What a call is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted {
        parked: bool,
        duplicate: bool,
    },
    Conflict,
    Promoted {
        count: usize,
        more: bool,
    },
    Given {
        deliveries: Vec<Delivery>,
        in_flight: Option<bool>,
    },
    Gone(Vec<EntryNo>),
    Begun(AttemptNo),
    Late,
    Remove,
    Park {
        attempt: u32,
        due: Due,
    },
    Bury {
        attempts: u32,
        fence: u32,
        code: Code,
    },
    Refuse {
        why: Refused,
        attempts: u32,
    },
    Written(Written),
    Settled(bool),
    Cancelled {
        run: u32,
        again: bool,
    },
    Asked {
        worker: WorkerNo,
        again: bool,
    },
    Over(State),
    Unknown,
    Opened {
        run: u32,
        fresh: bool,
    },
    NotDead(State),
    Purged(u64),
    /// What no call should answer.
    Strange(String),
}

/// An event of a job's log. Fences are counted from 1, in the order in which they rose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub fence: u32,
    pub seq: u64,
    pub kind: &'static str,
    /// The text of a delta; of others the attempt, the run and the worker.
    pub note: String,
}

/// A job's record, as far as it can be foretold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub state: State,
    pub run: u32,
    pub fence: u32,
    pub attempt: u32,
    pub failures: u32,
    pub crashes: u32,
    pub worker: Option<WorkerNo>,
    pub cancelling: bool,
    /// Whether its time is still to come, where it has one.
    pub due: Option<bool>,
    pub began: bool,
    pub ended: bool,
    pub error: Option<Code>,
    /// Attempt and reason of each setback.
    pub history: Vec<(u32, Code)>,
}

/// The text that an attempt says in one frame: the same whenever it says it.
pub fn text(job: JobNo, fence: u32, seq: u64) -> String {
    format!("{job}/{fence}/{seq} ")
}
