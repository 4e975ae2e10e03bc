//! Answers as endpoints really send them, byte for byte, read by a whole system.

mod endpoint;
mod families;

use std::{fmt::Write as _, time::Duration};

use millstream::upstream::{
    Upstream as _,
    openai::{IncludeUsage, OpenAi, Options},
};
use serde_json::{Value, json};

use self::endpoint::{DONE, End, Endpoint, Outcome, Response, System, eager, ends, event, says};
use crate::support::web::streamed;

/// What comes of one question to an endpoint, and how often the endpoint was called for it.
async fn asked(response: Response) -> (Outcome, usize) {
    let endpoint = Endpoint::saying(response).await;
    let outcome = System::start(&endpoint.options(), eager()).ask().await;
    (outcome, endpoint.calls())
}

/// The outcome, whole after one call.
async fn whole(response: Response) -> Outcome {
    let (outcome, calls) = asked(response).await;
    assert!(outcome.done && outcome.job["state"] == "done", "{outcome:?}");
    assert_eq!(
        (calls, outcome.text()),
        (1, outcome.message()["content"].as_str().unwrap_or("").to_owned())
    );
    outcome
}

/// The outcome, which failed with this code after so many calls.
async fn failed(response: Response, code: &str, calls: usize) -> Outcome {
    let (outcome, called) = asked(response).await;
    assert_eq!(outcome.job["state"], "failed", "{outcome:?}");
    assert_eq!(
        (outcome.job["error"]["code"].as_str(), called),
        (Some(code), calls),
        "{}",
        outcome.job
    );
    assert!(!outcome.done);
    outcome
}

const STOP: [&str; 1] = ["stop"];

/// Half an answer was taken for a whole one, and a client read an empty reason.
#[tokio::test]
async fn an_empty_finish_reason_is_none() {
    let half: String = ["a", "b"].map(|text| event(&json!({"content": text}), &"".into())).concat();
    let outcome = failed(Response::events(&half).ending(End::Cut), "upstream_connection", 5).await;
    assert_eq!(outcome.reasons(), [] as [Value; 0]);
    let outcome = failed(Response::events(&half), "truncated", 5).await;
    assert_eq!(outcome.reasons(), [] as [Value; 0]);
    let outcome = whole(Response::events(format!("{half}{}{DONE}", ends("stop")))).await;
    assert_eq!(
        (outcome.text().as_str(), outcome.reasons()),
        ("ab", STOP.map(Value::from).to_vec())
    );
}

/// A whole answer without a reason was called five times and lost.
#[tokio::test]
async fn an_answer_is_whole_where_its_endpoint_says_so() {
    let usage = "data: {\"choices\":[],\"usage\":{\"total_tokens\":7}}\n\n";
    for response in [
        Response::events(format!("{}{usage}{DONE}", says("a"))),
        Response::events(format!("{}{usage}{DONE}", says("a"))).ending(End::Cut),
        Response { sized: true, ..Response::events(format!("{}{usage}", says("a"))) },
    ] {
        let outcome = whole(response).await;
        assert_eq!(
            (outcome.text().as_str(), outcome.reasons()),
            ("a", STOP.map(Value::from).to_vec())
        );
        assert_eq!(outcome.job["usage"], json!({"total_tokens": 7}));
        assert_eq!(outcome.job["finish_reason"], "stop");
    }
    let call = json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]});
    let outcome = whole(Response::events(format!("{}{DONE}", event(&call, &Value::Null)))).await;
    assert_eq!(outcome.reasons(), ["tool_calls"]);
    // Nothing at all is no answer.
    failed(Response::events(DONE), "truncated", 5).await;
    failed(Response::events(format!("{usage}{DONE}")), "truncated", 5).await;
    failed(Response::events(says("a")), "truncated", 5).await;
    failed(Response::json(&json!({"choices": []})), "truncated", 5).await;
}

