//! Clients that speak no HTTP, or a strange kind of it.

use futures_util::future::join_all;

use super::*;

/// No answer at all, or a refusal; never a fault.
fn is_refused(request: &[u8], answer: &[u8]) {
    let shown = String::from_utf8_lossy(&request[..request.len().min(120)]);
    if answer.is_empty() {
        return;
    }
    let answer = Answer::of(answer);
    assert!((400..500).contains(&answer.status), "{shown:?}: {answer:?}");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let gate = Gate::start(impatient()).await;
    let lines: [&[u8]; 21] = [
        b"\r\n\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
        b"get / http/1.1\r\n\r\n",
        b"GET  /  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nspace : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nfolded: x\r\n y\r\n\r\n",
        b"GET / HTTP/1.1\r\nnul: \0\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"*1\r\n$4\r\nPING\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n{}",
    ];
    for (request, answer) in
        lines.iter().zip(join_all(lines.iter().map(|line| exchange(gate.addr, line))).await)
    {
        is_refused(request, &answer);
    }
    unharmed(&gate).await;
}

/// The same bytes at every run: from a generator of linear congruences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused() {
    let gate = Gate::start(impatient()).await;
    let mut state = 42_u64;
    let mut garbage = move |length: usize| -> Vec<u8> {
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(length).collect()
    };
    let mut requests = Vec::new();
    for size in 1..=200 {
        let noise = garbage(size * 7);
        let head: &[u8] = match size % 4 {
            0 => b"",
            1 => b"GET /",
            2 => b"GET / HTTP/1.1\r\nx: ",
            _ => b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        };
        requests.push([head, noise.as_slice(), b"\r\n\r\n"].concat());
    }
    let answers = join_all(requests.iter().map(|request| exchange(gate.addr, request))).await;
    for (request, answer) in requests.iter().zip(answers) {
        is_refused(request, &answer);
    }
    unharmed(&gate).await;
}

/// Two ways to say how long a body is: whoever stands in front may have taken the other one.
#[tokio::test]
async fn a_body_of_two_lengths_is_not_two_requests() {
    let gate = Gate::start(impatient()).await;
    let inner = "GET /whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for lengths in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: identity, chunked\r\ncontent-length: 100",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5, 5",
    ] {
        let request = format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{lengths}\r\n\r\n\
             0\r\n\r\n{inner}"
        );
        let answer = exchange(gate.addr, request.as_bytes()).await;
        let text = String::from_utf8_lossy(&answer);
        let first = Answer::of(&answer);
        assert!((400..500).contains(&first.status) || first.status == 501, "{lengths}: {text}");
    }
    unharmed(&gate).await;
}

