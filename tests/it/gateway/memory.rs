//! What readers cost that have stopped reading: the memory of a real gateway, not its time.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use millstream::job::JobId;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tokio_tungstenite::{client_async, tungstenite::Message};

use crate::support::{
    port,
    program::{GATEWAY, Running},
    redis::Server,
    stack::connect,
    subject::soon,
    web::{Hand, Reply, chat, client},
};

/// What one reader may cost that has stopped reading: of these, ten thousand fit into a gigabyte.
const EACH: u64 = 100 * 1024;

/// A gateway of its own process, and its address.
fn start(server: &Server) -> (Running, SocketAddr) {
    let (redis, port) = (server.url(), port::free().to_string());
    let env = [("REDIS_URL", redis.as_str()), ("PORT", port.as_str())];
    let mut gateway = Running::start(GATEWAY, &[], &env);
    gateway.wait_for("gateway listens");
    (gateway, format!("127.0.0.1:{port}").parse().unwrap())
}

async fn enqueue(addr: SocketAddr, question: &str) -> JobId {
    let request = client().post(format!("http://{addr}/v1/jobs"));
    let request = request.header("content-type", "application/json");
    let reply = Reply::of(request.body(chat(question).to_string())).await;
    reply.json()["id"].as_str().unwrap().parse().unwrap()
}

/// Events of 7 KB, as log probabilities are.
async fn say_much(hand: &mut Hand, events: usize) {
    let top: Vec<_> = (0..100)
        .map(|n| json!({"token": format!("token{n}"), "logprob": -0.5, "bytes": [1, 2, 3]}))
        .collect();
    for n in 0..events {
        let content = json!([{"token": "a", "logprob": -0.25, "top_logprobs": top}]);
        let piece = json!({"delta": {"content": n.to_string()}, "logprobs": {"content": content}});
        hand.piece(piece).await;
    }
}

/// A connection that takes hardly anything before it is read.
async fn narrow(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(addr).await.unwrap()
}

/// A reader that stops once its answer has begun.
async fn stopped(addr: SocketAddr, path: &str, accept: &str) -> TcpStream {
    let mut stream = narrow(addr).await;
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    soon(stream.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}

/// The gateway's memory once it grows no more.
async fn settled(gateway: &Running) -> u64 {
    let mut seen = vec![gateway.memory()];
    while seen.len() < 4
        || seen[seen.len() - 4..]
            .iter()
            .any(|then| then.abs_diff(*seen.last().unwrap()) > 256 * 1024)
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen.push(gateway.memory());
    }
    *seen.last().unwrap()
}

/// Sixty readers of a log of large events took two gigabytes, as a gateway kept them decoded, by their number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_costs_no_more_than_its_share() {
    const FEW: u64 = 50;
    const MANY: u64 = 350;
    let server = Server::start().await;
    let (gateway, addr) = start(&server);
    let broker = connect(&server.url()).await;
    let id = enqueue(addr, "large").await;
    let mut hand = Hand::begin(&broker).await;
    say_much(&mut hand, 250).await;
    let mut readers = Vec::new();
    let mut crowd = async |count: u64| {
        let path = format!("/v1/jobs/{id}/events");
        while (readers.len() as u64) < count {
            readers.push(stopped(addr, &path, "text/event-stream").await);
        }
        // What comes live while they stand still.
        say_much(&mut hand, 100).await;
        settled(&gateway).await
    };
    let few = crowd(FEW).await;
    let many = crowd(MANY).await;
    let each = many.saturating_sub(few) / (MANY - FEW);
    println!("{few} with {FEW} readers, {many} with {MANY}: {each} bytes each");
    assert!(each <= EACH, "{each} bytes a reader");
    assert!(few < 120 << 20, "{few} bytes with {FEW} readers");
}

