//! Connections for everything that does not block.
//!
//! The stock pool manager connects with a response timeout of 500 ms and never calls a connection
//! broken. This one sets TCP options, and a connection that met an error after which it cannot be
//! trusted is marked and not pooled again.
//!
//! After a restart of the server every pooled connection is dead, and the first request on each
//! finds out. What may be repeated is repeated, until a connection of its own time has failed, too.
//! What may not (an enqueue without a key) first asks whether a connection that lay idle lives.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bb8_redis::bb8;
use redis::{
    ErrorKind, Pipeline, RedisError, RedisResult, ScriptInvocation, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};

use super::connect::{Connector, is_cut};
use crate::broker::{Error, Result};

/// A connection that was used so recently is taken to live.
const FRESH: Duration = Duration::from_secs(1);

/// A pooled connection. Its clones share the socket, on which requests of many callers follow one
/// another: it goes back to the pool at once, and nobody waits for a turn.
#[derive(Debug, Clone)]
pub struct Pooled {
    inner: MultiplexedConnection,
    poisoned: Arc<AtomicBool>,
    /// When it last answered.
    answered: Arc<Mutex<Instant>>,
    /// Which of the pool's connections it is, from 1.
    born: u64,
}

/// The pool.
#[derive(Debug, Clone)]
pub struct Pool {
    connections: bb8::Pool<Connector>,
    connector: Connector,
}

impl bb8::ManageConnection for Connector {
    type Connection = Pooled;
    type Error = Error;

