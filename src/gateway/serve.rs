//! The server around the router: connections, and the limits of clients that are slow or silent.
//!
//! A client that sends its request too slowly is cut off by the time for headers and body; one that takes nothing
//! of what is sent to it, by the time that TCP allows for that (`TCP_USER_TIMEOUT`, RFC 5482): a stream reads
//! no further ahead than its socket takes, so nothing piles up by then.

mod http2;
mod talk;
mod wire;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::http::StatusCode;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::talk::Talk;
use super::{
    Gateway,
    app::App,
    door::{Door, RESPITE},
    error::Refusal,
    options::Limits,
};

/// How soon a connection too many is to come back.
const COME_BACK: Duration = Duration::from_secs(5);

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

    /// Serves until `shutdown`. Then `/readyz` says 503 for as long as `notice`, while everything is served as before;
    /// then no connection is accepted any more, event streams end with a hint to come back, and answers in progress
    /// have `drain` to end. Connections that the system has taken by then are answered too.
    pub async fn run(self, shutdown: CancellationToken) -> Stopped {
        let app = Arc::clone(&self.gateway.app);
        let listener = self.door.into_listener();
        let mut served = Connections::new(&app, self.gateway.router());
        let leave = async {
            shutdown.cancelled().await;
            app.leaving.cancel();
            // Without a notice nobody else is let in, not even for the least time that a sleep takes.
            if !app.options.notice.is_zero() {
                tokio::time::sleep(app.options.notice).await;
            }
        };
        tokio::pin!(leave);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut leave => break,
                Some(ended) = served.tasks.join_next() => {
                    app.counters.panics.fetch_add(u64::from(ended.is_err()), Ordering::Relaxed);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => served.take(stream),
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(RESPITE).await;
                }
            }
        }
        served.take_waiting(listener);
        let Connections { mut tasks, count: connections, .. } = served;
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

/// The connections there are.
struct Connections {
    app: Arc<App>,
    talk: Arc<Talk>,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
    count: u64,
}

impl Connections {
    fn new(app: &Arc<App>, router: axum::Router) -> Self {
        let room = Arc::new(Semaphore::new(app.options.limits.max_connections));
        let talk = Arc::new(Talk::new(app, router));
        Self { app: Arc::clone(app), talk, room, tasks: JoinSet::new(), count: 0 }
    }

    /// Serves a connection, or says that it is one too many.
    fn take(&mut self, stream: TcpStream) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            let text = "the gateway has all the connections that it may have; come back";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let refusal = Refusal::new(status, "too_many_connections", text).after(COME_BACK);
            let _ =
                stream.try_write(&wire::answer("HTTP/1.1 503 Service Unavailable", None, &refusal));
            return;
        };
        if let Err(error) = tuned(&stream, &self.app.options.limits) {
            tracing::debug!(%error, "connection keeps the system's settings");
        }
        self.count += 1;
        let (talk, open) = (Arc::clone(&self.talk), Open::new(&self.app, permit));
        self.tasks.spawn(async move {
            talk.serve(stream).await;
            drop(open);
        });
    }

    /// Takes what the system has accepted and the gateway has not: closed, the listener would have it reset. The
    /// system is asked itself, as the runtime may not have heard of the last ones.
    fn take_waiting(&mut self, listener: TcpListener) {
        let waiting = listener.into_std().and_then(|listener| {
            loop {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                self.take(TcpStream::from_std(stream)?);
            }
        });
        match waiting {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok::<(), _>(()) => {}
            Err(error) => tracing::warn!(%error, "connections that waited are not answered"),
        }
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
