//! One connection, from its first byte to its end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header},
};
use hyper::{
    body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint},
    server::conn::http1,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{
    super::{app::App, auth::Served, bodies::Meter},
    http2,
    wire::{Progress, Wire},
};

/// How long a client that has connected while the gateway closes may take to begin its request.
const LAST_CALL: Duration = Duration::from_millis(500);

/// How far headers may go beyond their limit to be refused by the router.
const BEYOND: usize = 8 * 1024;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// How every connection is served.
#[derive(Debug)]
pub(super) struct Talk {
    app: Arc<App>,
    router: axum::Router,
    http: http1::Builder,
    /// The value of `Keep-Alive`.
    kept: Option<HeaderValue>,
}

impl Talk {
    pub(super) fn new(app: &Arc<App>, router: axum::Router) -> Self {
        let limits = &app.options.limits;
        let mut http = http1::Builder::new();
        // Headers beyond the limit, but not far beyond, are refused by the router, which names it. As much is
        // written ahead of a client that does not read.
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.keep_alive)
            .max_buf_size((limits.max_header + BEYOND).max(16 * 1024));
        let kept = HeaderValue::from_str(&format!("timeout={}", limits.keep_alive.as_secs())).ok();
        Self { app: Arc::clone(app), router: router.layer(Extension(Served)), http, kept }
    }

    /// Serves a connection to its end; once the gateway closes, to the end of the answer in progress.
    pub(super) async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let (limits, closing) = (&self.app.options.limits, &self.app.closing);
        let mut opening = Opening::default();
        let deadline = Instant::now() + limits.keep_alive;
        if within(deadline, closing, opening.begin(&mut stream)).await != Some(true) {
            return;
        }
        let deadline = Instant::now() + limits.read_timeout;
        let Some(is_http2) = within(deadline, closing, opening.tell(&mut stream)).await else {
            return;
        };
        if is_http2 {
            match within(deadline, closing, http2::refuse(&mut stream)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!(%error, "client of HTTP/2 broke off"),
                None => tracing::debug!("client of HTTP/2 asked for nothing"),
            }
            return;
        }
        let progress = Arc::new(Progress::default());
        let meter = Meter::default();
        let wire = Wire::new(stream, Arc::clone(&progress), meter.clone(), limits.read_timeout)
            .after(opening.bytes(), deadline);
        let talk = (Arc::clone(&self), Arc::clone(&progress));
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            let (talk, progress) = talk.clone();
            request.extensions_mut().insert(meter.clone());
            async move { Ok::<_, std::convert::Infallible>(talk.answer(request, progress).await) }
        });
        let connection = self.http.serve_connection(TokioIo::new(wire), service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing.cancelled() => {
                // The library would close a connection whose first head is on its way.
                if progress.asked() == 0 {
                    let ended = timeout(LAST_CALL, connection.as_mut()).await;
                    if ended.is_ok() || progress.asked() == 0 {
                        return;
                    }
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection broke off");
        }
    }

    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        progress: Arc<Progress>,
    ) -> hyper::Response<Counted> {
        progress.ask(!request.body().is_end_stream());
        let last = request.version() < Version::HTTP_11 || asks_to_close(request.headers());
        let watching = Arc::clone(&progress);
        let request = request.map(|body| Body::new(Watched { body, progress: watching }));
        let mut response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response.map(|body| Counted { body, _end: None });
        }
        let headers = response.headers_mut();
        if self.app.leaving.is_cancelled() || progress.has_unread() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        } else if !last && !asks_to_close(headers) {
            headers.extend(self.kept.clone().map(|kept| (KEEP_ALIVE, kept)));
        }
        response.map(|body| Counted { body, _end: Some(End(progress)) })
    }
}

/// The first bytes of a connection, as many as tell HTTP/2 from HTTP/1.1.
#[derive(Debug, Default)]
struct Opening {
    bytes: [u8; http2::PREFACE.len()],
    count: usize,
}

impl Opening {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.count]
    }

    /// Waits for the first byte; false where none comes.
    async fn begin(&mut self, stream: &mut TcpStream) -> bool {
        self.count += stream.read(&mut self.bytes[self.count..]).await.unwrap_or_default();
        self.count > 0
    }

    /// Whether the client speaks HTTP/2. Its preface may come in parts.
    async fn tell(&mut self, stream: &mut TcpStream) -> bool {
        while http2::PREFACE.starts_with(self.bytes()) {
            if self.count == http2::PREFACE.len() {
                return true;
            }
            let before = self.count;
            if !self.begin(stream).await || self.count == before {
                break;
            }
        }
        false
    }
}

/// What a client does until the deadline, and within a moment once the gateway closes: what is on its way is
/// answered. `None` where it takes longer.
async fn within<T>(
    deadline: Instant,
    closing: &CancellationToken,
    step: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(step);
    tokio::select! {
        biased;
        done = timeout_at(deadline, step.as_mut()) => done.ok(),
        () = closing.cancelled() => timeout(LAST_CALL, step).await.ok(),
    }
}

fn asks_to_close(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONNECTION).iter();
    values.any(|value| {
        let options = value.to_str().unwrap_or_default();
        options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"))
    })
}

/// A request's body, its end noticed.
struct Watched {
    body: Incoming,
    progress: Arc<Progress>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.progress.read_whole();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Says that an answer is whole when it goes.
struct End(Arc<Progress>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.answer();
    }
}

/// An answer's body, its end noticed.
struct Counted {
    body: Body,
    _end: Option<End>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
