//! Which trouble an error of the server tells of.

use redis::{ErrorKind, RedisError};

use crate::broker::Trouble;

/// The server's own words, where it is the server that says them.
pub(super) fn said(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ if error.kind() == ErrorKind::AuthenticationFailed => error.category().to_owned(),
        _ => error.to_string(),
    }
}

/// What TLS says of certificates: the server's, the one that it asks for, those of the system.
const CERTIFICATE: [&str; 4] = [
    "invalid peer certificate",
    "CertificateRequired",
    "failed to read PEM",
    "failed to open file",
];

/// The trouble that an error tells of, by the first word of what the server said. `said` tells more
/// where the client has put its own word in front.
pub(super) fn trouble(error: &RedisError, said: &str) -> Option<Trouble> {
    let refused_database = || error.to_string().contains("refused to switch database");
    Some(match error.code().unwrap_or_default() {
        "OOM" => Trouble::OutOfMemory,
        "READONLY" => Trouble::ReadOnly,
        "MISCONF" => Trouble::Disk,
        "NOREPLICAS" => Trouble::Replicas,
        "LOADING" => Trouble::Loading,
        "BUSY" => Trouble::Busy,
        "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "UNBLOCKED" => Trouble::Failover,
        "NOGROUP" => Trouble::NoGroup,
        "NOAUTH" | "WRONGPASS" => Trouble::Login,
        "DENIED" => Trouble::Protected,
        "NOPERM" => Trouble::Permission,
        "MOVED" | "ASK" | "CROSSSLOT" => Trouble::Cluster,
        // Redis 7.0 refuses a script's command in words of its own.
        _ if said.contains("The user executing the script can't") => Trouble::Permission,
        _ if said.contains("exhausted the last possible ID") => Trouble::Exhausted,
        _ if said.contains("max number of clients") => Trouble::Clients,
        _ if CERTIFICATE.iter().any(|words| said.contains(words)) => Trouble::Certificate,
        _ if error.kind() == ErrorKind::AuthenticationFailed => Trouble::Login,
        _ if refused_database() && said.contains("Authentication required") => Trouble::Login,
        _ if refused_database() && said.contains("no permissions") => Trouble::Permission,
        _ if refused_database() => Trouble::Database,
        _ => return None,
    })
}
