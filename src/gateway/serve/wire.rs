//! The bytes of one HTTP/1.1 connection, and what the HTTP library does not do with them.
//!
//! The library has one time limit for an idle connection and for a request's head; here a head has its own, from
//! its first byte. The library refuses what it cannot parse by a head without a body; here such an answer gets the
//! gateway's error object. The library ends a connection while the client may still be sending, and the system
//! then discards what the client has not read yet; here the rest is read first, for a while.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::super::{bodies::Meter, error::Refusal};

/// How long what a client still sends is read behind the last answer.
const LINGER: Duration = Duration::from_secs(1);

/// How far a connection is, as the service sees it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Requests whose head has been read.
    asked: AtomicU64,
    /// Requests whose answer has been given to the library.
    answered: AtomicU64,
    /// The client may be sending what nobody reads.
    unread: AtomicBool,
}

impl Progress {
    /// A request's head has been read; a body follows or not.
    pub(super) fn ask(&self, has_body: bool) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.unread.store(has_body, Ordering::Relaxed);
    }

    /// A request's body has been read to its end.
    pub(super) fn read_whole(&self) {
        self.unread.store(false, Ordering::Relaxed);
    }

    /// Whether the client may be sending what nobody reads.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Its answer is whole. Not called for a connection that became a WebSocket.
    pub(super) fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests whose head has been read.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn waits_for_a_head(&self) -> bool {
        self.asked() == self.answered.load(Ordering::Relaxed)
    }
}

/// A connection's two directions.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// What has been read already.
    read: Vec<u8>,
    progress: Arc<Progress>,
    /// Counts what comes in, once it is a WebSocket.
    meter: Meter,
    /// How long a request's head may take.
    patience: Duration,
    /// When the head that has begun must be there, and how many were there before.
    head: Option<(Pin<Box<Sleep>>, u64)>,
    /// An answer of this gateway in place of the library's, and how much of it has been sent.
    instead: Option<(Vec<u8>, usize)>,
    /// The end of the time for what the client still sends.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    pub(super) fn new(
        stream: TcpStream,
        progress: Arc<Progress>,
        meter: Meter,
        patience: Duration,
    ) -> Self {
        Self {
            stream,
            read: Vec::new(),
            progress,
            meter,
            patience,
            head: None,
            instead: None,
            lingering: None,
        }
    }

    /// One whose first bytes have been read already; the head that they begin must be there by then.
    pub(super) fn after(mut self, bytes: &[u8], deadline: Instant) -> Self {
        self.read = bytes.to_vec();
        self.head = Some((Box::pin(tokio::time::sleep_until(deadline)), 0));
        self
    }

    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.drain(..count);
        if self.read.is_empty() {
            self.read = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// A head has begun, or goes on.
    fn heard(&mut self) {
        let asked = self.progress.asked();
        let begun = self.head.as_ref().is_some_and(|(_, before)| *before == asked);
        if self.progress.waits_for_a_head() && !begun {
            let deadline = Instant::now() + self.patience;
            match &mut self.head {
                Some((sleep, before)) => {
                    sleep.as_mut().reset(deadline);
                    *before = asked;
                }
                None => self.head = Some((Box::pin(tokio::time::sleep_until(deadline)), asked)),
            }
        }
    }

    /// Whether a head takes too long.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let asked = self.progress.asked();
        match &mut self.head {
            Some((sleep, before)) if *before == asked => sleep.as_mut().poll(cx).is_ready(),
            _ => {
                self.head = None;
                false
            }
        }
    }

    /// Takes over an answer of the library's own.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.instead.is_some() || !self.progress.waits_for_a_head() {
            return false;
        }
        let Some(answer) = in_words(bytes) else { return false };
        self.progress.unread.store(true, Ordering::Relaxed);
        self.instead = Some((answer, 0));
        true
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((answer, sent)) = &mut self.instead
            && *sent < answer.len()
        {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &answer[*sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *sent += count,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what the client still sends, and forgets it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut waste = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.poll_bytes(cx, buffer);
        match read {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                self.heard();
                if self.meter.count(buffer.filled().len() - before).is_err() {
                    return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
                }
            }
            Poll::Pending if self.is_late(cx) => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next())
            && self.replaces(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(self.poll_instead(cx))?;
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if self.progress.has_unread() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

/// What the gateway says where the library refuses a request by a head alone; `None` for anything else. No answer
/// of the gateway's own is an error without a body.
fn in_words(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = bytes.strip_suffix(b"\r\n\r\n")?;
    let text = std::str::from_utf8(head).ok()?;
    let (first, lines) = text.split_once("\r\n")?;
    let status = first.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let (code, words) = match status {
        "400" => (
            "bad_request",
            "this is no request of HTTP/1.1: its first line or its headers cannot be read",
        ),
        "414" => ("uri_too_long", "the target of the request is too long"),
        "431" => (
            "headers_too_large",
            "the headers are too large or too many (gateway.limits.max_header)",
        ),
        _ => return None,
    };
    if !lines.split("\r\n").any(|line| line == "content-length: 0") {
        return None;
    }
    let status = StatusCode::from_bytes(status.as_bytes()).ok()?;
    let date = lines.split("\r\n").find(|line| line.starts_with("date: "));
    Some(answer(first, date, &Refusal::new(status, code, words)))
}

/// A whole answer outside of the HTTP library, behind which the connection ends.
pub(super) fn answer(first: &str, date: Option<&str>, refusal: &Refusal) -> Vec<u8> {
    use std::fmt::Write as _;

    let body = refusal.body();
    let mut text = format!(
        "{first}\r\ncontent-type: application/json\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\nx-request-id: {}\r\nconnection: close\r\n",
        body.len(),
        uuid::Uuid::new_v4().simple(),
    );
    if let Some(seconds) = refusal.error.retry_after {
        let _ = write!(text, "retry-after: {seconds}\r\n");
    }
    if let Some(date) = date {
        let _ = write!(text, "{date}\r\n");
    }
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_without_a_body_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\
            date: Sun, 29 Nov 2026 12:00:00 GMT\r\n\r\n";
        let told = String::from_utf8(in_words(bare).unwrap()).unwrap();
        let (head, body) = told.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 ") && head.ends_with("12:00:00 GMT"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "headers_too_large");
        for other in [
            &b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 20\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nx",
            b"x-a: HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            b"\xff",
        ] {
            assert!(in_words(other).is_none(), "{}", String::from_utf8_lossy(other));
        }
    }
}
