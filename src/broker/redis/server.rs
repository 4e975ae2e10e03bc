//! What a server says of itself, and whether that is enough for a queue.

use std::{fmt, time::Duration};

use crate::broker::{Error, Result, Trouble};

/// Slots of a Redis Cluster.
const SLOTS: u32 = 16_384;

/// The reply of `INFO`.
#[derive(Debug, Clone, Default)]
pub struct Info(pub String);

/// How full the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    used: u64,
    /// 0: no bound.
    max: u64,
    policy: String,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, max, policy } = self;
        let (unit, name) = match *max {
            1_073_741_824.. => (1_073_741_824.0, "GB"),
            _ => (1_048_576.0, "MB"),
        };
        #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
        let sized = |bytes: u64| bytes as f64 / unit;
        write!(
            f,
            "used {:.1} of {:.1} {name}, maxmemory-policy {policy}",
            sized(*used),
            sized(*max)
        )
    }
}

impl Info {
    /// The value of a field.
    fn get(&self, field: &str) -> Option<&str> {
        let value = |line: &'_ str| Some(line.strip_prefix(field)?.strip_prefix(':')?.len());
        let (line, length) = self.0.lines().find_map(|line| Some((line, value(line)?)))?;
        Some(line[line.len() - length..].trim())
    }

    fn number(&self, field: &str) -> u64 {
        self.get(field).and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// What the server calls itself, with its version: `Redis 7.0.15`.
    pub fn name(&self) -> String {
        match self.get("valkey_version") {
            Some(version) => format!("Valkey {version}"),
            None => format!("Redis {}", self.get("redis_version").unwrap_or("unknown")),
        }
    }

    /// How long the server has been running.
    pub fn uptime(&self) -> Duration {
        Duration::from_secs(self.number("uptime_in_seconds"))
    }

    /// Whether it is a node of a Cluster.
    pub fn is_cluster(&self) -> bool {
        self.mode() == "cluster"
    }

    fn mode(&self) -> &str {
        self.get("redis_mode").or_else(|| self.get("server_mode")).unwrap_or("standalone")
    }

    /// What it drops when its memory is full, where it tells.
    pub fn policy(&self) -> Option<&str> {
        self.get("maxmemory_policy").filter(|policy| !policy.is_empty())
    }

    /// How full it is, where it tells. Buffers of replicas and of the append-only file do not count
    /// against its bound.
    pub fn memory(&self) -> Option<Memory> {
        let used = self.get("used_memory")?.parse::<u64>().ok()?;
        let used = used.saturating_sub(self.number("mem_not_counted_for_evict"));
        let policy = self.policy().unwrap_or("unknown").to_owned();
        Some(Memory { used, max: self.number("maxmemory"), policy })
    }

    /// Refuses a server that is too old, and one that only watches others. Valkey reports the Redis
    /// version that it is compatible with, too.
    pub fn check(&self, shown: &str) -> Result<()> {
        let version = self.get("redis_version").unwrap_or("unknown");
        let major = version.split('.').next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
        if self.mode() == "sentinel" {
            let message = format!("{shown} is a Sentinel, which holds no data");
            return Err(Error::Trouble { kind: Trouble::NotRedis, message, source: None });
        }
        if major < 7 {
            return Err(Error::TooOld { met: format!("Redis {version}") });
        }
        Ok(())
    }
}

/// Refuses a node that does not own every slot: a job's keys have slots of their own, and those of
/// other nodes cannot be reached through this one. `nodes` is the reply of `CLUSTER NODES`.
pub fn check_slots(nodes: &str, shown: &str) -> Result<()> {
    let is_mine =
        |line: &&str| line.split(' ').nth(2).is_some_and(|flags| flags.contains("myself"));
    let mine = nodes.lines().find(is_mine).unwrap_or_default();
    let ranges = mine.split(' ').skip(8);
    let owned: u32 = ranges.filter_map(slots).sum();
    // A slot that moves stands behind the ranges, in brackets.
    if owned == SLOTS && !mine.contains('[') {
        return Ok(());
    }
    let message = format!(
        "{shown} is a node of a Redis Cluster and owns {owned} of its {SLOTS} slots: jobs would be \
         taken that can never run"
    );
    Err(Error::Trouble { kind: Trouble::Cluster, message, source: None })
}

/// The slots of a range: `0-5460`, or `7`.
fn slots(range: &str) -> Option<u32> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
}

