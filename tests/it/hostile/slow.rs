//! Clients that send too slowly, or take nothing.

use tokio::time::{Instant, sleep, timeout};

use super::*;

/// Sends the head, then a byte every now and then, until the gateway has had enough; what it says then, and
/// after how long.
async fn trickle(addr: SocketAddr, head: &str) -> (Vec<u8>, Duration) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let (mut read, mut write) = stream.split();
    let began = Instant::now();
    let send = async {
        let sent = write.write_all(head.as_bytes()).await;
        if sent.is_ok() {
            while write.write_all(b"1").await.is_ok() {
                sleep(PATIENCE / 12).await;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let receive = async { read.read_to_end(&mut answer).await };
    soon(async {
        tokio::select! {
            () = send => {}
            _ = receive => {}
        }
    })
    .await;
    (answer, began.elapsed())
}

fn in_time(took: Duration) {
    assert!(took >= PATIENCE * 9 / 10 && took < PATIENCE * 4, "{took:?}");
}

#[tokio::test]
async fn a_body_that_trickles_is_refused() {
    let gate = Gate::start(impatient()).await;
    let heads = ["/v1/jobs", "/v1/chat/completions"].into_iter().flat_map(|path| {
        ["content-length: 100000", "transfer-encoding: chunked"].map(|length| {
            let chunk = if length.contains("chunked") { "ffff\r\n" } else { "" };
            format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{length}\r\n\r\n{chunk}"
            )
        })
    });
    let heads: Vec<String> = heads.collect();
    let met = heads.iter().map(|head| trickle(gate.addr, head));
    for (answer, took) in futures_util::future::join_all(met).await {
        let answer = Answer::of(&answer);
        assert_eq!(answer.status, 408, "{answer:?}");
        assert_eq!(answer.error()["type"], "invalid_request_error");
        assert_eq!(answer.error()["code"], "slow_body");
        in_time(took);
    }
    // A body that nobody reads is not waited for either.
    let head = "GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n";
    let (answer, took) = trickle(gate.addr, head).await;
    assert_eq!(Answer::of(&answer).status, 200);
    assert!(took < PATIENCE * 4, "{took:?}");
    unharmed(&gate).await;
}

#[tokio::test]
async fn headers_that_trickle_are_cut_off() {
    let gate = Gate::start(impatient()).await;
    let whole = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let starts = [
        String::new(),
        "GE".to_owned(),
        "GET /healthz HTTP/1.1\r\nx-slow: ".to_owned(),
        // The second request of a connection has no more time than the first.
        format!("{whole}GET /healthz HTTP/1.1\r\nx-slow: "),
    ];
    let met = starts.iter().map(|start| trickle(gate.addr, start));
    for (start, (answer, took)) in starts.iter().zip(futures_util::future::join_all(met).await) {
        let answers = String::from_utf8_lossy(&answer).matches("HTTP/1.1 200").count();
        assert_eq!(answers, start.matches("\r\n\r\n").count(), "{start:?}");
        in_time(took);
    }
    unharmed(&gate).await;
}

#[tokio::test]
async fn those_who_stop_in_the_middle_are_cut_off() {
    let gate = Gate::start(impatient()).await;
    let whole = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let starts = ["", "P", "GET /healthz HTTP/1.1", "GET /healthz HTTP/1.1\r\nhost: loc", whole];
    let met = starts.iter().map(async |start| {
        let began = Instant::now();
        let answer = exchange(gate.addr, start.as_bytes()).await;
        (answer, began.elapsed())
    });
    for (start, (answer, took)) in starts.iter().zip(futures_util::future::join_all(met).await) {
        let answered = answer.starts_with(b"HTTP/1.1 200");
        assert_eq!(answered, *start == whole, "{start:?}: {}", String::from_utf8_lossy(&answer));
        in_time(took);
    }
    // While they wait they are counted, and bounded.
    let held = TcpStream::connect(gate.addr).await.unwrap();
    gate.until("connections_open", 2).await;
    drop(held);
    unharmed(&gate).await;
}

/// Asks, and takes nothing of what is answered.
async fn ask(addr: SocketAddr, request: &str) -> TcpStream {
    let mut stream = narrow(addr).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_cut_off() {
    let gate = Gate::start(impatient()).await;
    let job = enqueue(&gate, 200_000, 0).await;
    gate.log(job).await;
    let running = enqueue(&gate, 5_000, 1).await;
    let chat = r#"{"model":"m?tokens=200000,rate=0,burst=400","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let requests = [
        format!("GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET /v1/jobs/{job} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!(
            "GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n\r\n"
        ),
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{chat}",
            chat.len()
        ),
    ];
    for (request, is_stream) in requests.iter().zip([true, false, false, true]) {
        let client = ask(gate.addr, request).await;
        gate.until("connections_open", 2).await;
        // An answer counts as well, until the last of it is on its way.
        let open = gate.metric("streams_open").await;
        assert!(open == 1 || !is_stream, "{open}: {request}");
        let began = Instant::now();
        // All of it is given back.
        gate.until("connections_open", 1).await;
        assert_eq!(gate.metric("streams_open").await, 0, "{request}");
        assert!(began.elapsed() < PATIENCE * 6, "{:?}", began.elapsed());
        drop(client);
    }
    // Whoever takes what there is may wait as long as it likes for more.
    let mut quiet =
        ask(gate.addr, &requests[0].replace(&job.to_string(), &running.to_string())).await;
    let mut bytes = vec![0; 4096];
    let patient = async {
        loop {
            assert_ne!(quiet.read(&mut bytes).await.unwrap(), 0);
        }
    };
    assert!(timeout(PATIENCE * 3, patient).await.is_err(), "it stays open");
    assert_eq!(gate.metric("streams_open").await, 1);
    drop(quiet);
    gate.broker.cancel(running).await.unwrap();
    // The finished job's answer stays cached, with a subscription that watches it.
    gate.until("streams_open", 0).await;
    gate.until("connections_open", 1).await;
}

