//! How connections are opened, what their errors mean, and for how long the server has answered.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisError,
    aio::{AsyncPushSender, MultiplexedConnection},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::{Options, masked_url, pool::LastError};
use crate::broker::{Error, Partition, Result};

/// Opens connections to one server.
#[derive(Debug, Clone)]
pub struct Connector {
    info: ConnectionInfo,
    shown: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// Pooled connections opened so far.
    pub(super) opened: Arc<AtomicU64>,
    calm: Arc<Mutex<Calm>>,
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
        let shown = masked_url(url);
        let info = url.into_connection_info().map_err(|_| {
            Error::Address(format!(
                "`{shown}` is not a Redis URL; allowed: redis://[user:password@]host[:port][/db], \
                 rediss:// for TLS, unix:///path"
            ))
        })?;
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
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
            opened: Arc::default(),
            calm: Arc::default(),
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

    /// What the server says of itself, asked over a connection that is closed again: what is wrong
    /// with address, credentials or server shows here at once.
    pub async fn server_info(&self, section: &str) -> Result<String> {
        let mut connection =
            self.open(self.info.clone(), &self.config(self.response_timeout)).await?;
        let info = redis::cmd("INFO").arg(section).query_async(&mut connection).await;
        info.map_err(|e| self.classify(e))
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
        let text = error.to_string();
        let passing = ["LOADING", "max number of clients"].iter().any(|word| text.contains(word));
        let code = error.code().unwrap_or_default().to_owned();
        match error.kind() {
            _ if passing || is_cut(&error) => self.unavailable(&text, Some(error)),
            _ if matches!(code.as_str(), "NOAUTH" | "WRONGPASS" | "NOPERM") => self.denied(&text),
            ErrorKind::AuthenticationFailed => self.denied(&text),
            ErrorKind::InvalidClientConfig => Error::Address(format!("{}: {text}", self.shown)),
            ErrorKind::RESP3NotSupported => Error::TooOld { met: text },
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Client => {
                Error::Protocol(text)
            }
            _ if matches!(code.as_str(), "ERR" | "WRONGTYPE" | "CROSSSLOT" | "NOPROTO") => {
                Error::Protocol(text)
            }
            _ => self.unavailable(&text, Some(error)),
        }
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

    fn denied(&self, text: &str) -> Error {
        Error::Denied(format!("{text} ({}); check user, password and ACL", self.shown))
    }
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

    #[test]
    fn a_wrong_address_says_what_is_allowed() {
        let options = Options { url: "http://x".to_owned(), ..Options::default() };
        let error = Connector::new(&options).unwrap_err();
        assert!(error.to_string().contains("redis://"), "{error}");
    }
}
