//! RFC 6455, broken in every way: what is no WebSocket is told so.

use tokio::net::TcpStream;

use super::*;
use crate::support::proxy::Proxy;

/// A frame of a client, whose mask is of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let mut bytes = vec![first];
    match u8::try_from(length) {
        Ok(short) if short < 126 => bytes.push(0x80 | short),
        _ => {
            bytes.push(0x80 | 0x7e);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Errors of the protocol ended in a bare end of the connection, and a long ping was called too large a message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_protocol_end_in_a_close_frame() {
    let gate = Gate::start(brisk()).await;
    let text = |payload: &[u8]| frame(0x81, payload);
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a ping of 126 bytes", frame(0x89, &[b'x'; 126]), 1002),
        ("a pong of 126 bytes", frame(0x8a, &[b'x'; 126]), 1002),
        ("a close of 126 bytes", frame(0x88, &[b'x'; 126]), 1002),
        ("a ping in parts", frame(0x09, b"x"), 1002),
        ("a close in parts", frame(0x08, b""), 1002),
        ("the first reserved bit", frame(0xc1, b"x"), 1002),
        ("the second reserved bit", frame(0xa1, b"x"), 1002),
        ("the third reserved bit", frame(0x91, b"x"), 1002),
        ("a reserved bit of a ping", frame(0xc9, b"x"), 1002),
        ("opcode 3", frame(0x83, b"x"), 1002),
        ("opcode 4", frame(0x84, b"x"), 1002),
        ("opcode 5", frame(0x85, b"x"), 1002),
        ("opcode 6", frame(0x86, b"x"), 1002),
        ("opcode 7", frame(0x87, b"x"), 1002),
        ("opcode 11", frame(0x8b, b"x"), 1002),
        ("opcode 15", frame(0x8f, b"x"), 1002),
        ("a part of nothing", frame(0x80, b"x"), 1002),
        ("a text within a text", [frame(0x01, b"x"), text(b"x")].concat(), 1002),
        ("a frame without a mask", b"\x81\x01x".to_vec(), 1002),
        ("a close of one byte", frame(0x88, b"x"), 1002),
        ("garbage", vec![0xff; 64], 1002),
        ("text that is not UTF-8", text(b"\xff\xfe\xfd"), 1007),
        ("half a surrogate", text(b"\xed\xa0\x80"), 1007),
        ("too long a form", text(b"\xc0\xaf"), 1007),
        ("half a character", text(b"\xe2\x82"), 1007),
        (
            "text in parts that is not UTF-8",
            [frame(0x01, b"ok"), frame(0x80, b"\xff")].concat(),
            1007,
        ),
        ("a reason that is not UTF-8", frame(0x88, b"\x03\xe8\xff"), 1007),
    ];
    for (what, bytes, code) in cases {
        let mut client = open(&gate).await;
        soon(client.socket.get_mut().write_all(&bytes)).await.unwrap();
        let met = client.code().await;
        assert_eq!(met, code, "{what}");
    }
    // Codes that are none of a client's to send are answered as such.
    for code in [0_u16, 999, 1004, 1005, 1006, 1016, 2999, 5000] {
        let mut client = open(&gate).await;
        soon(client.socket.get_mut().write_all(&frame(0x88, &code.to_be_bytes()))).await.unwrap();
        assert_eq!(client.code().await, 1002, "{code}");
    }
    gate.is_clean().await;
}

/// The answer to a handshake with these headers.
async fn shake(gate: &Gate, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(gate.addr).await.unwrap();
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![0; 4096];
    let mut read = 0;
    while !bytes[..read].windows(4).any(|four| four == b"\r\n\r\n") {
        read += soon(stream.read(&mut bytes[read..])).await.unwrap();
    }
    let head = String::from_utf8_lossy(&bytes[..read]).to_lowercase();
    (head[9..12].parse().unwrap(), head)
}

/// A client of another version was not told which one there is, and any text was taken for a key.
#[tokio::test]
async fn a_handshake_of_another_version_or_without_a_key_is_refused() {
    let gate = Gate::start(brisk()).await;
    let (key, version) =
        ("sec-websocket-key: bWlsbHN0cmVhbS4uLi4uLg==\r\n", "sec-websocket-version: 13\r\n");
    assert_eq!(shake(&gate, &format!("{key}{version}")).await.0, 101);
    for other in [
        "",
        "sec-websocket-version: 8\r\n",
        "sec-websocket-version: 14\r\n",
        "sec-websocket-version: 13, 8\r\n",
    ] {
        let (status, head) = shake(&gate, &format!("{key}{other}")).await;
        assert_eq!(status, 426, "{other}: {head}");
        assert!(head.contains("\r\nsec-websocket-version: 13\r\n"), "{head}");
    }
    for other in [
        "",
        "sec-websocket-key:\r\n",
        "sec-websocket-key: x\r\n",
        "sec-websocket-key: bWlsbHN0cmVhbQ==\r\n",
        "sec-websocket-key: bWlsbHN0cmVhbS4uLi4uLg\r\n",
        "sec-websocket-key: bWlsbHN0cmVhbS4uLi4uLi4=\r\n",
        "sec-websocket-key: \u{ff}\r\n",
        "sec-websocket-key: bWlsbHN0cmVhbS4uLi4uLg==\r\nsec-websocket-key: bWlsbHN0cmVhbS4uLi4uLg==\r\n",
    ] {
        let (status, head) = shake(&gate, &format!("{other}{version}")).await;
        assert_eq!(status, 400, "{other}: {head}");
        assert!(head.contains("sec-websocket-key is not 16 bytes"), "{head}");
    }
    gate.is_clean().await;
}

/// Pages of this machine were foreign to one another, and an origin that is no ASCII was none at all.
#[tokio::test]
async fn an_origin_is_compared_by_scheme_host_and_port() {
    let gate = Gate::start(brisk()).await;
    let port = gate.addr.port();
    let rest = "sec-websocket-key: bWlsbHN0cmVhbS4uLi4uLg==\r\nsec-websocket-version: 13\r\n";
    for (origin, more, status) in [
        ("http://localhost", "", 403),
        (&format!("http://localhost:{port}"), "", 101),
        (&format!("http://127.0.0.1:{port}"), "", 101),
        (&format!("https://127.0.0.1:{port}"), "", 403),
        (&format!("https://127.0.0.1:{port}"), "x-forwarded-proto: https\r\n", 101),
        (&format!("http://127.0.0.1:{port}"), "x-forwarded-proto: https\r\n", 403),
        (&format!("ftp://127.0.0.1:{port}"), "", 403),
        ("http://evil.example\u{ff}", "", 403),
        ("\u{ff}", "", 403),
        ("", "", 403),
    ] {
        let host = format!(
            "GET /v1/ws HTTP/1.1\r\nhost: localhost:{port}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        );
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        let request = format!("{host}origin: {origin}\r\n{more}{rest}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = [0; 12];
        soon(stream.read_exact(&mut bytes)).await.unwrap();
        let met = String::from_utf8_lossy(&bytes[9..]).into_owned();
        assert_eq!(met, status.to_string(), "{origin:?} {more:?}");
    }
    gate.is_clean().await;
}

/// Messages that never end took as much memory as they were long, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_messages_take_no_more_memory_than_allowed() {
    let limits = Limits { max_body: 200_000, max_bodies: 1_000_000, ..Limits::default() };
    let gate = Gate::start(limited(limits)).await;
    let message = |size: usize| {
        let mut bytes = vec![0x81, 0xff];
        bytes.extend_from_slice(&200_000_u64.to_be_bytes());
        bytes.resize(14, 0);
        bytes.resize(14 + size, b'x');
        bytes
    };
    // A part, and one behind it that does not end; between them a ping, which ended the count.
    let part = |first: u8, declared: u64, size: usize| {
        let mut bytes = message(size);
        bytes[0] = first;
        bytes[2..10].copy_from_slice(&declared.to_be_bytes());
        bytes
    };
    let ping = [0x89, 0x80, 0, 0, 0, 0];
    let parted =
        [part(0x01, 100_000, 100_000), ping.to_vec(), part(0x00, 100_000, 99_000)].concat();
    for unfinished in [message(199_000), parted] {
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let mut client = open(&gate).await;
            // The client's answers to pings are taken for more of it.
            soon(client.socket.get_mut().write_all(&unfinished)).await.unwrap();
            waiting.push(Box::pin(async move { client.code().await }));
        }
        // Two have room; whichever comes last has none.
        let (code, _, rest) = futures_util::future::select_all(waiting).await;
        assert_eq!((code, rest.len()), (1013, 2));
        drop(rest);
        gate.until("sockets_open", 0).await;
    }
    // What is whole gives its room back: far more than there is, one after the other.
    let mut client = open(&gate).await;
    for _ in 0..6 {
        soon(client.socket.get_mut().write_all(&message(200_000))).await.unwrap();
        assert_eq!(client.answer().await["error"]["code"], "invalid_frame");
    }
    drop(client);
    gate.is_clean().await;
}

/// Pings and answers to pings took the room of messages for ever: after a day of heartbeats there was none left.
#[tokio::test]
async fn what_keeps_a_socket_alive_takes_no_room() {
    let limits = Limits { max_body: 8_000, max_bodies: 40_000, ..Limits::default() };
    let gate = Gate::start(limited(limits)).await;
    let mut client = open(&gate).await;
    // Also between the parts of a message, which keep theirs.
    soon(client.socket.get_mut().write_all(&frame(0x01, &[b'x'; 4_000]))).await.unwrap();
    for _ in 0..200 {
        for first in [0x89, 0x8a] {
            soon(client.socket.get_mut().write_all(&frame(first, &[b'x'; 125]))).await.unwrap();
        }
    }
    soon(client.socket.get_mut().write_all(&frame(0x80, b"x"))).await.unwrap();
    let told = soon(async {
        loop {
            match client.frame().await {
                Message::Text(text) => return text,
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(told.await.contains("invalid_frame"));
    drop(client);
    gate.is_clean().await;
}

/// A large message was forgotten once it was answered, and the library keeps its space for the next one.
#[tokio::test]
async fn a_socket_counts_as_many_streams_as_its_largest_message_takes() {
    let limits = Limits { max_streams: 12, ..Limits::default() };
    let gate = Gate::start(limited(limits)).await;
    let (mut client, mut other) = (open(&gate).await, open(&gate).await);
    let pad = "x".repeat(10 * 64 * 1024 - 100);
    let padded = json!({"id": 1, "op": "unsubscribe", "job": pad});
    assert_eq!(client.ask(padded.clone()).await["error"]["code"], "job_not_found");
    gate.until("streams_open", 11).await;
    // One for whom there is no room is answered, and closed.
    assert_eq!(other.ask(padded).await["error"]["code"], "job_not_found");
    assert_eq!(other.code().await, 1013);
    gate.until("streams_open", 10).await;
    drop((client, other));
    gate.is_clean().await;
}

/// The room of a message was given back before it was answered: while the broker was slow, there was no bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_takes_room_until_it_is_answered() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port()).await;
    let limits = Limits { max_body: 2_000, max_bodies: 3_000, ..Limits::default() };
    let gate = Gate::before(connect(&proxy.url()).await, limited(limits)).await;
    let enqueue = |id: &str, text: &str| {
        let request = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
        json!({"id": id, "op": "enqueue", "job": request})
    };
    let (mut slow, mut other) = (open(&gate).await, open(&gate).await);
    proxy.hold_behind("firstfirst".to_owned());
    slow.send(&enqueue("a", &"first".repeat(200))).await;
    soon(proxy.holds()).await;
    other.send(&enqueue("b", &"second".repeat(150))).await;
    assert_eq!(other.code().await, 1013);
    proxy.let_through();
    assert_eq!(slow.answer().await["ok"]["object"], "job");
    let mut third = open(&gate).await;
    assert_eq!(third.ask(enqueue("c", &"third".repeat(150))).await["ok"]["object"], "job");
}
