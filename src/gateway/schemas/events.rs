//! Events, each kind with its own data, as JSON and as blocks of a stream.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Discriminator, Ref, RefOr, Schema,
        schema::{ObjectBuilder, OneOfBuilder, SchemaType, Type},
    },
};

use super::FailureView;

/// An attempt begins: text seen so far is to be discarded.
#[derive(ToSchema)]
struct StartedData {
    /// Counted from 1.
    attempt: u32,
    /// The worker that runs it.
    worker: String,
}

/// What the choices said next.
#[derive(ToSchema)]
struct DeltaData {
    choices: Vec<Piece>,
    /// Fields of the model's chunks beside the choices, such as `system_fingerprint`.
    #[schema(nullable = false)]
    extra: Option<Map<String, Value>>,
}

/// What one choice said next, with whatever else the model said of it, such as `logprobs`.
#[derive(ToSchema)]
struct Piece {
    /// The choice, from 0.
    index: u32,
    /// As the model sent it: `content`, `tool_calls` and the like.
    delta: Map<String, Value>,
    /// Why the model stopped, on the choice's last piece.
    #[schema(nullable = false)]
    finish_reason: Option<String>,
}

/// An attempt failed; another follows.
#[derive(ToSchema)]
struct RetryingData {
    error: FailureView,
    /// The attempt that failed, from 1.
    attempt: u32,
    /// How long the job is parked, in milliseconds.
    delay_ms: u64,
}

/// The answer is whole.
#[derive(ToSchema)]
struct DoneData {
    /// Why the model stopped, for the first choice.
    #[schema(required)]
    finish_reason: Option<String>,
    /// As the model counted.
    usage: Option<Map<String, Value>>,
    /// The model that answered, as it names itself.
    #[schema(nullable = false)]
    model: Option<String>,
    /// The model's own ID of the answer.
    #[schema(nullable = false)]
    upstream_id: Option<String>,
    /// Attempts used, from 1.
    attempts: u32,
    /// Time from begin to the first delta, in milliseconds.
    #[schema(nullable = false)]
    ttft_ms: Option<u64>,
    /// Time from begin to the end of the answer, in milliseconds.
    run_ms: u64,
    /// In milliseconds since the epoch.
    enqueued_at: u64,
    /// Your own name for the job.
    #[schema(nullable = false)]
    custom_id: Option<String>,
    #[schema(nullable = false)]
    labels: Option<BTreeMap<String, String>>,
}

/// The job will not be tried again.
#[derive(ToSchema)]
struct FailedData {
    error: FailureView,
    /// Attempts used; 0 when none began.
    attempts: u32,
    /// Your own name for the job.
    #[schema(nullable = false)]
    custom_id: Option<String>,
    #[schema(nullable = false)]
    labels: Option<BTreeMap<String, String>>,
}

/// The job was cancelled; its text stands.
#[derive(ToSchema)]
struct CancelledData {
    /// Attempts begun.
    attempts: u32,
    /// As far as the model counted.
    usage: Option<Map<String, Value>>,
    /// Your own name for the job.
    #[schema(nullable = false)]
    custom_id: Option<String>,
    #[schema(nullable = false)]
    labels: Option<BTreeMap<String, String>>,
}

/// A failed job was put back.
#[derive(ToSchema)]
struct RequeuedData {
    /// Which run of the job begins, from 2.
    run: u32,
}

/// The gateway shuts down: come back at once.
#[derive(ToSchema)]
struct ReconnectData {
    /// `shutdown`.
    reason: String,
}

/// The stream cannot go on: come back.
#[derive(ToSchema)]
struct InterruptedData {
    /// A name that does not change.
    code: String,
    /// One line for a person.
    message: String,
}

type Named = (&'static str, Cow<'static, str>, RefOr<Schema>);

