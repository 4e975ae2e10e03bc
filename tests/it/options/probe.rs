//! An upstream that tells what it was asked and how much of its answers was taken.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream;
use millstream::{
    error::Failure,
    job::ChatRequest,
    upstream::{Part, Parts, Upstream},
    worker::{self, Stopped, Worker},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::stack::Stack;

/// Answers each question with `parts` chunks of `bytes` bytes, once the gate lets it through.
pub struct Probe {
    parts: usize,
    bytes: usize,
    /// One permit lets one answer begin.
    pub gate: Semaphore,
    /// The questions, in the order in which they came.
    asked: Mutex<Vec<String>>,
    /// Chunks that were taken.
    taken: AtomicUsize,
    /// Answers in progress, and the most there ever were.
    active: AtomicUsize,
    peak: AtomicUsize,
}

impl Probe {
    /// Short answers, so many of which may begin.
    pub fn new(permits: usize) -> Self {
        Self::long(permits, 1, 1)
    }

    pub fn long(permits: usize, parts: usize, bytes: usize) -> Self {
        Self {
            parts,
            bytes,
            gate: Semaphore::new(permits),
            asked: Mutex::default(),
            taken: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    /// Starts a worker that asks this upstream; cancel the token to drain it.
    pub fn worker(
        self: &Arc<Self>,
        stack: &Stack,
        options: worker::Options,
    ) -> (CancellationToken, JoinHandle<Stopped>) {
        let upstream = Arc::new(Asked(Arc::clone(self)));
        let worker = Worker::new(stack.broker.clone(), stack.listener().hub(), upstream, options);
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(worker.run(stop)))
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    fn part(&self, last: bool) -> Part {
        let piece = json!({
            "index": 0,
            "delta": {"content": "x".repeat(self.bytes)},
            "finish_reason": last.then_some("stop"),
        });
        self.taken.fetch_add(1, Ordering::SeqCst);
        Part { pieces: vec![serde_json::from_value(piece).unwrap()], ..Part::default() }
    }
}

struct Asked(Arc<Probe>);

/// An answer in progress.
struct Active(Arc<Probe>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Upstream for Asked {
    async fn answer(&self, request: &ChatRequest, _stream: bool) -> Result<Parts, Failure> {
        let probe = Arc::clone(&self.0);
        let request: Value =
            serde_json::from_str(&serde_json::to_string(request).unwrap()).unwrap();
        let question = request["messages"][0]["content"].as_str().unwrap().to_owned();
        let now = probe.active.fetch_add(1, Ordering::SeqCst) + 1;
        probe.peak.fetch_max(now, Ordering::SeqCst);
        let active = Active(Arc::clone(&probe));
        probe.asked.lock().unwrap().push(question);
        probe.gate.acquire().await.unwrap().forget();
        let parts = stream::unfold((active, 0), |(active, at)| async move {
            let probe = &active.0;
            let part = (at < probe.parts).then(|| probe.part(at + 1 == probe.parts))?;
            Some((Ok(part), (active, at + 1)))
        });
        Ok(Box::pin(parts))
    }
}

/// Long enough for what must not happen to happen.
pub const HOLD: Duration = Duration::from_millis(200);