    async fn connect(&self) -> Result<Pooled> {
        let inner = self.pooled().await?;
        self.last_error.take();
        let answered = Arc::new(Mutex::new(Instant::now()));
        let born = self.opened.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Pooled { inner, poisoned: Arc::default(), answered, born })
    }

    async fn is_valid(&self, connection: &mut Pooled) -> Result<()> {
        connection.ping().await.map_err(|e| self.classify(e))
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
        || is_cut(error)
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

/// Keeps why the last connection failed: the pool itself only reports that it ran out of time.
#[derive(Debug, Clone, Default)]
pub(super) struct LastError(Arc<Mutex<Option<Error>>>);

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

impl Pooled {
    async fn ping(&mut self) -> RedisResult<()> {
        redis::cmd("PING").query_async(&mut self.inner).await
    }

    fn idle(&self) -> Duration {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
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
            .connection_timeout(connector.patience())
            .error_sink(Box::new(connector.last_error.clone()))
            .build_unchecked(connector.clone());
        Self { connections, connector }
    }

    /// A connection that nobody has called broken. The pool itself looks only as one comes back.
    async fn connection(&self) -> Result<Pooled> {
        loop {
            let pooled = self.connections.get().await.map_err(|e| match e {
                bb8::RunError::User(error) => error,
                bb8::RunError::TimedOut => {
                    self.connector.last_error.take().unwrap_or_else(|| self.connector.no_room())
                }
            })?;
            if !pooled.poisoned.load(Ordering::Relaxed) {
                return Ok(pooled.clone());
            }
        }
    }

    /// Whether this connection had died before the call: then what may be repeated goes to the next.
    /// One that was opened since is not given up so lightly.
    fn was_dead<T>(&self, connection: &Pooled, before: u64, result: &RedisResult<T>) -> bool {
        let dropped = result.as_ref().is_err_and(is_cut);
        let dead = dropped && connection.born <= before;
        if dead {
            self.poison(connection);
        }
        dead
    }

    /// A connection that has just answered.
    pub async fn alive(&self) -> Result<Pooled> {
        let before = self.session();
        loop {
            let mut connection = self.connection().await?;
            if connection.born > before || connection.idle() < FRESH {
                return Ok(connection);
            }
            let result = connection.ping().await;
            if !self.was_dead(&connection, before, &result) {
                return self.finish(&connection, result).await.map(|()| connection);
            }
        }
    }

    /// Runs one command.
    pub async fn command(&self, command: &redis::Cmd) -> Result<Value> {
        let before = self.session();
        loop {
            let mut connection = self.connection().await?;
            let result = command.query_async(&mut connection.inner).await;
            if !self.was_dead(&connection, before, &result) {
                return self.finish(&connection, result).await;
            }
        }
    }

    /// Runs a pipeline; each command's own result, errors included.
    pub async fn pipeline(&self, pipeline: &mut Pipeline) -> Result<Vec<RedisResult<Value>>> {
        let pipeline = pipeline.ignore_errors();
        let before = self.session();
        loop {
            let mut connection = self.connection().await?;
            let result = pipeline.query_async(&mut connection.inner).await;
            if !self.was_dead(&connection, before, &result) {
                return self.finish_all(&connection, result).await;
            }
        }
    }

    /// As [`Pool::pipeline`] for what must not be repeated; also the connection on which it was answered.
    pub async fn pipeline_once(
        &self,
        pipeline: &mut Pipeline,
    ) -> Result<(Vec<RedisResult<Value>>, Pooled)> {
        let connection = self.alive().await?;
        Ok((self.pipeline_on(connection.clone(), pipeline).await?, connection))
    }

    /// As [`Pool::pipeline`], but on this connection; `None` where it is cut. What was answered on it before, the
    /// same server has done.
    pub async fn pipeline_via(
        &self,
        connection: &Pooled,
        pipeline: &mut Pipeline,
    ) -> Result<Option<Vec<RedisResult<Value>>>> {
        let mut inner = connection.inner.clone();
        let result = pipeline.ignore_errors().query_async(&mut inner).await;
        if self.was_cut(connection, &result) {
            return Ok(None);
        }
        self.finish_all(connection, result).await.map(Some)
    }

    /// As [`Pool::pipeline_via`] for a script.
    pub async fn script_via(
        &self,
        connection: &Pooled,
        script: &ScriptInvocation<'_>,
    ) -> Result<Option<Value>> {
        let mut inner = connection.inner.clone();
        let result = script.invoke_async(&mut inner).await;
        if self.was_cut(connection, &result) {
            return Ok(None);
        }
        self.finish(connection, result).await.map(Some)
    }

    /// Whether the connection is cut: it is not used again.
    fn was_cut<T>(&self, connection: &Pooled, result: &RedisResult<T>) -> bool {
        let cut = result.as_ref().is_err_and(is_cut);
        if cut {
            self.poison(connection);
        }
        cut
    }

    /// As [`Pool::pipeline`], but only on connections that are no younger than `session`; `None` where
    /// there is none that lives.
    pub async fn pipeline_within(
        &self,
        session: u64,
        pipeline: &mut Pipeline,
    ) -> Result<Option<Vec<RedisResult<Value>>>> {
        let pipeline = pipeline.ignore_errors();
        let before = self.session();
        loop {
            let mut connection = self.connection().await?;
            if connection.born > session {
                return Ok(None);
            }
            let result = pipeline.query_async(&mut connection.inner).await;
            if !self.was_dead(&connection, before, &result) {
                return self.finish_all(&connection, result).await.map(Some);
            }
        }
    }

    /// As [`Pool::pipeline_once`], but only on a connection that is no younger than `session`; `None`
    /// otherwise, with nothing sent.
    pub async fn pipeline_once_within(
        &self,
        session: u64,
        pipeline: &mut Pipeline,
    ) -> Result<Option<Vec<RedisResult<Value>>>> {
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
    ) -> Result<Vec<RedisResult<Value>>> {
        let result = pipeline.ignore_errors().query_async(&mut connection.inner).await;
        self.finish_all(&connection, result).await
    }

    async fn finish_all(
        &self,
        connection: &Pooled,
        result: RedisResult<Vec<RedisResult<Value>>>,
    ) -> Result<Vec<RedisResult<Value>>> {
        let errors = || result.iter().flatten().filter_map(|reply| reply.as_ref().err());
        if errors().any(poisons) {
            self.poison(connection);
        }
        let full = errors().any(|error| self.connector.wants_memory(error));
        if full {
            self.ask_memory(connection).await;
        }
        self.finish(connection, result).await
    }

    /// The newest connection's number: what is known to be whole now was seen within it.
    pub fn session(&self) -> u64 {
        self.connector.opened.load(Ordering::SeqCst)
    }

    /// Runs a script, loading it where the server does not know it. A script may be repeated: each
    /// says in its contract what then happens.
    pub async fn script(&self, script: &ScriptInvocation<'_>) -> Result<Value> {
        let before = self.session();
        loop {
            let mut connection = self.connection().await?;
            let result = script.invoke_async(&mut connection.inner).await;
            if !self.was_dead(&connection, before, &result) {
                return self.finish(&connection, result).await;
            }
        }
    }

    /// As [`Pool::script`] for what must not be repeated; also the connection on which it was answered.
    pub async fn script_once(&self, script: &ScriptInvocation<'_>) -> Result<(Value, Pooled)> {
        let mut connection = self.alive().await?;
        let result = script.invoke_async(&mut connection.inner).await;
        Ok((self.finish(&connection, result).await?, connection))
    }

    /// As [`Pool::script`], but only on connections that are no younger than `session`; `None` where
    /// there is none that lives.
    pub async fn script_within(
        &self,
        session: u64,
        script: &ScriptInvocation<'_>,
    ) -> Result<Option<Value>> {
        let before = self.session();
        loop {
            let mut connection = self.connection().await?;
            if connection.born > session {
                return Ok(None);
            }
            let result = script.invoke_async(&mut connection.inner).await;
            if !self.was_dead(&connection, before, &result) {
                return self.finish(&connection, result).await.map(Some);
            }
        }
    }

    /// The result of a request, in the broker's terms.
    async fn finish<T>(&self, connection: &Pooled, result: RedisResult<T>) -> Result<T> {
        match result {
            Ok(value) => {
                *connection.answered.lock().unwrap_or_else(PoisonError::into_inner) =
                    Instant::now();
                Ok(value)
            }
            Err(error) => {
                if poisons(&error) {
                    self.poison(connection);
                }
                if self.connector.wants_memory(&error) {
                    self.ask_memory(connection).await;
                }
                Err(self.connector.classify(error))
            }
        }
    }

    /// Asks how full the server is, so that its refusal can be told in figures.
    async fn ask_memory(&self, connection: &Pooled) {
        let mut connection = connection.inner.clone();
        if let Ok(info) = redis::cmd("INFO").arg("memory").query_async(&mut connection).await {
            self.connector.has_memory(info);
        }
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
