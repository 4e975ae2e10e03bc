//! How connections are opened, what their errors mean, and for how long the server has answered.

mod trouble;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisError, TlsCertificates,
    aio::{AsyncPushSender, MultiplexedConnection},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use trouble::{said, trouble};

use super::{
    Options, codec,
    pool::LastError,
    probe::{self, Voice},
    server::{Info, Memory, check_policy, check_slots},
};
use crate::{
    broker::{Error, Partition, Result, Trouble},
    mask,
};

/// How long it is taken to be as full as it was.
const RECENT: Duration = Duration::from_secs(1);

/// Opens connections to one server.
#[derive(Debug, Clone)]
pub struct Connector {
    info: ConnectionInfo,
    shown: String,
    /// What keys and channels begin with.
    prefix: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// Pooled connections opened so far.
    pub(super) opened: Arc<AtomicU64>,
    calm: Arc<Mutex<Calm>>,
    /// How full the server was when it last refused a write for that, and when that was.
    memory: Arc<Mutex<Option<(Instant, Memory)>>>,
    /// Partitions that were refused, and since when they are not any more.
    refused: Arc<Mutex<HashMap<Partition, Option<Instant>>>>,
    pub(super) last_error: LastError,
}

/// How long the server has answered without interruption, as far as sweeps tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calm {
    /// Since when no connection has broken; `None` from a break to the next sweep that works.
    pub since: Option<Instant>,
    /// Whether an outage came before.
    after_outage: bool,
    /// Since when the server runs, as far as it has told.
    server: Option<Instant>,
}

impl Calm {
    /// Whether an outage may have ended within `time`: then a lease may have run out through nobody's
    /// fault.
    pub fn is_younger(&self, time: Duration) -> bool {
        let now = Instant::now();
        let recent = |at: Instant| now.duration_since(at) < time;
        self.server.is_some_and(recent) || (self.after_outage && self.since.is_none_or(recent))
    }
}