/// An answer that had come whole was thrown away for what came behind it, and asked for again.
#[tokio::test]
async fn behind_its_finish_reason_an_answer_cannot_fail() {
    let answer = format!("{}{}", says("a"), ends("stop"));
    let error = "data: {\"error\":{\"message\":\"late\"}}\n\n";
    for response in [
        Response::events(&answer).ending(End::Comments),
        Response::events(&answer).ending(End::Cut),
        Response::events(format!("{answer}{error}")),
        Response::events(&answer)
            .then(Duration::from_millis(300), format!("data: {{\"usage\":{{\"x\":1}}}}\n\n{DONE}")),
    ] {
        let outcome = whole(response).await;
        assert_eq!(outcome.text(), "a");
    }
    // Of two choices, one is half of the answer, whether the other has begun or not.
    let first =
        json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]});
    let second = json!({"choices": [{"index": 1, "delta": {"content": "b"}}]});
    for body in [format!("data: {first}\n\ndata: {second}\n\n"), format!("data: {first}\n\n")] {
        let endpoint = Endpoint::saying(Response::events(body).ending(End::Cut)).await;
        let mut request = streamed("q");
        request["n"] = 2.into();
        let outcome = System::start(&endpoint.options(), eager()).asked(&request).await;
        assert_eq!(
            (outcome.job["state"].as_str(), endpoint.calls()),
            (Some("failed"), 5),
            "{outcome:?}"
        );
    }
}

/// A model that thought for longer than the limit was dropped, though its endpoint said all the time that it works.
#[tokio::test]
async fn any_byte_is_a_sign_of_life() {
    let limit = Duration::from_millis(400);
    let worker =
        millstream::worker::Options { first_token_timeout: limit, idle_timeout: limit, ..eager() };
    let pause = limit / 2;
    let mut response = Response::events("");
    for sign in [
        ": OPENROUTER PROCESSING\n\n",
        "data:\n\n",
        "event: ping\ndata: {}\n\n",
        ": x\n",
        "\n",
        "\n",
    ] {
        response = response.then(pause, sign);
    }
    for text in ["a", "b"] {
        response =
            response.then(pause, says(text)).then(pause, ": still here\n\n").then(pause, "\n");
    }
    let endpoint = Endpoint::saying(response.then(pause, format!("{}{DONE}", ends("stop")))).await;
    let outcome = System::start(&endpoint.options(), worker.clone()).ask().await;
    assert_eq!((outcome.text().as_str(), endpoint.calls()), ("ab", 1), "{outcome:?}");

    // Silence is none, and is told with the name of its limit.
    let endpoint =
        Endpoint::saying(Response::events(": x\n\n").then(limit * 3, says("late"))).await;
    let worker = millstream::worker::Options {
        retry: millstream::retry::Schedule { max_attempts: 1, ..worker.retry.clone() },
        ..worker
    };
    let outcome = System::start(&endpoint.options(), worker).ask().await;
    let message = outcome.job["error"]["message"].as_str().unwrap();
    assert!(message.contains("worker.first_token_timeout"), "{message}");
}

/// What an endpoint sends to keep a connection open was a protocol error.
#[tokio::test]
async fn heartbeats_are_passed_over() {
    let beats = "data:\n\ndata\n\ndata: null\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\nevent: heartbeat\ndata: now\n\n\
        : comment\n\nid: 1\nretry: 10\n\ndata: {}\n\n";
    let outcome = whole(Response::events(format!(
        "{beats}{}{beats}{}{beats}{DONE}",
        says("a"),
        ends("stop")
    )))
    .await;
    assert_eq!(outcome.text(), "a");
}

