//! Why a Redis that is there cannot be used: each kind under a stable code, with its remedy.

/// A reason for which Redis, or what stands in its place, cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trouble {
    /// Its memory is full (`OOM`).
    OutOfMemory,
    /// It is a replica, which takes no writes (`READONLY`).
    ReadOnly,
    /// It cannot save to its disk, and takes no writes until it can (`MISCONF`).
    Disk,
    /// It has fewer replicas than it needs to take writes (`NOREPLICAS`).
    Replicas,
    /// It reads its data from disk (`LOADING`).
    Loading,
    /// A script of somebody blocks it (`BUSY`).
    Busy,
    /// It changes its role, or a part of its cluster is down (`MASTERDOWN`, `CLUSTERDOWN`, `TRYAGAIN`).
    Failover,
    /// It has as many clients as it may have.
    Clients,
    /// A lane or its consumer group is gone (`NOGROUP`).
    NoGroup,
    /// A stream holds, or has held, an entry with the last of all IDs, and takes no other.
    Exhausted,
    /// It refuses user or password (`NOAUTH`, `WRONGPASS`).
    Login,
    /// It serves only its own machine, because it has no password (`DENIED`).
    Protected,
    /// Its ACL forbids a command, a key or a channel (`NOPERM`).
    Permission,
    /// Something else listens at the address.
    NotRedis,
    /// One side speaks TLS, and the other does not.
    Tls,
    /// Its certificate is not trusted, or is another host's.
    Certificate,
    /// It does not have the database that the address names.
    Database,
    /// It is one node of several of a Cluster (`MOVED`, `ASK`, `CROSSSLOT`).
    Cluster,
    /// It drops any key when its memory is full.
    Eviction,
}

/// The one table: kind, code, whether it may pass without Millstream being set up otherwise, remedy.
const TROUBLES: [(Trouble, &str, bool, &str); 19] = [
    (
        Trouble::OutOfMemory,
        "broker_out_of_memory",
        true,
        "raise its maxmemory, or let results expire sooner (redis.result_ttl)",
    ),
    (
        Trouble::ReadOnly,
        "broker_read_only",
        true,
        "name the primary in REDIS_URL, or wait until the failover is over",
    ),
    (
        Trouble::Disk,
        "broker_disk",
        true,
        "its log tells why it cannot save; free its disk, and it takes writes again",
    ),
    (
        Trouble::Replicas,
        "broker_replicas",
        true,
        "bring its replicas back, or lower its min-replicas-to-write",
    ),
    (Trouble::Loading, "broker_loading", true, "wait until it has read its data"),
    (
        Trouble::Busy,
        "broker_busy",
        true,
        "wait until the script has ended, or end it by SCRIPT KILL",
    ),
    (Trouble::Failover, "broker_failover", true, "wait until the failover is over"),
    (Trouble::Clients, "broker_clients", true, "raise its maxclients, or lower redis.pool_size"),
    (
        Trouble::NoGroup,
        "broker_no_group",
        true,
        "somebody has deleted it; a worker that serves the queue makes it again",
    ),
    (
        Trouble::Exhausted,
        "broker_stream_exhausted",
        false,
        "somebody has added an entry with the last of all IDs: delete that, then set the stream and its \
         group back (XSETID, XGROUP SETID); only trusted producers should be allowed XADD",
    ),
    (Trouble::Login, "broker_denied", false, "correct user and password in REDIS_URL (redis.url)"),
    (
        Trouble::Protected,
        "broker_protected",
        false,
        "give it a password (requirepass), and name that in REDIS_URL",
    ),
    (
        Trouble::Permission,
        "broker_forbidden",
        false,
        "allow it by ACL SETUSER, or name another user in REDIS_URL",
    ),
    (
        Trouble::NotRedis,
        "broker_not_redis",
        false,
        "correct host and port in REDIS_URL (redis.url)",
    ),
    (Trouble::Tls, "broker_tls", false, "in REDIS_URL, rediss:// is with TLS and redis:// without"),
    (
        Trouble::Certificate,
        "broker_certificate",
        false,
        "name the host as its certificate does, and the file of its authority by redis.ca_file or \
         SSL_CERT_FILE",
    ),
    (
        Trouble::Database,
        "broker_database",
        false,
        "name another in REDIS_URL, or raise `databases` in its configuration; a Cluster has only 0",
    ),
    (
        Trouble::Cluster,
        "broker_cluster",
        false,
        "Millstream needs one Redis that owns all slots: name one that is no Cluster, or give one \
         node all of them",
    ),
    (
        Trouble::Eviction,
        "broker_eviction",
        false,
        "CONFIG SET maxmemory-policy noeviction, or accept that queues with all their jobs may \
         vanish without a word (redis.allow_eviction = true)",
    ),
];

impl Trouble {
    fn row(self) -> (&'static str, bool, &'static str) {
        let row = TROUBLES.iter().find(|row| row.0 == self);
        row.map_or(("broker_unavailable", true, ""), |row| (row.1, row.2, row.3))
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        TROUBLES.iter().map(|row| row.0)
    }

    /// A name that does not change.
    pub fn code(self) -> &'static str {
        self.row().0
    }

    /// Whether the same call may succeed later although nobody sets up Millstream otherwise.
    pub fn passes(self) -> bool {
        self.row().1
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_kind_has_a_code_and_a_remedy_of_its_own() {
        let codes: BTreeSet<_> = Trouble::all().map(Trouble::code).collect();
        let remedies: BTreeSet<_> = Trouble::all().map(Trouble::remedy).collect();
        assert_eq!((codes.len(), remedies.len()), (TROUBLES.len(), TROUBLES.len()));
        assert!(!codes.contains("broker_unavailable"), "{codes:?}");
    }
}
