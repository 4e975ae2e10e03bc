//! `/v1/jobs/{id}/events`: a job's events, streamed or in pages.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    accept,
    app::App,
    error::{ErrorBody, JOB_HEADER, Refusal},
    params::{Asked, JobAt, JobReader, Params},
    presence::{self, with_warning},
    schemas, sse,
};
use crate::{
    broker::{Opened, Window},
    event::{Event, EventId},
    job::{JobId, Tenant},
    listener,
    state::State as JobState,
};

/// Most events of a page.
const MOST: usize = 1000;

/// Most bytes of a page, but for a first event that is larger.
const PAGE_BYTES: usize = 256 * 1024;

/// Where to begin.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct From {
    /// The last event that was seen, `FENCE-SEQ`; the header Last-Event-ID is the stronger one.
    #[param(pattern = "^([0-9]{1,19}-[0-9]{1,19})?$", nullable = false)]
    after: Option<String>,
    /// Most events of a page.
    #[param(minimum = 1, maximum = 1000, default = 100, nullable = false)]
    limit: Option<usize>,
    /// A browser token, instead of an API key.
    #[param(ignore)]
    #[allow(
        dead_code,
        reason = "read by `JobReader`; named here because unknown parameters are refused"
    )]
    token: Option<String>,
}

impl Asked for From {
    const ALLOWED: &'static [(&'static str, &'static str)] = &[
        ("after", "an event ID, FENCE-SEQ"),
        ("limit", "1 to 1000"),
        ("token", "a browser token"),
    ];
}

/// Some of a job's events.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page {
    /// `list`.
    object: &'static str,
    #[schema(value_type = Vec<schemas::EventView>)]
    data: Vec<Event>,
    /// Whether the log holds more by now.
    has_more: bool,
    /// What to ask for as `after` to go on.
    #[schema(value_type = Option<String>, required)]
    next_after: Option<EventId>,
    /// Whether nothing will follow.
    over: bool,
}

/// A job's events: a stream, or a page
///
/// Where `Accept` prefers `application/json` a page of what is there; otherwise server-sent events, replayed from the
/// cursor and then live, that end after the terminal event. 204 when nothing is left.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", operation_id = "job_events", tag = "jobs",
    security(("key" = []), ("header" = []), ("token" = [])),
    params(JobAt, From, ("Last-Event-ID" = Option<String>, Header, nullable = false,
        pattern = "^([0-9]{1,19}-[0-9]{1,19})?$", description = "The last event that was seen")),
    responses((status = 200, description = "The events behind the cursor", content(
        (schemas::EventBlock = "text/event-stream"), (Page = "application/json"))),
        (status = 204, description = "The job is over, and the cursor at its end"),
        (status = 410, description = "The job is over, and its events are not kept any more", body = ErrorBody)))]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    JobReader { id, caller, token }: JobReader,
    Params(from): Params<From>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let after = cursor(&headers, from.after.as_deref())?;
    let named = [(JOB_HEADER, id.to_string()), (header::VARY, "accept".to_owned())];
    let limit = from.limit.unwrap_or(100);
    if !(1..=MOST).contains(&limit) {
        return Err(Refusal::param("limit", format!("limit is {limit}; allowed: 1 to {MOST}")));
    }
    let tenant = caller.tenant.clone();
    let mut slot = app.slots.take_with(&tenant, token.as_deref())?;
    let by_token = token.is_some();
    if accept::prefers_json(&headers) {
        let page = page(&app, &tenant, id, after, limit).await?;
        let body = Bytes::from(serde_json::to_vec(&page).unwrap_or_default());
        slot.widen(body.len())?;
        let kind = [(header::CONTENT_TYPE, "application/json")];
        return Ok((named, kind, slot.body(body)).into_response());
    }
    let listen = app.listener.listen(id).after(after).owned_by(tenant).idle_timeout(None);
    let following = app.noticed(listen.open().await)?;
    if following.is_expired() {
        return Err(expired(id));
    }
    if following.is_over() {
        return Ok((StatusCode::NO_CONTENT, named).into_response());
    }
    let (heartbeat, closing) = (app.options.heartbeat, app.closing.clone());
    let waiting = following.record().filter(|record| record.state == JobState::Waiting);
    let queue = waiting.and_then(|record| record.partition.as_ref()).map(|p| p.queue.clone());
    let reader = Arc::clone(&app);
    let events = following.events().map(move |event| {
        // The slot is taken as long as the stream is there.
        let _ = &slot;
        if app.keys.holds(&caller) { passed(event) } else { Err(shut_out(by_token)) }
    });
    let blocks = sse::until_closing(events, closing);
    let Some(queue) = queue else {
        return Ok((named, sse::respond(blocks, heartbeat)).into_response());
    };
    let warning = presence::warning(&reader, &queue).await;
    let response = presence::told(reader, queue, warning.clone(), blocks);
    let response = (named, sse::respond(response, heartbeat)).into_response();
    Ok(with_warning(response, warning.as_deref()))
}