/// Two calls of one index became one with broken arguments.
#[tokio::test]
async fn two_tool_calls_of_one_index_stay_two() {
    let call = |id: &str, city: &str| {
        let function = json!({"name": "weather", "arguments": json!({"city": city}).to_string()});
        event(
            &json!({"tool_calls": [{"index": 0, "id": id, "type": "function", "function": function}]}),
            &Value::Null,
        )
    };
    for ids in [["call_1", "call_2"], ["", ""]] {
        let calls = ids.map(|id| call(id, id)).concat();
        let outcome = whole(Response::events(format!("{calls}{}{DONE}", ends("tool_calls")))).await;
        let of_job = outcome.message()["tool_calls"].as_array().unwrap().clone();
        let mut of_stream = Vec::new();
        for chunk in &outcome.chunks {
            let calls = chunk["choices"][0]["delta"]["tool_calls"].as_array();
            of_stream.extend(calls.into_iter().flatten().cloned());
        }
        assert_eq!((of_job.len(), of_stream.len()), (2, 2), "{outcome:?}");
        for (place, (whole, streamed)) in of_job.iter().zip(&of_stream).enumerate() {
            let arguments = json!({"city": ids[place]}).to_string();
            assert_eq!(streamed["index"], place);
            for call in [whole, streamed] {
                assert_eq!(call["function"], json!({"name": "weather", "arguments": arguments}));
                assert_eq!(call["type"], "function");
                assert!(call["id"].as_str().is_some_and(|id| !id.is_empty()), "{call}");
            }
            assert_eq!(whole["id"], streamed["id"]);
        }
        assert_ne!(of_job[0]["id"], of_job[1]["id"]);
    }
}

/// A whole answer to a request that streams was a cut stream.
#[tokio::test]
async fn an_answer_in_another_form_is_read() {
    let message = json!({"role": "assistant", "content": "a", "tool_calls": null});
    let completion = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 3}});
    let text = completion.to_string();
    for response in [
        Response::json(&completion),
        Response::of("200 OK", "text/event-stream", &text),
        Response::of("200 OK", "text/plain", format!("\n\n  {text}\n")),
        Response::of(
            "200 OK",
            "application/json",
            serde_json::to_string_pretty(&completion).unwrap(),
        ),
        Response { sized: false, ..Response::json(&json!([completion])) },
        Response::of("200 OK", "application/json", format!("data: {text}\n\n{DONE}")),
        // One of the older protocol, and lines of JSON.
        Response::json(
            &json!({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"total_tokens": 3}}),
        ),
        Response::of(
            "200 OK",
            "application/x-ndjson",
            format!(
                "{}\n{}\n",
                json!({"choices": [{"delta": {"content": "a"}}], "usage": {"total_tokens": 3}}),
                json!({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            ),
        ),
    ] {
        let outcome = whole(response).await;
        assert_eq!(outcome.text(), "a");
        assert_eq!(
            (&outcome.job["usage"], outcome.reasons().len()),
            (&json!({"total_tokens": 3}), 1)
        );
        assert_eq!(outcome.chunks[0]["object"], "chat.completion.chunk");
    }
    // A stream for who asked for a whole answer.
    let stream = Response::events(format!("{}{}{}{DONE}", says("a"), says("b"), ends("length")));
    let endpoint = Endpoint::saying(stream).await;
    let outcome = System::start(&endpoint.options(), eager()).ask_whole().await;
    let choice = &outcome.reply.json()["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("ab"), &json!("length"))
    );
    // A whole answer that lacks its reason, too, and one that was cut.
    let lacking = json!({"choices": [{"message": {"content": "a"}}]});
    let endpoint = Endpoint::saying(Response::json(&lacking)).await;
    let outcome = System::start(&endpoint.options(), eager()).ask_whole().await;
    assert_eq!(
        (outcome.reply.json()["choices"][0]["finish_reason"].clone(), endpoint.calls()),
        (json!("stop"), 1)
    );
    failed(Response::of("200 OK", "application/json", &text[..text.len() / 2]), "truncated", 5)
        .await;
}

/// A page in place of an answer was "a cut connection".
#[tokio::test]
async fn what_is_no_answer_is_told_by_its_type() {
    for (kind, body) in
        [("text/html", "<!DOCTYPE html><p>Sign in</p>"), ("text/plain", "nothing here")]
    {
        let outcome = failed(Response::of("200 OK", kind, body), "upstream_protocol", 5).await;
        let message = outcome.job["error"]["message"].as_str().unwrap();
        assert!(message.contains(kind) && message.contains("upstream.base_url"), "{message}");
    }
}

