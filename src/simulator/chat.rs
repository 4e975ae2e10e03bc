//! The routes: authentication, the chat handler, and what it answers when it does not stream.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::directives::Directives;
use super::fault::{Kind, Reply};
use super::request::Request;
use super::script::{Script, Stage, cut_short, malformed, perform, told};
use super::tally::{Attempts, Stats, Tally};
use super::wire::Refusal;
use super::{MAX_BODY, Options};

/// What all requests share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) tally: Arc<Tally>,
    pub(super) attempts: Attempts,
    pub(super) shutdown: CancellationToken,
    pub(super) halt: CancellationToken,
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/healthz", get(async || "ok"))
        .route("/stats", get(stats))
        .fallback(async |uri: Uri| {
            Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not know that method")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_response(name_request))
        .with_state(shared)
}

/// Gives every response an `x-request-id`, which clients log.
async fn name_request(mut response: Response) -> Response {
    if let Ok(id) = HeaderValue::try_from(format!("req_{}", uuid::Uuid::now_v7().simple())) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

async fn stats(State(shared): State<Arc<Shared>>) -> Json<Stats> {
    Json(shared.tally.stats())
}

async fn models(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    authorise(&shared.options, &headers)?;
    let model =
        json!({"id": "simulator", "object": "model", "created": 0, "owned_by": "millstream"});
    Ok(Json(json!({"object": "list", "data": [model]})).into_response())
}

async fn chat(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let start = Instant::now();
    shared.tally.asked();
    authorise(&shared.options, &headers)?;
    let body = body.map_err(|rejection| Refusal::new(rejection.status(), rejection.body_text()))?;
    let request = Request::parse(&body, header_directives(&headers)?)?;
    let streams = request.stream;
    let answer = Answer::decide(request, &shared.options, &shared.attempts)?;
    let stage = Stage {
        start,
        open: shared.tally.open(),
        shutdown: shared.shutdown.clone(),
        halt: shared.halt.clone(),
    };
    match answer.fault.map(|fault| fault.kind) {
        Some(Kind::Status(code, reply)) => Ok(refuse_as_told(code, reply, stage)),
        _ if streams => {
            let headers = [
                (
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("text/event-stream; charset=utf-8"),
                ),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            ];
            Ok((headers, perform(Script::new(answer), stage)).into_response())
        }
        kind => answer_whole(&answer, kind, stage).await,
    }
}

fn authorise(options: &Options, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(key) = &options.api_key else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given.and_then(|value| value.strip_prefix("Bearer ")) == Some(key) {
        return Ok(());
    }
    let problem = if given.is_some() { "is not the simulator's" } else { "is missing" };
    Err(Refusal::new(
        StatusCode::UNAUTHORIZED,
        format!("the key in `authorization: Bearer` {problem}"),
    ))
}

fn header_directives(headers: &HeaderMap) -> Result<Directives, Refusal> {
    let Some(value) = headers.get("x-simulator") else { return Ok(Directives::default()) };
    let list = value.to_str().map_err(|_| "the header holds more than visible ASCII".to_owned());
    list.and_then(Directives::parse).map_err(|message| Refusal::field("x-simulator", message))
}

fn refuse_as_told(code: u16, reply: Reply, mut stage: Stage) -> Response {
    stage.open.end(true);
    // The code was checked when the fault was parsed.
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut refusal = told();
    refusal.status = status;
    refusal.retry_after = match reply {
        Reply::Text => {
            return (status, "the simulator fails here because it was told to\n").into_response();
        }
        Reply::Json => None,
        Reply::RetryAfter(seconds) => Some(HeaderValue::from(seconds)),
        Reply::RetryDate(seconds) => {
            let date = SystemTime::now() + Duration::from_secs(seconds.into());
            HeaderValue::try_from(httpdate::fmt_http_date(date)).ok()
        }
    };
    refusal.into_response()
}

/// The answer as one JSON object, or what the fault makes of it.
async fn answer_whole(
    answer: &Answer,
    fault: Option<Kind>,
    mut stage: Stage,
) -> Result<Response, Refusal> {
    let stopping = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the simulator is stopping");
    if matches!(fault, Some(Kind::Silence(_))) {
        stage.shutdown.cancelled().await;
        return Err(stopping());
    }
    let after = answer.fault.and_then(super::Fault::after).unwrap_or(answer.tokens);
    stage.wait(answer.due(after.min(answer.tokens))).await.map_err(|_| stopping())?;
    stage.open.end(fault.is_some());
    let body: Body = match fault {
        None | Some(Kind::Status(..) | Kind::Silence(_)) => {
            return Ok(Json(answer.completion()).into_response());
        }
        Some(Kind::Error(_)) => return Err(told()),
        Some(Kind::Drop(_)) => cut_short(answer, true),
        Some(Kind::Truncate(_)) => cut_short(answer, false),
        Some(Kind::Malformed(_)) => malformed(answer),
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
