//! Shapes that are passed through and never read whole: here for the description only.

#![allow(dead_code, reason = "they describe")]

mod events;

use std::collections::BTreeMap;

pub(super) use events::{EventBlock, EventView};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Ref, RefOr, Schema,
        schema::{
            AllOfBuilder, AnyOfBuilder, ArrayBuilder, KnownFormat, ObjectBuilder, OneOfBuilder,
            SchemaFormat, Type,
        },
    },
};

/// What `POST /v1/jobs` takes: one job, or an array of jobs.
pub(super) struct Submitted;

impl PartialSchema for Submitted {
    fn schema() -> RefOr<Schema> {
        let text = "Several jobs, at most gateway.limits.max_bulk (1,000). Each is taken or refused by itself.";
        let several = ArrayBuilder::new().items(Ref::from_schema_name("OneJob"));
        let several = several.min_items(Some(1)).description(Some(text));
        OneOfBuilder::new().item(Ref::from_schema_name("OneJob")).item(several).into()
    }
}

impl ToSchema for Submitted {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((OneJob::name().into_owned(), OneJob::schema()));
        OneJob::schemas(schemas);
    }
}

/// One job.
struct OneJob;

impl PartialSchema for OneJob {
    fn schema() -> RefOr<Schema> {
        let text = "A job in one of three forms. A field `request` makes it an envelope, a field `body` a line of a \
                    Batch file; anything else is a chat request.";
        // Not `oneOf`: what a chat request may hold beside its own fields has no bounds.
        let forms = AnyOfBuilder::new().description(Some(text));
        let forms = forms.item(Ref::from_schema_name("Envelope"));
        let forms = forms.item(Ref::from_schema_name("BatchLine"));
        let flat = AllOfBuilder::new().item(Ref::from_schema_name("ChatRequest"));
        forms.item(flat.item(ObjectBuilder::new().property_names(Some(no_option())))).into()
    }
}

/// A field's name that is no option of the job: an option beside `messages` is refused.
fn no_option() -> ObjectBuilder {
    let options: Vec<&str> = crate::job::options().collect();
    let pattern = format!("^(?!({})$)", options.join("|"));
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern))
}

impl ToSchema for OneJob {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        for (name, schema) in [
            (Envelope::name(), Envelope::schema()),
            (BatchLine::name(), BatchLine::schema()),
            (ChatRequest::name(), ChatRequest::schema()),
        ] {
            schemas.push((name.into_owned(), schema));
        }
        Envelope::schemas(schemas);
        BatchLine::schemas(schemas);
    }
}

/// A chat request with everything that decides where and how it runs. Numbers are whole, and written without a
/// fraction.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "request": {"model": "any", "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    "lane": "high", "labels": {"conversation": "c-17"}, "max_attempts": 3
}))]
pub(super) struct Envelope {
    request: ChatRequest,
    /// The queue it waits in: the gateway's own, which `default` means too, or another that it serves.
    #[schema(pattern = "^[A-Za-z0-9_.@-]{1,64}$", nullable = false, example = "default")]
    queue: Option<String>,
    /// Its priority within the queue; `normal` unless given.
    #[schema(nullable = false)]
    lane: Option<LaneName>,
    /// Your own tenant, or `default`, which means the same; better left out.
    #[schema(pattern = "^[A-Za-z0-9_.@-]{1,64}$", nullable = false, example = "default")]
    tenant: Option<String>,
    /// The same key gives the same job. At most 256 bytes.
    #[schema(min_length = 1, max_length = 256, example = "invoice-7")]
    idempotency_key: Option<String>,
    /// Your own name for the job, echoed in its result. At most 256 bytes.
    #[schema(min_length = 1, max_length = 256)]
    custom_id: Option<String>,
    #[schema(schema_with = labels)]
    labels: Option<BTreeMap<String, String>>,
    /// Not to be run before this time.
    not_before: Option<Time>,
    /// Not to be begun after this time, but failed as `expired`. Later than `not_before`.
    expires_at: Option<Time>,
    /// Longest time one attempt may take, in milliseconds.
    #[schema(minimum = 1, example = 60_000)]
    deadline_ms: Option<u64>,
    /// Most attempts that may fail.
    #[schema(minimum = 1, maximum = 100)]
    max_attempts: Option<u32>,
    /// Whether chunks are published while the model speaks; true unless given.
    #[schema(nullable = false)]
    stream: Option<bool>,
    /// Whether it becomes a dead letter when it fails, which an operator can put back; `always` unless given.
    #[schema(nullable = false)]
    dead_letter: Option<LetterName>,
}

fn labels() -> ObjectBuilder {
    let value = ObjectBuilder::new().schema_type(Type::String).max_length(Some(256));
    let text =
        "Free labels, echoed in the result: names of 1 to 64 bytes, values of up to 256 bytes.";
    let labels = ObjectBuilder::new().description(Some(text)).max_properties(Some(16));
    labels.additional_properties(Some(RefOr::T(Schema::Object(value.build()))))
}

