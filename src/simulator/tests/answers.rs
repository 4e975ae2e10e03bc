//! What is said, how fast, and what is refused.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;

#[tokio::test]
async fn an_answer_in_one_piece_follows_the_rule() {
    let simulator = Running::quick().await;
    let reply = simulator.chat(&hello(&json!({"max_tokens": 12}))).await;
    let (answer, head) = (reply.json(), &reply.head);
    assert_eq!((reply.status, &answer["object"]), (200, &json!("chat.completion")));
    assert_eq!(answer["choices"][0]["message"]["content"], TWELVE);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let usage = json!({
        "prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    });
    assert_eq!(answer["usage"], usage);
    assert!(head.contains("x-request-id: req_"), "{head}");
    let stats = simulator.stop().await;
    assert_eq!(stats, Stats { requests: 1, completed: 1, ..Stats::default() });
}

#[tokio::test]
async fn a_stream_carries_role_tokens_finish_usage_and_done() {
    let simulator = Running::quick().await;
    let request = hello(
        &json!({"stream": true, "stream_options": {"include_usage": true}, "model": "m?tokens=12"}),
    );
    let reply = simulator.chat(&request).await;
    let (frames, chunks) = (reply.frames(), reply.chunks());
    assert!(reply.whole && reply.head.contains("content-type: text/event-stream"));
    assert_eq!((frames.len(), frames.last()), (1 + 12 + 1 + 1 + 1, Some(&"[DONE]")));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(reply.said(0, "/content"), TWELVE);
    assert_eq!(
        chunks[13]["choices"][0],
        json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"})
    );
    assert!(chunks[..14].iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    assert_eq!(chunks[14]["choices"], json!([]));
    assert_eq!(chunks[14]["usage"]["total_tokens"], 14);
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["created"]), (&chunks[0]["id"], &chunks[0]["created"]));
        assert_eq!(
            (&chunk["model"], &chunk["object"]),
            (&json!("m?tokens=12"), &json!("chat.completion.chunk"))
        );
    }
    let plain = simulator.chat(&hello(&json!({"stream": true}))).await;
    assert!(plain.chunks().iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn choices_bursts_and_attempts_have_texts_of_their_own() {
    let simulator = Running::quick().await;
    let reply =
        simulator.chat(&hello(&json!({"stream": true, "n": 2, "model": "m?burst=4"}))).await;
    assert_eq!(reply.said(0, "/content"), words(TWELVE, 6));
    assert_eq!(reply.said(1, "/content"), CHOICE_1);
    assert_eq!(reply.chunks().len(), 2 * (1 + 2 + 1));
    let vary = Running::start(Options {
        tokens: 6,
        ttft: Duration::ZERO,
        rate: 0.0,
        vary: true,
        ..Options::default()
    })
    .await;
    let first = vary.chat(&hello(&json!({"stream": true}))).await;
    let second = vary.chat(&hello(&json!({"stream": true}))).await;
    assert_ne!(first.said(0, "/content"), words(TWELVE, 6));
    assert_eq!(second.said(0, "/content"), ATTEMPT_2);
}

#[tokio::test]
async fn a_tool_is_called_with_the_text_in_fragments() {
    let simulator = Running::quick().await;
    let tools = json!([{"type": "function", "function": {"name": "look"}}]);
    let reply = simulator.chat(&hello(&json!({"stream": true, "tools": tools}))).await;
    let arguments = reply.said(0, "/tool_calls/0/function/arguments");
    assert_eq!(arguments, json!({"input": words(TWELVE, 6)}).to_string().replace(':', ": "));
    assert_eq!(reply.said(0, "/tool_calls/0/function/name"), "look");
    assert_eq!(reply.said(0, "/tool_calls/0/id"), "call_1456b4e0");
    assert!(reply.chunks().len() > 10);
    assert!(reply.body.contains("\"finish_reason\":\"tool_calls\""));
    let whole = simulator.chat(&hello(&json!({"tools": tools}))).await.json();
    assert_eq!(whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], arguments);
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn extra_fields_come_on_every_chunk_and_before_the_text() {
    let simulator = Running::quick().await;
    let reply = simulator.chat(&hello(&json!({"stream": true, "model": "m?extra=1"}))).await;
    assert!(reply.chunks().iter().all(|chunk| chunk["x_vendor"]["kept"] == true));
    assert_eq!(reply.said(0, "/reasoning_content"), "thinking about it");
    assert_eq!(reply.said(0, "/content"), words(TWELVE, 6));
}

#[tokio::test]
async fn what_is_not_a_request_is_refused_in_the_shape_of_openai() {
    let simulator =
        Running::start(Options { api_key: Some("k".to_owned()), ..Options::default() }).await;
    let none = simulator.chat(&hello(&json!({}))).await;
    assert_eq!((none.status, &none.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(simulator.get("/v1/models").await.status, 401);
    let key = "authorization: Bearer k\r\n";
    let broken = simulator.chat_with(key, "{").await;
    assert_eq!(
        (broken.status, &broken.json()["error"]["type"]),
        (400, &json!("invalid_request_error"))
    );
    let unknown = simulator
        .chat_with(&format!("{key}x-simulator: speed=1\r\n"), &hello(&json!({})).to_string())
        .await;
    let message = unknown.json()["error"]["message"].to_string();
    assert!(
        unknown.status == 400 && message.contains("`speed`") && message.contains("burst"),
        "{message}"
    );
    let huge = simulator.chat_with(key, &" ".repeat(MAX_BODY + 1)).await;
    assert_eq!(huge.status, 413);
    assert_eq!(simulator.get("/v1/elsewhere").await.json()["error"]["code"], "not_found");
    assert_eq!(simulator.get("/v1/chat/completions").await.status, 405);
    assert_eq!(simulator.get("/healthz").await.body, "ok");
    assert!(
        !format!("{:?}", Options { api_key: Some("secret".to_owned()), ..Options::default() })
            .contains("secret")
    );
}

#[tokio::test]
async fn the_pace_is_exact_on_average() {
    let simulator = Running::start(Options::default()).await;
    let start = Instant::now();
    let request = hello(&json!({"stream": true, "model": "m?ttft=50,rate=10000,tokens=10001"}));
    let reply = simulator.chat(&request).await;
    let spent = start.elapsed();
    assert_eq!(reply.chunks().len(), 10_003);
    // The last token is due at 1,050 ms; a timer's millisecond after each token instead would add
    // up to ten seconds.
    assert!(spent >= Duration::from_millis(1_050) && spent < Duration::from_secs(5), "{spent:?}");
}

#[tokio::test]
async fn options_out_of_range_and_a_taken_port_are_refused() {
    let bad = async |options| Simulator::bind(options).await.unwrap_err();
    assert_eq!(bad(Options { rate: -1.0, ..Options::default() }).await.code(), "simulator_rate");
    assert_eq!(
        bad(Options { tokens: u32::MAX, ..Options::default() }).await.code(),
        "simulator_tokens"
    );
    let running = Running::quick().await;
    let taken = bad(Options { listen: running.addr, ..Options::default() }).await;
    assert!(
        std::error::Error::source(&taken).is_some()
            && taken.to_string().contains(&running.addr.to_string())
    );
}

#[test]
fn options_survive_the_round_trip_and_refuse_unknown_fields() {
    let options: Options =
        serde_json::from_value(json!({"ttft": "50ms", "fault": "drop:3*1"})).unwrap();
    assert_eq!((options.ttft, options.tokens), (Duration::from_millis(50), 64));
    let written = serde_json::to_value(&options).unwrap();
    assert_eq!((&written["ttft"], &written["fault"]), (&json!("50ms"), &json!("drop:3*1")));
    assert_eq!(serde_json::from_value::<Options>(written).unwrap(), options);
    assert!(serde_json::from_value::<Options>(json!({"speed": 1})).is_err());
}

#[tokio::test]
async fn the_oracle_says_the_same() {
    let requests = [
        hello(&json!({})),
        hello(&json!({"model": "other?tokens=3,rate=0", "max_tokens": 9})),
        hello(&json!({"max_tokens": null, "max_completion_tokens": 40, "temperature": 0.3})),
        json!({"model": "größe", "messages": [{"role": "system", "content": null},
            {"role": "user", "content": [{"type": "text", "text": "a\u{1f33e}"}, {"type": "x"},
                {"text": "\n"}]}]}),
    ];
    let mut lines = String::new();
    for (at, request) in requests.iter().enumerate() {
        let line = [
            request.clone(),
            json!({"request": request}),
            json!({"custom_id": "1", "body": request}),
        ];
        lines.extend([line[at % 3].to_string().as_str(), "\n"]);
    }
    let oracle = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle.py");
    let mut python = Command::new("python3");
    python.args([oracle, "--tokens", "6"]);
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let expected: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    let simulator = Running::quick().await;
    for (request, expected) in requests.iter().zip(&expected) {
        assert_eq!(
            &simulator.chat(request).await.json()["choices"][0]["message"]["content"],
            expected,
            "{request}"
        );
    }
    assert_eq!(expected.len(), requests.len());
}
