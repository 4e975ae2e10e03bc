//! Connections: a pool for what is short, a connection of its own for each reader that blocks.
//!
//! The stock pool manager connects with a response timeout of 500 ms and never calls a connection
//! broken. This one sets TCP options, and a connection that met an error after which it cannot be
//! trusted is marked and not pooled again.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bb8_redis::bb8;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    ProtocolVersion, RedisError, ScriptInvocation, ServerErrorKind, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::{Options, masked_url};
use crate::broker::{Error, Result};

/// Opens connections to one server.
#[derive(Debug, Clone)]
pub struct Connector {
    info: ConnectionInfo,
    shown: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// Pooled connections opened so far.
    opened: Arc<AtomicU64>,
    calm: Arc<Mutex<Calm>>,
    last_error: LastError,
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

/// A pooled connection. Its clones share the socket, on which requests of many callers follow one
/// another: it goes back to the pool at once, and nobody waits for a turn.
#[derive(Debug, Clone)]
pub struct Pooled {
    inner: MultiplexedConnection,
    poisoned: Arc<AtomicBool>,
    /// Which of the pool's connections it is, from 1.
    born: u64,
}

/// The pool for everything that does not block.
#[derive(Debug, Clone)]
pub struct Pool {
    connections: bb8::Pool<Connector>,
    connector: Connector,
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
        match tokio::time::timeout(self.connect_timeout * 2, connection).await {
            Ok(result) => result.map_err(|e| self.classify(e)),
            Err(_) => Err(self.unavailable("no answer while connecting", None)),
        }
    }

