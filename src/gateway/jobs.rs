//! `/v1/jobs`.

mod array;
pub(super) mod list;
mod sound;
pub(super) mod token;

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Reply,
    extract::{OriginalUri, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
pub(super) use sound::{fits, flag};
use utoipa::ToSchema;

use super::{
    app::App,
    audit::Trail,
    auth::{Known, Right},
    body::Sent,
    cache::{Answer, Guard, Key},
    error::{JOB_HEADER, Refusal},
    openai::assemble::Assembly,
    params::{JobAt, JobReader},
    presence::{self, with_warning},
    schemas, view,
};
use crate::{
    admin::Cancelled,
    broker::{Receipt, Record, Submission, Topic, Window},
    event::{Body, EventId},
    job::{Job, JobId, QueueName, Tenant, Timestamp},
    state::State as JobState,
};

/// How much of a log is read at once.
const PAGE: Window = Window { events: 256, bytes: 64 * 1024 };

/// Enqueue one job, or an array of jobs
///
/// A job is a chat request, an envelope around one (`{"request": …, "queue": …, "lane": …}`), or a line of
/// an `OpenAI` Batch file. Of an array each job is taken or refused by itself.
#[utoipa::path(post, path = "/v1/jobs", operation_id = "enqueue", tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 256, nullable = false,
        description = "The same key gives the same job; of an array, each job names its own")),
    request_body(content = schemas::Submitted, content_type = "application/json"),
    responses(
        (status = 202, description = "One job was taken", body = view::Accepted,
            headers(("location" = String, description = "The job")),
            links(
                ("show" = (operation_id = "show_job", parameters(("id" = "$response.body#/id")))),
                ("events" = (operation_id = "job_events", parameters(("id" = "$response.body#/id")))),
                ("cancel" = (operation_id = "cancel_job", parameters(("id" = "$response.body#/id")))),
                ("token" = (operation_id = "job_token", parameters(("id" = "$response.body#/id")))))),
        (status = 200, description = "Of an array: what became of each job", body = array::Bulk),
        (status = 404, description = "There is no such model", body = super::error::ErrorBody),
        (status = 409, description = "The idempotency key belongs to another request", body = super::error::ErrorBody)))]
pub(super) async fn enqueue(
    State(app): State<Arc<App>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    trail: Trail,
    Sent { caller, body }: Sent,
) -> Result<Response, Refusal> {
    let key = idempotency_key(&headers)?;
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        if key.is_some() {
            let text = "Idempotency-Key names one job; give each job of an array its own `idempotency_key`";
            return Err(Refusal::param("Idempotency-Key", text));
        }
        return array::enqueue(&app, &caller.tenant, &body, &trail).await;
    }
    let submission = submission(&app, &caller.tenant, &body, key)?;
    let queue = submission.partition.queue.clone();
    trail.about(submission.id);
    let receipt = submit(&app, &caller.tenant, submission).await?;
    trail.did(receipt.id);
    let accepted = view::Accepted::from(&receipt);
    let named = [
        (header::LOCATION, app.link(uri.path(), &format!("/v1/jobs/{}", receipt.id))),
        (JOB_HEADER, receipt.id.to_string()),
    ];
    let response = (StatusCode::ACCEPTED, named, Reply(accepted)).into_response();
    Ok(with_warning(response, presence::warning(&app, &queue).await.as_deref()))
}

/// The header's value.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value
        .to_str()
        .map_err(|_| Refusal::param("Idempotency-Key", "Idempotency-Key is not ASCII text"))?;
    Ok(Some(text.to_owned()))
}

/// A job of a request, checked.
pub(super) fn submission(
    app: &App,
    tenant: &Tenant,
    body: &[u8],
    key: Option<String>,
) -> Result<Submission, Refusal> {
    fits(app, body)?;
    let mut job = Job::parse_strict(body)?;
    match (&job.idempotency_key, key) {
        (Some(own), Some(header)) if *own != header => {
            let text =
                "the job's idempotency_key and the header Idempotency-Key differ; send one of them";
            return Err(Refusal::param("Idempotency-Key", text));
        }
        (None, Some(header)) => job.idempotency_key = Some(header),
        _ => {}
    }
    checked(app, tenant, job)
}

/// A job made this tenant's own, and checked.
pub(super) fn checked(app: &App, tenant: &Tenant, mut job: Job) -> Result<Submission, Refusal> {
    if job.tenant != Tenant::default() && job.tenant != *tenant {
        let text = format!(
            "tenant is `{}`; jobs of this API key are `{tenant}`'s: leave it out",
            job.tenant
        );
        return Err(Refusal::param("tenant", text));
    }
    job.tenant = tenant.clone();
    if job.queue == QueueName::default() {
        job.queue = app.options.queue.clone();
    }
    if job.queue != app.options.queue && !app.options.queues.contains(&job.queue) {
        let text = format!(
            "queue is `{}`; this gateway takes jobs for `{}` and what gateway.queues lists",
            job.queue, app.options.queue
        );
        return Err(Refusal::param("queue", text));
    }
    sound::sound(&job.request)?;
    let (model, models) = (job.request.model(), &app.options.models);
    if !models.is_empty() && !models.contains(&model) {
        let text = format!("there is no model `{model}`; GET /v1/models lists those there are");
        return Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", text).at("model"));
    }
    Ok(app.producer.check(job, Timestamp::now())?)
}

