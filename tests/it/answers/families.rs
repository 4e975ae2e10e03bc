//! Answers in the documented form of each family of servers: text, tools, reasoning, usage and errors.

use serde_json::{Value, json};

use super::endpoint::{Endpoint, Response, System, eager};

/// What an answer must come to.
#[derive(Default)]
struct Expected {
    text: &'static str,
    /// The field that the thoughts stand in, and the thoughts.
    thoughts: Option<(&'static str, &'static str)>,
    /// Names and arguments of the tools that are called.
    calls: &'static [(&'static str, &'static str)],
    reason: &'static str,
    tokens: Option<u64>,
}

fn stream(head: &Value, chunks: &[Value], comment: &str) -> Response {
    let chunk = |chunk: &Value| {
        let mut whole = head.as_object().unwrap().clone();
        whole.extend(chunk.as_object().unwrap().clone());
        format!("{comment}data: {}\n\n", Value::Object(whole))
    };
    let body: String = chunks.iter().map(chunk).collect();
    Response::events(format!("{body}data: [DONE]\n\n"))
}

async fn check(name: &str, response: Response, expected: &Expected) {
    let endpoint = Endpoint::saying(response).await;
    let outcome = System::start(&endpoint.options(), eager()).ask().await;
    assert_eq!(
        (outcome.job["state"].as_str(), endpoint.calls()),
        (Some("done"), 1),
        "{name}: {outcome:?}"
    );
    let message = outcome.message();
    assert_eq!(message["content"].as_str().unwrap_or_default(), expected.text, "{name}");
    assert_eq!(outcome.text(), expected.text, "{name}");
    if let Some((field, thoughts)) = expected.thoughts {
        assert_eq!(message[field], thoughts, "{name}");
    }
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let told: Vec<(&str, &str)> = calls
        .iter()
        .map(|call| {
            assert!(
                call["id"].as_str().is_some_and(|id| !id.is_empty()) && call["type"] == "function"
            );
            let function = &call["function"];
            (function["name"].as_str().unwrap(), function["arguments"].as_str().unwrap())
        })
        .collect();
    assert_eq!(told, expected.calls, "{name}");
    assert_eq!(outcome.reasons(), [expected.reason], "{name}");
    assert_eq!(outcome.job["finish_reason"], expected.reason, "{name}");
    assert_eq!(outcome.job["usage"]["total_tokens"].as_u64(), expected.tokens, "{name}");
}

fn delta(delta: &Value, reason: &Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
}

const NULL: Value = Value::Null;

#[tokio::test]
async fn llama_cpp() {
    let head = json!({"created": 1, "id": "chatcmpl-x", "model": "qwen", "system_fingerprint": "b6000-1a2b",
        "object": "chat.completion.chunk"});
    let first = delta(&json!({"role": "assistant", "content": null}), &NULL);
    let usage = json!({"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7},
        "timings": {"prompt_n": 5, "predicted_per_second": 41.5}});
    let chunks = [
        first.clone(),
        delta(&json!({"reasoning_content": "hm"}), &NULL),
        delta(&json!({"content": "Hel"}), &NULL),
        delta(&json!({"content": "lo"}), &NULL),
        delta(&json!({}), &"stop".into()),
        usage.clone(),
    ];
    let expected = Expected {
        text: "Hello",
        thoughts: Some(("reasoning_content", "hm")),
        reason: "stop",
        tokens: Some(7),
        ..Expected::default()
    };
    check("llama.cpp", stream(&head, &chunks, ""), &expected).await;
    let call = |call: Value| delta(&json!({"tool_calls": [call]}), &NULL);
    let chunks = [
        first,
        call(
            json!({"index": 0, "id": "a1", "type": "function", "function": {"name": "f", "arguments": "{"}}),
        ),
        call(json!({"index": 0, "function": {"arguments": "\"x\":1}"}})),
        call(
            json!({"index": 1, "id": "a2", "type": "function", "function": {"name": "g", "arguments": "{}"}}),
        ),
        delta(&json!({}), &"tool_calls".into()),
        usage,
    ];
    let expected = Expected {
        calls: &[("f", "{\"x\":1}"), ("g", "{}")],
        reason: "tool_calls",
        tokens: Some(7),
        ..Expected::default()
    };
    check("llama.cpp", stream(&head, &chunks, ""), &expected).await;
}