impl Connector {
    /// Reads the address; nothing is connected yet.
    pub fn new(options: &Options) -> Result<Self> {
        crate::install_tls_provider();
        let url = options.url.as_str();
        let shown = mask::url(url);
        let info = url.into_connection_info().map_err(|_| {
            Error::Address(format!(
                "`{shown}` is not a Redis URL; allowed: redis://[user:password@]host[:port][/db], \
                 rediss:// for TLS, unix:///path"
            ))
        })?;
        let info = trusting(info, &options.ca_file)?;
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5));
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive)
            .set_user_timeout(options.response_timeout.max(Duration::from_secs(1)));
        // The library's name would cost two commands per connection.
        let redis = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_tcp_settings(tcp).set_redis_settings(redis);
        Ok(Self {
            info,
            shown,
            prefix: options.prefix.clone(),
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
            opened: Arc::default(),
            calm: Arc::default(),
            memory: Arc::default(),
            refused: Arc::default(),
            last_error: LastError::default(),
        })
    }

    fn config(&self, response_timeout: Duration) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(response_timeout))
    }

    async fn open(
        &self,
        info: ConnectionInfo,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection> {
        let client = Client::open(info).map_err(|e| self.classify(e))?;
        let connection = client.get_multiplexed_async_connection_with_config(config);
        match tokio::time::timeout(self.patience(), connection).await {
            Ok(result) => result.map_err(|e| self.classify(e)),
            Err(_) => Err(self.unavailable("no answer while connecting", None)),
        }
    }

    /// A section of what the server says of itself, asked over a connection that is closed again: what
    /// is wrong with address, credentials or server shows here at once.
    pub async fn info(&self, section: &str) -> Result<Info> {
        let mut connection = self.pooled().await?;
        let info = redis::cmd("INFO").arg(section).query_async(&mut connection).await;
        info.map(Info).map_err(|e| self.classify(e))
    }

    /// Whether this server can be used: what it is, that it keeps what it is given, and that its user may
    /// publish to this channel. Scripts pass over a message that is refused, and its readers would wait for
    /// ever.
    pub async fn check(&self, allow_eviction: bool, channel: &str) -> Result<()> {
        match self.look(allow_eviction, channel).await {
            Err(error @ (Error::Unavailable { .. } | Error::Protocol(_))) => {
                Err(self.diagnosed(error).await)
            }
            result => result,
        }
    }

    async fn look(&self, allow_eviction: bool, channel: &str) -> Result<()> {
        let mut connection = self.pooled().await?;
        let mut ask = async |words: &[&str]| {
            let (name, arguments) = words.split_first().unwrap_or((&"PING", &[]));
            redis::cmd(name).arg(arguments).query_async::<redis::Value>(&mut connection).await
        };
        let text = |value| codec::read::<String>(value, "text");
        let server = Info(text(ask(&["INFO", "server"]).await.map_err(|e| self.classify(e))?)?);
        server.check(&self.shown)?;
        self.started(server.uptime());
        tracing::debug!(url = self.shown, server = server.name(), "broker answers");
        if server.is_cluster() {
            let nodes = ask(&["CLUSTER", "NODES"]).await.map_err(|e| self.classify(e))?;
            check_slots(&text(nodes)?, &self.shown)?;
        }
        let memory = Info(text(ask(&["INFO", "memory"]).await.map_err(|e| self.classify(e))?)?);
        let mut policy = memory.policy().map(str::to_owned);
        if policy.is_none() {
            // Whoever may not ask does not know.
            let told = ask(&["CONFIG", "GET", "maxmemory-policy"]).await.ok();
            let told = told.and_then(|value| codec::read::<Vec<String>>(value, "policy").ok());
            policy = told.and_then(|told| told.into_iter().nth(1));
        }
        check_policy(policy.as_deref(), allow_eviction, &self.shown)?;
        ask(&["PUBLISH", channel, ""]).await.map_err(|e| self.classify(e)).map(drop)
    }

    /// What else may stand at the address than a Redis that answers as it should.
    async fn diagnosed(&self, error: Error) -> Error {
        let shown = &self.shown;
        let (host, port, tls) = match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => (host, *port, false),
            ConnectionAddr::TcpTls { host, port, .. } => (host, *port, true),
            _ => return error,
        };
        let (kind, message) = match probe::listen(host, port, self.connect_timeout).await {
            Some(Voice::Redis(_)) if tls => {
                (Trouble::Tls, format!("{shown}: the Redis there speaks no TLS"))
            }
            // It has closed the connection, and its word may not have arrived before.
            Some(Voice::Redis(line)) if line.contains("max number of clients") => {
                (Trouble::Clients, format!("{shown}: Redis says `{line}`"))
            }
            Some(Voice::Redis(line)) if line.starts_with("DENIED") => {
                (Trouble::Protected, format!("{shown}: Redis says `{line}`"))
            }
            Some(Voice::Tls) if !tls => {
                (Trouble::Tls, format!("{shown}: what listens there speaks only TLS"))
            }
            Some(Voice::Http) => {
                (Trouble::NotRedis, format!("{shown} is a web server, and no Redis"))
            }
            Some(Voice::Other(said)) => {
                (Trouble::NotRedis, format!("{shown} is no Redis; it says `{said}`"))
            }
            _ => return error,
        };
        Error::Trouble { kind, message, source: None }
    }

    /// A connection of its own, for commands that block up to `block`.
    pub async fn dedicated(&self, block: Duration) -> Result<MultiplexedConnection> {
        self.open(self.info.clone(), &self.config(self.response_timeout + block)).await
    }

    /// A connection that hands pushed messages to `sender`.
    pub async fn subscriber(&self, sender: impl AsyncPushSender) -> Result<MultiplexedConnection> {
        let settings = self.info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = self.info.clone().set_redis_settings(settings);
        self.open(info, &self.config(self.response_timeout).set_push_sender(sender)).await
    }

    /// The number of the database that is used.
    pub(super) fn database(&self) -> i64 {
        self.info.redis_settings().db()
    }

    /// A connection for the pool.
    pub(super) async fn pooled(&self) -> Result<MultiplexedConnection> {
        self.open(self.info.clone(), &self.config(self.response_timeout)).await
    }

    /// How long the pool waits for a connection.
    pub(super) fn patience(&self) -> Duration {
        self.connect_timeout * 2
    }

    /// No connection came within that time, and nobody knows why.
    pub(super) fn no_room(&self) -> Error {
        self.unavailable("no connection within the time allowed", None)
    }

    fn unavailable(&self, what: &str, source: Option<RedisError>) -> Error {
        Error::Unavailable {
            message: format!("{what} ({}); is Redis running and reachable there?", self.shown),
            source: source.map(Into::into),
        }
    }

    /// What a client error means here. Whatever a server may recover from by itself or by its
    /// operator's hand is worth waiting for: a full memory or disk, a replica, a restart.
    pub fn classify(&self, error: RedisError) -> Error {
        if is_cut(&error) {
            return self.unavailable(&error.to_string(), Some(error));
        }
        let said = said(&error);
        if let Some(kind) = trouble(&error, &said) {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let message = match (kind, &*memory) {
                (Trouble::OutOfMemory, Some((_, memory))) => {
                    format!("Redis is full: {memory} ({})", self.shown)
                }
                (Trouble::OutOfMemory, None) => format!("Redis is full ({})", self.shown),
                (Trouble::Permission, _) if said.contains("channel") => format!(
                    "{}: Redis says `{said}`; Millstream needs the channels of its prefix, ACL SETUSER NAME \
                     &{}:*",
                    self.shown, self.prefix
                ),
                _ => format!("{}: Redis says `{said}`", self.shown),
            };
            return Error::Trouble { kind, message, source: Some(error.into()) };
        }
        match error.kind() {
            ErrorKind::InvalidClientConfig => Error::Address(format!("{}: {said}", self.shown)),
            ErrorKind::RESP3NotSupported => Error::TooOld { met: said },
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Client => {
                Error::Protocol(said)
            }
            _ if matches!(error.code(), Some("ERR" | "WRONGTYPE" | "NOPROTO")) => {
                Error::Protocol(said)
            }
            _ => self.unavailable(&said, Some(error)),
        }
    }

    /// Whether a server that has refused a write for want of memory should be asked how full it is.
    pub(super) fn wants_memory(&self, error: &RedisError) -> bool {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        error.code() == Some("OOM") && memory.as_ref().is_none_or(|(at, _)| at.elapsed() > RECENT)
    }

    /// How full the server is: its answer to `INFO memory`.
    pub(super) fn has_memory(&self, info: String) {
        let memory = Info(info).memory().map(|memory| (Instant::now(), memory));
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    /// The server took the connection and says nothing.
    pub fn silent(&self) -> Error {
        self.unavailable("no answer", None)
    }

    /// Since when the server has answered for this partition without interruption.
    pub fn calm(&self, partition: &Partition) -> Calm {
        let calm = *self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(partition).map_or(calm, |answered| Calm {
            since: calm.since.zip(*answered).map(|(all, this)| all.max(this)),
            after_outage: true,
            ..calm
        })
    }

    /// The server says how long it has been running.
    pub fn started(&self, uptime: Duration) {
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        calm.server = Instant::now().checked_sub(uptime);
    }

    /// The server's clock was set: leases may have run out through nobody's fault, and a calm begins.
    pub fn stepped(&self) {
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        (calm.since, calm.after_outage) = (Some(Instant::now()), true);
    }

    /// The server has answered for this partition: a calm begins, if there was none.
    pub fn answered(&self, partition: &Partition) {
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        calm.since.get_or_insert_with(Instant::now);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answered) = refused.get_mut(partition) {
            answered.get_or_insert_with(Instant::now);
        }
    }

    /// A call for this partition has failed. What does not pass by itself is about the partition, such
    /// as a key of another type or one that an ACL denies: there no lease may have been renewed, and the
    /// others are as calm as before.
    pub fn failed(&self, partition: &Partition, error: &Error) {
        if error.is_transient() {
            self.disturbed();
        } else {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.insert(partition.clone(), None);
        }
    }

    /// A connection broke, or the server could not answer; the calm is over.
    pub fn disturbed(&self) {
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        (calm.since, calm.after_outage) = (None, true);
    }
}