/// Enqueues a job and notes it among its tenant's.
pub(super) async fn submit(
    app: &App,
    tenant: &Tenant,
    submission: Submission,
) -> Result<Receipt, Refusal> {
    let id = submission.id;
    let missing = || Err(crate::broker::Error::Protocol("no answer for the job".to_owned()));
    let result = app.producer.submit(&[submission]).await.pop().unwrap_or_else(missing);
    if let Ok(Receipt { duplicate: false, .. }) = result
        && let Err(error) = app.broker.note(tenant, &[(id, Timestamp::now())]).await
    {
        tracing::debug!(%error, "job not noted among its tenant's");
    }
    app.noticed(result)
}

/// Where a job stands, and what it has said so far
///
/// The text and the choices are those of the last attempt; `last_event_id` is the cursor to go on from.
#[utoipa::path(get, path = "/v1/jobs/{id}", operation_id = "show_job", tag = "jobs", params(JobAt),
    security(("key" = []), ("header" = []), ("token" = [])),
    responses((status = 200, description = "The job", body = view::WholeJob), (status = 304, description = "As the ETag says")))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    JobReader { id, caller, token }: JobReader,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let tenant = caller.tenant.clone();
    let slot = app.slots.take_with(&tenant, token.as_deref())?;
    let key = Key::Job(tenant.clone(), id);
    let answer = app.cache.get(key, &app.counters, look(&app, &tenant, id)).await?;
    let named = [(JOB_HEADER, id.to_string())];
    Ok((named, answer.respond_within(slot, &headers)?).into_response())
}

/// A job of this tenant.
pub(super) async fn record(app: &App, tenant: &Tenant, id: JobId) -> Result<Record, Refusal> {
    let record = app.noticed(app.broker.job_for(tenant, id).await)?;
    record.ok_or_else(|| Refusal::no_job(id))
}

/// A job and its log. One that is over is watched before it is read, so that no change escapes.
async fn look(app: &App, tenant: &Tenant, id: JobId) -> Result<Answer, Refusal> {
    let mut record = self::record(app, tenant, id).await?;
    let mut guard = None;
    let mut lifetime = Duration::ZERO;
    if record.state.is_terminal() {
        guard = Guard::on(app.listener.hub().subscribe(Topic::Job(id))).await;
        record = self::record(app, tenant, id).await?;
        lifetime = app.noticed(app.broker.ttl(id).await)?.unwrap_or_default();
    }
    // Values take many times the bytes of their text: few answers are put together at a time.
    let assembling = app.assembling.take(tenant).await;
    let (mut answer, mut done) = (Assembly::default(), None);
    loop {
        let after = answer.last_event_id().unwrap_or(EventId::START);
        let page = app.noticed(app.broker.page(id, after, PAGE).await)?;
        for event in &page.events {
            let event = event.decode();
            answer.push(&event);
            done = if let Body::Done(end) = event.body { Some(end) } else { None };
        }
        if !page.more {
            break;
        }
    }
    let over = record.state.is_terminal();
    let job = view::WholeJob::new(record, &answer, done.as_ref());
    let whole = if over { Answer::guarded(&job, lifetime, guard) } else { Answer::passing(&job) };
    drop(assembling);
    Ok(whole)
}

/// What became of a wish to cancel.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cancellation {
    #[schema(value_type = String, format = "uuid")]
    id: JobId,
    /// `job.cancellation`.
    object: &'static str,
    /// `cancelled`; `asked`: it runs, and ends as cancelled in a moment; `over`: it had ended before.
    outcome: &'static str,
    /// The state that it is in, or is about to be in.
    #[schema(value_type = schemas::StateName)]
    state: JobState,
}

/// Cancel a job
///
/// Wherever it is: waiting, parked or running. What it has said by then stays readable.
#[utoipa::path(delete, path = "/v1/jobs/{id}", operation_id = "cancel_job", tag = "jobs", params(JobAt),
    responses((status = 200, description = "What became of the wish", body = Cancellation)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    JobAt { id }: JobAt,
) -> Result<impl IntoResponse, Refusal> {
    caller.needs(Right::Enqueue)?;
    let cancellation = cancelled(&app, &caller.tenant, id).await?;
    Ok(([(JOB_HEADER, id.to_string())], Reply(cancellation)))
}

/// Cancels a tenant's job.
pub(super) async fn cancelled(
    app: &App,
    tenant: &Tenant,
    id: JobId,
) -> Result<Cancellation, Refusal> {
    record(app, tenant, id).await?;
    let (outcome, state) = match app.noticed(app.admin.cancel(id).await)? {
        Cancelled::Cancelled => ("cancelled", JobState::Cancelled),
        Cancelled::Asked { .. } => ("asked", JobState::Cancelled),
        Cancelled::Over { state } => ("over", state),
        Cancelled::Unknown => return Err(Refusal::no_job(id)),
    };
    Ok(Cancellation { id, object: "job.cancellation", outcome, state })
}
