//! `/healthz`, `/readyz`, `/metrics` and `/whoami`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Reply,
    extract::{FromRequestParts, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    app::App,
    auth::{self, Caller, Right},
    cache::{Answer, Key},
    error::Refusal,
    presence,
};
use crate::broker;

const HEALTH: Duration = Duration::from_secs(60);
const CALLER: Duration = Duration::from_secs(30);

/// How long a broker may take to be called ready.
const READY: Duration = Duration::from_secs(2);

/// How the process is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `ready`.
    status: &'static str,
    version: &'static str,
    /// What an operator should know although it is ready: that no worker serves its queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    warning: Option<String>,
}

const fn health(status: &'static str) -> Health {
    Health { status, version: env!("CARGO_PKG_VERSION"), warning: None }
}

/// Whether the process lives
///
/// 200 as long as it does, whatever becomes of the broker: for whoever restarts it. `/health` is the same.
#[utoipa::path(get, path = "/healthz", tag = "operation", security(()),
    responses((status = 200, description = "It lives", body = Health), (status = 304, description = "As the ETag says")))]
pub(super) async fn healthz(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let find = async { Ok(Answer::new(&health("ok"), HEALTH, true)) };
    Ok(app.cache.get(Key::Health, &app.counters, find).await?.respond(&headers))
}

/// Whether requests would be served now: the broker takes jobs, and the gateway is not closing
///
/// The broker is asked once a second at most. A queue that no worker serves is named by `warning`, and is no
/// reason to send clients elsewhere: jobs wait there.
#[utoipa::path(get, path = "/readyz", tag = "operation", security(()),
    responses((status = 200, description = "It is ready", body = Health)))]
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    if app.leaving.is_cancelled() || app.closing.is_cancelled() {
        let text = "the gateway is closing; ask another one";
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "closing", text);
        return Err(refusal.after(Duration::from_secs(1)));
    }
    app.breaker.check()?;
    app.ready.get(takes_jobs(&app)).await?;
    let warning = presence::warning(&app, &app.options.queue).await;
    let health = Health { warning, ..health("ready") };
    Ok(([(header::CACHE_CONTROL, "no-store")], Reply(health)).into_response())
}

/// Asks the broker whether it takes jobs.
fn takes_jobs(app: &Arc<App>) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
    // The question, which the gateway keeps, does not keep the gateway.
    let (broker, app) = (app.broker.clone(), Arc::downgrade(app));
    async move {
        let asked = tokio::time::timeout(READY, broker.ready()).await.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", READY.as_secs());
            Err(broker::Error::Unavailable { message, source: None })
        });
        let Err(error) = asked else { return Ok(()) };
        let code = error.code();
        let refusal = app.upgrade().and_then(|app| app.noticed::<(), _>(Err(error)).err());
        let refusal = refusal.unwrap_or_else(Refusal::away);
        Err(refusal.reading(format!("the broker takes no jobs now: {code}")))
    }
}

/// Somebody whose key is good; the broker is not asked.
#[derive(Debug)]
pub(super) struct Identified(Arc<Caller>);

impl FromRequestParts<Arc<App>> for Identified {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        auth::identify(app, parts).map(Self)
    }
}

/// Who you are
///
/// The tenant, the rights and the expiry of the key that asks. The broker is not asked.
#[utoipa::path(get, path = "/whoami", tag = "operation",
    responses((status = 200, description = "Whose key it is", body = Caller), (status = 304, description = "As the ETag says")))]
pub(super) async fn whoami(
    State(app): State<Arc<App>>,
    Identified(caller): Identified,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let key = Key::Caller(Arc::clone(&caller));
    let find = async { Ok(Answer::new(&*caller, CALLER, false)) };
    Ok(app.cache.get(key, &app.counters, find).await?.respond(&headers))
}

/// What was counted, in the text format of Prometheus; needs the right `admin`
///
/// Since the start of this process, and of it alone.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "The counters", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    Identified(caller): Identified,
) -> Result<String, Refusal> {
    caller.needs(Right::Admin)?;
    let counters = &app.counters;
    let saved = counters.cache_saved().as_secs_f64();
    let rows: [(&str, &str, &str, f64); 9] = [
        (
            "connections_open",
            "gauge",
            "Connections that speak HTTP.",
            count(counters.connections()),
        ),
        ("streams_open", "gauge", "Open streams, of all kinds.", count(app.slots.open() as u64)),
        ("sockets_open", "gauge", "Open WebSockets.", count(counters.sockets())),
        (
            "topics_open",
            "gauge",
            "Topics that are followed at the broker.",
            count(app.listener.hub().topics() as u64),
        ),
        ("cache_hits_total", "counter", "Answers from the cache.", count(counters.cache_hits())),
        (
            "cache_misses_total",
            "counter",
            "Answers that had to be found out.",
            count(counters.cache_misses()),
        ),
        ("cache_saved_seconds_total", "counter", "Time that the cache has saved.", saved),
        (
            "streams_diverged_total",
            "counter",
            "Chat completions that broke off as a later attempt said something else.",
            count(counters.diverged()),
        ),
        (
            "panics_total",
            "counter",
            "Requests that met a fault of the gateway itself.",
            count(counters.panics()),
        ),
    ];
    let lines = rows.map(|(name, kind, help, value)| {
        format!(
            "# HELP millstream_gateway_{name} {help}\n# TYPE millstream_gateway_{name} {kind}\n\
             millstream_gateway_{name} {value}\n"
        )
    });
    Ok(lines.concat())
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn count(number: u64) -> f64 {
    number as f64
}
