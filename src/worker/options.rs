//! What can be set of a worker.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{event::Codec, job::QueueName, retry::Schedule};

/// How a worker behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The queues it serves.
    pub queues: Vec<QueueName>,
    /// Most jobs at once.
    pub concurrency: usize,
    /// What its incarnations are called; the host's name when empty.
    pub name: String,
    /// How often the lanes `high`, `normal` and `low` are chosen while all have entries.
    pub weights: [u32; 3],
    /// Longest time one blocking read waits.
    #[serde(with = "humantime_serde")]
    pub block: Duration,
    /// Deltas are gathered for this long; the first of an attempt goes out at once.
    #[serde(with = "humantime_serde")]
    pub flush_interval: Duration,
    /// Deltas of this many bytes go out before the interval is over.
    pub flush_bytes: usize,
    /// How chunks are written.
    pub codec: Codec,
    /// Most entries acknowledged at once.
    pub ack_batch: usize,
    /// Longest silence before the first token. Any byte of the answer is a sign of life, so that this limits
    /// endpoints which say nothing at all while a model reads a long prompt or thinks.
    #[serde(with = "humantime_serde")]
    pub first_token_timeout: Duration,
    /// Longest silence behind the first token.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Longest attempt.
    #[serde(with = "humantime_serde")]
    pub total_timeout: Duration,
    /// Most bytes of an attempt that are kept while the broker has not taken them.
    pub buffer_bytes: usize,
    /// How long an entry stays with a worker that does not renew it.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How often leases are renewed; less than half of `lease`.
    #[serde(with = "humantime_serde")]
    pub renewal: Duration,
    /// How often leases that ran out are looked for, while anything is in flight.
    #[serde(with = "humantime_serde")]
    pub sweep: Duration,
    /// How often record and log of a running job get their whole time to live again.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// A worker that has not read for so long and holds nothing is forgotten; more than twice
    /// `block`.
    #[serde(with = "humantime_serde")]
    pub forget: Duration,
    /// How long running jobs may go on after the worker was told to stop.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// When failed jobs are tried again.
    pub retry: Schedule,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: vec![QueueName::default()],
            concurrency: 64,
            name: String::new(),
            weights: [8, 4, 1],
            block: Duration::from_secs(30),
            flush_interval: Duration::from_millis(100),
            flush_bytes: 8192,
            codec: Codec::Json,
            ack_batch: 128,
            first_token_timeout: Duration::from_mins(5),
            idle_timeout: Duration::from_secs(60),
            total_timeout: Duration::from_mins(15),
            buffer_bytes: 4 * 1024 * 1024,
            lease: Duration::from_secs(6),
            renewal: Duration::from_secs(2),
            sweep: Duration::from_secs(1),
            refresh: Duration::from_hours(1),
            forget: Duration::from_hours(1),
            drain: Duration::from_secs(25),
            retry: Schedule::default(),
        }
    }
}