    /// What the server says of itself, asked over a connection that is closed again: what is wrong
    /// with address, credentials or server shows here at once.
    pub async fn server_info(&self) -> Result<String> {
        let mut connection =
            self.open(self.info.clone(), &self.config(self.response_timeout)).await?;
        let info = redis::cmd("INFO").arg("server").query_async(&mut connection).await;
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
            _ if passing => self.unavailable(&text, Some(error)),
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

    /// Since when the server has answered without interruption.
    pub fn calm(&self) -> Calm {
        *self.calm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server says how long it has been running.
    pub fn started(&self, uptime: Duration) {
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        calm.server = Instant::now().checked_sub(uptime);
    }

    /// The server has answered: a calm begins, if there was none.
    pub fn answered(&self) {
        let mut calm = self.calm.lock().unwrap_or_else(PoisonError::into_inner);
        calm.since.get_or_insert_with(Instant::now);
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

impl bb8::ManageConnection for Connector {
    type Connection = Pooled;
    type Error = Error;

    async fn connect(&self) -> Result<Pooled> {
        let inner = self.open(self.info.clone(), &self.config(self.response_timeout)).await?;
        self.last_error.take();
        let born = self.opened.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Pooled { inner, poisoned: Arc::default(), born })
    }

    async fn is_valid(&self, connection: &mut Pooled) -> Result<()> {
        redis::cmd("PING")
            .query_async::<()>(&mut connection.inner)
            .await
            .map_err(|e| self.classify(e))
    }

    fn has_broken(&self, connection: &mut Pooled) -> bool {
        connection.poisoned.load(Ordering::Relaxed)
    }
}

/// Whether a connection that met this error may be used again.
fn poisons(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || error.is_timeout()
        || error.is_io_error()
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

/// Keeps why the last connection failed: the pool itself only reports that it ran out of time.
#[derive(Debug, Clone, Default)]
struct LastError(Arc<Mutex<Option<Error>>>);

impl LastError {
    fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl bb8::ErrorSink<Error> for LastError {
    fn sink(&self, error: Error) {
        tracing::debug!(%error, "pool connection failed");
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<Error>> {
        Box::new(self.clone())
    }
}

impl Pool {
    /// A pool that connects on demand.
    pub fn new(connector: Connector, size: u32) -> Self {
        let connections = bb8::Pool::builder()
            .max_size(size)
            .min_idle(2.min(size))
            .test_on_check_out(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(connector.connect_timeout * 2)
            .error_sink(Box::new(connector.last_error.clone()))
            .build_unchecked(connector.clone());
        Self { connections, connector }
    }

    /// A connection that nobody has called broken. The pool itself looks only as one comes back.
    async fn connection(&self) -> Result<Pooled> {
        loop {
            let pooled = self.connections.get().await.map_err(|e| match e {
                bb8::RunError::User(error) => error,
                bb8::RunError::TimedOut => self.connector.last_error.take().unwrap_or_else(|| {
                    self.connector.unavailable("no connection within the time allowed", None)
                }),
            })?;
            if !pooled.poisoned.load(Ordering::Relaxed) {
                return Ok(pooled.clone());
            }
        }
    }

    /// Runs one command.
    pub async fn command(&self, command: &redis::Cmd) -> Result<Value> {
        let mut connection = self.connection().await?;
        let result = command.query_async(&mut connection.inner).await;
        self.finish(&connection, result)
    }

    /// Runs a pipeline; each command's own result, errors included.
    pub async fn pipeline(
        &self,
        pipeline: &mut Pipeline,
    ) -> Result<Vec<redis::RedisResult<Value>>> {
        let connection = self.connection().await?;
        self.pipeline_on(connection, pipeline).await
    }

    /// As [`Pool::pipeline`], but only on a connection that is no younger than `session`; `None`
    /// otherwise, with nothing sent.
    pub async fn pipeline_within(
        &self,
        session: u64,
        pipeline: &mut Pipeline,
    ) -> Result<Option<Vec<redis::RedisResult<Value>>>> {
        let connection = self.connection().await?;
        if connection.born > session {
            return Ok(None);
        }
        self.pipeline_on(connection, pipeline).await.map(Some)
    }

    async fn pipeline_on(
        &self,
        mut connection: Pooled,
        pipeline: &mut Pipeline,
    ) -> Result<Vec<redis::RedisResult<Value>>> {
        let result: redis::RedisResult<Vec<redis::RedisResult<Value>>> =
            pipeline.ignore_errors().query_async(&mut connection.inner).await;
        if result.iter().flatten().filter_map(|reply| reply.as_ref().err()).any(poisons) {
            self.poison(&connection);
        }
        self.finish(&connection, result)
    }

    /// The newest connection's number: what is known to be whole now was seen within it.
    pub fn session(&self) -> u64 {
        self.connector.opened.load(Ordering::SeqCst)
    }

    /// Runs a script, loading it where the server does not know it.
    pub async fn script(&self, script: &ScriptInvocation<'_>) -> Result<Value> {
        let connection = self.connection().await?;
        self.script_on(connection, script).await
    }

    /// As [`Pool::script`], but only on a connection that is no younger than `session`; `None`
    /// otherwise, with nothing sent.
    pub async fn script_within(
        &self,
        session: u64,
        script: &ScriptInvocation<'_>,
    ) -> Result<Option<Value>> {
        let connection = self.connection().await?;
        if connection.born > session {
            return Ok(None);
        }
        self.script_on(connection, script).await.map(Some)
    }

    async fn script_on(
        &self,
        mut connection: Pooled,
        script: &ScriptInvocation<'_>,
    ) -> Result<Value> {
        let result = script.invoke_async(&mut connection.inner).await;
        self.finish(&connection, result)
    }

    fn finish<T>(&self, connection: &Pooled, result: redis::RedisResult<T>) -> Result<T> {
        result.map_err(|error| {
            if poisons(&error) {
                self.poison(connection);
            }
            self.connector.classify(error)
        })
    }

    /// No more requests on this connection; what is opened next begins a new calm.
    fn poison(&self, connection: &Pooled) {
        if !connection.poisoned.swap(true, Ordering::Relaxed) {
            self.connector.disturbed();
        }
    }

    /// How connections of their own are opened.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_says_what_is_allowed() {
        let options = Options { url: "http://x".to_owned(), ..Options::default() };
        let error = Connector::new(&options).unwrap_err();
        assert!(error.to_string().contains("redis://"), "{error}");
    }
}