/// Those who close their half, all of it, or break off: in the middle of a stream.
#[tokio::test]
async fn whoever_leaves_a_stream_is_noticed() {
    let gate = Gate::start(impatient()).await;
    let job = enqueue(&gate, 5000, 1).await;
    let request = format!("GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    for leave in ["half", "close", "reset"] {
        let mut streams = Vec::new();
        for _ in 0..5 {
            let mut stream = TcpStream::connect(gate.addr).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            streams.push(stream);
        }
        gate.until("streams_open", 5).await;
        assert_eq!(gate.topics().await, 1);
        for stream in &mut streams {
            match leave {
                "half" => stream.shutdown().await.unwrap(),
                "reset" => {
                    socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
                _ => {}
            }
        }
        if leave != "half" {
            streams.clear();
        }
        gate.is_clean().await;
    }
    gate.broker.cancel(job).await.unwrap();
    unharmed(&gate).await;
}

/// What nobody waits for any more costs nothing more, at whatever moment its client left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_whose_client_left_is_cancelled() {
    let gate = Gate::start(impatient()).await;
    for (number, stream) in [true, false].into_iter().cycle().take(40).enumerate() {
        let chat = format!(
            r#"{{"model":"m?tokens=5000,rate=1","stream":{stream},"messages":[{{"role":"user","content":"{number}"}}]}}"#
        );
        let mut client = TcpStream::connect(gate.addr).await.unwrap();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{chat}",
            chat.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        if number % 4 < 2 {
            gate.until("streams_open", 1).await;
        }
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        gate.until("streams_open", 0).await;
    }
    let all_over = async {
        loop {
            let answer = get(gate.addr, "/v1/jobs?limit=100").await;
            let list: Value = serde_json::from_slice(&answer.body).unwrap();
            let jobs = list["data"].as_array().unwrap();
            assert!(jobs.len() >= 20, "{list}");
            if jobs.iter().all(|job| job["state"] == "cancelled") {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(all_over).await;
    unharmed(&gate).await;
}
