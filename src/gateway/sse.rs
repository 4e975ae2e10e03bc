//! A job's events as server-sent events, for any axum handler.
//!
//! ID, name and data of an event share one block, so that whoever resumes by `Last-Event-ID` never loses or
//! repeats one. Comments keep the connection alive. When the server closes, the last block asks the client to
//! come back at once, here or elsewhere; it has no ID, so the place to resume from stays.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header::CACHE_CONTROL},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    event::{Codec, Event, Frame},
    listener,
};

/// How soon a client is to come back when the server closes.
const COME_BACK: Duration = Duration::from_millis(500);

/// Says to proxies that they must not keep answers back.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// A proxy that compresses a stream holds it back.
const UNCHANGED: (HeaderName, HeaderValue) =
    (CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));

/// One event as one block: `id`, `event` and `data`, which is the event's own data as JSON.
pub fn block(event: &Event) -> sse::Event {
    let frame = Frame::new(event.id.seq, &event.body, Codec::Json);
    let data = frame.ok().and_then(|frame| String::from_utf8(frame.bytes).ok());
    // What a stranger has written into the log may be named by anything; a block has one line for it.
    let kind = event.body.kind();
    let kind = if kind.contains(['\r', '\n', '\0']) { "unknown" } else { kind };
    sse::Event::default().id(event.id.to_string()).event(kind).data(data.as_deref().unwrap_or("{}"))
}

/// A response that ends after the terminal event, or, with a hint to come back, once `closing` is
/// cancelled. An error of the listener becomes a last block named `interrupted`.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use std::sync::Arc;
/// use millstream::{broker::{Shared, memory::{self, Memory}}, gateway::sse, listener::Listener};
/// use millstream::{job::{ChatRequest, Job}, producer::Producer};
///
/// # let broker: Shared = Arc::new(Memory::new(memory::Options::default()));
/// # let producer = Producer::new(broker.clone(), Default::default());
/// let id = producer.enqueue(Job::new(ChatRequest::ask("any", "Hello?"))).await?.id;
/// let events = Listener::new(broker, Default::default()).listen(id).idle_timeout(None).events();
/// let response = sse::response(events, std::time::Duration::from_secs(15), Default::default());
/// assert_eq!(response.headers()["content-type"], "text/event-stream");
/// # Ok::<(), millstream::producer::Error>(()) }).unwrap();
/// ```
pub fn response(
    events: impl Stream<Item = Result<Event, listener::Error>> + Send + Unpin + 'static,
    heartbeat: Duration,
    closing: CancellationToken,
) -> Response {
    let events = events.map(|event| {
        event.map_err(|error| Interrupted { code: error.code(), message: error.to_string() })
    });
    respond(until_closing(events, closing), heartbeat)
}

/// Why a stream ends before the job does.
#[derive(Debug, Serialize)]
pub(super) struct Interrupted {
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// A stream of blocks with heartbeats.
pub(super) fn respond(
    blocks: impl Stream<Item = sse::Event> + Send + 'static,
    heartbeat: Duration,
) -> Response {
    let alive = KeepAlive::new().interval(heartbeat).text("ping");
    let response = Sse::new(blocks.map(Ok::<_, Infallible>)).keep_alive(alive).into_response();
    // A block grows by doubling, and waits for a slow client in no more space than it needs.
    let exact = |block: Bytes| Bytes::copy_from_slice(&block);
    let response = response.map(|body| Body::from_stream(body.into_data_stream().map_ok(exact)));
    ([UNBUFFERED, UNCHANGED], response).into_response()
}

pub(super) fn until_closing(
    events: impl Stream<Item = Result<Event, Interrupted>> + Send + Unpin + 'static,
    closing: CancellationToken,
) -> impl Stream<Item = sse::Event> + Send + 'static {
    stream::unfold(Some((events, closing)), async |state| {
        let (mut events, closing) = state?;
        let event = tokio::select! {
            biased;
            event = events.next() => event?,
            () = closing.cancelled() => {
                let last = sse::Event::default().retry(COME_BACK).event("reconnect");
                return Some((last.data(r#"{"reason":"shutdown"}"#), None));
            }
        };
        Some(match event {
            Ok(event) => (block(&event), Some((events, closing))),
            Err(why) => {
                let data = serde_json::to_string(&why).unwrap_or_default();
                (sse::Event::default().event("interrupted").data(data), None)
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Body, EventId};

    #[tokio::test]
    async fn a_name_of_several_lines_stays_within_its_block() {
        for kind in ["a\nid: 9-9", "a\rb", "a\0b"] {
            let id = EventId { fence: 7, seq: 1 };
            let event = Event { id, body: Body::Unknown { kind: kind.to_owned() } };
            let response = respond(stream::iter([block(&event)]), Duration::from_secs(60));
            let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
            assert_eq!(body, "id: 7-1\nevent: unknown\ndata: {}\n\n", "{kind:?}");
        }
    }
}
