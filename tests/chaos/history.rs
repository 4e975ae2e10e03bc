//! What the clients have noted, and what Redis holds in the end: all that the checker looks at.

use std::collections::BTreeMap;

use millstream::{
    event::{Body, Event, EventId},
    job::JobId,
};

use crate::support;

/// The kinds of event, by their names in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Started,
    Delta,
    Retrying,
    Done,
    Failed,
    Cancelled,
    Requeued,
    Other,
}

impl Kind {
    const NAMES: [(Self, &'static str); 7] = [
        (Self::Started, "started"),
        (Self::Delta, "delta"),
        (Self::Retrying, "retrying"),
        (Self::Done, "done"),
        (Self::Failed, "failed"),
        (Self::Cancelled, "cancelled"),
        (Self::Requeued, "requeued"),
    ];

    /// Also of a kind that the library of this version knows by its name only.
    pub fn named(name: &str) -> Self {
        Self::NAMES.iter().find(|row| row.1 == name).map_or(Self::Other, |row| row.0)
    }

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|row| row.0 == self).map_or("other", |row| row.1)
    }

    /// Whether it ends a run.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// An event as the checker needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub id: EventId,
    pub kind: Kind,
    /// Of `delta` its text, of `started` its worker, of `retrying` and `failed` the failure's code.
    pub says: Box<str>,
}

impl Step {
    pub fn of(event: &Event) -> Self {
        let says = match &event.body {
            Body::Started(started) => started.worker.clone(),
            Body::Delta(chunk) => chunk.text(),
            Body::Retrying(retrying) => retrying.error.code.to_string(),
            Body::Failed(failed) => failed.error.code.to_string(),
            _ => String::new(),
        };
        Self { id: event.id, kind: Kind::named(event.body.kind()), says: says.into() }
    }
}

/// A span of time, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: u64,
    pub until: u64,
}

impl Span {
    pub fn meets(&self, other: &Self) -> bool {
        self.from <= other.until && other.from <= self.until
    }
}

/// What became of an enqueue, as far as the client that asked for it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fate {
    /// No answer yet, or the answer was lost: the job may exist.
    #[default]
    Unknown,
    /// Acknowledged under these IDs, which must all be the same.
    Acknowledged(Vec<JobId>),
}

/// What the clients did about one job.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The job's own name, its `custom_id`.
    pub name: String,
    pub fate: Fate,
    /// From when to when the enqueue was under way, for each acknowledgement.
    pub promised: Vec<Span>,
    /// The whole text that the model gives.
    pub text: String,
    /// Whether the model never gives it.
    pub hopeless: bool,
    pub requeues: Repeats,
    pub cancels: Repeats,
    pub readers: Vec<Reader>,
}

/// An operation on a job, counted.
#[derive(Debug, Clone, Default)]
pub struct Repeats {
    pub acknowledged: usize,
    /// From when to when each of the acknowledged ones was under way.
    pub when: Vec<Span>,
    /// Asked for, and the answer was lost.
    pub unknown: usize,
}

impl Repeats {
    /// Notes an acknowledgement of what was asked for at `from`.
    pub fn acknowledge(&mut self, from: u64) {
        self.acknowledged += 1;
        self.when.push(Span { from, until: support::now() });
    }

    pub fn add(&mut self, more: Self) {
        self.acknowledged += more.acknowledged;
        self.unknown += more.unknown;
        self.when.extend(more.when);
    }
}

/// One reader, over all its connections.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    pub sessions: Vec<Session>,
    /// Whether its last stream came to its end.
    pub ended: bool,
    /// When it was told that there is no such job, in milliseconds since the epoch.
    pub not_found: Option<u64>,
    /// The highest event that it saw and the server forgot. No event up to it is shown to it later.
    pub forgotten: Option<EventId>,
    /// Whether it came to an end that the server forgot, or was told that there is no such job while the
    /// server had forgotten it.
    pub misled: bool,
    /// Whether it follows a requeue that the server forgot.
    pub undone: bool,
}

impl Reader {
    /// All that it saw and the server did not forget, each with what it saw before it and the server did.
    pub fn steps(&self) -> impl Iterator<Item = (&[Step], &Step)> {
        self.sessions.iter().flat_map(|session| {
            let lost = |at| session.lost.get(&at).map_or(&[][..], Vec::as_slice);
            session.seen.iter().enumerate().map(move |(at, step)| (lost(at), step))
        })
    }
}

/// What a reader saw on one connection.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// The last event that it had seen when it connected.
    pub after: EventId,
    pub seen: Vec<Step>,
    /// When it saw each of them, in milliseconds since the epoch.
    pub when: Vec<u64>,
    /// What it saw and the server forgot, by the place in `seen` before which it saw it.
    pub lost: BTreeMap<usize, Vec<Step>>,
}

/// A job as Redis holds it.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The record's `custom_id`.
    pub name: String,
    pub state: String,
    pub fence: u64,
    pub log: Vec<Step>,
}

/// A dead letter.
#[derive(Debug, Clone)]
pub struct Dead {
    pub id: JobId,
    pub fence: u64,
}

/// Everything that Redis holds when nothing moves any more.
#[derive(Debug, Clone, Default)]
pub struct Finals {
    pub jobs: BTreeMap<JobId, Kept>,
    pub dead: Vec<Dead>,
    /// Entries that still wait, are pending or parked.
    pub unsettled: u64,
}
