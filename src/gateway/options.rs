//! How a gateway behaves.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::job::QueueName;

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
    /// How long a browser token is good.
    #[serde(with = "humantime_serde")]
    pub token_ttl: Duration,
    /// Web origins that may use the API from a browser, such as `https://app.example.com`; `*` for all.
    pub cors_origins: Vec<String>,
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
    /// this time is given the same answer; it then goes on when its client goes away. Zero: never.
    #[serde(with = "humantime_serde")]
    pub dedupe: Duration,
    /// How often an open stream says that it lives.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long answers may go on after SIGTERM.
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
    /// Most bytes of a request's headers.
    pub max_header: usize,
    /// Most jobs of one request.
    pub max_bulk: usize,
    /// How long a client may take to send a request's headers, and its body.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// How long a client may take nothing of what is sent to it before its connection is closed; the
    /// kernel, which watches event streams, gives it twice that.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// How long a chat completion that does not stream may take, waiting included; its job goes on.
    #[serde(with = "humantime_serde")]
    pub answer_timeout: Duration,
    /// Most requests of a tenant per minute, at all gateways together. 0: no limit.
    pub requests_per_minute: u32,
    /// Most requests of a tenant at once, within its minute's. 0: a minute's.
    pub burst: u32,
    /// Most connections of this process.
    pub max_connections: usize,
    /// Most open streams of this process: SSE, WebSockets and chat completions.
    pub max_streams: usize,
    /// Most open streams of a tenant at this process.
    pub max_streams_per_tenant: usize,
    /// Most jobs that one WebSocket follows.
    pub max_subscriptions: usize,
    /// A WebSocket that says nothing and hears nothing for this long is closed.
    #[serde(with = "humantime_serde")]
    pub socket_idle: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            keys: PathBuf::new(),
            secret: String::new(),
            token_ttl: Duration::from_secs(600),
            cors_origins: Vec::new(),
            models: Vec::new(),
            queue: QueueName::default(),
            queues: Vec::new(),
            on_disconnect: OnDisconnect::default(),
            dedupe: Duration::ZERO,
            heartbeat: Duration::from_secs(15),
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
            max_header: 16 * 1024,
            max_bulk: 1000,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(900),
            requests_per_minute: 0,
            burst: 0,
            max_connections: 20_000,
            max_streams: 12_000,
            max_streams_per_tenant: 12_000,
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
