//! Clients that are slow or go away, and a gateway that does.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use millstream::gateway::Limits;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::client::{Client, open, open_with, shown};
use crate::support::{
    gate::{Gate, brisk, limited},
    subject::soon,
};

/// A connection that takes little before it is read, though no less than one segment.
async fn narrow(gate: &Gate) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    socket.connect(gate.addr).await.unwrap()
}

/// What the gateway's process holds of a connection that is not read is bounded by the system's own
/// buffers, so the rest must come from the log: the messages were lost to it long since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_catches_up_from_the_log() {
    let gate = Gate::start(brisk()).await;
    let mut client = open_with(narrow(&gate).await, &[]).await.unwrap().0;
    let mut jobs = Vec::new();
    for _ in 0..8 {
        let job = client.enqueue(50_000, 0).await;
        client.subscribe(job, None).await;
        jobs.push(job);
    }
    // Nothing is read while everything is said.
    let mut logs = Vec::new();
    for job in &jobs {
        logs.push(shown(*job, &gate.log(*job).await));
    }
    let bytes: usize = logs.iter().flatten().map(|frame| frame.to_string().len()).sum();
    assert!(bytes > 2_000_000, "{bytes} bytes may fit into the system's buffers");
    // Another one is not kept waiting by it.
    let mut quick = open(&gate).await;
    let job = quick.enqueue(10, 0).await;
    quick.subscribe(job, None).await;
    quick.until_over(1).await;
    let events = client.until_over(jobs.len()).await;
    for (job, log) in jobs.iter().zip(&logs) {
        assert_eq!(&events[&job.to_string()], log);
    }
    drop((client, quick));
    gate.is_clean().await;
}

/// One that pauses for longer than it may be silent has been waited for, and not been silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_pauses_is_not_taken_for_dead() {
    let write_timeout = Duration::from_secs(8);
    let gate = Gate::start(limited(Limits { write_timeout, ..Limits::default() })).await;
    let mut client = open_with(narrow(&gate).await, &[]).await.unwrap().0;
    let (mut jobs, mut expected) = (Vec::new(), 0);
    for _ in 0..4 {
        jobs.push(client.enqueue(150_000, 0).await);
    }
    for job in &jobs {
        expected += gate.log(*job).await.len();
    }
    for job in &jobs {
        client.send(&json!({"id": 1, "op": "subscribe", "job": job})).await;
    }
    let mut frames: Vec<Value> = Vec::new();
    for pause in 0..2 {
        tokio::time::sleep(write_timeout * 3 / 5).await;
        // More than the system holds, so that the gateway gets on, and not so much that it is done.
        for _ in 0..expected / 4 {
            frames.push(client.next().await);
        }
        assert_eq!(gate.metric("sockets_open").await, 1, "pause {pause}");
    }
    let ends = |frames: &[Value]| frames.iter().filter(|frame| frame["end"] == true).count();
    while ends(&frames) < jobs.len() {
        frames.push(client.next().await);
    }
    // Events, ends and answers.
    assert_eq!(frames.len(), expected + jobs.len() * 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let write_timeout = Duration::from_millis(1200);
    let gate = Gate::start(limited(Limits { write_timeout, ..Limits::default() })).await;
    let mut client = open_with(narrow(&gate).await, &[]).await.unwrap().0;
    let job = client.enqueue(200_000, 0).await;
    client.subscribe(job, None).await;
    assert_eq!(gate.topics().await, 1);
    gate.log(job).await;
    gate.is_clean().await;
    drop(client);
}

