//! Whether anybody serves a queue. Where nobody does, whoever waits for an answer is told so, instead of
//! hearing nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    http::{HeaderName, HeaderValue},
    response::{Response, sse},
};
use futures_util::{Stream, StreamExt as _, stream};

use super::{app::App, latest::Latest};
use crate::{broker::Partition, job::QueueName};

/// Says what the client of a good request should know.
pub(super) const WARNING_HEADER: HeaderName = HeaderName::from_static("x-millstream-warning");

/// How long a count of workers is taken to be true.
const KEPT: Duration = Duration::from_secs(2);

/// Longest time for the broker to count them: nobody waits for a warning.
const PATIENCE: Duration = Duration::from_secs(1);

/// Most queues whose workers are counted.
const MOST: usize = 1024;

/// How many workers serve a queue, where the broker has told.
type Count = Arc<Latest<Option<usize>>>;

/// The workers of each queue that was asked for.
#[derive(Debug, Default)]
pub(super) struct Presence(Mutex<HashMap<QueueName, Count>>);

impl Presence {
    fn of(&self, queue: &QueueName) -> Option<Count> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if queues.len() >= MOST && !queues.contains_key(queue) {
            return None;
        }
        let count = queues.entry(queue.clone()).or_insert_with(|| Arc::new(Latest::new(KEPT)));
        Some(Arc::clone(count))
    }
}

/// A warning where no worker serves the queue. What is not known is not warned of.
pub(super) async fn warning(app: &App, queue: &QueueName) -> Option<String> {
    let count = app.presence.of(queue)?;
    let (broker, partition) = (app.broker.clone(), Partition::first(queue.clone()));
    let find = async move {
        let workers =
            tokio::time::timeout(PATIENCE, broker.workers(&partition)).await.ok()?.ok()?;
        Some(workers.iter().filter(|worker| worker.is_live()).count())
    };
    (count.get(find).await? == 0).then(|| {
        format!(
            "no live worker serves queue `{queue}`; jobs wait until one does (millstream-worker)"
        )
    })
}

/// The response with the warning in its head.
pub(super) fn with_warning(mut response: Response, warning: Option<&str>) -> Response {
    if let Some(value) = warning.and_then(|text| HeaderValue::from_str(text).ok()) {
        response.headers_mut().insert(WARNING_HEADER, value);
    }
    response
}

/// Blocks of a job that has not begun. Until the first one, a comment says every so often that nobody serves
/// the queue, while that is so; `known` is what is known of that at the beginning.
pub(super) fn told(
    app: Arc<App>,
    queue: QueueName,
    known: Option<String>,
    blocks: impl Stream<Item = sse::Event> + Send + 'static,
) -> impl Stream<Item = sse::Event> + Send + 'static {
    struct Waiting<S> {
        app: Arc<App>,
        queue: QueueName,
        warning: Option<String>,
        blocks: S,
        began: bool,
    }
    let blocks = Box::pin(blocks);
    let waiting = Waiting { app, queue, warning: known, blocks, began: false };
    stream::unfold(waiting, async |mut waiting| {
        loop {
            if let Some(warning) = waiting.warning.take() {
                return Some((sse::Event::default().comment(warning), waiting));
            }
            if waiting.began {
                return Some((waiting.blocks.next().await?, waiting));
            }
            tokio::select! {
                biased;
                block = waiting.blocks.next() => {
                    waiting.began = true;
                    return Some((block?, waiting));
                }
                () = tokio::time::sleep(waiting.app.options.heartbeat) => {
                    waiting.warning = warning(&waiting.app, &waiting.queue).await;
                }
            }
        }
    })
}