/// An error that came with status 200 lost its words, and was tried five times.
#[tokio::test]
async fn an_error_in_an_answer_keeps_its_words_code_and_class() {
    let error = json!({"error": {"message": "prompt too long", "type": "invalid_request_error",
        "code": "context_length_exceeded", "param": "messages"}});
    for response in [
        Response::json(&error),
        Response::events(format!("{error}\n\n")),
        Response::events(serde_json::to_string_pretty(&error).unwrap()),
        Response::events(format!("data: {error}\n\n")),
        Response::events(format!("error: {}\n\n", error["error"])),
        Response::events(format!("event: error\ndata: {}\n\n", error["error"])),
        Response::events(format!("data: {error}")),
        Response::json(&json!([error])),
        Response::events(format!(
            "data: {}\n\n",
            json!({"choices": [{"index": 0, "error": error["error"]}]})
        )),
    ] {
        let outcome = failed(response, "invalid_request", 1).await;
        let told = &outcome.job["error"];
        assert_eq!(told["message"], "prompt too long");
        assert_eq!(
            (&told["reason"], &told["param"]),
            (&json!("context_length_exceeded"), &json!("messages"))
        );
    }
    let busy = json!({"error": {"message": "the model is loading", "code": 503}});
    let outcome = failed(Response::json(&busy), "upstream_error", 5).await;
    assert_eq!(
        (&outcome.job["error"]["status"], &outcome.job["error"]["message"]),
        (&json!(503), &json!("the model is loading"))
    );
    let broken = event(&json!({"content": "a"}), &"error".into());
    failed(Response::events(format!("{broken}{DONE}")), "upstream_error", 5).await;
}

/// Agents compact their prompt by the code, and found another.
#[tokio::test]
async fn a_refused_request_keeps_code_type_and_param_everywhere() {
    let error = json!({"message": "maximum context length is 8192 tokens", "type": "invalid_request_error",
        "param": "messages", "code": "context_length_exceeded"});
    let body = json!({"error": error}).to_string();
    let response = Response::of("400 Bad Request", "application/json", body);
    let outcome = failed(response.clone(), "invalid_request", 1).await;
    let last = outcome.events.last().unwrap();
    for told in [&outcome.job["error"], &last["data"]["error"]] {
        assert_eq!(
            (&told["reason"], &told["type"], &told["param"]),
            (&error["code"], &error["type"], &error["param"])
        );
        assert!(told["message"].as_str().unwrap().contains("8192"), "{told}");
    }
    let endpoint = Endpoint::saying(response).await;
    for request in [streamed("q"), crate::support::web::chat("q")] {
        let outcome = System::start(&endpoint.options(), eager()).asked(&request).await;
        assert_eq!(outcome.reply.status, 400);
        let told = &outcome.reply.json()["error"];
        for name in ["code", "type", "param"] {
            assert_eq!(told[name], error[name], "{told}");
        }
    }
}

/// An empty account was called five times, and its clients were told to go on.
#[tokio::test]
async fn an_empty_account_is_asked_once() {
    let error = json!({"error": {"message": "You exceeded your current quota", "type": "insufficient_quota",
        "param": null, "code": "insufficient_quota"}});
    for status in ["429 Too Many Requests", "402 Payment Required"] {
        let response = Response::of(status, "application/json", error.to_string());
        let outcome = failed(response, "insufficient_quota", 1).await;
        assert_eq!(outcome.reply.status, 429);
        assert_eq!(outcome.reply.json()["error"]["code"], "insufficient_quota");
        assert_eq!(outcome.reply.header("x-should-retry"), "false");
    }
}

