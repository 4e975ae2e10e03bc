//! Requests that are refused before their bodies are read, or before they are requests at all.

use super::*;
use crate::support::gate::brisk;

/// Sends the head of a request, and reads what is answered before any of the body is sent.
async fn head_only(addr: SocketAddr, head: &str) -> Answer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    Answer::of(&answer)
}

/// A body that was declared too large was waited for all the same, and `100 Continue` asked for it.
#[tokio::test]
async fn a_body_declared_too_large_is_refused_before_it_is_sent() {
    let gate = Gate::start(limited(Limits { max_body: 10_000, ..Limits::default() })).await;
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        for expect in ["", "expect: 100-continue\r\n"] {
            let answer = head_only(
                gate.addr,
                &format!(
                    "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{expect}\
                     content-length: 10001\r\n\r\n"
                ),
            )
            .await;
            assert_eq!(answer.status, 413, "{answer:?}");
            assert_eq!(answer.error()["code"], "body_too_large");
            assert!(answer.head.contains("\r\nconnection: close"), "{answer:?}");
        }
    }
    // One that is allowed is asked for.
    let body = br#"{"model":"m?tokens=2","messages":[{"role":"user","content":"hi"}]}"#;
    let mut stream = TcpStream::connect(gate.addr).await.unwrap();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    soon(stream.read_exact(&mut told)).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(Answer::of(&answer).status, 202);
    unharmed(&gate).await;
}

/// A body was read whole before it was known whether its sender may send any.
#[tokio::test]
async fn a_body_is_asked_for_only_from_those_who_may_send_it() {
    let keys: [(&str, &[millstream::gateway::Right], _); 1] =
        [("acme", &[millstream::gateway::Right::Read], None)];
    let (gate, keys) = Gate::locked(brisk(), &keys).await;
    for (key, status) in [("wrong", 401), (keys[0].as_str(), 403)] {
        for path in ["/v1/jobs", "/v1/chat/completions"] {
            let answer = head_only(
                gate.addr,
                &format!(
                    "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
                     content-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 500\r\n\r\n"
                ),
            )
            .await;
            assert_eq!(answer.status, status, "{answer:?}");
            assert!(answer.head.contains("\r\nconnection: close"), "{answer:?}");
        }
    }
    gate.is_clean().await;
}

/// What the HTTP library refuses by itself had no body, although every error is promised to have one.
#[tokio::test]
async fn what_is_no_request_is_refused_in_words() {
    let gate = Gate::start(impatient()).await;
    let long = |size: usize| "x".repeat(size);
    for (request, status, code) in [
        ("GET\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET  /  HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET / HTTP/1.1\r\nspace : x\r\n\r\n".to_owned(), 400, "bad_request"),
        (
            "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".to_owned(),
            400,
            "bad_request",
        ),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", long(300_000)), 431, "headers_too_large"),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", long(3_000_000)), 431, "headers_too_large"),
    ] {
        let shown = &request[..request.len().min(60)];
        let answer = Answer::of(&exchange(gate.addr, request.as_bytes()).await);
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        assert_eq!(
            (&answer.error()["code"], answer.error()["param"].is_null()),
            (&code.into(), true)
        );
        for header in ["x-request-id: ", "connection: close", "cache-control: no-store", "date: "] {
            assert!(answer.head.contains(header), "{header}: {answer:?}");
        }
    }
    // Behind a request that was good.
    let two = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/9.9\r\n\r\n";
    let answers = exchange(gate.addr, two.as_bytes()).await;
    let (first, rest) = Answer::first(&answers).unwrap();
    assert_eq!((first.status, Answer::of(rest).status), (200, 400));
    unharmed(&gate).await;
}

/// The target of a request has a limit of its own in the HTTP library, above that of all headers by default.
#[tokio::test]
async fn a_target_that_is_too_long_is_refused_in_words() {
    let gate = Gate::start(limited(Limits { max_header: 100_000, ..Limits::default() })).await;
    let request = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(70_000));
    let answer = Answer::of(&exchange(gate.addr, request.as_bytes()).await);
    assert_eq!(answer.status, 414, "{answer:?}");
    assert_eq!(answer.error()["code"], "uri_too_long");
    unharmed(&gate).await;
}

