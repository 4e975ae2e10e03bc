//! A chat completion as server-sent events.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    http::StatusCode,
    response::{Response, sse},
};
use futures_util::{Stream, StreamExt, stream};

use super::{Asked, chunk::Writer, refused, splice::Splice};
use crate::{
    event::{Body, Event},
    gateway::{error::Refusal, presence, sse::respond},
    listener,
};

/// Chunks on their way to a client.
struct Streaming<S> {
    asked: Asked,
    events: S,
    splice: Splice,
    writer: Writer,
    /// Data of blocks to be sent.
    queue: VecDeque<String>,
    /// Nothing comes behind what is in the queue.
    ended: bool,
}

/// The response, once it is known how it begins: with the first chunk, or with the status of a job that failed
/// before it. One that takes longer than a heartbeat begins without, and so does one that nobody serves: its
/// client learns why it waits.
pub(super) async fn streamed<S>(
    asked: Asked,
    events: S,
    include_usage: bool,
) -> Result<Response, Refusal>
where
    S: Stream<Item = Result<Event, listener::Error>> + Send + Unpin + 'static,
{
    let heartbeat = asked.app.options.heartbeat;
    let (app, warning) = (Arc::clone(&asked.app), asked.warning.clone());
    let patience = if warning.is_some() { Duration::ZERO } else { heartbeat };
    let writer = Writer::new(asked.id(), asked.created, asked.model.clone(), include_usage);
    let (splice, queue) = (Splice::default(), VecDeque::new());
    let mut streaming = Streaming { asked, events, splice, writer, queue, ended: false };
    if let Ok(Err(refusal)) = tokio::time::timeout(patience, streaming.fill()).await {
        return Err(refusal);
    }
    let blocks = stream::unfold(streaming, async |mut streaming| {
        if let Err(refusal) = streaming.fill().await {
            // The head has gone: what went wrong stands in the protocol's own error object.
            let error = serde_json::json!({"error": refusal.error});
            streaming.queue.push_back(error.to_string());
        }
        let data = streaming.queue.pop_front()?;
        Some((sse::Event::default().data(data), streaming))
    });
    let queue = app.options.queue.clone();
    Ok(respond(presence::told(app, queue, warning, blocks), heartbeat))
}

impl<S: Stream<Item = Result<Event, listener::Error>> + Send + Unpin> Streaming<S> {
    /// Waits until there is something to send, or nothing more will come.
    async fn fill(&mut self) -> Result<(), Refusal> {
        while self.queue.is_empty() && !self.ended {
            let result = self.step().await;
            if result.is_err() {
                self.ended = true;
                self.asked.abandon.forgive();
                return result;
            }
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), Refusal> {
        let app = &self.asked.app;
        let event = tokio::select! {
            biased;
            event = self.events.next() => event,
            () = app.cutoff.cancelled() => {
                let what = "the gateway is closing";
                return Err(self.asked.broken(StatusCode::SERVICE_UNAVAILABLE, "closing", what));
            }
        };
        let event = match event {
            Some(event) => app.noticed(event)?,
            None => return Err(listener::Error::Expired(self.asked.job).into()),
        };
        self.asked.is_let_in()?;
        let fresh = self.splice.push(&event.body).map_err(|diverged| {
            app.counters.diverged.fetch_add(1, Ordering::Relaxed);
            let what = diverged.to_string();
            self.asked.broken(StatusCode::BAD_GATEWAY, "answer_differs", &what)
        })?;
        self.queue.extend(self.writer.write(fresh));
        match event.body {
            Body::Done(done) => {
                self.queue.extend(self.writer.end(done.usage.as_ref()));
                self.ended = true;
                self.asked.abandon.forgive();
                Ok(())
            }
            Body::Failed(failed) => Err(refused(&failed)),
            Body::Cancelled(cancelled) => Err(refused(&cancelled.into())),
            _ => Ok(()),
        }
    }
}