/// A redirect that was not followed was "a refused key".
#[tokio::test]
async fn a_redirect_to_another_origin_has_a_code_of_its_own() {
    let away = Endpoint::saying(Response::of("401 Unauthorized", "application/json", "{}")).await;
    let location = format!("location: http://{}/v1/chat/completions", away.addr);
    let response = Response::of("307 Temporary Redirect", "text/plain", "").with(&location);
    let outcome = failed(response, "upstream_redirect", 1).await;
    let message = outcome.job["error"]["message"].as_str().unwrap();
    assert!(message.contains("not followed") && !message.contains("127.0.0.1"), "{message}");
    assert_eq!(away.calls(), 0);
}

/// A field that the caller had never sent was refused to him.
#[tokio::test]
async fn a_request_for_usage_that_is_refused_is_taken_back() {
    let endpoint = |status: &'static str, words: &'static str| {
        Endpoint::start(move |request| {
            if request.body.contains("stream_options") {
                return Response::of(status, "application/json", words);
            }
            Response::events(format!("{}{}{DONE}", says("a"), ends("stop")))
        })
    };
    let strict =
        r#"{"detail":[{"loc":["body","stream_options"],"msg":"Extra inputs are not permitted"}]}"#;
    let unknown =
        r#"{"error":{"message":"Unrecognized request argument supplied: stream_options"}}"#;
    for (status, words) in [("422 Unprocessable Entity", strict), ("400 Bad Request", unknown)] {
        let refusing = endpoint(status, words).await;
        let system = System::start(&refusing.options(), eager());
        // Once more for the first, and remembered.
        for calls in [2, 3] {
            let outcome = system.ask().await;
            assert_eq!((outcome.text().as_str(), refusing.calls()), ("a", calls));
        }
        // The caller's own wish is the caller's.
        let mut wish = streamed("q");
        wish["stream_options"] = json!({"include_usage": true});
        let outcome = system.asked(&wish).await;
        assert_eq!(
            (outcome.job["error"]["code"].as_str(), refusing.calls()),
            (Some("invalid_request"), 4)
        );
        for (include_usage, calls, state) in
            [(IncludeUsage::Never, 5, "done"), (IncludeUsage::Always, 6, "failed")]
        {
            let options = Options { include_usage, ..refusing.options() };
            let outcome = System::start(&options, eager()).ask().await;
            assert_eq!((outcome.job["state"].as_str(), refusing.calls()), (Some(state), calls));
        }
    }
    // Another refusal is nobody's second call.
    let other =
        endpoint("422 Unprocessable Entity", r#"{"detail":"temperature is too high"}"#).await;
    System::start(&other.options(), eager()).ask().await;
    assert_eq!(other.calls(), 1);
}

/// One bad byte held all later text back, and ended the attempt.
#[tokio::test]
async fn a_byte_that_is_no_text_becomes_a_replacement_character() {
    let mut bytes = says("x~y").into_bytes();
    let at = bytes.iter().position(|byte| *byte == b'~').unwrap();
    bytes[at] = 0xFF;
    bytes.extend_from_slice(format!("{}{}{DONE}", says("caf\u{e9}"), ends("stop")).as_bytes());
    // In pieces that are cut in the middle of a character.
    let cut = bytes.iter().rposition(|byte| *byte == 0xC3).unwrap() + 1;
    let (head, tail) = bytes.split_at(cut);
    let response = Response::events(head).then(Duration::from_millis(50), tail);
    assert_eq!(whole(response).await.text(), "x\u{fffd}ycaf\u{e9}");
}

/// Escapes and numbers that JSON does not have were protocol errors.
#[tokio::test]
async fn json_that_encoders_get_wrong_is_read() {
    let odd = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\ud83d\"},\"logprobs\":\
        {\"content\":[{\"token\":\"a\",\"logprob\":-Infinity}]}}],\"x\":NaN}\n\n";
    let outcome = whole(Response::events(format!("{odd}{}{DONE}", ends("stop")))).await;
    assert_eq!(outcome.text(), "a\u{fffd}");
    let logprob = &outcome.job["choices"][0]["logprobs"]["content"][0];
    assert_eq!(logprob, &json!({"token": "a", "logprob": null}));
}

/// A field that nobody uses failed the answer by its type.
#[tokio::test]
async fn types_that_are_not_used_are_not_judged() {
    let chunk = json!({"id": 17, "object": null, "created": "1", "model": 4, "system_fingerprint": 7, "choices": [
        {"index": "0", "delta": {"role": null, "content": "a", "x": {"y": [1]}}, "logprobs": 0, "finish_reason": false}]});
    let last =
        json!({"choices": [{"index": 0, "delta": null, "finish_reason": "stop"}], "usage": "much"});
    let outcome = whole(Response::events(format!("data: {chunk}\n\ndata: {last}\n\n{DONE}"))).await;
    assert_eq!(outcome.text(), "a");
    assert_eq!(outcome.message()["x"], json!({"y": [1]}));
    assert_eq!(outcome.job["usage"], "much");
}

/// A null beside each token made the log twelve times as large, and so did a role, an empty text or a filter.
#[tokio::test]
async fn what_says_nothing_costs_nothing() {
    let sizes = async |beside: Value, around: Value| {
        let mut body = String::new();
        for _ in 0..400 {
            let mut delta = json!({"reasoning_content": "thought "});
            delta.as_object_mut().unwrap().extend(beside.as_object().unwrap().clone());
            let mut choice = json!({"index": 0, "delta": delta});
            choice.as_object_mut().unwrap().extend(around.as_object().unwrap().clone());
            let _ = write!(body, "data: {}\n\n", json!({"choices": [choice]}));
        }
        let outcome = whole(Response::events(format!("{body}{}{DONE}", ends("stop")))).await;
        assert_eq!(outcome.message()["reasoning_content"].as_str().unwrap().len(), 3200);
        let deltas = outcome.events.iter().filter(|event| event["event"] == "delta");
        let pieces = |event: &Value| event["data"]["choices"].as_array().unwrap().len();
        deltas.map(pieces).sum::<usize>()
    };
    let filter = json!({"content_filter_results": {"hate": {"filtered": false}}});
    for (beside, around) in [
        (json!({}), json!({})),
        (json!({"content": null}), json!({"logprobs": null, "finish_reason": null})),
        (json!({"content": "", "role": "assistant"}), filter),
    ] {
        // The number of flushes is the clock's; each has a piece, the first and the last have one more.
        let pieces = sizes(beside, around).await;
        assert!(pieces < 40, "{pieces} pieces");
    }
}

/// A blank became a part of the path, and a query stood in its middle.
#[tokio::test]
async fn a_base_url_keeps_its_query_at_the_end() {
    let endpoint = Endpoint::start(|request| {
        let (path, query) = request.path().split_once('?').unwrap_or((request.path(), ""));
        let has_key = request.head.to_lowercase().contains("authorization");
        Response::json(
            &json!({"choices": [{"message": {"content": format!("{path} {query} {has_key}")},
            "finish_reason": "stop"}]}),
        )
    })
    .await;
    for (rest, path, key) in [
        ("/v1/ ", "/v1/chat/completions  true", "k"),
        (
            "/openai/d?api-version=2024-10-21",
            "/openai/d/chat/completions api-version=2024-10-21 false",
            "",
        ),
    ] {
        let base_url = format!("http://{}{rest}", endpoint.addr);
        let options = Options { base_url, api_key: key.to_owned(), ..Options::default() };
        assert_eq!(System::start(&options, eager()).ask().await.text(), path);
    }
}

/// Compressed bytes, which nobody had asked for, were text that is none.
#[tokio::test]
async fn a_compressed_answer_is_read_or_named() {
    // `gzip` of the completion, made by another program.
    let text =
        json!({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}).to_string();
    let mut gzip = std::process::Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut gzip.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let packed = gzip.wait_with_output().unwrap().stdout;
    let response =
        Response::of("200 OK", "application/json", packed).with("content-encoding: gzip");
    assert_eq!(whole(response).await.text(), "a");
    let response = Response::of("200 OK", "application/json", [7, 7]).with("content-encoding: br");
    let outcome = failed(response, "upstream_protocol", 5).await;
    assert!(outcome.job["error"]["message"].as_str().unwrap().contains("`br`"));
}

/// One event of 6 MB took 18 s, for each of its pieces was searched from the beginning.
#[tokio::test]
async fn a_large_event_is_read_and_one_without_end_is_not() {
    let text = "x".repeat(6 * 1024 * 1024);
    let body = format!("{}{}{DONE}", says(&text), ends("stop"));
    let endpoint = Endpoint::saying(Response::events(body)).await;
    let upstream = OpenAi::new(&endpoint.options()).unwrap();
    let request = millstream::job::ChatRequest::ask("m", "q");
    let parts = upstream.answer(&request, true).await.unwrap();
    let parts: Vec<_> = futures_util::StreamExt::collect(parts).await;
    let content = |part: &Result<millstream::upstream::Part, _>| {
        let pieces = part.as_ref().ok().map(|part| part.pieces.clone()).unwrap_or_default();
        pieces
            .iter()
            .filter_map(|piece| piece.delta.get("content")?.as_str().map(str::len))
            .sum::<usize>()
    };
    assert_eq!(parts.iter().map(content).sum::<usize>(), text.len());
    for response in [Response::events(says(&text)), Response::json(&json!({"x": text}))] {
        let endpoint = Endpoint::saying(response).await;
        let options = Options { max_answer_bytes: 1024 * 1024, ..endpoint.options() };
        let outcome = System::start(&options, eager()).ask().await;
        assert_eq!(
            (outcome.job["error"]["code"].as_str(), endpoint.calls()),
            (Some("answer_too_large"), 1)
        );
        let message = outcome.job["error"]["message"].as_str().unwrap();
        assert!(message.contains("upstream.max_answer_bytes"), "{message}");
    }
}

/// A whole answer was one event, and each of its readers held all of it.
#[tokio::test]
async fn a_large_answer_is_several_events() {
    let text = "caf\u{e9} ".repeat(100_000);
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "1".repeat(200_000)}});
    let message = json!({"role": "assistant", "content": text, "tool_calls": [call]});
    let response =
        Response::json(&json!({"choices": [{"message": message, "finish_reason": "stop"}]}));
    let endpoint = Endpoint::saying(response).await;
    for request in [streamed("q"), crate::support::web::chat("q")] {
        let outcome = System::start(&endpoint.options(), eager()).asked(&request).await;
        let shown = &outcome.message();
        assert_eq!((&shown["content"], &shown["tool_calls"]), (&json!(text), &json!([call])));
        let sizes = outcome.events.iter().map(|event| event["data"].to_string().len());
        let sizes: Vec<usize> = sizes.collect();
        assert!(sizes.len() > 10 && sizes.iter().all(|size| *size < 80_000), "{sizes:?}");
    }
}

/// A list of models was read without bound.
#[tokio::test]
async fn a_list_of_models_has_a_limit() {
    let models = json!({"data": [{"id": "x".repeat(100_000)}]});
    let endpoint = Endpoint::saying(Response::json(&models)).await;
    let ask = async |max_answer_bytes| {
        let options = Options { max_answer_bytes, ..endpoint.options() };
        OpenAi::new(&options).unwrap().models().await
    };
    assert_eq!(ask(200_000).await.unwrap()[0].id.len(), 100_000);
    assert_eq!(ask(65_536).await.unwrap_err().code, millstream::error::Code::AnswerTooLarge);
    let error = Response::json(&json!({"error": {"message": "not now", "code": 503}}));
    let endpoint = Endpoint::saying(error).await;
    let failure = OpenAi::new(&endpoint.options()).unwrap().models().await.unwrap_err();
    assert!(failure.message.contains("not now"), "{failure}");
}
