//! The shared broker: Redis 7.0 or newer, or Valkey.
//!
//! One file per role. Scripts are used only where a decision needs one: a plain pipeline costs the
//! server half as much. `docs/PROTOCOL.md` describes every key and field.

mod admit;
mod claim;
mod clock;
mod codec;
mod connect;
mod control;
mod enqueue;
#[cfg(feature = "cli")]
mod erase;
mod incoming;
mod inspect;
mod janitor;
pub mod keys;
mod lease;
mod log;
pub mod migrate;
mod pool;
mod probe;
mod promote;
mod pubsub;
mod read;
mod reconcile;
mod scripts;
mod server;
mod settle;
mod short;
mod tenancy;

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use connect::Connector;
use keys::Keys;
use pool::Pool;
use scripts::Scripts;
use serde::{Deserialize, Serialize};

use super::{Limits, Result};
use crate::{job::JobId, mask};

/// How to reach Redis, and how long it keeps what is over.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    pub url: String,
    /// For `rediss://`: a file of certificates, in PEM, that are trusted instead of the system's. Empty: the
    /// system's, or those of `SSL_CERT_FILE`.
    pub ca_file: PathBuf,
    /// What every key begins with.
    pub prefix: String,
    /// Longest time to connect.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest time to wait for a reply, beyond what a command itself waits.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// Most pooled connections.
    pub pool_size: u32,
    /// How long a job that is not over, or that has ended outside an attempt, keeps record and log.
    #[serde(with = "humantime_serde")]
    pub job_ttl: Duration,
    /// How long a job that an attempt has ended keeps record and log.
    #[serde(with = "humantime_serde")]
    pub result_ttl: Duration,
    /// How long, at the least, a job with an idempotency key keeps its record from that end on: so long the
    /// same key does not run it again, though its answer has gone after `result_ttl`.
    #[serde(with = "humantime_serde")]
    pub key_ttl: Duration,
    /// Most dead letters of a partition.
    pub dead_max: u64,
    /// How long a dead letter is kept.
    #[serde(with = "humantime_serde")]
    pub dead_ttl: Duration,
    /// Most recent jobs that are remembered of a tenant.
    pub recent_jobs: u32,
    /// Apply migrations at start; otherwise only check that they are applied.
    pub auto_migrate: bool,
    /// Accept a server that drops any key when its memory is full (`allkeys-*`), and with that the
    /// silent loss of jobs.
    pub allow_eviction: bool,
    /// The bounds of each queue.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            url: String::new(),
            ca_file: PathBuf::new(),
            prefix: "ms".to_owned(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
            pool_size: 8,
            job_ttl: Duration::from_secs(7 * DAY),
            result_ttl: Duration::from_secs(DAY),
            key_ttl: Duration::from_secs(7 * DAY),
            dead_max: 10_000,
            dead_ttl: Duration::from_secs(30 * DAY),
            recent_jobs: 1_000,
            auto_migrate: true,
            allow_eviction: false,
            limits: Limits::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("url", &mask::url(&self.url))
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// The Redis adapter. Clones share the pool.
#[derive(Clone)]
pub struct Redis {
    pool: Pool,
    keys: Arc<Keys>,
    scripts: Arc<Scripts>,
    options: Arc<Options>,
    wakes: Arc<enqueue::Wakes>,
    clock: Arc<clock::Clock>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.options.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects, and checks credentials, rights, version, and that the server keeps what it is given. Schema
    /// is checked by [`migrate`](Self::migrate) and its kin.
    ///
    /// # Errors
    /// [`broker::Error::is_transient`](crate::broker::Error::is_transient) tells those that may pass by waiting.
    pub async fn connect(options: Options) -> Result<Self> {
        let redis = Self::unconnected(options)?;
        redis.check().await?;
        Ok(redis)
    }

    /// As [`connect`](Self::connect), but nothing is asked yet: calls fail for as long as the server is
    /// away, and nothing may be enqueued before [`check`](Self::check) has passed.
    ///
    /// # Errors
    /// [`broker::Error::Address`](crate::broker::Error::Address) for an address that cannot be read.
    pub fn unconnected(options: Options) -> Result<Self> {
        Ok(Self::over(Connector::new(&options)?, options))
    }

    fn over(connector: Connector, options: Options) -> Self {
        let keys = Keys::new(options.prefix.clone()).in_database(connector.database());
        Self {
            pool: Pool::new(connector, options.pool_size),
            keys: Arc::new(keys),
            scripts: Arc::new(Scripts::new()),
            options: Arc::new(options),
            wakes: Arc::default(),
            clock: Arc::default(),
        }
    }

    /// Whether the server can be used at all, as [`connect`](Self::connect) checks it.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn check(&self) -> Result<()> {
        // Nobody hears this: there is no such job.
        let channel = self.keys.events(JobId::new());
        self.pool.connector().check(self.options.allow_eviction, &channel).await
    }

    /// What the server calls itself, with its version: `Redis 7.0.15`.
    pub async fn server(&self) -> Result<String> {
        Ok(self.pool.connector().info("server").await?.name())
    }

    /// How often each command was called, by anybody, since the server began to count; those that
    /// scripts call are among them.
    pub async fn calls(&self) -> Result<BTreeMap<String, u64>> {
        let info = self.pool.connector().info("commandstats").await?.0;
        let count = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        Ok(info.lines().filter_map(count).collect())
    }

    /// The keys in use.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
