//! Clients that speak HTTP badly, slowly or not at all: each is refused or cut off, and leaves nothing behind.

mod bodies;
mod floods;
mod hosts;
mod slow;
mod strange;
mod unread;

use std::{net::SocketAddr, time::Duration};

use millstream::gateway::{Limits, Options};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::support::{
    gate::{Gate, limited},
    subject::soon,
};

/// As long as a client of these tests may take, to send and to receive.
const PATIENCE: Duration = Duration::from_millis(1200);

/// Options whose patience is short.
fn impatient() -> Options {
    limited(Limits {
        keep_alive: PATIENCE,
        read_timeout: PATIENCE,
        write_timeout: PATIENCE,
        ..Limits::default()
    })
}

/// A connection that takes hardly anything before it is read.
async fn narrow(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(addr).await.unwrap()
}

/// Sends, and reads until the connection ends, which it must.
async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    // The gateway may have had enough before everything is sent.
    let (_, _) =
        soon(async { tokio::join!(write.write_all(bytes), read.read_to_end(&mut answer)) }).await;
    answer
}

/// One answer: its status, its head in lower case, and its body.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    /// The first answer of what came, and what came behind it.
    fn first(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.strip_prefix("http/1.1 ").or(head.strip_prefix("http/1.0 "))?;
        let status = status.get(..3)?.parse().ok()?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let rest = &bytes[end + 4..];
        let length = length.map_or(rest.len(), |length| length.parse().unwrap());
        let body = rest.get(..length)?;
        Some((Self { status, head, body: body.to_vec() }, &rest[length..]))
    }

    fn of(bytes: &[u8]) -> Self {
        let told = || panic!("no answer: {}", String::from_utf8_lossy(bytes));
        Self::first(bytes).unwrap_or_else(told).0
    }

    fn error(&self) -> Value {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        assert!(body["error"]["message"].is_string(), "{self:?}");
        body["error"].clone()
    }
}

/// A request with a JSON body, on a connection of its own.
async fn post(addr: SocketAddr, path: &str, body: &[u8]) -> Answer {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    Answer::of(&exchange(addr, &request).await)
}

async fn get(addr: SocketAddr, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    Answer::of(&exchange(addr, request.as_bytes()).await)
}

/// Enqueues a job of that many tokens.
async fn enqueue(gate: &Gate, tokens: u32, rate: u32) -> millstream::job::JobId {
    let burst = if tokens > 5000 { tokens / 500 } else { 1 };
    let body = format!(
        r#"{{"model":"m?tokens={tokens},rate={rate},burst={burst}","messages":[{{"role":"user","content":"hi"}}]}}"#
    );
    let answer = post(gate.addr, "/v1/jobs", body.as_bytes()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let job: Value = serde_json::from_slice(&answer.body).unwrap();
    job["id"].as_str().unwrap().parse().unwrap()
}

/// It serves as before, and nothing is left of whoever was here.
async fn unharmed(gate: &Gate) {
    let job = enqueue(gate, 3, 0).await;
    let log = gate.log(job).await;
    assert!(log.last().unwrap().body.is_terminal());
    let chat = br#"{"model":"m?tokens=3","messages":[{"role":"user","content":"hi"}]}"#;
    let answer = post(gate.addr, "/v1/chat/completions", chat).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    gate.is_clean().await;
}