/// The address with the certificates of this file as the only ones that are trusted there.
fn trusting(info: ConnectionInfo, ca_file: &Path) -> Result<ConnectionInfo> {
    let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    if !is_tls || ca_file.as_os_str().is_empty() {
        return Ok(info);
    }
    let refused =
        |what: String| Error::Address(format!("redis.ca_file, {}: {what}", ca_file.display()));
    let pem = std::fs::read(ca_file).map_err(|error| refused(error.to_string()))?;
    let mark = b"-----BEGIN CERTIFICATE-----";
    if !pem.windows(mark.len()).any(|text| text == mark) {
        return Err(refused(
            "there is no certificate in it; allowed: certificates in PEM".to_owned(),
        ));
    }
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
    let client = Client::build_with_tls(info, certificates);
    client.map(|client| client.get_connection_info().clone()).map_err(|e| refused(e.to_string()))
}

/// Whether the connection ended under a request. Where it ends within a reply, the client tells of a
/// reply that cannot be parsed, unless that lacks its first byte or a whole element.
pub(super) fn is_cut(error: &RedisError) -> bool {
    let torn = || error.kind() == ErrorKind::Parse && error.to_string().contains("end of input");
    error.is_connection_dropped() || torn()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// Guards against a connection that ends within a reply being taken for a server that answers
    /// nonsense, which no one waits for: wherever it ends, it passes.
    #[tokio::test]
    async fn a_connection_cut_within_a_reply_is_unavailable() {
        let reply = b"*3\r\n$2\r\nno\r\n*3\r\n:250\r\n$-1\r\n+x\r\n$4\r\nlast\r\n";
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            for end in 0..=reply.len() {
                let (mut client, _) = listener.accept().await.unwrap();
                assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
                client.write_all(&reply[..end]).await.unwrap();
            }
        });
        let connector = Connector::new(&Options { url, ..Options::default() }).unwrap();
        for end in 0..=reply.len() {
            let mut connection = connector.dedicated(std::time::Duration::ZERO).await.unwrap();
            let answer = redis::cmd("PING").query_async::<redis::Value>(&mut connection).await;
            if end == reply.len() {
                answer.unwrap();
                continue;
            }
            let error = answer.unwrap_err();
            assert!(is_cut(&error), "after {end} bytes: {error}");
            let error = connector.classify(error);
            assert!(error.is_transient(), "after {end} bytes: {error}");
        }
        server.await.unwrap();
    }

    /// Guards against what a server says in so many words being told as one that is away.
    #[tokio::test]
    async fn each_word_of_the_server_is_told_by_its_trouble() {
        let words = [
            ("OOM command not allowed when used memory > 'maxmemory'.", Trouble::OutOfMemory),
            ("READONLY You can't write against a read only replica.", Trouble::ReadOnly),
            ("MISCONF Redis is configured to save RDB snapshots", Trouble::Disk),
            ("NOREPLICAS Not enough good replicas to write.", Trouble::Replicas),
            ("LOADING Redis is loading the dataset in memory", Trouble::Loading),
            ("BUSY Redis is busy running a script.", Trouble::Busy),
            ("MASTERDOWN Link with MASTER is down", Trouble::Failover),
            ("CLUSTERDOWN The cluster is down", Trouble::Failover),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Trouble::Failover),
            ("UNBLOCKED force unblock from blocking operation", Trouble::Failover),
            ("ERR max number of clients reached", Trouble::Clients),
            ("NOGROUP No such key 'x' or consumer group 'workers'", Trouble::NoGroup),
            (
                "ERR The stream has exhausted the last possible ID, unable to add more items",
                Trouble::Exhausted,
            ),
            ("NOAUTH Authentication required.", Trouble::Login),
            ("WRONGPASS invalid username-password pair", Trouble::Login),
            ("DENIED Redis is running in protected mode", Trouble::Protected),
            ("NOPERM this user has no permissions to run the 'xadd' command", Trouble::Permission),
            (
                "ERR The user executing the script can't run this command or subcommand script: 0a, on @user_script:4.",
                Trouble::Permission,
            ),
            ("MOVED 3999 127.0.0.1:6381", Trouble::Cluster),
            ("ASK 3999 127.0.0.1:6381", Trouble::Cluster),
            ("CROSSSLOT Keys in request don't hash to the same slot", Trouble::Cluster),
        ];
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            for (word, _) in words {
                assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
                client.write_all(format!("-{word}\r\n").as_bytes()).await.unwrap();
            }
        });
        let connector = Connector::new(&Options { url, ..Options::default() }).unwrap();
        let mut connection = connector.dedicated(Duration::ZERO).await.unwrap();
        for (word, expected) in words {
            let answer = redis::cmd("PING").query_async::<redis::Value>(&mut connection).await;
            let error = connector.classify(answer.unwrap_err());
            let text = error.to_string();
            assert!(text.contains(word) || text.contains("Redis is full"), "{word}: {text}");
            assert!(!text.contains("is Redis running"), "{text}");
            assert!(
                matches!(error, Error::Trouble { kind, .. } if kind == expected),
                "{word}: {error:?}"
            );
        }
        server.await.unwrap();
    }

    #[test]
    fn a_wrong_address_says_what_is_allowed() {
        let options = Options { url: "http://x".to_owned(), ..Options::default() };
        let error = Connector::new(&options).unwrap_err();
        assert!(error.to_string().contains("redis://"), "{error}");
    }
}
