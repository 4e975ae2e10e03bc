//! Connections: a pool for what is short, a connection of its own for each reader that blocks.
//!
//! The stock pool manager connects with a response timeout of 500 ms and never calls a connection
//! broken. This one sets TCP options, and a connection that met an error after which it cannot be
//! trusted is marked and not pooled again.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bb8_redis::bb8;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    ProtocolVersion, RedisError, ScriptInvocation, ServerErrorKind, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::Options;
use crate::broker::{Error, Result};

/// Opens connections to one server.
#[derive(Debug, Clone)]
pub struct Connector {
    info: ConnectionInfo,
    shown: String,
    connect_timeout: Duration,
    response_timeout: Duration,
}

/// A pooled connection. Its clones share the socket, on which requests of many callers follow one
/// another: it goes back to the pool at once, and nobody waits for a turn.
#[derive(Debug, Clone)]
pub struct Pooled {
    inner: MultiplexedConnection,
    poisoned: Arc<AtomicBool>,
}

/// The pool for everything that does not block.
#[derive(Debug, Clone)]
pub struct Pool {
    connections: bb8::Pool<Connector>,
    connector: Connector,
    last_error: LastError,
}

impl Connector {
    /// Reads the address; nothing is connected yet.
    pub fn new(options: &Options) -> Result<Self> {
        crate::install_tls_provider();
        let url = options.url.as_str();
        let shown = shown(url);
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

    /// What a client error means here.
    pub fn classify(&self, error: RedisError) -> Error {
        use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, NoPerm, ReadOnly, TryAgain};
        let text = error.to_string();
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::Server(NoPerm) => self.denied(&text),
            ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain) => {
                self.unavailable(&text, Some(error))
            }
            ErrorKind::Io => self.unavailable(&text, Some(error)),
            ErrorKind::InvalidClientConfig => Error::Address(format!("{}: {text}", self.shown)),
            ErrorKind::RESP3NotSupported => Error::TooOld { met: text },
            _ if error.code().is_some_and(|code| matches!(code, "NOAUTH" | "WRONGPASS")) => {
                self.denied(&text)
            }
            _ if text.contains("NOAUTH") || text.contains("WRONGPASS") => self.denied(&text),
            _ if error.code() == Some("UNBLOCKED") || error.is_unrecoverable_error() => {
                self.unavailable(&text, Some(error))
            }
            _ => Error::Protocol(text),
        }
    }

    fn denied(&self, text: &str) -> Error {
        Error::Denied(format!("{text} ({}); check user, password and ACL", self.shown))
    }
}

/// The address without its password.
fn shown(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            let user = url[scheme + 3..at].split(':').next().unwrap_or_default();
            format!("{}://{user}:***{}", &url[..scheme], &url[at..])
        }
        _ => url.to_owned(),
    }
}

impl bb8::ManageConnection for Connector {
    type Connection = Pooled;
    type Error = Error;

    async fn connect(&self) -> Result<Pooled> {
        let inner = self.open(self.info.clone(), &self.config(self.response_timeout)).await?;
        Ok(Pooled { inner, poisoned: Arc::default() })
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
        let last_error = LastError::default();
        let connections = bb8::Pool::builder()
            .max_size(size)
            .min_idle(2.min(size))
            .test_on_check_out(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connection_timeout(connector.connect_timeout * 2)
            .retry_connection(false)
            .error_sink(Box::new(last_error.clone()))
            .build_unchecked(connector.clone());
        Self { connections, connector, last_error }
    }

    /// A connection that nobody has called broken. The pool itself looks only as one comes back.
    async fn connection(&self) -> Result<Pooled> {
        loop {
            let pooled = self.connections.get().await.map_err(|e| match e {
                bb8::RunError::User(error) => error,
                bb8::RunError::TimedOut => self.last_error.take().unwrap_or_else(|| {
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
    ) -> Result<Vec<std::result::Result<Value, RedisError>>> {
        let mut connection = self.connection().await?;
        let result = pipeline.ignore_errors().query_async(&mut connection.inner).await;
        self.finish(&connection, result)
    }

    /// Runs a script, loading it where the server does not know it.
    pub async fn script(&self, script: &ScriptInvocation<'_>) -> Result<Value> {
        let mut connection = self.connection().await?;
        let result = script.invoke_async(&mut connection.inner).await;
        self.finish(&connection, result)
    }

    fn finish<T>(&self, connection: &Pooled, result: redis::RedisResult<T>) -> Result<T> {
        result.map_err(|error| {
            if poisons(&error) {
                connection.poisoned.store(true, Ordering::Relaxed);
            }
            self.connector.classify(error)
        })
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
    fn a_password_is_never_shown() {
        assert_eq!(shown("redis://u:s3@cret@h:1/0"), "redis://u:***@h:1/0");
        assert_eq!(shown("redis://h:1"), "redis://h:1");
    }

    #[test]
    fn a_wrong_address_says_what_is_allowed() {
        let options = Options { url: "http://x".to_owned(), ..Options::default() };
        let error = Connector::new(&options).unwrap_err();
        assert!(error.to_string().contains("redis://"), "{error}");
    }
}
