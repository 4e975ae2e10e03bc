//! The gateway: producer and listener behind a web server.
//!
//! Jobs over HTTP, their events as server-sent events and over WebSockets, `OpenAI`-compatible routes that
//! are answered through the queue, and a console page. [`Gateway::router`] is an [`axum::Router`] for an
//! application's own server; [`Gateway::bind`] and [`Bound::run`] are a server of their own, with the
//! limits of slow and silent clients that a router cannot enforce. `docs/HTTP.md` tells every route.
//!
//! An application that knows its users by itself puts a [`Caller`] into a request's extensions; what stands
//! there is believed, and API keys are not asked for.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use std::sync::Arc;
//! use millstream::{broker::memory::{self, Memory}, gateway::{Gateway, Options}, listener::Listener};
//!
//! let broker: millstream::broker::Shared = Arc::new(Memory::new(memory::Options::default()));
//! let listener = Listener::new(broker.clone(), Default::default());
//! let gateway = Gateway::new(broker, listener, Default::default(), Options::default())?;
//! let app: axum::Router = axum::Router::new().nest("/llm", gateway.router());
//! # let _ = app;
//! # Ok::<(), millstream::gateway::Error>(()) }).unwrap();
//! ```

mod abandon;
mod absent;
mod accept;
mod app;
mod audit;
mod auth;
mod bodies;
mod body;
mod breaker;
mod cache;
mod console;
mod counters;
mod describe;
mod door;
mod error;
mod events;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod host;
mod jobs;
mod latest;
mod models;
mod openai;
mod options;
mod params;
mod presence;
mod queues;
mod rates;
mod schemas;
mod serve;
mod slots;
pub mod sse;
mod turns;
mod view;
pub mod ws;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

pub use audit::TARGET as AUDIT;
pub use auth::{Caller, Right, check_keys, exposed_keys, generate_key};
use axum::response::IntoResponse;
pub use counters::Counters;
pub use door::Door;
pub use error::Refusal;
pub use models::{Model, ModelSource};
pub use options::{Limits, OnDisconnect, Options};
pub use serve::{Bound, Stopped};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{broker::Shared, listener::Listener, producer};

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file of API keys cannot be used.
    #[error("gateway.keys, {}: {message}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What was met, and what is allowed.
        message: String,
    },
    /// API keys, and nothing to hash them with.
    #[error(
        "gateway.keys is set, but gateway.secret is not; set it to the secret with which the keys were made, by \
         the variable MILLSTREAM_GATEWAY__SECRET"
    )]
    NoSecret,
    /// Everybody would be let in.
    #[error(
        "gateway.listen is {0}, which others can reach, and there are no API keys; set gateway.keys (see \
         `millstream keys create`), or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// The address cannot be listened on.
    #[error(
        "gateway.listen is {addr}, which cannot be listened on: {source}; free the port or choose another"
    )]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// A name that does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Keys { .. } => "gateway_keys",
            Self::NoSecret => "gateway_secret",
            Self::Open(_) => "gateway_open",
            Self::Bind { .. } => "gateway_bind",
        }
    }
}

/// Producer and listener behind a web server.
#[derive(Debug)]
pub struct Gateway {
    app: Arc<app::App>,
    /// They look after the file of keys, a broker that is away, and abandoned jobs.
    tasks: Arc<Vec<AbortOnDropHandle<()>>>,
}

/// The right to say that a gateway's broker may be asked.
#[derive(Debug)]
pub struct Opening(Arc<app::App>);

impl Opening {
    /// The broker may be asked from here on.
    pub fn open(self) {
        self.0.breaker.release();
    }
}

impl Gateway {
    /// A gateway to what `broker` holds. Reads the file of keys. Must be called within a tokio runtime.
    pub fn new(
        broker: Shared,
        listener: Listener,
        producer: producer::Options,
        options: Options,
    ) -> Result<Self, Error> {
        // One that is dropped sends its job once.
        let (sender, abandoned) = mpsc::channel(options.limits.max_streams.clamp(1, 100_000));
        let app = Arc::new(app::App::new(broker, listener, producer, options, sender)?);
        let tasks = [
            tokio::spawn(auth::watch(Arc::clone(&app))),
            tokio::spawn(breaker::probe(Arc::clone(&app))),
            tokio::spawn(abandon::cancel(Arc::clone(&app), abandoned)),
        ];
        let tasks = Arc::new(tasks.into_iter().map(AbortOnDropHandle::new).collect());
        Ok(Self { app, tasks })
    }

    /// Asks `source` for the models where [`Options::models`] names none.
    pub fn models_from(&self, source: ModelSource) {
        self.app.models.ask_at(source);
    }

    /// Asks nothing of the broker until [`Opening::open`]: what needs it is refused (503), and everything else
    /// is answered. For a process that is there before its broker is. Call it before the gateway serves.
    pub fn closed(&self) -> Opening {
        self.app.breaker.hold();
        Opening(Arc::clone(&self.app))
    }

    /// Every route. What they need goes on for as long as there is such a router, or this gateway. Nested below a
    /// path, all work, the console page too.
    pub fn router(&self) -> axum::Router {
        describe::router(&self.app, Arc::clone(&self.tasks) as _)
    }

    /// Serves a caller over a WebSocket, as `/v1/ws` does: for a route of an application's own.
    ///
    /// Refuses pages of other origins than [`Options::cors_origins`] and the host that `headers` name.
    pub fn websocket(
        &self,
        headers: &axum::http::HeaderMap,
        upgrade: axum::extract::ws::WebSocketUpgrade,
        caller: Caller,
    ) -> axum::response::Response {
        ws::serve(&self.app, headers, upgrade, Arc::new(caller))
            .unwrap_or_else(IntoResponse::into_response)
    }

    /// What has been counted so far.
    pub fn counters(&self) -> &Counters {
        &self.app.counters
    }

    /// Ends open streams with a hint to come back, once it is cancelled: for an application's own shutdown.
    pub fn closing(&self) -> CancellationToken {
        self.app.closing.clone()
    }

    /// Starts to listen. Connections wait until [`Bound::run`].
    ///
    /// # Errors
    /// [`Error::Open`] where strangers could reach it without a key, [`Error::Bind`] for an address that is
    /// taken.
    pub fn bind(self) -> Result<Bound, Error> {
        let door = Door::open(&self.app.options)?;
        Ok(self.behind(door))
    }

    /// Takes over an address that is listened on already.
    pub fn behind(self, door: Door) -> Bound {
        Bound::new(self, door)
    }
}
