//! What the ports are asked for, and what they answer.

use std::time::Duration;

use super::{Attempt, Entry, Place, Record};
use crate::{
    error::Failure,
    event::{Event, Stored},
    job::{JobId, Timestamp},
};

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

/// What a worker is to do with an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Begin {
    /// The attempt is open: run it.
    Begun(Attempt),
    /// The job's run is over, or another entry carries it: remove this entry.
    Remove,
    /// The last attempt asked for a retry and its entry was not parked, or the job's time has not come:
    /// park it until then.
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
    /// Nothing was done: the entry was taken again since, or the attempt of this taking is over. It is
    /// somebody else's, or will be.
    Late,
    /// It has been lost with its workers before: ask again with [`Crashes::alone`], once no other such
    /// job runs beside it.
    Alone,
    /// Nothing was done: the entry names a job of another tenant, or cannot be read and does not know when
    /// the job that it names was enqueued. It is refused as a job of its own
    /// ([`Entry::disown`](super::Entry::disown)). Where that one is another's, too, the entry is buried, and
    /// no record is touched.
    Foreign,
    /// Nothing was done: the job is in a state that this version does not know. A worker of a newer version
    /// knows it; the entry is left to it.
    Newer {
        /// The state.
        state: String,
    },
    /// Nothing was done: the session is over in which the worker was given the entry
    /// ([`Entry::session`](super::Entry::session)), and the broker may have forgotten the entry. Renew its
    /// lease, and ask again where it is still there.
    Stale,
    /// No attempt may open: end the job with [`Settle::refuse`](super::Settle::refuse).
    Refuse {
        /// Why.
        why: Refused,
        /// Attempts made.
        attempts: u32,
    },
}

/// How a worker deals with jobs that were lost with their workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crashes {
    /// A job that was lost so often is refused.
    pub most: u32,
    /// Whether no other job that was lost more than once runs beside it.
    pub alone: bool,
}

/// Why no attempt may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It was to be cancelled, and the worker that ran it did not see to it.
    Cancelled,
    /// It had not begun when its time was over.
    Expired,
    /// So many attempts were lost with their workers.
    Poison {
        /// How many.
        crashes: u32,
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

/// What a renewal found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Entries that are not this worker's any more: settled, or another's.
    pub gone: Vec<Place>,
    /// Entries that somebody deleted while their jobs run.
    pub lost: u64,
}

/// What a sweep looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweep {
    /// How long an entry stays with a worker that does not renew it.
    pub lease: Duration,
    /// Most entries to take over.
    pub most: usize,
    /// Whether to tell if anything is in flight.
    pub ask: bool,
    /// An entry delivered more often than this is not parsed: it becomes a dead letter. One delivered
    /// half as often is suspect, and the only one that is taken from its lane.
    pub deliveries: u32,
}

/// What a sweep found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Swept {
    /// Entries that are this worker's now.
    pub entries: Vec<Entry>,
    /// Whether any entry is in a worker's hands; `None` when that was not asked.
    pub in_flight: Option<bool>,
    /// Entries that somebody deleted while a worker held them: jobs that may never end.
    pub lost: u64,
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
    /// Its owner does not want it any more.
    Cancelled {
        /// The model's own count as far as it came, as JSON.
        usage: Option<String>,
    },
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
    /// The log's last event is not the one before these frames: read [`Log::last`](super::Log::last).
    Behind,
    /// The log is gone: rebuild it with [`Log::heal`](super::Log::heal).
    Missing,
    /// Nothing was written: the job is to be cancelled. Only [`Outcome::Cancelled`] may end it.
    Cancelled,
}

/// What became of an entry that is to be parked or buried, or of a parked job that is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was there, and is where it belongs.
    Yes,
    /// It was gone: nothing has changed.
    Gone,
    /// The session is over, and the broker may have forgotten why this is to be done: ask again what
    /// is owed.
    Stale,
}

impl From<bool> for Settled {
    /// From whether the entry was there.
    fn from(there: bool) -> Self {
        if there { Self::Yes } else { Self::Gone }
    }
}

/// How a job ends without an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// It fails.
    Failed(Failure),
    /// It is cancelled.
    Cancelled,
}

/// What a reader finds when it opens a job's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Where the job stood just before the events were read.
    pub record: Option<Record>,
    /// The first page of events after the cursor.
    pub page: Page,
}

/// How much of a log is read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Most events.
    pub events: usize,
    /// Most bytes, by [`Stored::weight`]; the first event may have more.
    pub bytes: usize,
}

impl Window {
    /// So many events, however large they are.
    pub const fn of(events: usize) -> Self {
        Self { events, bytes: usize::MAX }
    }
}

/// Some of a log's events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// In order, as they lie there.
    pub events: Vec<Stored>,
    /// The log had more than the window.
    pub more: bool,
}

impl Page {
    /// The events of a window. The caller reads as many as the window asks for, where there may be more.
    pub(super) fn of(mut events: Vec<Stored>, window: Window) -> Self {
        let mut bytes = 0usize;
        let mut within = |event: &Stored| {
            bytes = bytes.saturating_add(event.weight());
            bytes <= window.bytes
        };
        let fit = events.iter().take_while(|event| within(event)).count().max(1);
        let more = fit < events.len() || events.len() >= window.events;
        events.truncate(fit);
        Self { events, more }
    }

    /// The bytes that it takes, roughly.
    pub fn weight(&self) -> usize {
        self.events.iter().map(Stored::weight).sum()
    }

    /// The events, read.
    pub fn decode(&self) -> Vec<Event> {
        self.events.iter().map(Stored::decode).collect()
    }
}
