//! The server around the router: connections, and the limits of clients that are slow or silent.
//!
//! A client that sends its request too slowly is cut off by the time for headers and body; one that takes nothing
//! of what is sent to it, by the time that TCP allows for that (`TCP_USER_TIMEOUT`, RFC 5482): a stream reads
//! no further ahead than its socket takes, so nothing piles up by then.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Gateway,
    app::App,
    auth::Served,
    door::{Door, RESPITE},
    options::Limits,
};

type Conversation =
    http1::UpgradeableConnection<TokioIo<TcpStream>, TowerToHyperService<axum::Router>>;

/// What a connection too many is told.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n\
    connection: close\r\ncontent-length: 152\r\n\r\n\
    {\"error\":{\"message\":\"the gateway has all the connections that it may have; come back\",\
    \"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}";

/// What the system holds of one connection's answers, in bytes; it takes twice as much at most. Left to itself
/// it takes megabytes for a client that does not read, and a slow one seems to take nothing for minutes.
const UNSENT: usize = 128 * 1024;

/// How long answers that are cut off may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A gateway that listens.
#[derive(Debug)]
pub struct Bound {
    gateway: Gateway,
    door: Door,
}

/// Counts a connection for as long as it is there.
struct Open {
    app: Arc<App>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(app: &Arc<App>, permit: OwnedSemaphorePermit) -> Self {
        app.counters.connections.fetch_add(1, Ordering::Relaxed);
        Self { app: Arc::clone(app), _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.app.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Connections served.
    pub connections: u64,
    /// Streams that were asked to come back.
    pub streams: usize,
    /// Answers that were cut off because they took longer than `drain`.
    pub unfinished: usize,
}

impl Bound {
    pub(super) fn new(gateway: Gateway, door: Door) -> Self {
        Self { gateway, door }
    }

    /// The address, with the port that was really taken.
    pub fn addr(&self) -> SocketAddr {
        self.door.addr()
    }

    /// Serves until `shutdown`. Then no connection is accepted, event streams end with a hint to come back, and
    /// answers in progress have `drain` to end.
    pub async fn run(self, shutdown: CancellationToken) -> Stopped {
        let app = Arc::clone(&self.gateway.app);
        let listener = self.door.into_listener();
        let limits = &app.options.limits;
        let service = TowerToHyperService::new(self.gateway.router().layer(Extension(Served)));
        let mut http = http1::Builder::new();
        // Headers beyond the limit, but not far beyond, are refused in words.
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.read_timeout)
            .max_buf_size((4 * limits.max_header).max(16 * 1024));
        let mut tasks = JoinSet::new();
        let room = Arc::new(Semaphore::new(limits.max_connections));
        let mut connections = 0;
        loop {
            let stream = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = tasks.join_next() => {
                    app.counters.panics.fetch_add(u64::from(ended.is_err()), Ordering::Relaxed);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(RESPITE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                let _ = stream.try_write(FULL);
                continue;
            };
            if let Err(error) = tuned(&stream, limits) {
                tracing::debug!(%error, "connection keeps the system's settings");
            }
            connections += 1;
            let connection = http.serve_connection(TokioIo::new(stream), service.clone());
            let open = Open::new(&app, permit);
            tasks.spawn(converse(connection.with_upgrades(), app.closing.clone(), open));
        }
        drop(listener);
        let streams = app.slots.open();
        app.closing.cancel();
        app.sockets.close();
        let drained = tokio::time::timeout(app.options.drain, all(&mut tasks, &app)).await;
        let unfinished = if drained.is_ok() { 0 } else { app.slots.open() };
        // Answers that are cut off say so.
        app.cutoff.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, all(&mut tasks, &app)).await;
        tasks.shutdown().await;
        Stopped { connections, streams, unfinished }
    }
}

/// Serves a connection to its end; once the gateway closes, to the end of the answer in progress.
async fn converse(connection: Conversation, closing: CancellationToken, _open: Open) {
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke off");
    }
}

/// Small writes leave at once, and a client that is gone or takes nothing is noticed.
fn tuned(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new().with_time(limits.write_timeout);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_send_buffer_size(UNSENT)?;
    // The kernel's time goes on while a window opens only in part: a slow reader is left twice as long.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(limits.write_timeout * 2))?;
    Ok(())
}

/// Waits for every connection, and for the sockets that some became.
async fn all(tasks: &mut JoinSet<()>, app: &App) {
    while tasks.join_next().await.is_some() {}
    app.sockets.wait().await;
}
