//! The listener in a web handler: a job's answer as server-sent events, resumable.
//!
//! `GET /jobs/{id}` with header `x-tenant`; an `EventSource` resumes by itself, as it sends the
//! last ID that it saw as `Last-Event-ID`. Run with `REDIS_URL` and, if wanted, `PORT` set.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{self, Sse},
    },
    routing::get,
};
use futures_util::StreamExt;
use millstream::{
    broker::{Inspect, redis},
    event::{Event, EventId},
    job::JobId,
    listener::{Error, Listener},
};

#[derive(Clone)]
struct App {
    broker: Arc<redis::Redis>,
    listener: Listener,
}

/// A frame holds ID, name and data together, so that a resume never splits one.
fn frame(event: Result<Event, Error>) -> sse::Event {
    let frame = match event {
        Ok(event) => {
            let name = event.body.kind().to_owned();
            sse::Event::default().id(event.id.to_string()).event(name).json_data(&event)
        }
        Err(error) => sse::Event::default().event("interrupted").json_data(error.to_string()),
    };
    frame.unwrap_or_else(|error| sse::Event::default().comment(error.to_string()))
}

async fn follow(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Ok(id) = id.parse::<JobId>() else { return StatusCode::NOT_FOUND.into_response() };
    let after = match header("last-event-id").map(str::parse::<EventId>) {
        None => EventId::START,
        Some(Ok(after)) => after,
        Some(Err(error)) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    // Who asks must own the job; somebody else's job does not exist for them.
    let owner = match app.broker.job(id).await {
        Ok(record) => record.map(|record| record.tenant.to_string()),
        Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    };
    if owner.is_none() || owner.as_deref() != header("x-tenant") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let mut events = app.listener.listen(id).after(after).events().peekable();
    if std::pin::Pin::new(&mut events).peek().await.is_none() {
        // Nothing is left to send; any other status makes an EventSource reconnect for ever.
        return StatusCode::NO_CONTENT.into_response();
    }
    Sse::new(events.map(|event| Ok::<_, Infallible>(frame(event))))
        .keep_alive(sse::KeepAlive::default())
        .into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379".to_owned());
    let options = redis::Options { url, ..redis::Options::default() };
    let broker = Arc::new(redis::Redis::connect(options).await?);
    let listener = Listener::new(broker.clone(), millstream::listener::Options::default());
    let app = Router::new().route("/jobs/{id}", get(follow)).with_state(App { broker, listener });
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    Ok(axum::serve(tokio::net::TcpListener::bind(("127.0.0.1", port)).await?, app).await?)
}