/// A coding that nobody takes apart was passed on to whoever reads JSON.
#[tokio::test]
async fn codings_that_are_not_known_are_refused() {
    let gate = Gate::start(brisk()).await;
    let post = async |headers: &str, body: &str| {
        let request = format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\r\n\r\n{body}"
        );
        Answer::of(&exchange(gate.addr, request.as_bytes()).await)
    };
    for coding in ["gzip, chunked", "GZIP , chunked", "identity, chunked", "chunked, chunked"] {
        let answer = post(&format!("transfer-encoding: {coding}"), "2\r\n{}\r\n0\r\n\r\n").await;
        assert_eq!(answer.status, 501, "{coding}: {answer:?}");
        assert_eq!(answer.error()["code"], "transfer_coding");
        assert!(answer.head.contains("\r\nconnection: close"), "{answer:?}");
    }
    for coding in ["gzip", "br", "gzip, identity", "\u{ff}"] {
        let answer = post(&format!("content-encoding: {coding}\r\ncontent-length: 2"), "{}").await;
        assert_eq!(answer.status, 415, "{coding}: {answer:?}");
        assert_eq!(answer.error()["code"], "encoded_body");
        assert!(answer.head.contains("\r\naccept-encoding: identity"), "{answer:?}");
    }
    let plain =
        post("content-encoding: identity\r\nconnection: close\r\ncontent-length: 2", "{}").await;
    assert_eq!(plain.error()["code"], "invalid_job");
    let chunked = "transfer-encoding: Chunked\r\nconnection: close";
    assert_eq!(post(chunked, "2\r\n{}\r\n0\r\n\r\n").await.error()["code"], "invalid_job");
    unharmed(&gate).await;
}

/// HTTP/2 without TLS was met by the end of the connection, without a word.
#[tokio::test]
async fn http2_by_prior_knowledge_is_refused_in_words() {
    let gate = Gate::start(impatient()).await;
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // `:method: GET`, `:scheme: http`, `:path: /`, by their places in the static table.
    let asked = frame(1, 5, 1, &[0x82, 0x86, 0x84]);
    let bytes =
        [&preface[..], &frame(4, 0, 0, &[]), &frame(8, 0, 0, &[0, 0, 0, 9]), &asked].concat();
    let answer = exchange(gate.addr, &bytes).await;
    // The preface arrived in parts, and was met by 400.
    for cut in [1, 3, 23] {
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&bytes[..cut]).await.unwrap();
        // Time for the gateway to look at the first part alone; the answer is the same in any case.
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.write_all(&bytes[cut..]).await.unwrap();
        let mut parted = Vec::new();
        soon(stream.read_to_end(&mut parted)).await.unwrap();
        assert_eq!(parted.len(), answer.len(), "{cut}: {}", String::from_utf8_lossy(&parted));
    }
    let mut rest = &answer[..];
    let mut frames = Vec::new();
    while let [_, high, low, kind, flags, _, _, _, stream, after @ ..] = rest {
        let (payload, more) = after.split_at(usize::from(*high) << 8 | usize::from(*low));
        frames.push((*kind, *flags, *stream, payload));
        rest = more;
    }
    let kinds: Vec<_> =
        frames.iter().map(|(kind, flags, stream, _)| (*kind, *flags, *stream)).collect();
    assert_eq!(kinds, [(4, 0, 0), (4, 1, 0), (1, 4, 1), (0, 1, 1), (7, 0, 0)], "{answer:?}");
    assert_eq!(&frames[2].3[..5], b"\x08\x03505");
    let body: Value = serde_json::from_slice(frames[3].3).unwrap();
    assert_eq!(body["error"]["code"], "http_version");
    let goaway = frames[4].3;
    assert_eq!(goaway[..8], [0, 0, 0, 1, 0, 0, 0, 13]);
    assert!(String::from_utf8_lossy(&goaway[8..]).contains("HTTP/1.1"));
    // Those who ask for nothing, or send no frames, are cut off in time.
    let long = [&preface[..], &vec![0xff; 20_000]].concat();
    for strange in [&preface[..], &bytes[..50], &long] {
        exchange(gate.addr, strange).await;
    }
    unharmed(&gate).await;
}

/// Forty bodies that never end took as much memory as they were long, at once.
#[tokio::test]
async fn unfinished_bodies_take_no_more_memory_than_allowed() {
    let limits = Limits { max_body: 200_000, max_bodies: 1_000_000, ..Limits::default() };
    let gate = Gate::start(limited(limits)).await;
    let begun = || async {
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        let head = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                    content-length: 200000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 199_999]).await.unwrap();
        stream
    };
    let mut streams = Vec::new();
    let mut refused = None;
    while refused.is_none() {
        assert!(streams.len() < 5, "a tenant may have half of the room");
        let mut stream = begun().await;
        let mut answer = vec![0; 4096];
        match tokio::time::timeout(PATIENCE / 2, stream.read(&mut answer)).await {
            Ok(count) => refused = Some(Answer::of(&answer[..count.unwrap()])),
            Err(_) => streams.push(stream),
        }
    }
    let refused = refused.unwrap();
    assert_eq!((streams.len(), refused.status), (2, 503), "{refused:?}");
    assert_eq!(refused.error()["code"], "too_many_bodies");
    assert!(refused.head.contains("\r\nretry-after: 1"), "{refused:?}");
    // A small one has room, and room comes back.
    assert_eq!(post(gate.addr, "/v1/jobs", b"{}").await.status, 400);
    drop(streams);
    gate.until("connections_open", 1).await;
    assert_eq!(post(gate.addr, "/v1/jobs", &vec![b' '; 200_000]).await.status, 400);
    unharmed(&gate).await;
}
