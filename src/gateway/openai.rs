//! `/v1/chat/completions`: chat completions as `OpenAI`'s clients ask for them, answered through the queue.
//!
//! A worker's death goes unnoticed as long as nothing was shown, and in answers that do not stream. The
//! protocol cannot take text back: of a stream, what a new attempt says is compared with what was sent, and
//! where it differs the stream ends with an error that names the job. The whole answer is there.

pub(super) mod assemble;
pub(super) mod chunk;
mod field;
mod parts;
mod repeat;
pub(super) mod splice;
mod status;
mod stream;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use serde_json::{Map, Value};
use status::Status;
use tokio::time::Instant;

use self::assemble::Assembly;
use super::{
    abandon::Abandon,
    app::App,
    audit::Trail,
    auth::Caller,
    body::Sent,
    error::{ErrorObject, JOB_HEADER, Refusal},
    jobs,
    options::OnDisconnect,
    presence::{self, with_warning},
    schemas,
    slots::Slot,
};
use crate::{
    broker::{Receipt, Record},
    event::{Body, Event, Failed},
    job::{ChatRequest, Job, JobId, Letter},
    listener, state,
};

/// An answer under way.
struct Asked {
    app: Arc<App>,
    job: JobId,
    model: String,
    /// When the job was enqueued, in seconds since the epoch.
    created: u64,
    /// Cancels the job when it is dropped before the end.
    abandon: Abandon,
    /// Whether the same request finds the same job again.
    keyed: bool,
    /// That no worker serves its queue, where that is so.
    warning: Option<String>,
    /// Who asked: the answer does not outlive the key.
    caller: Arc<Caller>,
    slot: Slot,
}

impl Asked {
    /// The answer's ID, the same however often the job is asked for.
    fn id(&self) -> String {
        format!("chatcmpl-{}", self.job)
    }

    /// Refuses to go on where the key is not in force any more.
    fn is_let_in(&self) -> Result<(), Refusal> {
        if self.app.keys.holds(&self.caller) {
            return Ok(());
        }
        let what = "the API key is not valid any more";
        Err(Refusal {
            should_retry: Some(false),
            ..self.broken(StatusCode::UNAUTHORIZED, "invalid_api_key", what)
        })
    }

    /// A refusal that says where the job can be read.
    fn broken(&self, status: StatusCode, code: &'static str, what: &str) -> Refusal {
        let text = format!("{what}; its job goes on and can be read at /v1/jobs/{}", self.job);
        Refusal { should_retry: Some(self.keyed), ..Refusal::new(status, code, text) }
    }
}

/// How a failed job is answered.
fn refused(failed: &Failed) -> Refusal {
    let Status { http, kind, code, param, message, retry_after, should_retry } = failed.into();
    let status = StatusCode::from_u16(http).unwrap_or(StatusCode::BAD_GATEWAY);
    let error = ErrorObject { message, kind, param, code, retry_after: None };
    let refusal = Refusal { status, error, should_retry: Some(should_retry), headers: None };
    match retry_after {
        Some(wait) => refusal.after(wait),
        None => refusal,
    }
}

/// A chat completion
///
/// As `OpenAI`'s: fields that are not known here go to the model as they are. The answer is that of a job, named
/// by the header `x-millstream-job`. A client that goes away cancels it, unless the request has an idempotency
/// key or the gateway is configured otherwise.
#[utoipa::path(post, path = "/v1/chat/completions", operation_id = "complete_chat", tag = "openai",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 256, nullable = false,
        description = "The same key gives the same answer")),
    request_body(content = schemas::ChatRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "A `chat.completion`, or chunks of one with `\"stream\": true`", content(
            (schemas::Completion = "application/json"), (schemas::ChunkBlock = "text/event-stream"))),
        (status = "4XX", description = "The model's endpoint refuses the request, with this status", body = super::error::ErrorBody),
        (status = 409, description = "The key belongs to another request, or the job was cancelled", body = super::error::ErrorBody),
        (status = 502, description = "The model failed, as often as it was tried", body = super::error::ErrorBody),
        (status = 504, description = "The model, or a worker for it, took too long", body = super::error::ErrorBody)))]