/// A time, to the millisecond.
#[derive(Deserialize)]
pub(super) struct Time(#[allow(unused)] crate::job::Timestamp);

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let last = crate::job::Timestamp::MAX.0 as f64;
        let number = ObjectBuilder::new().schema_type(Type::Integer);
        let number = number.minimum(Some(0.0)).maximum(Some(last));
        let date = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        let text = ObjectBuilder::new().schema_type(Type::String).format(Some(date));
        let either = "Milliseconds since the epoch, or RFC 3339 such as `2026-11-21T08:00:00Z`.";
        OneOfBuilder::new().description(Some(either)).item(number).item(text).into()
    }
}

impl ToSchema for Time {}

/// A line of an `OpenAI` Batch input file.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions",
    "body": {"model": "any", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
}))]
pub(super) struct BatchLine {
    body: ChatRequest,
    /// Your own name for the job, echoed in its result. At most 256 bytes.
    #[schema(min_length = 1, max_length = 256)]
    custom_id: Option<String>,
    url: Option<BatchUrl>,
    method: Option<BatchMethod>,
}

/// How a Batch line may ask.
#[derive(Deserialize, ToSchema)]
pub(super) enum BatchMethod {
    #[serde(rename = "POST")]
    Post,
}

/// What a Batch line may ask for.
#[derive(Deserialize, ToSchema)]
pub(super) enum BatchUrl {
    #[serde(rename = "/v1/chat/completions")]
    ChatCompletions,
}

/// A priority.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LaneName {
    High,
    Normal,
    Low,
}

/// Whether a job that fails becomes a dead letter: `retryable` where another try may help.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LetterName {
    Always,
    Retryable,
    Never,
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

/// A chat request, as `OpenAI` describes it. Every other field (`n`, `tools`, `temperature`,
/// `stream_options`, those of a vendor) goes to the model as it is.
#[derive(Deserialize, ToSchema)]
#[schema(example = json!({"model": "any", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}))]
pub(super) struct ChatRequest {
    /// The model's name. At most 256 bytes.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    /// The conversation.
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Whether the answer comes in chunks. Jobs are told by their envelope, and do not look at it.
    stream: Option<bool>,
}

/// One message of a conversation. Its other fields are the model's to judge.
#[derive(Deserialize, ToSchema)]
pub(super) struct Message {
    /// Who speaks, such as `user`.
    role: String,
    /// Text, or parts.
    content: Option<Value>,
}

/// A `chat.completion`, as `OpenAI` describes it, with whatever else the model said.
#[derive(ToSchema)]
pub(super) struct Completion {
    /// `chatcmpl-` and the job's ID.
    #[schema(pattern = "^chatcmpl-")]
    id: String,
    /// `chat.completion`.
    #[schema(pattern = "^chat\\.completion$")]
    object: String,
    /// When the job was enqueued, in seconds since the epoch.
    created: u64,
    /// The model that answered.
    model: String,
    choices: Vec<Choice>,
    /// As the model counted.
    usage: Option<Map<String, Value>>,
}

/// One of a completion's answers.
#[derive(ToSchema)]
pub(super) struct Choice {
    /// Its place, from 0.
    index: u32,
    message: Said,
    /// As the model gave them.
    #[schema(required)]
    logprobs: Option<Map<String, Value>>,
    /// `stop`, `length`, `tool_calls` or what else the model says; null until it has ended.
    #[schema(required)]
    finish_reason: Option<String>,
}

/// What the model said, with fields of its own.
#[derive(ToSchema)]
pub(super) struct Said {
    /// `assistant`.
    role: String,
    /// The text; null where there is none.
    #[schema(required)]
    content: Option<String>,
    /// Functions that are to be called.
    #[schema(nullable = false)]
    tool_calls: Option<Vec<Map<String, Value>>>,
}

/// One block of a streamed chat completion. Lines that begin with a colon are comments.
#[derive(ToSchema)]
pub(super) struct ChunkBlock {
    /// A `chat.completion.chunk` as JSON, at the end `[DONE]`. Where the answer breaks off, `{"error": …}` in place
    /// of `[DONE]`.
    data: String,
}

/// Why an attempt, or a job, failed.
#[derive(ToSchema)]
pub(super) struct FailureView {
    /// A name that does not change, such as `upstream_error`; docs/HTTP.md lists them.
    code: String,
    /// One line for a person.
    message: String,
    /// The upstream's HTTP status, where there was one.
    #[schema(nullable = false)]
    status: Option<u16>,
    /// How long the upstream asked to wait, in milliseconds.
    #[schema(nullable = false)]
    retry_after_ms: Option<u64>,
    /// The upstream's own name for it, where it refuses the request, such as `context_length_exceeded`.
    #[schema(nullable = false)]
    reason: Option<String>,
    /// The field of the request that the upstream finds at fault.
    #[schema(nullable = false)]
    param: Option<String>,
}
