//! Keeps an HTTP client from reading an answer far ahead of who reads it.
//!
//! async-openai reads a response in a task of its own, into a channel without bound. The gate
//! stands below it, in the body: once so many bytes came that nobody has asked for, the body waits,
//! and with it, through TCP, the model. A reader that finds nothing has everything.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Notify;

/// Most bytes that are read ahead.
const AHEAD: usize = 1024 * 1024;

/// Most bytes of one event: a reader that waits for its end can take nothing before.
const EVENT: usize = 64 * 1024 * 1024;

/// Shared by the body of a response and the reader of what it becomes.
#[derive(Debug, Default)]
pub(super) struct Gate {
    unread: AtomicUsize,
    /// The reader has found nothing since it last took something.
    waits: AtomicBool,
    room: Notify,
}

impl Gate {
    /// The body, as long as there is room.
    pub(super) fn body<S, B, E>(
        self: Arc<Self>,
        body: S,
    ) -> impl Stream<Item = Result<B, E>> + Send + 'static
    where
        S: Stream<Item = Result<B, E>> + Send + Unpin + 'static,
        B: AsRef<[u8]> + Send + 'static,
        E: Send + 'static,
    {
        stream::unfold((body, self), async |(mut body, gate)| {
            // The reader may have been woken and not have come to it yet.
            for _ in 0..16 {
                if gate.unread.load(Ordering::Acquire) <= AHEAD {
                    break;
                }
                tokio::task::yield_now().await;
            }
            while gate.is_full() {
                gate.room.notified().await;
            }
            let item = body.next().await?;
            if let Ok(bytes) = &item {
                gate.unread.fetch_add(bytes.as_ref().len(), Ordering::AcqRel);
            }
            Some((item, (body, gate)))
        })
    }

    fn is_full(&self) -> bool {
        let most = if self.waits.load(Ordering::Acquire) { EVENT } else { AHEAD };
        self.unread.load(Ordering::Acquire) > most
    }

    /// The reader's side.
    pub(super) fn reader<S>(self: Arc<Self>, items: S) -> Reader<S> {
        Reader { items, gate: self }
    }
}

/// Opens the gate whenever it has read everything there is.
#[derive(Debug)]
pub(super) struct Reader<S> {
    items: S,
    gate: Arc<Gate>,
}

impl<S: Stream + Unpin> Stream for Reader<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let next = self.items.poll_next_unpin(cx);
        self.gate.waits.store(next.is_pending(), Ordering::Release);
        if next.is_pending() {
            self.gate.unread.store(0, Ordering::Release);
            self.gate.room.notify_one();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// A task without bound between body and reader, as in async-openai.
    #[tokio::test]
    async fn nothing_is_read_far_ahead_and_nothing_is_lost() {
        const CHUNK: usize = 64 * 1024;
        const CHUNKS: usize = 100;
        let gate = Arc::new(Gate::default());
        let source = stream::iter((0..CHUNKS).map(|_| Ok::<_, Infallible>(vec![0_u8; CHUNK])));
        let mut body = Box::pin(Arc::clone(&gate).body(source));
        let taken = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let count = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Some(Ok(chunk)) = body.next().await {
                count.fetch_add(chunk.len(), Ordering::SeqCst);
                let _ = sender.send(chunk);
            }
        });
        let items =
            stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let mut reader = gate.reader(Box::pin(items));
        reader.next().await.unwrap();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(taken.load(Ordering::SeqCst) <= AHEAD + 2 * CHUNK, "read ahead without bound");
        assert_eq!(reader.count().await, CHUNKS - 1);
    }

    /// A reader that waits for the end of one event has nothing to take before.
    #[tokio::test]
    async fn one_event_larger_than_the_read_ahead_goes_through() {
        let gate = Arc::new(Gate::default());
        let source = stream::iter((0..30).map(|_| Ok::<_, Infallible>(vec![0_u8; AHEAD / 10])));
        let mut body = Box::pin(Arc::clone(&gate).body(source));
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut event = Vec::new();
            while let Some(Ok(chunk)) = body.next().await {
                event.extend(chunk);
            }
            let _ = sender.send(event.len());
        });
        let items =
            stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let mut reader = gate.reader(Box::pin(items));
        let limit = std::time::Duration::from_secs(20);
        let whole = tokio::time::timeout(limit, reader.next()).await;
        assert_eq!(whole.expect("the gate never opened"), Some(AHEAD / 10 * 30));
    }
}
