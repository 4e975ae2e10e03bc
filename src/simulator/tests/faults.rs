//! Every fault, as a client meets it.

use std::time::Instant;

use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn an_error_status_is_dressed_as_told_and_only_so_often() {
    let simulator = Running::quick().await;
    let ask = async |fault: &str| {
        simulator
            .chat(&hello(&json!({"stream": true, "model": format!("{fault}?fault={fault}")})))
            .await
    };
    let plain = ask("status:503").await;
    assert_eq!((plain.status, &plain.json()["error"]["type"]), (503, &json!("server_error")));
    let seconds = ask("status:429:retry-after:2").await;
    assert!(
        seconds.status == 429 && seconds.head.contains("retry-after: 2\r\n"),
        "{}",
        seconds.head
    );
    let date = ask("status:429:retry-date:60").await;
    let date = date.head.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    let ahead = httpdate::parse_http_date(date)
        .unwrap()
        .duration_since(std::time::SystemTime::now())
        .unwrap();
    assert!(ahead > Duration::from_secs(50) && ahead <= Duration::from_mins(1));
    let text = ask("status:502:text").await;
    assert!(
        text.status == 502
            && text.head.contains("text/plain")
            && serde_json::from_str::<Value>(&text.body).is_err()
    );
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(ask("status:500*2").await.status);
    }
    assert_eq!(statuses, [500, 500, 200]);
    assert_eq!(simulator.stop().await.faulted, 6);
}

#[tokio::test]
async fn a_stream_fails_after_the_tokens_it_was_told() {
    let simulator = Running::quick().await;
    let ask = async |fault: &str| {
        simulator
            .chat_with(
                &format!("x-simulator: fault={fault}\r\n"),
                &hello(&json!({"stream": true})).to_string(),
            )
            .await
    };
    for (fault, whole, tokens) in [
        ("drop:2", false, 2),
        ("drop:0", false, 0),
        ("drop:99", false, 6),
        ("truncate:3", true, 3),
        ("truncate:0", true, 0),
        ("error:1", true, 1),
        ("malformed:4", true, 6),
    ] {
        let reply = ask(fault).await;
        assert_eq!((reply.status, reply.whole), (200, whole), "{fault}");
        assert_eq!(reply.said(0, "/content"), words(TWELVE, tokens), "{fault}");
        let ended = reply.body.contains("[DONE]");
        assert_eq!(ended, fault == "malformed:4", "{fault}");
        assert_eq!(reply.body.contains("\"finish_reason\":\"stop\""), ended, "{fault}");
        match fault {
            "error:1" => assert_eq!(reply.chunks()[2]["error"]["type"], "server_error"),
            "malformed:4" => assert!(serde_json::from_str::<Value>(reply.frames()[5]).is_err()),
            "drop:0" | "truncate:0" => assert!(reply.body.is_empty()),
            _ => {}
        }
    }
    assert_eq!(simulator.stop().await.faulted, 7);
}

#[tokio::test]
async fn silence_lasts_until_the_client_leaves() {
    let simulator = Running::quick().await;
    let body = hello(&json!({"stream": true, "model": "m?fault=silence:2"})).to_string();
    let mut connection = simulator.send("POST", "/v1/chat/completions", "", &body).await;
    let mut heard = Vec::new();
    let silent =
        timeout(Duration::from_millis(150), connection.read_to_end(&mut heard)).await.is_err();
    let heard = String::from_utf8(heard).unwrap();
    assert!(
        silent && heard.contains("with") && heard.contains(" flowing") && !heard.contains(" barge"),
        "{heard}"
    );
    assert_eq!(simulator.stats().await.active, 1);
    drop(connection);
    while simulator.stats().await.active > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(simulator.stats().await.aborted, 1);
    let connection = simulator
        .send("POST", "/v1/chat/completions", "x-simulator: fault=silence:0\r\n", &body)
        .await;
    let reading = tokio::spawn(Reply::read(connection));
    while simulator.stats().await.active == 0 {
        tokio::task::yield_now().await;
    }
    let stopped = Instant::now();
    simulator.stop().await;
    let reply = reading.await.unwrap();
    assert_eq!((reply.status, reply.whole, reply.body.as_str()), (200, false, ""));
    assert!(stopped.elapsed() < GRACE, "a silent answer does not hold up the shutdown");
}

#[tokio::test]
async fn what_does_not_stream_fails_in_a_form_of_its_own() {
    let simulator = Running::quick().await;
    let ask = async |fault: &str| {
        simulator.chat(&hello(&json!({"model": format!("m?fault={fault}")}))).await
    };
    for (fault, status, whole) in [
        ("drop:2", 200, false),
        ("truncate:2", 200, true),
        ("error:2", 500, true),
        ("malformed:0", 200, true),
    ] {
        let reply = ask(fault).await;
        assert_eq!((reply.status, reply.whole), (status, whole), "{fault}");
        assert_eq!(
            serde_json::from_str::<Value>(&reply.body).is_ok(),
            fault == "error:2",
            "{fault}"
        );
    }
    let body = hello(&json!({"model": "m?fault=silence:0"})).to_string();
    let mut connection = simulator.send("POST", "/v1/chat/completions", "", &body).await;
    assert!(timeout(Duration::from_millis(100), connection.read_u8()).await.is_err());
    drop(connection);
    while simulator.stats().await.active > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        simulator.stop().await,
        Stats { requests: 5, aborted: 1, faulted: 4, ..Stats::default() }
    );
}

#[tokio::test]
async fn a_shutdown_breaks_what_would_take_too_long() {
    let simulator = Running::start(Options::default()).await;
    let body = hello(&json!({"stream": true, "model": "m?ttft=0,rate=0.001"})).to_string();
    let connection = simulator.send("POST", "/v1/chat/completions", "", &body).await;
    let reading = tokio::spawn(Reply::read(connection));
    while simulator.stats().await.active == 0 {
        tokio::task::yield_now().await;
    }
    let stats = simulator.stop().await;
    assert_eq!(stats, Stats { requests: 1, aborted: 1, ..Stats::default() });
    let reply = reading.await.unwrap();
    assert_eq!((reply.whole, reply.said(0, "/content").as_str()), (false, "with"));
}
