//! Millstream in an application's own web server.
//!
//! `GET /jobs/{id}` with header `x-tenant` is a route of the application's own: it streams a job by the gateway's
//! adapter, and an `EventSource` resumes by itself, as it sends the last ID that it saw as `Last-Event-ID`.
//! Below `/llm` stands the whole gateway, for callers whom the application knows: it puts a `Caller` into the
//! request, and no API key is asked for. Run with `REDIS_URL` and, if wanted, `PORT` set.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt as _,
};
use millstream::{
    broker::redis,
    event::EventId,
    gateway::{Caller, Gateway, Options, Right, sse},
    job::{JobId, Tenant},
    listener::{Error, Listener},
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Clone)]
struct App {
    listener: Listener,
    heartbeat: std::time::Duration,
    /// Ends the streams, with a hint to come back, when the server is to stop.
    closing: tokio_util::sync::CancellationToken,
}

/// Who asks. A real application looks into its session here.
fn tenant(headers: &HeaderMap) -> Option<Tenant> {
    headers.get("x-tenant")?.to_str().ok()?.parse().ok()
}

async fn follow(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    // Somebody else's job does not exist for whoever asks.
    let (Some(tenant), Ok(id)) = (tenant(&headers), id.parse::<JobId>()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let after = match last.map(str::parse::<EventId>) {
        None => EventId::START,
        Some(Ok(after)) => after,
        Some(Err(error)) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let listen = app.listener.listen(id).after(after).owned_by(tenant).idle_timeout(None);
    match listen.open().await {
        // Any other status makes an EventSource reconnect for ever.
        Ok(following) if following.is_over() => StatusCode::NO_CONTENT.into_response(),
        Ok(following) => sse::response(following.events(), app.heartbeat, app.closing),
        Err(Error::NotFound(_)) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// Lets the application's own users into the gateway.
async fn introduce(mut request: Request, next: Next) -> Response {
    let Some(tenant) = tenant(request.headers()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    request.extensions_mut().insert(Caller::new(tenant, [Right::Enqueue, Right::Read]));
    next.run(request).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379".to_owned());
    let options = redis::Options { url, ..redis::Options::default() };
    let broker: millstream::broker::Shared = Arc::new(redis::Redis::connect(options).await?);
    let listener = Listener::new(broker.clone(), millstream::listener::Options::default());
    let options = Options::default();
    let heartbeat = options.heartbeat;
    let gateway =
        Gateway::new(broker, listener.clone(), millstream::producer::Options::default(), options)?;
    let closing = gateway.closing();
    let app = App { listener, heartbeat, closing: closing.clone() };
    let app = Router::new()
        .route("/jobs/{id}", get(follow))
        .with_state(app)
        .nest("/llm", gateway.router().layer(middleware::from_fn(introduce)));
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let socket = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    // Small blocks leave at once.
    let socket = socket.tap_io(|stream| drop(stream.set_nodelay(true)));
    let mut term = signal(SignalKind::terminate())?;
    let stopped = async move {
        term.recv().await;
        closing.cancel();
    };
    Ok(axum::serve(socket, app).with_graceful_shutdown(stopped).await?)
}
