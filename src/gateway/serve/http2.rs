//! Clients that begin to speak HTTP/2 without having asked: they are told so in HTTP/2.
//!
//! RFC 9113, section 3.3: such a client opens with a preface that no HTTP/1.1 request can begin with. The gateway
//! reads as far as the client's first request, answers it by 505 with the error object, and ends the connection by
//! a GOAWAY with the code `HTTP_1_1_REQUIRED`. No header of the client is decoded: its request is not looked at.

use std::io;

use axum::http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::super::error::Refusal;

/// What every connection of HTTP/2 begins with.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest frame that a server must bear as long as it has not said otherwise.
const LONGEST: usize = 16_384;

/// What is read at once of what is not looked at, in bytes.
const SCRATCH: usize = 512;

/// Frames of a client that are read before its first request.
const FRAMES: usize = 64;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const HTTP_1_1_REQUIRED: u32 = 13;

/// Refuses the client's first request in words. The preface has been read.
pub(super) async fn refuse(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    for _ in 0..FRAMES {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [high, middle, low, kind, flags, id @ ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if length > LONGEST {
            return Err(io::Error::other("a frame longer than allowed"));
        }
        pass_over(stream, length).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?;
            }
            HEADERS => {
                stream.write_all(&refusal(u32::from_be_bytes(id) & (u32::MAX >> 1))).await?;
                stream.shutdown().await?;
                // A close with something unread would take back what has been said.
                while stream.read(&mut [0; SCRATCH]).await? > 0 {}
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads what is not looked at, in small pieces: there may be as many such clients as connections.
async fn pass_over(stream: &mut TcpStream, mut length: usize) -> io::Result<()> {
    let mut scratch = [0; SCRATCH];
    while length > 0 {
        let count = stream.read(&mut scratch[..length.min(SCRATCH)]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length -= count;
    }
    Ok(())
}

fn refusal(stream: u32) -> Vec<u8> {
    let words =
        "this gateway speaks HTTP/1.1; let a proxy in front of it speak HTTP/2 (docs/PROXIES.md)";
    let refusal = Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "http_version", words);
    let body = refusal.body();
    // RFC 7541, section 6.2.2: literals that are not indexed, of the names 8 and 31 of the static table.
    let mut headers = vec![0x08, 3];
    headers.extend_from_slice(b"505");
    let json = b"application/json";
    headers.extend_from_slice(&[0x0f, 31 - 15, 16]);
    headers.extend_from_slice(json);
    let mut goaway = stream.to_be_bytes().to_vec();
    goaway.extend_from_slice(&HTTP_1_1_REQUIRED.to_be_bytes());
    goaway.extend_from_slice(words.as_bytes());
    [
        frame(HEADERS, END_HEADERS, stream, &headers),
        frame(DATA, END_STREAM, stream, body.as_bytes()),
        frame(GOAWAY, 0, 0, &goaway),
    ]
    .concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut bytes = vec![high, middle, low, kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
