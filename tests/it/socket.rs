//! `/v1/ws`: many jobs over one WebSocket, and clients that are slow, silent, strange or gone.

pub mod client;
mod leaving;
mod protocol;

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use millstream::{
    event::{Body, EventId},
    gateway::{Limits, Options, Right, ws::IDLE},
    job::{JobId, Timestamp},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::{
    Bytes, Message,
    http::header,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use self::client::{open, open_as, refused, shown, try_open};
use crate::support::{
    gate::{Gate, brisk, limited},
    redis::Server,
    stack::connect,
    subject::soon,
};

#[tokio::test]
async fn requests_are_answered_in_order_under_their_ids() {
    let gate = Gate::start(brisk()).await;
    let mut client = open(&gate).await;
    let job = client.enqueue(3, 0).await;
    gate.log(job).await;
    let slow = client.enqueue(1000, 10).await;
    for frame in [
        json!({"id": 1, "op": "subscribe", "job": job}),
        json!({"id": "two", "op": "unsubscribe", "job": slow}),
        json!({"id": null, "op": "subscribe", "job": slow}),
        json!({"id": {"a": [4]}, "op": "unsubscribe", "job": slow}),
        json!({"op": "cancel", "job": slow}),
        json!({"id": "six", "op": "cancel", "job": job}),
    ] {
        client.send(&frame).await;
    }
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(client.answer().await);
    }
    assert_eq!(answers[0], json!({"id": 1, "ok": {"job": job, "state": "done"}}));
    assert_eq!(answers[1], json!({"id": "two", "ok": {"job": slow, "followed": false}}));
    assert_eq!((&answers[2]["id"], &answers[2]["ok"]["job"]), (&json!(null), &json!(slow)));
    assert_eq!(answers[3], json!({"id": {"a": [4]}, "ok": {"job": slow, "followed": true}}));
    assert_eq!((&answers[4]["id"], &answers[4]["ok"]["id"]), (&json!(null), &json!(slow)));
    assert_eq!(answers[4]["ok"]["object"], "job.cancellation");
    assert_eq!(answers[5]["ok"]["outcome"], "over");
    assert!(matches!(gate.log(slow).await.last().unwrap().body, Body::Cancelled(_)));
    // What one unsubscribed from is heard of no more.
    let events = client.until_over(1).await;
    assert_eq!(events[&job.to_string()], shown(job, &gate.log(job).await));
    drop(client);
    gate.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_on_one_socket_come_whole_and_once() {
    many_jobs(Gate::start(brisk()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_on_one_socket_come_whole_and_once_from_redis() {
    let server = Server::start().await;
    many_jobs(Gate::before(connect(&server.url()).await, brisk()).await).await;
}

async fn many_jobs(gate: Gate) {
    let mut client = open(&gate).await;
    let mut jobs = Vec::new();
    for number in 0..60 {
        // Some are over before they are followed, most are not.
        jobs.push(client.enqueue(40, if number % 4 == 0 { 0 } else { 200 }).await);
    }
    for job in &jobs {
        assert_eq!(client.subscribe(*job, None).await["ok"]["job"], json!(job));
    }
    let events = client.until_over(jobs.len()).await;
    for job in &jobs {
        let log = gate.log(*job).await;
        assert!(log.len() > 2);
        assert_eq!(events[&job.to_string()], shown(*job, &log));
    }
    drop(client);
    gate.is_clean().await;
}

#[tokio::test]
async fn a_subscription_goes_on_from_its_cursor() {
    goes_on_from_its_cursor(Gate::start(brisk()).await).await;
}

#[tokio::test]
async fn a_subscription_goes_on_from_its_cursor_in_redis() {
    let server = Server::start().await;
    goes_on_from_its_cursor(Gate::before(connect(&server.url()).await, brisk()).await).await;
}

async fn goes_on_from_its_cursor(gate: Gate) {
    let mut client = open(&gate).await;
    let job = client.enqueue(300, 100).await;
    client.subscribe(job, None).await;
    let mut seen = vec![client.event().await, client.event().await, client.event().await];
    let unsubscribe = json!({"id": "u", "op": "unsubscribe", "job": job});
    assert_eq!(client.ask(unsubscribe).await["ok"]["followed"], true);
    seen.extend(client.kept.drain(..));
    // On another socket from where this one was, and there once more over the running subscription.
    let mut other = open(&gate).await;
    let cursor = seen.last().unwrap()["event_id"].as_str().unwrap().to_owned();
    other.subscribe(job, Some(&cursor)).await;
    seen.push(other.event().await);
    let cursor = seen.last().unwrap()["event_id"].as_str().unwrap().to_owned();
    other.send(&json!({"id": "s", "op": "subscribe", "job": job, "after": cursor})).await;
    other.answer().await;
    other.kept.clear();
    seen.extend(other.until_over(1).await.remove(&job.to_string()).unwrap());
    let log = gate.log(job).await;
    assert_eq!(seen, shown(job, &log));
    // Behind the end there is the end.
    for last in [log.last().unwrap().id, EventId::END] {
        other.subscribe(job, Some(&last.to_string())).await;
        assert_eq!(other.event().await, json!({"job": job, "end": true}), "{last}");
    }
    for bad in ["x", "1", "-1-2", "1-2-3"] {
        let answer = other.subscribe(job, Some(bad)).await;
        assert_eq!(answer["error"]["param"], "after", "{answer}");
    }
    drop((client, other));
    gate.is_clean().await;
}

#[tokio::test]
async fn a_key_reaches_its_tenants_jobs_with_its_rights() {
    let hour = Timestamp::now().after(Duration::from_secs(3600));
    let (gate, keys) = Gate::locked(
        brisk(),
        &[
            ("acme", &[Right::Enqueue, Right::Read], Some(hour)),
            ("other", &Right::ALL, None),
            ("acme", &[Right::Read], None),
            ("acme", &[Right::Enqueue], None),
        ],
    )
    .await;
    let mut owner = open_as(&gate, &keys[0]).await;
    let job = owner.enqueue(5, 0).await;
    let mut stranger = open_as(&gate, &keys[1]).await;
    let (nobodys, garbage) = (json!(JobId::new()), json!("no ID"));
    for target in [json!(job), nobodys, garbage] {
        for op in ["subscribe", "cancel"] {
            let answer = stranger.ask(json!({"id": 7, "op": op, "job": target})).await;
            assert_eq!(answer["error"]["code"], "job_not_found", "{answer}");
        }
    }
    let mut reader = open_as(&gate, &keys[2]).await;
    let mut writer = open_as(&gate, &keys[3]).await;
    for (is_reader, op) in [(true, "enqueue"), (true, "cancel"), (false, "subscribe")] {
        let client = if is_reader { &mut reader } else { &mut writer };
        let answer = client.ask(json!({"id": 8, "op": op, "job": job})).await;
        assert_eq!(answer["error"]["type"], "permission_error", "{op}: {answer}");
    }
    assert_eq!(reader.subscribe(job, None).await["ok"]["job"], json!(job));
    assert_eq!(reader.until_over(1).await[&job.to_string()], shown(job, &gate.log(job).await));
    // Refusals are answers, and no faults of the socket.
    assert_eq!(stranger.subscribe(JobId::new(), None).await["error"]["code"], "job_not_found");
    drop((owner, stranger, reader, writer));
    gate.is_clean().await;
}

#[tokio::test]
async fn a_socket_does_not_outlive_its_key() {
    let expiry = Timestamp::now().after(Duration::from_secs(4));
    let keys: &[(&str, &[Right], _)] = &[("acme", &Right::ALL, Some(expiry))];
    let (gate, keys) = Gate::locked(brisk(), keys).await;
    let mut client = open_as(&gate, &keys[0]).await;
    let job = client.enqueue(1000, 1).await;
    client.subscribe(job, None).await;
    // Whatever it hears meanwhile.
    let code = soon(async {
        loop {
            match client.frame().await {
                Message::Close(Some(close)) => return u16::from(close.code),
                _ => assert!(Timestamp::now() < expiry.after(Duration::from_secs(5))),
            }
        }
    });
    assert_eq!(code.await, 1008);
    assert!(Timestamp::now() >= expiry);
    gate.is_clean().await;
}

#[tokio::test]
async fn who_may_open_a_socket() {
    let (gate, keys) = Gate::locked(
        Options { cors_origins: vec!["https://app.example".to_owned()], ..brisk() },
        &[("acme", &Right::ALL, None)],
    )
    .await;
    let names = format!("millstream, bearer.{}", keys[0]);
    let protocol = [(header::SEC_WEBSOCKET_PROTOCOL, names.as_str())];
    let (client, response) = try_open(gate.addr, &protocol).await.unwrap();
    // The key is not said back.
    assert_eq!(response.headers()[header::SEC_WEBSOCKET_PROTOCOL], "millstream");
    drop(client);
    let wrong = [(header::SEC_WEBSOCKET_PROTOCOL, "millstream, bearer.ms_k0_wrong")];
    assert_eq!(refused(gate.addr, &wrong).await, 401);
    assert_eq!(refused(gate.addr, &[]).await, 401);
    let own = format!("http://{}", gate.addr);
    for origin in [own.as_str(), "https://app.example"] {
        let headers = [protocol[0].clone(), (header::ORIGIN, origin)];
        assert!(try_open(gate.addr, &headers).await.is_ok(), "{origin}");
    }
    for origin in
        ["https://evil.example", "null", "http://127.0.0.1:1", "", "https://app.example.evil"]
    {
        let headers = [protocol[0].clone(), (header::ORIGIN, origin)];
        assert_eq!(refused(gate.addr, &headers).await, 403, "{origin}");
    }
    gate.is_clean().await;
}

#[tokio::test]
async fn frames_that_are_no_requests_are_answered_ten_times() {
    let gate = Gate::start(brisk()).await;
    let mut client = open(&gate).await;
    // Requests that cannot be granted do not count.
    for (frame, param) in [
        (json!({"id": 1, "op": "subscribe"}), "job"),
        (json!({"id": 2, "op": "enqueue"}), "job"),
        (json!({"id": 3, "op": "dance", "job": "x"}), "op"),
        (json!({"id": 4, "op": "cancel", "job": 5}), "job"),
        (json!({"id": 5, "op": "unsubscribe", "job": [[]]}), "job"),
    ] {
        let answer = client.ask(frame).await;
        assert_eq!(answer["error"]["param"], param, "{answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error", "{answer}");
    }
    for job in [json!([]), json!({"model": "m"}), json!("x"), json!({"request": 1})] {
        let answer = client.ask(json!({"id": "j", "op": "enqueue", "job": job})).await;
        assert_eq!(answer["error"]["code"], "invalid_job", "{answer}");
    }
    let frames = [
        ("", json!(null)),
        ("nonsense", json!(null)),
        ("{\"id\":1", json!(null)),
        ("[]", json!(null)),
        ("null", json!(null)),
        (r#"{"id":"a"}"#, json!("a")),
        (r#"{"id":"b","op":7}"#, json!("b")),
        (r#"{"id":"c","op":"subscribe","job":"x","colour":1}"#, json!("c")),
        (r#"{"id":"d","op":"cancel","op":"cancel","job":"x"}"#, json!("d")),
        (r#"{"id":"\ud800","op":"cancel"}"#, json!(null)),
    ];
    for (text, id) in frames {
        soon(client.socket.send(Message::text(text))).await.unwrap();
        let answer = client.answer().await;
        assert_eq!(answer["id"], id, "{text}: {answer}");
        assert_eq!(answer["error"]["code"], "invalid_frame", "{text}: {answer}");
    }
    let (code, reason, before) = client.closed().await;
    assert_eq!(code, 1008, "{reason}");
    assert!(before.iter().all(|frame| matches!(frame, Message::Ping(_))), "{before:?}");
    gate.is_clean().await;
}

#[tokio::test]
async fn binary_and_oversized_frames_close_with_their_codes() {
    let gate = Gate::start(limited(Limits { max_body: 64 * 1024, ..Limits::default() })).await;
    let mut client = open(&gate).await;
    soon(client.socket.send(Message::binary(&b"{}"[..]))).await.unwrap();
    assert_eq!(client.closed().await.0, 1003);
    // As much as is allowed, and one byte more.
    let of = |size: usize| format!(r#"{{"op":"{}"}}"#, "x".repeat(size - 9));
    let mut client = open(&gate).await;
    soon(client.socket.send(Message::text(of(64 * 1024)))).await.unwrap();
    assert_eq!(client.answer().await["error"]["param"], "op");
    soon(client.socket.send(Message::text(of(64 * 1024 + 1)))).await.unwrap();
    assert_eq!(client.code().await, 1009);
    // In parts, each small enough.
    let mut client = open(&gate).await;
    let part = |code, last| {
        Message::Frame(Frame::message(vec![b'x'; 40 * 1024], OpCode::Data(code), last))
    };
    for frame in [part(Data::Text, false), part(Data::Continue, true)] {
        soon(client.socket.send(frame)).await.unwrap();
    }
    assert_eq!(client.code().await, 1009);
    // What is no WebSocket frame at all.
    for garbage in [&[0xff; 64][..], b"\x81\x05hello", b"\x81\x83\0\0\0\0\xff\xfe\xfd"] {
        let mut client = open(&gate).await;
        soon(client.socket.get_mut().write_all(garbage)).await.unwrap();
        let mut rest = Vec::new();
        // The end of the connection, in order or not, but soon.
        let _ = soon(client.socket.get_mut().read_to_end(&mut rest)).await;
    }
    drop(client);
    gate.is_clean().await;
}

/// Far more than TCP keeps for whoever sends on: the reader of it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_much_too_large_is_told_so() {
    let gate = Gate::start(limited(Limits { max_body: 64 * 1024, ..Limits::default() })).await;
    let client = open(&gate).await;
    let large = "x".repeat(32 * 1024 * 1024);
    let (mut sink, mut stream) = client.socket.split();
    let sent = tokio::spawn(async move { sink.send(Message::text(large)).await });
    let told = loop {
        match soon(stream.next()).await.unwrap() {
            Ok(Message::Close(Some(close))) => break u16::from(close.code),
            Ok(Message::Ping(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told, 1009);
    drop(stream);
    let _ = soon(sent).await;
    gate.is_clean().await;
}

#[tokio::test]
async fn pings_are_answered_and_sent() {
    let gate = Gate::start(brisk()).await;
    let mut client = open(&gate).await;
    let (mut asked, mut answered) = (0, 0);
    soon(client.socket.send(Message::Ping(Bytes::from_static(b"are you there")))).await.unwrap();
    while asked < 3 || answered < 1 {
        match client.frame().await {
            Message::Ping(_) => asked += 1,
            Message::Pong(data) => {
                assert_eq!(&data[..], b"are you there");
                answered += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_silent_socket_is_closed_with_a_code_that_says_so() {
    let socket_idle = Duration::from_millis(1200);
    let gate = Gate::start(limited(Limits { socket_idle, ..Limits::default() })).await;
    let began = tokio::time::Instant::now();
    let mut silent = open(&gate).await;
    let mut talker = open(&gate).await;
    let mut hearer = open(&gate).await;
    let job = hearer.enqueue(50, 20).await;
    hearer.subscribe(job, None).await;
    let talks = tokio::spawn(async move {
        while began.elapsed() < Duration::from_millis(2400) {
            talker.ask(json!({"id": 1, "op": "unsubscribe", "job": JobId::new()})).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    // Pings alone keep no socket open.
    let (code, reason, before) = silent.closed().await;
    assert_eq!(code, IDLE, "{reason}");
    assert!(reason.contains("1.2 s"), "{reason}");
    assert!(began.elapsed() >= socket_idle);
    assert!(before.iter().filter(|frame| matches!(frame, Message::Ping(_))).count() > 2);
    // One that hears is not silent, and neither is one that speaks.
    assert_eq!(hearer.until_over(1).await[&job.to_string()], shown(job, &gate.log(job).await));
    soon(talks).await.unwrap();
    assert_eq!(hearer.closed().await.0, IDLE);
    gate.is_clean().await;
}

/// Guards against a job that is taken over a socket without a word about a queue that nobody serves.
#[tokio::test]
async fn a_job_that_nobody_serves_is_taken_over_a_socket_with_a_warning() {
    let queues = vec!["batch".parse().unwrap()];
    let gate = Gate::start(Options { queues, ..brisk() }).await;
    let mut client = open(&gate).await;
    let request = json!({"model": "m?tokens=1", "messages": [{"role": "user", "content": "a"}]});
    for (queue, is_served) in [("default", true), ("batch", false)] {
        let job = json!({"request": request, "queue": queue});
        let ok = client.ask(json!({"id": 1, "op": "enqueue", "job": job})).await["ok"].take();
        let warning = ok["warning"].as_str().unwrap_or_default();
        assert_eq!(warning.contains("no live worker serves queue `batch`"), !is_served, "{ok}");
        assert_eq!(ok.get("warning").is_none(), is_served, "{ok}");
    }
    drop(client);
    gate.is_clean().await;
}

#[tokio::test]
async fn a_socket_follows_no_more_jobs_than_allowed() {
    let limits = Limits { max_subscriptions: 2, max_streams: 3, ..Limits::default() };
    let gate = Gate::start(limited(limits)).await;
    let mut client = open(&gate).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(client.enqueue(1000, 1).await);
    }
    for job in &jobs[..2] {
        assert!(client.subscribe(*job, None).await["error"].is_null());
    }
    let answer = client.subscribe(jobs[2], None).await;
    assert_eq!(answer["error"]["code"], "too_many_subscriptions", "{answer}");
    assert_eq!(answer["error"]["type"], "rate_limit_error");
    assert_eq!(gate.topics().await, 2);
    // The same again is not one more.
    assert!(client.subscribe(jobs[1], None).await["error"].is_null());
    client.ask(json!({"id": 0, "op": "unsubscribe", "job": jobs[0]})).await;
    assert!(client.subscribe(jobs[2], None).await["error"].is_null());
    let held = [open(&gate).await, open(&gate).await];
    assert_eq!(refused(gate.addr, &[]).await, 429);
    drop((client, held));
    gate.is_clean().await;
    for job in jobs {
        gate.broker.cancel(job).await.ok();
    }
}