/// Refuses a server that drops whatever it likes when its memory is full, and warns of one that drops
/// what has a time to live.
pub fn check_policy(policy: Option<&str>, allowed: bool, shown: &str) -> Result<()> {
    match policy {
        None => tracing::warn!(
            server = shown,
            "Redis does not tell its maxmemory-policy; with any other than noeviction jobs may vanish"
        ),
        Some(policy) if policy.starts_with("allkeys") && !allowed => {
            let message = format!(
                "{shown} has the maxmemory-policy {policy}: when its memory is full it drops any key, \
                 whole lanes with every job that waits in them among them"
            );
            return Err(Error::Trouble { kind: Trouble::Eviction, message, source: None });
        }
        Some(policy) if policy.starts_with("allkeys") => tracing::warn!(
            server = shown,
            policy,
            "REDIS DROPS ANY KEY when its memory is full, and redis.allow_eviction accepts that: waiting \
             jobs, running ones and answers may vanish without a word"
        ),
        Some(policy) if policy.starts_with("volatile") => tracing::warn!(
            server = shown,
            policy,
            "REDIS DROPS RECORDS AND ANSWERS when its memory is full: jobs may run twice, and answers be \
             gone before they are read; CONFIG SET maxmemory-policy noeviction"
        ),
        Some(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> Info {
        Info(text.replace('\n', "\r\n"))
    }

    #[test]
    fn an_old_server_is_named() {
        info("# Server\nredis_version:7.0.15\n").check("h").unwrap();
        info("redis_version:7.2.4\nvalkey_version:9.1.0\n").check("h").unwrap();
        let error = info("redis_version:6.2.14\n").check("h").unwrap_err();
        assert!(error.to_string().contains("Redis 6.2.14"), "{error}");
        assert!(error.to_string().contains("7.0"), "{error}");
        let error = info("redis_version:7.0.15\nredis_mode:sentinel\n").check("h").unwrap_err();
        assert!(error.to_string().contains("Sentinel"), "{error}");
    }

    #[test]
    fn memory_is_told_in_figures_without_what_does_not_count() {
        let text = "used_memory:6400000\nmaxmemory:6291456\nmaxmemory_policy:noeviction\n\
                    mem_not_counted_for_evict:108544\n";
        let memory = info(text).memory().unwrap();
        assert_eq!(memory.to_string(), "used 6.0 of 6.0 MB, maxmemory-policy noeviction");
        assert_eq!(info("redis_version:7").memory(), None);
    }

    #[test]
    fn only_a_node_with_every_slot_will_do() {
        let node =
            |flags: &str, slots: &str| format!("a1 h:1@2 {flags} - 0 0 1 connected {slots}\n");
        check_slots(&node("myself,master", "0-5 6 7-16383"), "h").unwrap();
        for nodes in [
            node("myself,master", "0-8191") + &node("master", "8192-16383"),
            node("myself,slave", "") + &node("master", "0-16383"),
            node("myself,master", "0-16383 [77->-a2]"),
            node("myself,master", ""),
            String::new(),
        ] {
            let error = check_slots(&nodes, "h").unwrap_err();
            assert_eq!(error.code(), "broker_cluster", "{nodes}");
        }
    }

    #[test]
    fn a_server_that_drops_any_key_is_refused_unless_that_is_accepted() {
        for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
            let error = check_policy(Some(policy), false, "h").unwrap_err();
            assert!(error.to_string().contains(policy), "{error}");
            check_policy(Some(policy), true, "h").unwrap();
        }
        for policy in [Some("volatile-lru"), Some("noeviction"), None] {
            check_policy(policy, false, "h").unwrap();
        }
    }
}