#[tokio::test]
async fn headers_that_are_too_much_or_no_text_are_refused() {
    let gate = Gate::start(impatient()).await;
    let with = |headers: &[u8]| {
        [b"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n", headers, b"\r\n\r\n"]
            .concat()
    };
    for size in [17_000, 60_000, 100_000, 3_000_000] {
        let answer =
            exchange(gate.addr, &with(format!("x-long: {}", "x".repeat(size)).as_bytes())).await;
        let answer = Answer::of(&answer);
        assert_eq!(answer.status, 431, "{size}: {answer:?}");
        assert_eq!(answer.error()["code"], "headers_too_large");
    }
    let many: String = (0..500).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert_eq!(
        Answer::of(&exchange(gate.addr, &with(many.trim_end().as_bytes())).await).status,
        431
    );
    let long = format!(
        "GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        "a".repeat(30_000)
    );
    assert_eq!(Answer::of(&exchange(gate.addr, long.as_bytes()).await).status, 431);
    // Said twice, or in bytes that are no text.
    let job = enqueue(&gate, 2, 0).await;
    gate.log(job).await;
    let events = |headers: &[u8]| {
        let head = format!(
            "GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        );
        [head.as_bytes(), headers, b"\r\n\r\n"].concat()
    };
    for (headers, status) in [
        (&b"last-event-id: \xff\xfe"[..], 400),
        (b"last-event-id: 1-2\r\nlast-event-id: x", 200),
        (b"last-event-id: 99999999999999999999-1", 400),
        (b"last-event-id: 18446744073709551615-18446744073709551615", 204),
        (b"accept: \xff", 200),
        (b"accept: application/json\r\naccept: text/event-stream", 200),
        (b"authorization: \xff", 200),
        (b"x-request-id: \xff\xff", 200),
        (b"host: \xff", 400),
        (b"origin: \xff\r\ncookie: \xff", 200),
        (b"if-none-match: \xff, \"", 200),
        (b"content-length: 5", 200),
        (b"expect: 100-continue", 200),
        (b"upgrade: h2c\r\nconnection: upgrade, http2-settings", 200),
    ] {
        let answer = exchange(gate.addr, &events(headers)).await;
        let answer = Answer::of(&answer);
        assert_eq!(answer.status, status, "{}: {answer:?}", String::from_utf8_lossy(headers));
    }
    for key in [&b"\xff"[..], b"", b"\t", &[b'k'; 257]] {
        let body = br#"{"model":"m","messages":[{}]}"#;
        for path in ["/v1/jobs", "/v1/chat/completions"] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nidempotency-key: ",
                body.len()
            );
            let answer =
                exchange(gate.addr, &[head.as_bytes(), key, b"\r\n\r\n", body].concat()).await;
            let answer = Answer::of(&answer);
            assert_eq!(answer.status, 400, "{path} {key:?}: {answer:?}");
            answer.error();
        }
    }
    unharmed(&gate).await;
}

#[tokio::test]
async fn paths_and_queries_that_are_no_text_are_refused() {
    let gate = Gate::start(impatient()).await;
    let paths: [&[u8]; 29] = [
        b"/%00",
        b"/\xff\xfe",
        b"/%ff",
        b"/v1/jobs/%00",
        b"/v1/jobs/%ff",
        b"/v1/jobs/\xff",
        b"/v1/jobs/%ff/events",
        b"/v1/jobs/%2e%2e%2f",
        b"/v1/models/%ff",
        b"/v1/models/\xff\xff",
        b"/v1/models/%00",
        b"/console/%ff",
        b"/console/..%2f..%2fCargo.toml",
        b"/console/%00",
        b"/console/../Cargo.toml",
        b"/v1/jobs?limit=%ff",
        b"/v1/jobs?limit=-1",
        b"/v1/jobs?limit=99999999999999999999",
        b"/v1/jobs?state=%00",
        b"/v1/jobs?label=%ff",
        b"/v1/jobs?before=%ff",
        b"/v1/jobs?\xff=\xff",
        b"/v1/jobs?limit=1&limit=2",
        b"/v1/queues?queue=%00",
        b"/v1/queues?queue=%7b%7d",
        b"//",
        b"/v1//jobs",
        b"/v1/jobs/",
        b"*",
    ];
    for path in paths {
        for method in [&b"GET"[..], b"DELETE", b"HEAD", b"OPTIONS", b"BREW"] {
            let request =
                [method, b" ", path, b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"]
                    .concat();
            let shown = String::from_utf8_lossy(&request).into_owned();
            let answer = exchange(gate.addr, &request).await;
            let answer = Answer::of(&if method == b"HEAD" {
                // Its length is that of what is not sent.
                String::from_utf8(answer)
                    .unwrap()
                    .replace("content-length", "x-length")
                    .into_bytes()
            } else {
                answer
            });
            assert!((400..500).contains(&answer.status), "{shown}: {answer:?}");
            if method != b"HEAD" {
                answer.error();
            }
        }
    }
    for path in
        ["/v1/jobs/x/events?token=%ff", "/v1/jobs/x?token=", "/v1/jobs/x/events?token=..&token=."]
    {
        assert!((400..500).contains(&get(gate.addr, path).await.status), "{path}");
    }
    unharmed(&gate).await;
}