/// It is connected, and takes what comes, but answers no ping: as one whose machine has gone.
#[tokio::test]
async fn a_peer_that_answers_no_ping_is_given_up() {
    let write_timeout = Duration::from_millis(1200);
    let gate = Gate::start(limited(Limits { write_timeout, ..Limits::default() })).await;
    let mut client = open(&gate).await;
    let job = client.enqueue(1000, 5).await;
    client.subscribe(job, None).await;
    // Whoever does not read its frames does not answer them.
    let stream = client.socket.into_inner();
    let reader = async {
        let mut bytes = vec![0; 4096];
        loop {
            stream.readable().await.unwrap();
            match stream.try_read(&mut bytes) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    };
    soon(reader).await;
    gate.is_clean().await;
}

/// A socket that follows three jobs, one of them at its end.
async fn busy(gate: &Gate) -> Client {
    let mut client = open(gate).await;
    for (tokens, rate) in [(1000, 20), (1000, 1), (1, 0)] {
        let job = client.enqueue(tokens, rate).await;
        assert!(client.subscribe(job, None).await["error"].is_null());
    }
    client
}

#[tokio::test]
async fn a_close_leaves_nothing_behind() {
    let gate = Gate::start(brisk()).await;
    let mut polite = busy(&gate).await;
    for name in ["sockets_open", "streams_open"] {
        assert_eq!(gate.metric(name).await, 1);
    }
    // The job that is over has been left already, or is about to be.
    assert!((2..=3).contains(&gate.topics().await));
    let close = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    soon(polite.socket.close(Some(close))).await.unwrap();
    let answered = soon(async {
        loop {
            match polite.socket.next().await {
                Some(Ok(Message::Close(close))) => return close,
                Some(Ok(_)) => {}
                other => panic!("the close is not answered: {other:?}"),
            }
        }
    });
    assert_eq!(answered.await.map(|close| close.code), Some(CloseCode::Normal));
    assert!(soon(polite.socket.next()).await.is_none());
    gate.is_clean().await;
    // The connection ends in order, but the socket does not.
    drop(busy(&gate).await);
    gate.is_clean().await;
    // A reset, as from a process that was killed with something unread.
    let killed = busy(&gate).await;
    socket2::SockRef::from(killed.socket.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(killed);
    gate.is_clean().await;
    // In the middle of a frame, and of an upgrade.
    let mut half = busy(&gate).await;
    use tokio::io::AsyncWriteExt as _;
    soon(half.socket.get_mut().write_all(b"\x81\xfe\x10\x00abcd{")).await.unwrap();
    drop(half);
    for _ in 0..20 {
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        let head = b"GET /v1/ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
        stream.write_all(head).await.unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    gate.is_clean().await;
    assert_eq!(gate.close().await.unfinished, 0);
}

#[tokio::test]
async fn sockets_of_a_closing_gateway_go_on_at_the_next() {
    let mut gate = Gate::start(brisk()).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = open(&gate).await;
        let job = client.enqueue(80, 80).await;
        client.subscribe(job, None).await;
        let first = client.event().await;
        clients.push((client, job, vec![first]));
    }
    let closed =
        futures_util::future::join_all(clients.into_iter().map(async |(client, job, seen)| {
            let mut client = client;
            (client.closed().await, client.kept, job, seen)
        }));
    let (stopped, closed) = tokio::join!(gate.replace(), closed);
    assert_eq!((stopped.streams, stopped.unfinished), (5, 0));
    for ((code, reason, before), kept, job, mut seen) in closed {
        seen.extend(kept);
        assert_eq!(code, 1012, "{reason}");
        let texts = before.iter().filter_map(|frame| frame.to_text().ok());
        seen.extend(texts.filter_map(|text| serde_json::from_str(text).ok()));
        seen.retain(|frame| frame.get("event").is_some());
        let cursor = seen.last().unwrap()["event_id"].as_str().unwrap().to_owned();
        let mut next = open(&gate).await;
        next.subscribe(job, Some(&cursor)).await;
        let rest = next.until_over(1).await.remove(&job.to_string());
        seen.extend(rest.unwrap_or_default());
        assert_eq!(seen, shown(job, &gate.log(job).await));
    }
    gate.is_clean().await;
}

/// The gateway's end does not wait for one that does not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closing_gateway_waits_for_no_reader_for_ever() {
    let options = millstream::gateway::Options { drain: Duration::from_millis(800), ..brisk() };
    let gate = Gate::start(options).await;
    let mut client = open_with(narrow(&gate).await, &[]).await.unwrap().0;
    let job = client.enqueue(200_000, 0).await;
    client.subscribe(job, None).await;
    gate.log(job).await;
    let began = tokio::time::Instant::now();
    let stopped = gate.close().await;
    assert_eq!((stopped.streams, stopped.unfinished), (1, 1));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Those who do not answer the close are not waited for either.
    let gate = Gate::start(brisk()).await;
    let mut client = open(&gate).await;
    soon(client.socket.send(Message::text(json!({"op": "x"}).to_string()))).await.unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(gate.close().await.unfinished, 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(client);
}