#[tokio::test]
async fn vllm() {
    let head =
        json!({"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": "m"});
    let told = |delta: &Value, reason: Value| {
        json!({"choices": [{"index": 0, "delta": delta, "logprobs": null,
        "finish_reason": reason, "stop_reason": null, "token_ids": null}]})
    };
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "total_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": null}});
    let chunks = [
        told(&json!({"role": "assistant", "content": ""}), NULL),
        told(&json!({"reasoning_content": "h"}), NULL),
        told(&json!({"reasoning_content": "m", "content": null}), NULL),
        told(&json!({"content": "Hello"}), NULL),
        told(&json!({"content": ""}), "stop".into()),
        usage.clone(),
    ];
    let expected = Expected {
        text: "Hello",
        thoughts: Some(("reasoning_content", "hm")),
        reason: "stop",
        tokens: Some(7),
        ..Expected::default()
    };
    check("vLLM", stream(&head, &chunks, ""), &expected).await;
    let call = |call: Value| told(&json!({"tool_calls": [call]}), NULL);
    let chunks = [
        told(&json!({"role": "assistant", "content": ""}), NULL),
        call(
            json!({"id": "chatcmpl-tool-1", "type": "function", "index": 0, "function": {"name": "f"}}),
        ),
        call(json!({"index": 0, "function": {"arguments": "{\"x\": "}})),
        call(json!({"index": 0, "function": {"arguments": "1}"}})),
        told(&json!({"content": ""}), "tool_calls".into()),
        usage,
    ];
    let expected = Expected {
        calls: &[("f", "{\"x\": 1}")],
        reason: "tool_calls",
        tokens: Some(7),
        ..Expected::default()
    };
    check("vLLM", stream(&head, &chunks, ""), &expected).await;
}

#[tokio::test]
async fn ollama() {
    let head = json!({"id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1, "model": "llama3.2", "system_fingerprint": "fp_ollama"});
    let said = |more: Value, reason: Value| {
        let mut fields = json!({"role": "assistant", "content": ""});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        delta(&fields, &reason)
    };
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}});
    let chunks = [
        said(json!({"reasoning": "h"}), NULL),
        said(json!({"reasoning": "m"}), NULL),
        said(json!({"content": "Hel"}), NULL),
        said(json!({"content": "lo"}), NULL),
        said(json!({}), "stop".into()),
        usage.clone(),
    ];
    let expected = Expected {
        text: "Hello",
        thoughts: Some(("reasoning", "hm")),
        reason: "stop",
        tokens: Some(7),
        ..Expected::default()
    };
    check("Ollama", stream(&head, &chunks, ""), &expected).await;
    let call = |name: &str| json!({"id": format!("call_{name}"), "index": 0, "type": "function", "function": {"name": name, "arguments": "{\"x\":1}"}});
    let chunks = [
        said(json!({"tool_calls": [call("f")]}), NULL),
        said(json!({"tool_calls": [call("g")]}), NULL),
        said(json!({}), "tool_calls".into()),
        usage,
    ];
    let expected = Expected {
        calls: &[("f", "{\"x\":1}"), ("g", "{\"x\":1}")],
        reason: "tool_calls",
        tokens: Some(7),
        ..Expected::default()
    };
    check("Ollama", stream(&head, &chunks, ""), &expected).await;
}

#[tokio::test]
async fn openrouter() {
    let head = json!({"id": "gen-1", "provider": "Some", "model": "x/y", "object": "chat.completion.chunk", "created": 1});
    let said = |delta: Value, reason: Value| {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": reason,
        "native_finish_reason": reason, "logprobs": null}]})
    };
    let thought = |text: &str| {
        json!({"role": "assistant", "content": "", "reasoning": text,
        "reasoning_details": [{"type": "reasoning.text", "text": text, "format": "unknown", "index": 0}]})
    };
    let usage = json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "cost": 0.000_012}});
    let chunks = [
        said(thought("h"), NULL),
        said(thought("m"), NULL),
        said(json!({"role": "assistant", "content": "Hello"}), NULL),
        said(json!({"role": "assistant", "content": ""}), "stop".into()),
        usage,
    ];
    let expected = Expected {
        text: "Hello",
        thoughts: Some(("reasoning", "hm")),
        reason: "stop",
        tokens: Some(7),
        ..Expected::default()
    };
    check("OpenRouter", stream(&head, &chunks, ": OPENROUTER PROCESSING\n\n"), &expected).await;
}

