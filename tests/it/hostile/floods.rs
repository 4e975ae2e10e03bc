//! Clients that want more than their share.

use futures_util::future::join_all;

use super::*;

const REQUEST: &str = "GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A thousand requests at once on one connection: answered in order, to whoever reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_on_one_connection_is_answered_in_order() {
    let gate = Gate::start(impatient()).await;
    let mut flood = String::new();
    for number in 0..1000 {
        flood.push_str(&REQUEST.replacen(
            "\r\n\r\n",
            &format!("\r\nx-request-id: {number}\r\n\r\n"),
            1,
        ));
    }
    let bytes = exchange(gate.addr, flood.as_bytes()).await;
    let mut rest = &bytes[..];
    for number in 0..1000 {
        let (answer, more) = Answer::first(rest).unwrap();
        assert_eq!(answer.status, 200);
        assert!(
            answer.head.contains(&format!("x-request-id: {number}\r\n"))
                || answer.head.ends_with(&format!("x-request-id: {number}")),
            "{answer:?}"
        );
        rest = more;
    }
    assert!(rest.is_empty());
    unharmed(&gate).await;
}

/// Floods that nobody reads the answers of: all of it waits in the client's own buffers, and then ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_that_nobody_reads_are_cut_off() {
    let gate = Gate::start(impatient()).await;
    // Every answer is large.
    let big = format!(
        r#"{{"model":"m?tokens=1","messages":[{{"role":"user","content":"hi"}}],"x":"{}"}}"#,
        "x".repeat(1000)
    );
    let flood = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1000)
        + &format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{big}",
            big.len()
        )
        .repeat(1000);
    let mut floods = Vec::new();
    for _ in 0..5 {
        let mut stream = narrow(gate.addr).await;
        // As much as it takes: it stops to read when its answers are not taken.
        let _ = tokio::time::timeout(PATIENCE / 2, stream.write_all(flood.as_bytes())).await;
        floods.push(stream);
    }
    gate.until("connections_open", 1).await;
    drop(floods);
    // Those who leave with the flood on its way.
    for _ in 0..20 {
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        let _ = tokio::time::timeout(PATIENCE / 50, stream.write_all(flood.as_bytes())).await;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    unharmed(&gate).await;
}

#[tokio::test]
async fn connections_and_streams_beyond_the_limits_are_refused() {
    let limits = Limits { max_connections: 8, max_streams: 6, ..Limits::default() };
    let gate = Gate::start(limited(limits)).await;
    let job = enqueue(&gate, 5000, 1).await;
    let request = format!("GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    gate.until("connections_open", 1).await;
    let mut streams = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    gate.until("streams_open", 6).await;
    let events = get(gate.addr, &format!("/v1/jobs/{job}/events")).await;
    assert_eq!((events.status, events.error()["code"].as_str()), (429, Some("too_many_streams")));
    assert!(events.head.contains("retry-after: "), "{events:?}");
    let held = [
        TcpStream::connect(gate.addr).await.unwrap(),
        TcpStream::connect(gate.addr).await.unwrap(),
    ];
    // One too many is told so before it has asked, in a whole answer.
    let answers = join_all((0..5).map(|_| exchange(gate.addr, b""))).await;
    for bytes in answers {
        let (answer, rest) = Answer::first(&bytes).expect("a whole answer");
        assert_eq!((answer.status, rest.len()), (503, 0));
        assert_eq!(answer.error()["code"], "too_many_connections");
        assert!(answer.head.contains("retry-after: "), "{answer:?}");
    }
    drop((streams, held));
    gate.broker.cancel(job).await.unwrap();
    unharmed(&gate).await;
}

/// Many who connect at once and leave at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_connections_passes() {
    let gate = Gate::start(impatient()).await;
    for round in 0..10 {
        let storm = (0..200).map(async |number| {
            let mut stream = TcpStream::connect(gate.addr).await.unwrap();
            if (number + round) % 3 > 0 {
                let _ = stream.write_all(REQUEST.as_bytes()).await;
            }
            if number % 2 == 0 {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        });
        join_all(storm).await;
    }
    unharmed(&gate).await;
}