/// What ends the stream of a reader whose key is not in force any more, or the key of its browser token. That
/// the token expires ends no stream.
fn shut_out(by_token: bool) -> sse::Interrupted {
    let (code, message) = if by_token {
        ("invalid_token", "the API key of this token is not valid any more")
    } else {
        ("invalid_api_key", "the API key is not valid any more")
    };
    sse::Interrupted { code, message: message.to_owned() }
}

fn passed(event: Result<Event, listener::Error>) -> Result<Event, sse::Interrupted> {
    event.map_err(|error| {
        let code = error.code();
        // The broker's own words may name its address: they are for the log.
        sse::Interrupted { code, message: Refusal::from(error).error.message }
    })
}

/// The header before the query: an `EventSource` keeps its address and moves its header on.
fn cursor(headers: &HeaderMap, after: Option<&str>) -> Result<EventId, Refusal> {
    let read = |name: &str, text: &str| match text {
        "" => Ok(EventId::START),
        text => text
            .parse()
            .map_err(|error: crate::event::EventIdError| Refusal::param(name, error.to_string())),
    };
    let after = read("after", after.unwrap_or_default())?;
    let name = "Last-Event-ID";
    let Some(header) = headers.get(name).filter(|header| !header.is_empty()) else {
        return Ok(after);
    };
    let text =
        header.to_str().map_err(|_| Refusal::param(name, "Last-Event-ID is not ASCII text"))?;
    read(name, text)
}

/// The refusal of whoever asks for events that are not kept any more.
fn expired(id: JobId) -> Refusal {
    let refusal = Refusal::from(listener::Error::Expired(id));
    match HeaderValue::from_str(&id.to_string()) {
        Ok(job) => refusal.with(JOB_HEADER, job),
        Err(_) => refusal,
    }
}

async fn page(
    app: &App,
    tenant: &Tenant,
    id: JobId,
    after: EventId,
    limit: usize,
) -> Result<Page, Refusal> {
    let window = Window { events: limit + 1, bytes: PAGE_BYTES };
    let opened = app.noticed(app.broker.open_for(tenant, id, after, window).await)?;
    let Some(Opened { record: Some(record), page }) = opened else {
        return Err(Refusal::no_job(id));
    };
    let is_over = record.state.is_terminal();
    if is_over && page.events.is_empty() {
        // At its end the log still has the cursor's event.
        let log = app.noticed(app.broker.last(id).await)?;
        if log.is_none() {
            return Err(expired(id));
        }
    }
    let has_more = page.more;
    let mut data = page.decode();
    data.truncate(limit);
    let place = (after != EventId::START).then_some(after);
    let next_after = data.last().map(|event| event.id).or(place);
    let over = is_over && !has_more;
    Ok(Page { object: "list", data, has_more, next_after, over })
}