/// The same of answers that are not streams: they count as many streams as they are large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_that_nobody_reads_are_few() {
    let server = Server::start().await;
    let (redis, port) = (server.url(), port::free().to_string());
    let env = [
        ("REDIS_URL", redis.as_str()),
        ("PORT", port.as_str()),
        ("MILLSTREAM_GATEWAY__LIMITS__MAX_STREAMS", "64"),
    ];
    let mut gateway = Running::start(GATEWAY, &[], &env);
    gateway.wait_for("gateway listens");
    let addr = format!("127.0.0.1:{port}").parse().unwrap();
    let broker = connect(&server.url()).await;
    let id = enqueue(addr, "large").await;
    let mut hand = Hand::begin(&broker).await;
    say_much(&mut hand, 100).await;
    for (path, accept) in
        [(format!("/v1/jobs/{id}"), "*/*"), (format!("/v1/jobs/{id}/events"), "application/json")]
    {
        let mut readers = Vec::new();
        let refused = loop {
            let mut stream = narrow(addr).await;
            let head =
                format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut first = [0; 12];
            soon(stream.read_exact(&mut first)).await.unwrap();
            if &first != b"HTTP/1.1 200" {
                break first;
            }
            readers.push(stream);
            assert!(readers.len() < 64, "{} answers of {path}", readers.len());
        };
        assert_eq!(&refused, b"HTTP/1.1 429");
        assert!(readers.len() >= 4, "{} answers of {path}", readers.len());
        drop(readers);
        soon(async {
            let url = format!("http://{addr}/metrics");
            while !Reply::of(client().get(&url)).await.text.contains("streams_open 0\n") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

/// A frame was read into values, which were kept until its client took the answer: 580 MB for one of 8 MB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_costs_no_more_than_its_bytes() {
    const SOCKETS: usize = 4;
    let server = Server::start().await;
    let (gateway, addr) = start(&server);
    let zeros = vec!["0"; 1 << 20].join(",");
    let before = settled(&gateway).await;
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        let (mut socket, _) =
            client_async(format!("ws://{addr}/v1/ws"), narrow(addr).await).await.unwrap();
        for frame in [
            format!(r#"{{"id":[{zeros}],"op":"unsubscribe","job":"{}"}}"#, JobId::new()),
            format!(r#"{{"id":1,"op":"unsubscribe","job":[{zeros}]}}"#),
            format!(r#"{{"id":2,"op":"unsubscribe","then":[{zeros}]}}"#),
        ] {
            soon(socket.send(Message::text(frame))).await.unwrap();
        }
        sockets.push(socket);
    }
    let after = settled(&gateway).await;
    let each = after.saturating_sub(before) / SOCKETS as u64;
    println!("{before} before, {after} after: {each} bytes a socket");
    assert!(each < 8 << 20, "{each} bytes a socket");
    // They are told what was wrong once they read.
    for mut socket in sockets {
        for (id, word) in [("null", "id has"), ("1", "job is missing"), ("2", "then")] {
            let text = loop {
                if let Message::Text(text) = soon(socket.next()).await.unwrap().unwrap() {
                    break text;
                }
            };
            assert!(text.starts_with(&format!(r#"{{"id":{id},"error":"#)), "{text}");
            assert!(text.contains(word) && text.len() < 1500, "{text}");
        }
    }
}

/// Twelve subscriptions of one socket that is not read took 800 MB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_one_reader_whatever_it_follows() {
    const JOBS: usize = 40;
    const SOCKETS: u64 = 12;
    let server = Server::start().await;
    let (gateway, addr) = start(&server);
    let broker = connect(&server.url()).await;
    let mut jobs = Vec::new();
    for n in 0..JOBS {
        let id = enqueue(addr, &format!("large {n}")).await;
        let mut hand = Hand::begin(&broker).await;
        say_much(&mut hand, 50).await;
        jobs.push((id, hand));
    }
    let open = async || {
        let stream = narrow(addr).await;
        let (mut socket, _) = client_async(format!("ws://{addr}/v1/ws"), stream).await.unwrap();
        for (id, _) in &jobs {
            let frame = json!({"op": "subscribe", "job": id}).to_string();
            socket.feed(Message::text(frame)).await.unwrap();
        }
        socket.flush().await.unwrap();
        socket
    };
    // The first one warms up what all use.
    let first = open().await;
    let before = settled(&gateway).await;
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(open().await);
    }
    for (_, hand) in &mut jobs {
        say_much(hand, 10).await;
    }
    let after = settled(&gateway).await;
    let each = after.saturating_sub(before) / SOCKETS;
    println!("{before} before, {after} after: {each} bytes a socket");
    assert!(each < 1 << 20, "{each} bytes a socket");
    drop(first);
    // They miss nothing when they read on.
    let mut socket = sockets.pop().unwrap();
    for (_, hand) in &mut jobs {
        hand.done().await;
    }
    let (mut ends, mut said) = (0, 0);
    while ends < JOBS {
        let message = soon(socket.next()).await.unwrap().unwrap();
        let Ok(text) = message.to_text() else { continue };
        said += usize::from(text.contains("\"event\":\"delta\""));
        ends += usize::from(text.contains("\"end\":true"));
    }
    assert_eq!(said, JOBS * 61);
}