#[tokio::test]
async fn deepseek() {
    let head = json!({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "deepseek-reasoner", "system_fingerprint": "fp"});
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_cache_hit_tokens": 0});
    let mut last = delta(&json!({"content": "", "reasoning_content": null}), &"stop".into());
    last["usage"] = usage;
    let chunks = [
        delta(&json!({"role": "assistant", "content": null, "reasoning_content": ""}), &NULL),
        delta(&json!({"content": null, "reasoning_content": "hm"}), &NULL),
        delta(&json!({"content": "Hello", "reasoning_content": null}), &NULL),
        last,
    ];
    let expected = Expected {
        text: "Hello",
        thoughts: Some(("reasoning_content", "hm")),
        reason: "stop",
        tokens: Some(7),
        ..Expected::default()
    };
    check("DeepSeek", stream(&head, &chunks, ": keep-alive\n\n"), &expected).await;
}

#[tokio::test]
async fn mistral() {
    let head = json!({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "mistral-large"});
    let mut last = delta(&json!({"content": ""}), &"stop".into());
    last["usage"] = json!({"prompt_tokens": 5, "total_tokens": 7, "completion_tokens": 2});
    let chunks = [
        delta(&json!({"role": "assistant", "content": ""}), &NULL),
        delta(&json!({"content": "Hello"}), &NULL),
        last,
    ];
    let expected =
        Expected { text: "Hello", reason: "stop", tokens: Some(7), ..Expected::default() };
    check("Mistral", stream(&head, &chunks, ""), &expected).await;
    let call = json!({"id": "D681PevKs", "function": {"name": "f", "arguments": "{\"x\": 1}"}, "index": 0});
    let chunks = [
        delta(&json!({"role": "assistant", "content": ""}), &NULL),
        delta(&json!({"content": "", "tool_calls": [call]}), &"tool_calls".into()),
    ];
    let expected =
        Expected { calls: &[("f", "{\"x\": 1}")], reason: "tool_calls", ..Expected::default() };
    check("Mistral", stream(&head, &chunks, ""), &expected).await;
}

#[tokio::test]
async fn gemini() {
    let head = json!({"created": 1, "id": "x", "model": "gemini-2.5-flash", "object": "chat.completion.chunk",
        "usage": {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7}});
    let said = |delta: Value| json!({"choices": [{"delta": delta, "index": 0}]});
    let chunks = [
        said(json!({"content": "Hel", "role": "assistant"})),
        said(json!({"content": "lo", "role": "assistant"})),
        delta(&json!({"role": "assistant"}), &"stop".into()),
    ];
    let expected =
        Expected { text: "Hello", reason: "stop", tokens: Some(7), ..Expected::default() };
    check("Gemini", stream(&head, &chunks, ""), &expected).await;
    let call = |name: &str, id: &str| {
        json!({"extra_content": {"google": {"thought_signature": "c2ln"}},
        "function": {"arguments": "{\"x\":1}", "name": name}, "id": id, "type": "function", "index": 0})
    };
    for ids in [["function-call-1", "function-call-2"], ["", ""]] {
        let chunks = [
            said(json!({"role": "assistant", "tool_calls": [call("f", ids[0])]})),
            said(json!({"role": "assistant", "tool_calls": [call("f", ids[1])]})),
            delta(&json!({"role": "assistant"}), &"tool_calls".into()),
        ];
        let expected = Expected {
            calls: &[("f", "{\"x\":1}"), ("f", "{\"x\":1}")],
            reason: "tool_calls",
            tokens: Some(7),
            ..Expected::default()
        };
        check("Gemini", stream(&head, &chunks, ""), &expected).await;
    }
}