pub(super) async fn complete(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    trail: Trail,
    Sent { caller, body }: Sent,
) -> Result<Response, Refusal> {
    jobs::fits(&app, &body)?;
    let request = read(&body)?;
    // The job takes as much until the broker has it.
    let room = body.into_room();
    let stream = jobs::flag(&request, "stream")?;
    let mut key = jobs::idempotency_key(&headers)?;
    let slot = app.slots.take(&caller.tenant)?;
    if key.is_none() && !app.options.dedupe.is_zero() {
        key = Some(repeat::key(&app, &caller, &request).await?);
    }
    let keyed = key.is_some();
    let lasting = keyed || app.options.on_disconnect == OnDisconnect::Continue;
    let (model, include_usage) = (request.model(), includes_usage(&request));
    // Whoever waits is told of the failure. Where nobody can come for another answer, one is of no use.
    let dead_letter = if lasting { Letter::Retryable } else { Letter::Never };
    let job = Job { stream, idempotency_key: key, dead_letter, ..Job::new(request) };
    let submission = jobs::checked(&app, &caller.tenant, job)?;
    // A client may go away while its job is on the way to the broker, and an answer may be lost.
    trail.about(submission.id);
    let mut abandon = Abandon::new(&app, (!lasting).then_some(submission.id));
    let Receipt { id: job, duplicate, .. } =
        match jobs::submit(&app, &caller.tenant, submission).await {
            Ok(receipt) => {
                trail.did(receipt.id);
                receipt
            }
            Err(refusal) => {
                if refusal.status != StatusCode::SERVICE_UNAVAILABLE {
                    abandon.forgive();
                }
                return Err(refusal);
            }
        };
    // The answer may take minutes.
    drop(room);
    let listen = app.listener.listen(job).owned_by(caller.tenant.clone()).idle_timeout(None);
    let named = [(JOB_HEADER, job.to_string())];
    let following = match app.noticed(listen.open().await) {
        Ok(following) => following,
        Err(refusal) => return Ok((named, refusal).into_response()),
    };
    let created =
        following.record().and_then(|record| record.enqueued_at).map_or(0, |at| at.0 / 1000);
    let from = following.record().filter(|_| duplicate).map_or(0, in_force);
    let waits = following.record().is_some_and(|record| record.state == state::State::Waiting);
    let events = following.events().skip_while(move |event| {
        std::future::ready(event.as_ref().is_ok_and(|event| event.id.fence < from))
    });
    // A job that has begun is in somebody's hands.
    let warning = if waits { presence::warning(&app, &app.options.queue).await } else { None };
    let told = warning.clone();
    let asked = Asked { app, job, model, created, abandon, keyed, warning, caller, slot };
    let answer = if stream {
        stream::streamed(asked, events, include_usage).await
    } else {
        whole(asked, events).await
    };
    Ok(with_warning((named, answer).into_response(), told.as_deref()))
}

/// The least fence of a job's present attempt, or of its next one: what was before, nobody who asks now has
/// seen, and a run that ended before a requeue is no answer.
fn in_force(record: &Record) -> u64 {
    match record.state {
        state::State::Waiting | state::State::Parked => record.fence.saturating_add(1),
        _ => record.fence,
    }
}

/// The request, its faults named by the field.
fn read(body: &[u8]) -> Result<ChatRequest, Refusal> {
    let request: ChatRequest = serde_json::from_slice(body).map_err(|error| {
        let what = if error.is_data() { "not a chat request" } else { "not JSON" };
        Refusal::bad("invalid_json", format!("{what}: {error}"))
    })?;
    request.check().map_err(|error| {
        let text = error.to_string();
        let field =
            ["model", "messages"].into_iter().find(|name| text.contains(&format!("`{name}`")));
        let refusal = Refusal::bad("invalid_request", text);
        match field {
            Some(field) => refusal.at(field),
            None => refusal,
        }
    })?;
    Ok(request)
}

fn includes_usage(request: &ChatRequest) -> bool {
    #[derive(Deserialize)]
    struct Options {
        include_usage: Option<bool>,
    }
    request.get("stream_options").and_then(|Options { include_usage }| include_usage) == Some(true)
}

/// A completion as a response that keeps its slot until the client has read it.
fn handed_out(completion: &Map<String, Value>, mut slot: Slot) -> Response {
    let body = Bytes::from(serde_json::to_vec(completion).unwrap_or_default());
    slot.count(body.len());
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (kind, slot.body(body)).into_response()
}

/// Waits for the end.
async fn whole(
    mut asked: Asked,
    mut events: impl Stream<Item = Result<Event, listener::Error>> + Send + Unpin,
) -> Result<Response, Refusal> {
    let limit = asked.app.options.limits.answer_timeout;
    let deadline = tokio::time::sleep_until(Instant::now() + limit);
    tokio::pin!(deadline);
    let mut answer = Assembly::default();
    let failed: Failed = loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut deadline => {
                asked.abandon.forgive();
                let why = presence::warning(&asked.app, &asked.app.options.queue).await;
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                let what = format!("no answer within {} s{why}", limit.as_secs_f64());
                return Err(asked.broken(StatusCode::GATEWAY_TIMEOUT, "answer_timeout", &what));
            }
            () = asked.app.cutoff.cancelled() => {
                asked.abandon.forgive();
                let what = "the gateway is closing";
                let refusal = asked.broken(StatusCode::SERVICE_UNAVAILABLE, "closing", what);
                return Err(refusal.after(Duration::from_secs(1)));
            }
        };
        let event = match event {
            Some(event) => asked.app.noticed(event)?,
            // It was over, and nothing of it is kept but its key.
            None => return Err(listener::Error::Expired(asked.job).into()),
        };
        if let Err(refusal) = asked.is_let_in() {
            asked.abandon.forgive();
            return Err(refusal);
        }
        answer.push(&event);
        match event.body {
            Body::Done(done) => {
                asked.abandon.forgive();
                let (id, model) = (asked.id(), done.model.as_ref().unwrap_or(&asked.model));
                let usage = done.usage.as_ref();
                let completion = answer.completion(&id, asked.created, model, usage);
                return Ok(handed_out(&completion, asked.slot));
            }
            Body::Failed(failed) => break failed,
            Body::Cancelled(cancelled) => break cancelled.into(),
            _ => {}
        }
    };
    asked.abandon.forgive();
    Err(refused(&failed))
}
