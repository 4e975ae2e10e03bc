//! Jobs as JSON.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{openai::assemble::Assembly, schemas};
use crate::{
    broker::{Receipt, Record},
    error::Failure,
    event::{Done, EventId},
    job::{JobId, Lane, Timestamp},
    state::State,
};

/// A job that was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// Names the job from now on.
    #[schema(value_type = String, format = "uuid")]
    pub(super) id: JobId,
    /// `job`.
    pub(super) object: &'static str,
    /// `waiting`, or `parked` until its time.
    #[schema(value_type = schemas::StateName)]
    pub(super) state: State,
    /// Whether it was there already, under the same idempotency key; then the state is that of a new one.
    pub(super) duplicate: bool,
    /// Over a WebSocket, which has no headers: that no live worker serves the queue, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) warning: Option<String>,
}

impl From<&Receipt> for Accepted {
    fn from(receipt: &Receipt) -> Self {
        let state = if receipt.parked { State::Parked } else { State::Waiting };
        let (id, duplicate) = (receipt.id, receipt.duplicate);
        Self { id, object: "job", state, duplicate, warning: None }
    }
}

/// Where a job stands. Times are milliseconds since the epoch.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Job {
    #[schema(value_type = String, format = "uuid")]
    id: JobId,
    /// `job`.
    object: &'static str,
    #[schema(value_type = schemas::StateName)]
    state: State,
    /// `null` where the record does not tell: it was added by a plain XADD and has not begun.
    #[schema(required)]
    queue: Option<String>,
    #[schema(value_type = schemas::LaneName)]
    lane: Lane,
    model: String,
    /// Your own name for it.
    #[schema(required)]
    custom_id: Option<String>,
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    labels: Value,
    /// Attempts begun.
    attempt: u32,
    /// Attempts that ended in a failure.
    failures: u32,
    /// Attempts that were lost with their workers.
    crashes: u32,
    /// Which run of the job it is, from 1.
    run: u32,
    /// The worker of the last attempt.
    #[schema(required)]
    worker: Option<String>,
    /// `null` where the record does not tell.
    #[schema(value_type = Option<u64>, required)]
    enqueued_at: Option<Timestamp>,
    /// When it may begin, until it does.
    #[schema(value_type = Option<u64>, required)]
    due: Option<Timestamp>,
    #[schema(value_type = Option<u64>, required)]
    began_at: Option<Timestamp>,
    #[schema(value_type = Option<u64>, required)]
    ended_at: Option<Timestamp>,
    /// Whether it is to be cancelled while it runs.
    cancelling: bool,
    #[schema(required)]
    finish_reason: Option<String>,
    /// As the model counted.
    #[schema(value_type = Option<serde_json::Map<String, Value>>, required)]
    usage: Option<Value>,
    /// Why the last attempt that failed did so.
    #[schema(value_type = Option<schemas::FailureView>, required)]
    error: Option<Failure>,
}

/// Where a job stands, and what its last attempt has said so far.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WholeJob {
    #[serde(flatten)]
    job: Job,
    /// The first choice's text.
    text: String,
    /// Every choice, as in a chat completion.
    #[schema(value_type = Vec<schemas::Choice>)]
    choices: Vec<Value>,
    /// Where to go on reading.
    #[schema(value_type = Option<String>, required, pattern = "^[0-9]+-[0-9]+$")]
    last_event_id: Option<EventId>,
    /// Time from begin to the first delta, in milliseconds, once it is over.
    #[schema(required)]
    ttft_ms: Option<u64>,
    /// Time from begin to the end of the answer, in milliseconds, once it is over.
    #[schema(required)]
    run_ms: Option<u64>,
}

impl Job {
    /// A job as lists show it.
    pub(super) fn brief(record: Record) -> Self {
        Self {
            id: record.id,
            object: "job",
            state: record.state,
            queue: record.partition.map(|partition| partition.queue.to_string()),
            lane: record.lane,
            model: record.model,
            custom_id: record.custom_id,
            labels: serde_json::to_value(record.labels).unwrap_or_default(),
            attempt: record.attempt,
            failures: record.failures,
            crashes: record.crashes,
            run: record.run,
            worker: record.worker,
            enqueued_at: record.enqueued_at,
            due: record.due,
            began_at: record.began_at,
            ended_at: record.ended_at,
            cancelling: record.cancelling,
            finish_reason: record.finish_reason,
            usage: record.usage,
            error: record.error,
        }
    }
}

impl WholeJob {
    /// A job with its answer so far.
    pub(super) fn new(record: Record, answer: &Assembly, done: Option<&Done>) -> Self {
        Self {
            job: Job::brief(record),
            text: answer.text().into_owned(),
            choices: answer.choices(),
            last_event_id: answer.last_event_id(),
            ttft_ms: done.and_then(|done| done.ttft_ms),
            run_ms: done.map(|done| done.run_ms),
        }
    }
}