/// The events of a job, and the schema of their data.
fn kinds() -> Vec<Named> {
    vec![
        ("started", StartedData::name(), StartedData::schema()),
        ("delta", DeltaData::name(), DeltaData::schema()),
        ("retrying", RetryingData::name(), RetryingData::schema()),
        ("done", DoneData::name(), DoneData::schema()),
        ("failed", FailedData::name(), FailedData::schema()),
        ("cancelled", CancelledData::name(), CancelledData::schema()),
        ("requeued", RequeuedData::name(), RequeuedData::schema()),
    ]
}

/// What a stream says beside them.
fn passing() -> [Named; 2] {
    [
        ("reconnect", ReconnectData::name(), ReconnectData::schema()),
        ("interrupted", InterruptedData::name(), InterruptedData::schema()),
    ]
}

/// `started` and `Event`: `StartedEvent`.
fn title(kind: &str, what: &str) -> String {
    let (first, rest) = kind.split_at(1);
    format!("{}{rest}{what}", first.to_uppercase())
}

/// One of several objects, told apart by `event`.
fn choice<'a>(kinds: impl Iterator<Item = &'a str>, what: &str, text: &str) -> RefOr<Schema> {
    let mut choice = OneOfBuilder::new().description(Some(text));
    let mut told = Discriminator::new("event");
    for kind in kinds {
        let name = title(kind, what);
        told.mapping.insert(kind.to_owned(), format!("#/components/schemas/{name}"));
        choice = choice.item(Ref::from_schema_name(name));
    }
    choice.discriminator(Some(told)).into()
}

/// An object with this `event`, and an ID where it is the job's.
fn object(kind: &str, has_id: bool) -> ObjectBuilder {
    let id = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]+-[0-9]+$"));
    let id = id.description(Some("`FENCE-SEQ`: the cursor to resume from."));
    let name = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([kind]));
    let mut object = ObjectBuilder::new().schema_type(SchemaType::new(Type::Object));
    if has_id {
        object = object.property("id", id).required("id");
    }
    object.property("event", name).required("event")
}

/// One step of a job's history.
pub(in crate::gateway) struct EventView;

impl PartialSchema for EventView {
    fn schema() -> RefOr<Schema> {
        let kinds = kinds();
        let names = kinds.iter().map(|(kind, ..)| *kind);
        choice(names, "Event", "One step of a job's history; `data` is as `event` says.")
    }
}

impl ToSchema for EventView {
    fn name() -> Cow<'static, str> {
        "Event".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        for (kind, name, data) in kinds() {
            let event = object(kind, true).property("data", Ref::from_schema_name(&*name));
            schemas.push((title(kind, "Event"), event.required("data").into()));
            schemas.push((name.into_owned(), data));
        }
        schemas.push((Piece::name().into_owned(), Piece::schema()));
        schemas.push((FailureView::name().into_owned(), FailureView::schema()));
    }
}

/// One block of a job's events.
pub(in crate::gateway) struct EventBlock;

impl PartialSchema for EventBlock {
    fn schema() -> RefOr<Schema> {
        let (kinds, passing) = (kinds(), passing());
        let names = kinds.iter().chain(&passing).map(|(kind, ..)| *kind);
        let text = "One block of a job's events. Lines that begin with a colon are comments. `reconnect` and \
                    `interrupted` are no events of the job: the stream ends, and can be resumed.";
        choice(names, "Block", text)
    }
}

impl ToSchema for EventBlock {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        EventView::schemas(schemas);
        let passing = passing();
        for (_, name, data) in &passing {
            schemas.push((name.clone().into_owned(), data.clone()));
        }
        for (kind, name, _) in kinds().iter().chain(&passing) {
            let is_passing = passing.iter().any(|(other, ..)| other == kind);
            let data = ObjectBuilder::new()
                .schema_type(Type::String)
                .content_media_type("application/json")
                .content_schema(Some(Ref::from_schema_name(&**name)));
            let mut block = object(kind, !is_passing).property("data", data).required("data");
            if is_passing {
                let retry = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0.0));
                let text = "How soon to come back, in milliseconds.";
                block = block.property("retry", retry.description(Some(text)));
            }
            schemas.push((title(kind, "Block"), block.into()));
        }
    }
}
