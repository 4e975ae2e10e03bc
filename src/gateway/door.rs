//! The address that a gateway listens on, from before there is a gateway.
//!
//! A process that still waits for its broker says so to whoever asks, instead of refusing the connection.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

use super::{Error, Options, auth::Keys, error::Refusal};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// How long to wait when no connection can be accepted: descriptors may have run out.
pub(super) const RESPITE: Duration = Duration::from_millis(50);

/// How soon to ask again.
const SOON: Duration = Duration::from_secs(2);

/// An address that is listened on.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Door {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Keys`] and [`Error::NoSecret`] for keys that cannot be used, [`Error::Open`] where strangers could
    /// come in without a key, [`Error::Bind`] for an address that is taken.
    pub fn open(options: &Options) -> Result<Self, Error> {
        // What is wrong with the keys does not pass by waiting.
        Keys::load(options)?;
        let addr = options.listen;
        if options.keys.as_os_str().is_empty() {
            if !addr.ip().is_loopback() {
                return Err(Error::Open(addr));
            }
            tracing::warn!(%addr, "no API keys: whoever is on this machine has every right (gateway.keys)");
        }
        let listen = || {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(addr)?;
            let listener = socket.listen(BACKLOG)?;
            let addr = listener.local_addr()?;
            Ok(Self { listener, addr })
        };
        listen().map_err(|source| Error::Bind { addr, source })
    }

    /// The address, with the port that was really taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Does `work`; whoever asks meanwhile is told to come back: 503 with `Retry-After`, and 200 at `/healthz`, as
    /// the process lives.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let refuse = async || {
            let text = "the gateway waits for its broker; try again soon";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "broker_unavailable", text).after(SOON)
        };
        let alive = async || "{\"status\":\"ok\"}";
        let router: Router = Router::new()
            .route("/healthz", get(alive))
            .route("/health", get(alive))
            .fallback(refuse);
        let mut answers = JoinSet::new();
        let mut work = std::pin::pin!(work);
        loop {
            let accepted = tokio::select! {
                result = &mut work => {
                    // Answers in progress are given; they have their time limit.
                    answers.detach_all();
                    return result;
                }
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(RESPITE).await;
                continue;
            };
            while answers.try_join_next().is_some() {}
            // One answer each: the next request may be for the gateway.
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(SOON).keep_alive(false);
            let service = TowerToHyperService::new(router.clone());
            answers.spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    }

    pub(super) fn into_listener(self) -> TcpListener {
        self.listener
    }
}