#[tokio::test]
async fn azure() {
    let head = json!({"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-08-06", "system_fingerprint": "fp"});
    let safe = json!({"hate": {"filtered": false, "severity": "safe"}});
    let said = |delta: Value, reason: Value| {
        json!({"choices": [{"content_filter_results": safe, "delta": delta, "finish_reason": reason,
        "index": 0, "logprobs": null}], "usage": null})
    };
    let prompt = json!({"id": "", "model": "", "object": "", "created": 0, "choices": [],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": safe}]});
    let usage = json!({"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7}});
    let chunks = [
        prompt,
        said(json!({"content": "", "refusal": null, "role": "assistant"}), NULL),
        said(json!({"content": "Hello"}), NULL),
        said(json!({}), "stop".into()),
        usage,
    ];
    let expected =
        Expected { text: "Hello", reason: "stop", tokens: Some(7), ..Expected::default() };
    check("Azure", stream(&head, &chunks, ""), &expected).await;
}

/// Errors in the form of each family: status, body, then code, words and calls.
#[tokio::test]
async fn errors_keep_their_class_and_words() {
    for (name, status, body, code, words, calls) in [
        (
            "llama.cpp",
            "400 Bad Request",
            json!({"error": {"code": 400, "message": "the request exceeds the available context size",
            "type": "exceed_context_size_error", "n_ctx": 4096}}),
            "invalid_request",
            "available context size",
            1,
        ),
        (
            "llama.cpp",
            "503 Service Unavailable",
            json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
            "upstream_error",
            "Loading model",
            5,
        ),
        (
            "vLLM",
            "400 Bad Request",
            json!({"object": "error", "message": "maximum context length is 10 tokens", "type": "BadRequestError",
            "param": null, "code": 400}),
            "invalid_request",
            "maximum context length",
            1,
        ),
        (
            "Ollama",
            "404 Not Found",
            json!({"error": {"message": "model \"x\" not found, try pulling it first", "type": "api_error",
            "param": null, "code": null}}),
            "invalid_request",
            "try pulling it first",
            1,
        ),
        (
            "OpenRouter",
            "402 Payment Required",
            json!({"error": {"code": 402, "message": "Insufficient credits"}}),
            "insufficient_quota",
            "quota or credit",
            1,
        ),
        (
            "OpenRouter",
            "403 Forbidden",
            json!({"error": {"code": 403, "message": "input was flagged", "metadata": {"reasons": ["x"]}}}),
            "upstream_auth",
            "refuses this server's key or account",
            1,
        ),
        (
            "DeepSeek",
            "402 Payment Required",
            json!({"error": {"message": "Insufficient Balance", "type": "unknown_error", "param": null,
            "code": "invalid_request_error"}}),
            "insufficient_quota",
            "quota or credit",
            1,
        ),
        (
            "Mistral",
            "422 Unprocessable Entity",
            json!({"object": "error", "message": {"detail": [{"loc": ["body", "temperature"],
            "msg": "too high"}]}, "type": "invalid_request_error", "param": null, "code": null}),
            "invalid_request",
            "too high",
            1,
        ),
        (
            "Mistral",
            "422 Unprocessable Entity",
            json!({"detail": [{"loc": ["body", "top_p"], "msg": "no number"}]}),
            "invalid_request",
            "no number",
            1,
        ),
        (
            "Gemini",
            "400 Bad Request",
            json!([{"error": {"code": 400, "message": "Unsupported MIME type", "status": "INVALID_ARGUMENT"}}]),
            "invalid_request",
            "Unsupported MIME type",
            1,
        ),
        (
            "Gemini",
            "429 Too Many Requests",
            json!([{"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED"}}]),
            "rate_limited",
            "too many requests",
            5,
        ),
        (
            "Azure",
            "400 Bad Request",
            json!({"error": {"message": "The response was filtered", "type": null, "param": "prompt",
            "code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
            "invalid_request",
            "was filtered",
            1,
        ),
    ] {
        let endpoint =
            Endpoint::saying(Response::of(status, "application/json", body.to_string())).await;
        let outcome = System::start(&endpoint.options(), eager()).ask().await;
        let error = &outcome.job["error"];
        assert_eq!(
            (error["code"].as_str(), endpoint.calls()),
            (Some(code), calls),
            "{name}: {error}"
        );
        assert!(error["message"].as_str().unwrap().contains(words), "{name}: {error}");
    }
}
