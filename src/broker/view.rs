//! What operators and readers see of jobs, lanes and workers.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{Counted, Partition, Setback};
use crate::{
    error::Failure,
    job::{JobId, Labels, Lane, Tenant, Timestamp},
    state::State,
};

/// A job's record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub state: State,
    /// Its partition, when the record tells.
    pub partition: Option<Partition>,
    /// Its lane.
    pub lane: Lane,
    /// Its owner. A record that does not tell whose it is belongs to nobody.
    pub tenant: Option<Tenant>,
    /// The model it asks for.
    pub model: String,
    /// The caller's own name for it.
    pub custom_id: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// Attempts begun.
    pub attempt: u32,
    /// Attempts that ended in a failure.
    pub failures: u32,
    /// Attempts that were lost with their workers.
    pub crashes: u32,
    /// Which run of the job it is, from 1.
    pub run: u32,
    /// The highest fence so far; 0 before the first attempt.
    pub fence: u64,
    /// The worker of the last attempt.
    pub worker: Option<String>,
    /// When it was enqueued, where the record tells.
    pub enqueued_at: Option<Timestamp>,
    /// When it may begin, until it does: its schedule, or the time of its next attempt.
    pub due: Option<Timestamp>,
    /// When its last attempt began.
    pub began_at: Option<Timestamp>,
    /// Whether it is to be cancelled while its attempt runs.
    pub cancelling: bool,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why the model stopped.
    pub finish_reason: Option<String>,
    /// The model's own count.
    pub usage: Option<Value>,
    /// Why the last failed attempt failed.
    pub error: Option<Failure>,
    /// The attempts of this run that came to nothing; the oldest go first where there are many.
    pub history: Vec<Setback>,
}

impl Record {
    /// Whether this tenant owns the job.
    pub fn is_of(&self, tenant: &Tenant) -> bool {
        self.tenant.as_ref() == Some(tenant)
    }

    /// Whether an entry of this `run` is owed nothing but its removal: the run is over, or one before
    /// the job's last.
    pub fn has_done_with(&self, run: u32) -> bool {
        let over = matches!(self.state, State::Done | State::Cancelled);
        self.run > run || (self.run == run && over)
    }
}

/// How much is where in a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Depth {
    /// By lane, in the order of [`Lane::ALL`].
    pub lanes: [LaneDepth; 3],
    /// Parked jobs.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// Dead letters dropped so far because there were too many, or too old ones.
    pub dropped: u64,
    /// Entries found deleted so far while workers held them: jobs that may never end.
    pub lost_entries: u64,
    /// What counts against the queue's limits.
    pub load: Counted,
}

/// How much is where in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LaneDepth {
    /// Entries that no worker has.
    pub waiting: u64,
    /// Entries in workers' hands.
    pub pending: u64,
}

/// A worker, as a partition's consumer group saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerSeen {
    /// Its incarnation.
    pub id: String,
    /// Entries in its hands.
    pub pending: u64,
    /// Time since it last read, or since it was last given an entry: servers differ in whether a
    /// blocking read that brings nothing counts.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Whether it hears what it is told, which it does for as long as it lives.
    pub listens: bool,
}

impl WorkerSeen {
    /// A worker that is not heard of otherwise is taken to live for this time after it has read: its
    /// subscription may just be made, or be made anew.
    const GRACE: Duration = Duration::from_secs(45);

    /// Whether it lives, as far as the broker can tell.
    pub fn is_live(&self) -> bool {
        self.listens || self.idle < Self::GRACE
    }
}
