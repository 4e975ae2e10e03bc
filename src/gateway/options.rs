//! How a gateway behaves.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{broker::Rate, job::QueueName};

/// Requests that a page makes when it opens: a burst that nobody has configured is no smaller.
const PAGE: u32 = 12;

/// How a gateway behaves.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The file of API keys. Without one every request is the default tenant's, with all rights, and
    /// only loopback is served.
    pub keys: PathBuf,
    /// Hashes API keys and signs browser tokens: the same for all gateways, at least 32 bytes. Without
    /// one, browser tokens are good for this process only, and keys cannot be used.
    pub secret: String,
    /// A second secret, under which keys and tokens are good as well. Nothing new is made under it: with it the
    /// secret can be changed while everybody is let in.
    pub second_secret: String,
    /// How long a browser token is good.
    #[serde(with = "humantime_serde")]
    pub token_ttl: Duration,
    /// Web origins that may use the API from a browser, such as `https://app.example.com`; `*` for all.
    pub cors_origins: Vec<String>,
    /// The address under which clients reach the gateway, such as `https://example.com/llm`, where a proxy hides it.
    /// Empty: what a request was sent to.
    pub public_url: String,
    /// The models there are. Empty: those that the upstream of this process tells, and every name is
    /// accepted.
    pub models: Vec<String>,
    /// The queue of requests that name none.
    pub queue: QueueName,
    /// Other queues that a request may name. One that is not served would keep its jobs for ever.
    pub queues: Vec<QueueName>,
    /// What becomes of a chat completion whose client goes away.
    pub on_disconnect: OnDisconnect,
    /// A chat completion without an idempotency key that repeats another one of the same tenant within
    /// this time is given the same answer, or for a shorter time the same failure; it then goes on when its client
    /// goes away. Zero: never.
    #[serde(with = "humantime_serde")]
    pub dedupe: Duration,
    /// How often an open stream says that it lives; a chat completion that streams waits so long for its first
    /// chunk before it begins without. Shorter than the retries of a job that fails, or such a request is told of it
    /// sometimes by its status and sometimes within the stream.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long everything is served on after SIGTERM while `/readyz` says 503, so that whoever chooses among
    /// gateways has heard of it.
    #[serde(with = "humantime_serde")]
    pub notice: Duration,
    /// How long answers may go on after that.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Bytes that cached answers may take.
    pub cache_bytes: u64,
    /// What is refused.
    pub limits: Limits,
}

/// What becomes of a chat completion whose client goes away. One with an idempotency key goes on, as its
/// client can come back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// It is cancelled, and costs nothing more.
    #[default]
    Cancel,
    /// It goes on, and can be read as a job.
    Continue,
}

/// What a gateway refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body, in bytes.
    pub max_body: usize,
    /// Most bytes of request bodies that are in memory at once; a tenant may have half of them.
    pub max_bodies: usize,
    /// Most bytes of a request's headers.
    pub max_header: usize,
    /// Most jobs of one request.
    pub max_bulk: usize,
    /// How long a connection may wait for its next request. Longer than what proxies keep theirs for.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// How long a client may take to send a request's headers, once they have begun, and its body.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// How long a client may take nothing of what is sent to it before its connection is closed; the
    /// kernel, which watches event streams, gives it twice that.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// How long a chat completion that does not stream may take, waiting included; its job goes on.
    #[serde(with = "humantime_serde")]
    pub answer_timeout: Duration,
    /// Most requests of a tenant per minute, at all gateways together; an array of jobs counts as so many requests.
    /// 0: where there are API keys [`GENEROUS`](Limits::GENEROUS) at each gateway, else no limit.
    pub requests_per_minute: u32,
    /// Most requests of a tenant at once, within its minute's. 0: a minute's, and at least as many as a page makes
    /// when it opens.
    pub burst: u32,
    /// Most requests with one browser token per minute, at this process. 0: no limit.
    pub requests_per_token: u32,
    /// Most connections of this process.
    pub max_connections: usize,
    /// Most open streams of this process: SSE, WebSockets and chat completions; an answer that is being read
    /// counts as one for each 64 KiB.
    pub max_streams: usize,
    /// Most open streams of a tenant at this process; fewer than all, so that no tenant takes all.
    pub max_streams_per_tenant: usize,
    /// Most open streams with one browser token at this process.
    pub max_streams_per_token: usize,
    /// Most jobs that one WebSocket follows.
    pub max_subscriptions: usize,
    /// A WebSocket that says nothing and hears nothing for this long is closed.
    #[serde(with = "humantime_serde")]
    pub socket_idle: Duration,
}

impl Limits {
    /// Requests of a tenant per minute at one gateway, where nothing is configured and keys tell tenants apart.
    pub const GENEROUS: u32 = 60_000;

    /// Requests of a tenant at once, where there is a limit.
    pub(super) fn rate(&self) -> Option<Rate> {
        let per_minute = self.requests_per_minute;
        let burst = if self.burst == 0 { per_minute.max(PAGE) } else { self.burst };
        (per_minute > 0).then_some(Rate { per_minute, burst })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            keys: PathBuf::new(),
            secret: String::new(),
            second_secret: String::new(),
            token_ttl: Duration::from_secs(600),
            cors_origins: Vec::new(),
            public_url: String::new(),
            models: Vec::new(),
            queue: QueueName::default(),
            queues: Vec::new(),
            on_disconnect: OnDisconnect::default(),
            dedupe: Duration::ZERO,
            heartbeat: Duration::from_secs(10),
            notice: Duration::from_secs(1),
            drain: Duration::from_secs(25),
            cache_bytes: 16 * 1024 * 1024,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: 8 * 1024 * 1024,
            max_bodies: 64 * 1024 * 1024,
            max_header: 16 * 1024,
            max_bulk: 1000,
            keep_alive: Duration::from_secs(75),
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(900),
            requests_per_minute: 0,
            burst: 0,
            requests_per_token: 300,
            max_connections: 20_000,
            max_streams: 12_000,
            max_streams_per_tenant: 10_000,
            max_streams_per_token: 16,
            max_subscriptions: 100,
            socket_idle: Duration::from_secs(300),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("keys", &self.keys)
            .field("queue", &self.queue)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Schedule;

    /// A request that failed after all its retries was told so by its status or within its stream, as it happened:
    /// the heartbeat was as long as the retries.
    #[test]
    fn a_stream_begins_before_the_retries_are_over() {
        let Schedule { max_attempts, initial, multiplier, max, jitter, .. } = Schedule::default();
        let delays = (1..max_attempts).scan(initial, |delay, _| {
            let this = *delay;
            *delay = delay.mul_f64(multiplier).min(max);
            Some(this)
        });
        let shortest = delays.sum::<Duration>().mul_f64(1.0 - jitter);
        assert!(Options::default().heartbeat < shortest, "{shortest:?}");
    }
}
