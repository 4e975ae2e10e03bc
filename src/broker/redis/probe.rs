//! What listens at an address that does not answer as Redis does.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, lookup_host},
};

/// How it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Voice {
    /// As Redis does; its first line.
    Redis(String),
    /// As a web server.
    Http,
    /// As what speaks TLS and nothing else.
    Tls,
    /// Otherwise; the beginning of what it says.
    Other(String),
}

/// Longest time to wait for an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// A request to a web server, and a `PING` too many words long to Redis.
const REQUEST: &[u8] = b"PING / HTTP/1.0\r\n\r\n";

/// The beginning of a conversation in TLS 1.2 (RFC 5246, 7.4.1.2): one cipher suite, no extensions. It is
/// answered by a handshake or an alert, never by silence.
const HELLO: [u8; 50] = {
    let mut hello = [0; 50];
    // A record of type handshake, TLS 1.0, 45 bytes.
    (hello[0], hello[1], hello[2], hello[4]) = (0x16, 3, 1, 45);
    // A client's hello, TLS 1.2, 41 bytes; 32 bytes of random, which may be anything; no session.
    (hello[5], hello[8], hello[9], hello[10]) = (1, 41, 3, 3);
    // ECDHE-RSA-AES128-GCM-SHA256; no compression.
    (hello[45], hello[46], hello[47], hello[48]) = (2, 0xc0, 0x2f, 1);
    hello
};

/// Listens to what answers at an address. `None` where nothing does, or nothing that can be told.
pub async fn listen(host: &str, port: u16, patience: Duration) -> Option<Voice> {
    let patience = patience.min(PATIENCE);
    let first = async { lookup_host((host, port)).await.ok()?.next() };
    let addr = tokio::time::timeout(patience, first).await.ok()??;
    match said(addr, REQUEST, patience).await.as_deref() {
        None => None,
        Some(b"") => match said(addr, &HELLO, patience).await.as_deref() {
            Some([0x15 | 0x16, 3, ..]) => Some(Voice::Tls),
            _ => None,
        },
        Some([0x15, 3, ..]) => Some(Voice::Tls),
        Some(bytes @ [b'+' | b'-', b'A'..=b'Z', ..]) => {
            let line = bytes[1..].split(|byte| *byte == b'\r').next().unwrap_or_default();
            Some(Voice::Redis(String::from_utf8_lossy(line).into_owned()))
        }
        Some(bytes) if bytes.starts_with(b"HTTP/") => Some(Voice::Http),
        Some(bytes) => Some(Voice::Other(bytes[..bytes.len().min(24)].escape_ascii().to_string())),
    }
}

/// The first bytes of an answer; none where the connection is closed without any.
async fn said(addr: SocketAddr, request: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let conversation = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        stream.write_all(request).await.ok()?;
        let mut answer = vec![0; 64];
        let length = stream.read(&mut answer).await.unwrap_or(0);
        answer.truncate(length);
        Some(answer)
    };
    tokio::time::timeout(patience, conversation).await.ok()?
}
