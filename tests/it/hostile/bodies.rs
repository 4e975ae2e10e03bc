//! JSON that is hard to bear, at every door that takes some.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use super::*;
use crate::support::gate::brisk;

/// A chat request with this as its messages.
fn asking(messages: &str) -> String {
    format!(r#"{{"model":"m?tokens=2","messages":{messages}}}"#)
}

/// What each is, and whether it may be taken.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let nested = |open: &str, inner: &str, close: &str, depth: usize| {
        format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    let hello = r#"[{"role":"user","content":"hi"}]"#;
    let with = |fields: &str| format!(r#"{{"model":"m?tokens=2",{fields},"messages":{hello}}}"#);
    let texts = [
        ("nothing", String::new()),
        ("white space", " \n\t ".to_owned()),
        ("null", "null".to_owned()),
        ("a number", "1".to_owned()),
        ("a text", "\"x\"".to_owned()),
        ("an open object", "{".to_owned()),
        ("two values", format!("{} {}", asking(hello), asking(hello))),
        ("deep arrays", nested("[", "", "]", 100_000)),
        ("deep arrays without an end", "[".repeat(100_000)),
        ("deep objects", nested("{\"a\":", "1", "}", 100_000)),
        ("deep objects without an end", "{\"model\":".repeat(50_000)),
        ("deep messages", asking(&nested("[", "", "]", 100_000))),
        ("a deep message", asking(&format!("[{}]", nested("{\"content\":", "1", "}", 100_000)))),
        (
            "a deep stream_options",
            with(&format!("\"stream_options\":{}", nested("[", "", "]", 50_000))),
        ),
        ("a deep stream", with(&format!("\"stream\":{}", nested("[", "", "]", 50_000)))),
        (
            "deep labels",
            format!(r#"{{"request":{},"labels":{}}}"#, asking(hello), nested("[", "", "]", 50_000)),
        ),
        ("a deep envelope", nested("{\"request\":", &asking(hello), "}", 50_000)),
        ("a deep batch line", nested("{\"body\":", &asking(hello), "}", 50_000)),
        ("a huge number", with("\"seed\":1e999999")),
        ("a long number", with(&format!("\"seed\":{}", "9".repeat(100_000)))),
        ("a tiny number", with(&format!("\"seed\":0.{}1", "0".repeat(100_000)))),
        ("huge times", format!(r#"{{"request":{},"not_before":1e400}}"#, asking(hello))),
        (
            "a time far away",
            format!(r#"{{"request":{},"expires_at":18446744073709551615}}"#, asking(hello)),
        ),
        ("a negative time", format!(r#"{{"request":{},"deadline_ms":-1}}"#, asking(hello))),
        (
            "a long deadline",
            format!(r#"{{"request":{},"deadline_ms":18446744073709551615}}"#, asking(hello)),
        ),
        ("model twice", with("\"model\":\"m?tokens=2\"")),
        ("request twice", format!(r#"{{"request":{0},"request":{0}}}"#, asking(hello))),
        ("lane twice", format!(r#"{{"request":{},"lane":"low","lane":"high"}}"#, asking(hello))),
        ("half a character", asking(r#"[{"role":"user","content":"\ud800"}]"#)),
        ("half a character's name", with(r#""\udc00x":1"#)),
        ("half a character's model", format!(r#"{{"model":"\ud83d","messages":{hello}}}"#)),
        ("NUL", asking(r#"[{"role":"user","content":"\u0000"}]"#)),
        ("a raw NUL", asking("[{\"role\":\"user\",\"content\":\"\0\"}]")),
        ("a model that is no word", format!(r#"{{"model":"\n\u0000../..","messages":{hello}}}"#)),
        ("a long model", format!(r#"{{"model":"{}","messages":{hello}}}"#, "m".repeat(50_000))),
        ("many elements", format!("[{}1]", "1,".repeat(100_000))),
        ("many empty objects", format!("[{}{{}}]", "{},".repeat(100_000))),
        ("many messages", asking(&format!("[{}{{}}]", "{},".repeat(100_000)))),
        (
            "many fields",
            with(&(0..10_000).map(|n| format!("\"f{n}\":0")).collect::<Vec<_>>().join(",")),
        ),
        (
            "many labels",
            format!(
                r#"{{"request":{},"labels":{{{}}}}}"#,
                asking(hello),
                (0..5_000).map(|n| format!("\"l{n}\":\"\"")).collect::<Vec<_>>().join(",")
            ),
        ),
        ("wrong types", r#"{"model":[],"messages":{},"stream":"yes","lane":1}"#.to_owned()),
        ("a mark of byte order", format!("\u{feff}{}", asking(hello))),
    ];
    let mut bodies: Vec<_> =
        texts.into_iter().map(|(what, text)| (what, text.into_bytes())).collect();
    bodies.push(("no UTF-8", b"{\"model\":\"\xff\xfe\",\"messages\":[{}]}".to_vec()));
    bodies.push(("UTF-16", asking(hello).encode_utf16().flat_map(u16::to_le_bytes).collect()));
    bodies.push(("bytes", (0..=255).collect()));
    bodies.push(("compressed", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec()));
    bodies
}

fn is_refusal(what: &str, path: &str, answer: &Answer) {
    match answer.status {
        200 | 202 => {}
        400..=499 => {
            let error = answer.error();
            assert_eq!(error["type"], "invalid_request_error", "{what} at {path}: {error}");
        }
        status => panic!("{what} at {path}: {status} {}", String::from_utf8_lossy(&answer.body)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_that_is_hard_to_bear_is_taken_or_refused() {
    let gate = Gate::start(brisk()).await;
    let mut taken = Vec::new();
    for (what, body) in bodies() {
        let mut batch = b"[".to_vec();
        batch.extend_from_slice(&body);
        batch.extend_from_slice(b"]");
        for (path, body) in
            [("/v1/jobs", &body), ("/v1/jobs", &batch), ("/v1/chat/completions", &body)]
        {
            let answer = post(gate.addr, path, body).await;
            is_refusal(what, path, &answer);
            let said: Value = serde_json::from_slice(&answer.body).unwrap();
            taken.extend(said["object"].eq("job").then(|| said["id"].as_str().unwrap().to_owned()));
            for item in said["data"].as_array().into_iter().flatten() {
                taken.extend(item["job"]["id"].as_str().map(str::to_owned));
            }
        }
    }
    assert!(taken.len() > 10, "{taken:?}");
    // What was taken comes to its end, and can be shown.
    for job in taken {
        gate.log(job.parse().unwrap()).await;
        assert_eq!(get(gate.addr, &format!("/v1/jobs/{job}/events")).await.status, 200);
    }
    let list = get(gate.addr, "/v1/jobs?limit=100").await;
    assert!(
        serde_json::from_slice::<Value>(&list.body).unwrap()["data"].as_array().unwrap().len() > 10
    );
    unharmed(&gate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_hard_to_bear_are_answered() {
    let gate = Gate::start(brisk()).await;
    let url = format!("ws://{}/v1/ws", gate.addr);
    let (mut socket, mut faults) = (connect_async(&url).await.unwrap().0, 0);
    for (what, body) in bodies() {
        let Ok(body) = String::from_utf8(body) else { continue };
        for frame in [
            body.clone(),
            format!(r#"{{"id":1,"op":"enqueue","job":{body}}}"#),
            format!(r#"{{"id":1,"op":"subscribe","job":{body}}}"#),
            format!(r#"{{"id":{body},"op":"cancel","job":"x"}}"#),
            format!(r#"{{"id":1,"op":"subscribe","job":"x","after":{body}}}"#),
        ] {
            soon(socket.send(Message::text(frame))).await.unwrap();
            let answer: Value = loop {
                match soon(socket.next()).await.unwrap().unwrap() {
                    Message::Text(text) => break serde_json::from_str(&text).unwrap(),
                    Message::Ping(_) => {}
                    other => panic!("{what}: {other:?}"),
                }
            };
            assert!(
                answer.get("ok").is_some() != answer.get("error").is_some(),
                "{what}: {answer}"
            );
            if answer["error"]["code"] == "invalid_frame" {
                faults += 1;
                if faults % 10 == 0 {
                    socket = connect_async(&url).await.unwrap().0;
                }
            }
        }
    }
    assert!(faults > 50, "{faults}");
    drop(socket);
    unharmed(&gate).await;
}

#[tokio::test]
async fn bodies_too_large_or_of_another_kind_are_refused() {
    let options = Options { limits: Limits { max_body: 10_000, ..Limits::default() }, ..brisk() };
    let gate = Gate::start(options).await;
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        // As much as fits into the system's buffers, and far more than that.
        for size in [10_001, 30_000_000] {
            let answer = post(gate.addr, path, &vec![b' '; size]).await;
            assert_eq!(answer.status, 413, "{size}: {answer:?}");
            assert_eq!(answer.error()["code"], "body_too_large");
        }
        assert_eq!(post(gate.addr, path, &vec![b' '; 10_000]).await.status, 400);
        for kind in ["text/plain", "application/x-www-form-urlencoded", "", "json", "\u{ff}"] {
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\n\
                 content-length: 2\r\n\r\n{{}}"
            );
            let answer = Answer::of(&exchange(gate.addr, request.as_bytes()).await);
            assert_eq!(answer.status, 415, "{kind}: {answer:?}");
            assert_eq!(answer.error()["code"], "not_json");
        }
    }
    unharmed(&gate).await;
}
