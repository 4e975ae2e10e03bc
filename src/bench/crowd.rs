//! Readers of event streams, and one who hears the same events from Redis.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::{
    broker::Topic,
    event::{Event, EventId},
    job::JobId,
    listener::{Heard, Listener, Subscription},
};

/// Longest wait for the head of a response.
const PATIENCE: Duration = Duration::from_secs(30);

/// Readers, and what they read.
#[derive(Debug)]
pub(super) struct Crowd {
    gateway: SocketAddr,
    jobs: Vec<JobId>,
    stop: CancellationToken,
}

/// What one reader saw.
#[derive(Debug)]
pub(super) struct Seen {
    job: usize,
    events: Vec<(EventId, Instant)>,
}

impl Seen {
    /// Events that came from one moment to another.
    pub(super) fn within(&self, from: Instant, to: Instant) -> usize {
        self.events.iter().filter(|(_, at)| (from..=to).contains(at)).count()
    }

    /// Whether each event followed the one before it.
    pub(super) fn is_whole(&self) -> bool {
        !self.events.is_empty() && self.events.windows(2).all(|pair| pair[0].0.precedes(pair[1].0))
    }
}

impl Crowd {
    pub(super) fn new(gateway: SocketAddr, jobs: Vec<JobId>, stop: CancellationToken) -> Self {
        Self { gateway, jobs, stop }
    }

    /// Opens a stream; once its head is there it is read until all stop.
    pub(super) async fn join(self: Arc<Self>, number: usize) -> Result<JoinHandle<Seen>, Error> {
        let job = number % self.jobs.len();
        let opened = tokio::time::timeout(PATIENCE, self.open(self.jobs[job])).await;
        let Ok(Ok(mut lines)) = opened else {
            let what = "a stream was not opened";
            return Err(Error::Stalled { what, waited: PATIENCE });
        };
        let stop = self.stop.clone();
        Ok(tokio::spawn(async move {
            let mut events = Vec::new();
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = tokio::select! {
                    read = lines.read_until(b'\n', &mut line) => read,
                    () = stop.cancelled() => break,
                };
                if read.map_or(0, |count| count) == 0 {
                    break;
                }
                let text = std::str::from_utf8(&line).unwrap_or_default().trim_end();
                if let Some(id) = text.strip_prefix("id: ").and_then(|id| id.parse().ok()) {
                    events.push((id, Instant::now()));
                }
            }
            Seen { job, events }
        }))
    }

    async fn open(&self, job: JobId) -> std::io::Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(self.gateway).await?;
        stream.set_nodelay(true)?;
        let host = self.gateway;
        let request = format!("GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut lines = BufReader::with_capacity(1024, stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if lines.read_line(&mut head).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let fine = head.starts_with("HTTP/1.1 200 ");
        if fine { Ok(lines) } else { Err(std::io::Error::other(head)) }
    }
}

/// Hears every job's events from Redis.
#[derive(Debug)]
pub(super) struct Probe {
    listening: Vec<JoinHandle<HashMap<EventId, Instant>>>,
    stop: CancellationToken,
}

/// When each job's events were heard.
#[derive(Debug)]
pub(super) struct Log(Vec<HashMap<EventId, Instant>>);

impl Probe {
    /// Subscribes to all jobs, on one connection.
    pub(super) async fn listen(listener: &Listener, jobs: &[JobId]) -> Result<Self, Error> {
        let (hub, stop) = (listener.hub(), CancellationToken::new());
        let mut subscriptions: Vec<_> =
            jobs.iter().map(|job| hub.subscribe(Topic::Job(*job))).collect();
        join_all(subscriptions.iter_mut().map(Subscription::link)).await;
        let listen = |mut subscription: Subscription| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut heard = HashMap::new();
                loop {
                    let message = tokio::select! {
                        message = subscription.next() => message,
                        () = stop.cancelled() => return heard,
                    };
                    let now = Instant::now();
                    if let Heard::Message(bytes) = message
                        && let Ok(event) = Event::decode_message(&bytes)
                    {
                        heard.insert(event.id, now);
                    }
                }
            })
        };
        let listening = subscriptions.into_iter().map(listen).collect();
        Ok(Self { listening, stop })
    }

    /// Ends, and tells what was heard.
    pub(super) async fn stop(self) -> Log {
        self.stop.cancel();
        Log(join_all(self.listening).await.into_iter().map(Result::unwrap_or_default).collect())
    }
}

impl Log {
    /// How much later than here the events of some time reached a reader.
    pub(super) fn delays(&self, seen: &Seen, from: Instant, to: Instant) -> Vec<Duration> {
        let heard = &self.0[seen.job];
        let events = seen.events.iter().filter(|(_, at)| (from..=to).contains(at));
        events.filter_map(|(id, at)| Some(at.saturating_duration_since(*heard.get(id)?))).collect()
    }
}
