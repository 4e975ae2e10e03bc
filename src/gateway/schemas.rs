//! Shapes that are passed through and never read whole: here for the description only.

#![allow(dead_code, reason = "they describe")]

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What `POST /v1/jobs` takes.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Submitted {
    /// A job with its options.
    Envelope(Envelope),
    /// A bare chat request.
    Request(ChatRequest),
    /// Several jobs.
    Many(Vec<OneOfMany>),
}

/// One job of several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum OneOfMany {
    /// A job with its options.
    Envelope(Envelope),
    /// A bare chat request.
    Request(ChatRequest),
}

/// A job with its options.
#[derive(Deserialize, ToSchema)]
pub(super) struct Envelope {
    request: ChatRequest,
    /// The queue it waits in.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    queue: Option<String>,
    lane: Option<LaneName>,
    /// The same key gives the same job.
    #[schema(min_length = 1, max_length = 64)]
    idempotency_key: Option<String>,
    /// Your own name for the job, echoed in its result.
    #[schema(min_length = 1, max_length = 64)]
    custom_id: Option<String>,
    /// Most attempts that may fail.
    #[schema(minimum = 1, maximum = 100)]
    max_attempts: Option<u32>,
    /// Longest time one attempt may take, in milliseconds.
    #[schema(minimum = 1)]
    deadline_ms: Option<u64>,
    /// Whether chunks are published while the model speaks.
    stream: Option<bool>,
}

/// A priority.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LaneName {
    High,
    Normal,
    Low,
}

/// A state.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StateName {
    Waiting,
    Parked,
    Running,
    Done,
    Failed,
    Cancelled,
}

/// A chat request, as `OpenAI` describes it; other fields go to the model as they are.
#[derive(Deserialize, ToSchema)]
pub(super) struct ChatRequest {
    /// The model's name.
    #[schema(min_length = 1)]
    model: String,
    /// The conversation.
    #[schema(min_items = 1)]
    messages: Vec<Map<String, Value>>,
    /// Whether the answer comes in chunks.
    stream: Option<bool>,
}

/// A `chat.completion`, as `OpenAI` describes it.
#[derive(ToSchema)]
pub(super) struct Completion {
    /// The same however often the job is asked for.
    id: String,
    /// `chat.completion`.
    object: String,
    /// When the job was enqueued, in seconds since the epoch.
    created: u64,
    /// The model that answered.
    model: String,
    choices: Vec<Map<String, Value>>,
    usage: Option<Map<String, Value>>,
}
