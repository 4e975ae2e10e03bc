//! The shared broker: Redis 7.0 or newer, or Valkey.
//!
//! One file per role. Scripts are used only where a decision needs one: a plain pipeline costs the
//! server half as much. `docs/PROTOCOL.md` describes every key and field.

mod admit;
mod claim;
mod codec;
mod connect;
mod control;
mod enqueue;
#[cfg(feature = "cli")]
mod erase;
mod inspect;
mod janitor;
pub mod keys;
mod lease;
mod log;
pub mod migrate;
mod pool;
mod promote;
mod pubsub;
mod reconcile;
mod scripts;
mod settle;
mod tenancy;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use connect::Connector;
use keys::Keys;
use pool::Pool;
use scripts::Scripts;
use serde::{Deserialize, Serialize};

use super::{Error, Limits, Result};

/// How to reach Redis, and how long it keeps what is over.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    pub url: String,
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
    /// Most dead letters of a partition.
    pub dead_max: u64,
    /// How long a dead letter is kept.
    #[serde(with = "humantime_serde")]
    pub dead_ttl: Duration,
    /// Most recent jobs that are remembered of a tenant.
    pub recent_jobs: u32,
    /// Apply migrations at start; otherwise only check that they are applied.
    pub auto_migrate: bool,
    /// The bounds of each queue.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            url: String::new(),
            prefix: "ms".to_owned(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
            pool_size: 8,
            job_ttl: Duration::from_secs(7 * DAY),
            result_ttl: Duration::from_secs(DAY),
            dead_max: 10_000,
            dead_ttl: Duration::from_secs(30 * DAY),
            recent_jobs: 1_000,
            auto_migrate: true,
            limits: Limits::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("url", &masked_url(&self.url))
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
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.options.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects, and checks credentials and version. Schema is checked by
    /// [`migrate`](Self::migrate) and its kin.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::Denied`] and [`Error::TooOld`] will not pass by waiting;
    /// [`Error::Unavailable`] may.
    pub async fn connect(options: Options) -> Result<Self> {
        let connector = Connector::new(&options)?;
        let info = connector.server_info("server").await?;
        check_version(&info)?;
        connector.started(uptime(&info));
        let pool = Pool::new(connector, options.pool_size);
        Ok(Self {
            pool,
            keys: Arc::new(Keys::new(options.prefix.clone())),
            scripts: Arc::new(Scripts::new()),
            options: Arc::new(options),
            wakes: Arc::default(),
        })
    }

    /// What the server calls itself, with its version: `Redis 7.0.15`.
    pub async fn server(&self) -> Result<String> {
        let info = self.pool.connector().server_info("server").await?;
        Ok(match version(&info, "valkey_version:") {
            Some(version) => format!("Valkey {version}"),
            None => format!("Redis {}", version(&info, "redis_version:").unwrap_or("unknown")),
        })
    }

    /// How often each command was called, by anybody, since the server began to count; those that
    /// scripts call are among them.
    pub async fn calls(&self) -> Result<BTreeMap<String, u64>> {
        let info = self.pool.connector().server_info("commandstats").await?;
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

/// A URL without its password.
pub fn masked_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(s, rest)| (s, rest));
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(r, query)| (r, Some(query)));
    // The last @ ends the password, which may hold others that should have been encoded.
    let mut shown = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:***@{host}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    if !scheme.is_empty() {
        shown = format!("{scheme}://{shown}");
    }
    let parts = query.map(|query| {
        let hide = |part: &str| match part.split_once('=') {
            Some((name, _)) if name.starts_with("pass") => format!("{name}=***"),
            _ => part.to_owned(),
        };
        query.split('&').map(hide).collect::<Vec<_>>().join("&")
    });
    parts.map_or(shown.clone(), |query| format!("{shown}?{query}"))
}

/// A version among what the server says of itself.
fn version<'a>(info: &'a str, field: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(field)).map(str::trim)
}

/// Valkey reports the Redis version that it is compatible with, too.
fn check_version(info: &str) -> Result<()> {
    let version = version(info, "redis_version:").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    if major >= 7 {
        return Ok(());
    }
    Err(Error::TooOld { met: format!("Redis {version}") })
}

/// How long the server has been running.
fn uptime(info: &str) -> Duration {
    let seconds = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
    Duration::from_secs(seconds.and_then(|s| s.trim().parse().ok()).unwrap_or(0))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_named() {
        assert!(check_version("# Server\r\nredis_version:7.0.15\r\n").is_ok());
        assert!(check_version("redis_version:7.2.4\r\nvalkey_version:9.1.0\r\n").is_ok());
        let error = check_version("redis_version:6.2.14\r\n").unwrap_err();
        assert!(error.to_string().contains("Redis 6.2.14"), "{error}");
        assert!(error.to_string().contains("7.0"), "{error}");
    }
}
