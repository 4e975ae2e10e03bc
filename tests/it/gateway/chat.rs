//! Chat completions as `OpenAI`'s clients ask for them, answered through the queue.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use millstream::{
    broker::{Depth, Partition, Shared},
    error::{Code, Failure},
    gateway::{OnDisconnect, Options},
    job::{JobId, QueueName},
    retry::Schedule,
    simulator,
    upstream::openai::{self, OpenAi},
    worker::{self, Worker},
};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{
    stack::{Stack, connect, expected, instant, oracle, simulate},
    subject::soon,
    web::{Block, Hand, Reply, Sse, Web, chat, embedded, options, streamed},
};

const PATH: &str = "/v1/chat/completions";

/// A worker with a simulator, until the guards go.
async fn working(
    broker: &Shared,
    web: &Web,
    simulator: simulator::Options,
    options: worker::Options,
) -> (DropGuard, DropGuard) {
    let (base_url, simulated) = simulate(simulator).await;
    let upstream = OpenAi::new(&openai::Options { base_url, ..Default::default() }).unwrap();
    let worker = Worker::new(broker.clone(), web.listener.hub(), Arc::new(upstream), options);
    let stop = CancellationToken::new();
    tokio::spawn(worker.run(stop.clone()));
    (simulated, stop.drop_guard())
}

/// Tries again this often, at once.
fn tries(max_attempts: u32) -> worker::Options {
    let initial = Duration::from_millis(1);
    let retry = Schedule { max_attempts, initial, max: initial, ..Schedule::default() };
    worker::Options { retry, ..worker::Options::default() }
}

async fn stream(web: &Web, request: &Value) -> Sse {
    Sse::open(web.posted(PATH, request)).await
}

/// The chunks of a stream that ends well.
async fn chunks(stream: Sse) -> Vec<Value> {
    let mut blocks = stream.rest().await;
    assert_eq!(blocks.pop().unwrap().data, "[DONE]");
    blocks.iter().map(Block::json).collect()
}

/// What a choice says in all chunks.
fn said(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect()
}

async fn job(web: &Web, id: &str) -> Value {
    web.get(&format!("/v1/jobs/{id}")).await.json()
}

async fn until_state(web: &Web, id: &str, state: &str) {
    soon(async {
        while job(web, id).await["state"] != state {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_is_a_jobs() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let _working = working(&broker, &web, instant(), tries(1)).await;
    let reply = web.post(PATH, &chat("whole?")).await;
    assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, "application/json"));
    let id = reply.header("x-millstream-job").to_owned();
    assert!(!reply.header("x-request-id").is_empty());
    let (completion, shown) = (reply.json(), job(&web, &id).await);
    assert_eq!(completion["id"], format!("chatcmpl-{id}"));
    assert_eq!(
        (&completion["object"], &completion["model"]),
        (&json!("chat.completion"), &json!("m"))
    );
    assert_eq!(completion["created"], shown["enqueued_at"].as_u64().unwrap() / 1000);
    let message = json!({"role": "assistant", "content": expected("m", "whole?"), "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(completion["choices"], json!([choice]));
    assert_eq!(completion["usage"], shown["usage"]);

    let mut request = streamed("whole?");
    request["stream_options"] = json!({"include_usage": true});
    let stream = stream(&web, &request).await;
    let id = stream.headers["x-millstream-job"].to_str().unwrap().to_owned();
    assert_eq!(stream.headers["cache-control"], "no-cache, no-transform");
    let chunks = chunks(stream).await;
    let created = job(&web, &id).await["enqueued_at"].as_u64().unwrap() / 1000;
    for chunk in &chunks {
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&json!(format!("chatcmpl-{id}")), &json!(created))
        );
        assert_eq!(chunk["object"], "chat.completion.chunk");
    }
    assert_eq!(said(&chunks, 0), expected("m", "whole?"));
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &completion["usage"]));
    assert!(before.iter().all(|chunk| chunk["usage"] == Value::Null));
    assert_eq!(before.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!(before[0]["choices"][0]["delta"]["role"], "assistant");
}

/// The job showed the text alone, where its stream had begun with a list of what the model thinks.
#[tokio::test]
async fn a_job_shows_the_list_of_parts_that_its_stream_has() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let asked = tokio::spawn(Sse::open(web.posted(PATH, &streamed("chunks"))));
    let mut hand = Hand::begin(&broker).await;
    let think = json!({"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]});
    hand.piece(json!({"delta": {"content": [think]}})).await;
    hand.say("Be").await;
    hand.say("cause").await;
    hand.done().await;
    let stream = asked.await.unwrap();
    let id = stream.headers["x-millstream-job"].to_str().unwrap().to_owned();
    let chunks = chunks(stream).await;
    assert_eq!(chunks[0]["choices"][0]["delta"]["content"], json!([think]));
    assert_eq!(said(&chunks, 0), "Because");
    let shown = job(&web, &id).await;
    let text = json!({"type": "text", "text": "Because"});
    assert_eq!(shown["choices"][0]["message"]["content"], json!([think, text]));
    assert_eq!(shown["text"], "Because");
}

/// A stream named the model that was asked for, the whole answer the one that answered.
#[tokio::test]
async fn a_stream_and_a_whole_answer_name_the_same_model() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let _working = working(&broker, &web, instant(), tries(1)).await;
    let mut request = chat("alias");
    request["model"] = "m?alias=1".into();
    assert_eq!(web.post(PATH, &request).await.json()["model"], "m-0");
    request["stream"] = true.into();
    let chunks = chunks(stream(&web, &request).await).await;
    assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk["model"] == "m-0"), "{chunks:?}");
}

#[tokio::test]
async fn choices_tools_and_what_is_unknown_pass_through() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let _working = working(&broker, &web, instant(), tries(1)).await;
    let mut request = chat("many");
    request["n"] = 3.into();
    let texts = oracle(&[request.to_string()], &[]);
    let whole = web.post(PATH, &request).await.json();
    request["stream"] = true.into();
    let chunks_of_it = chunks(stream(&web, &request).await).await;
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_eq!(choices[0]["message"]["content"], texts[0]);
    for (index, choice) in (0..).zip(choices) {
        assert_eq!(choice["message"]["content"], said(&chunks_of_it, index), "choice {index}");
        assert!(index == 0 || choice["message"] != choices[0]["message"]);
    }

    let mut request = chat("call");
    request["tools"] =
        json!([{"type": "function", "function": {"name": "look", "parameters": {}}}]);
    let whole = web.post(PATH, &request).await.json();
    let (choice, call) = (&whole["choices"][0], &whole["choices"][0]["message"]["tool_calls"][0]);
    assert_eq!(
        (&choice["finish_reason"], &call["function"]["name"]),
        (&json!("tool_calls"), &json!("look"))
    );
    request["stream"] = true.into();
    let calls: Vec<Value> = chunks(stream(&web, &request).await)
        .await
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"][0].as_object().cloned())
        .map(Value::from)
        .collect();
    let arguments: String =
        calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!((&calls[0]["id"], &json!(arguments)), (&call["id"], &call["function"]["arguments"]));

    // Log probabilities, and a field that nobody knows.
    let broker = embedded();
    let web = Web::start(&broker, options());
    let asked = tokio::spawn(Reply::of(web.posted(PATH, &chat("odds"))));
    let mut hand = Hand::begin(&broker).await;
    let token = json!({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []});
    let logprobs = json!({"content": [token], "refusal": null});
    hand.piece(json!({"delta": {"content": "a", "mood": "calm"}, "logprobs": logprobs})).await;
    hand.done().await;
    let choice = asked.await.unwrap().json()["choices"][0].clone();
    assert_eq!((&choice["logprobs"], &choice["message"]["mood"]), (&logprobs, &json!("calm")));
}

#[tokio::test]
async fn a_job_that_failed_is_answered_with_its_status() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let total_timeout = Duration::from_secs(2);
    let hurried = worker::Options { total_timeout, ..tries(1) };
    let _working = working(&broker, &web, instant(), hurried).await;
    for (fault, status, code) in [
        ("status:400", 400, "invalid_request"),
        ("status:404", 404, "not_found"),
        ("status:422", 422, "invalid_request"),
        ("status:401", 502, "upstream_auth"),
        ("status:429:retry-after:3", 429, "rate_limited"),
        ("status:500", 502, "upstream_error"),
        ("status:503", 502, "upstream_error"),
        ("drop:0", 502, "upstream_connection"),
        ("truncate:0", 502, "truncated"),
        ("error:0", 502, "upstream_error"),
        ("silence:0", 504, "timeout"),
    ] {
        for stream in [false, true] {
            let mut request = chat(&format!("{fault} {stream}"));
            request["model"] = format!("m?fault={fault}").into();
            request["stream"] = stream.into();
            let reply = web.post(PATH, &request).await;
            if !stream && matches!(fault, "truncate:0" | "error:0" | "drop:0") {
                // What is broken off in one body has other names.
                assert!(reply.status == 502, "{fault}: {}", reply.text);
                continue;
            }
            reply.refused(status, code);
            let retry = if status == 429 { ("true", "3") } else { ("false", "") };
            assert_eq!((reply.header("x-should-retry"), reply.header("retry-after")), retry);
            let job = job(&web, reply.header("x-millstream-job")).await;
            // The endpoint's own word for it stands beside the class.
            let (class, own) = match code {
                "not_found" => ("invalid_request", json!("not_found")),
                code => (code, Value::Null),
            };
            assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!(class)));
            assert_eq!(job["error"]["reason"], own);
        }
    }
}

/// A client's bad requests became dead letters, which nobody could use and which pushed out real ones.
#[tokio::test]
async fn a_request_that_was_answered_with_its_error_leaves_no_letter() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let _working = working(&broker, &web, instant(), tries(2)).await;
    let partition = Partition::first(QueueName::default());
    let mut letters = 0;
    for (fault, key, kept) in [
        ("status:400", None, 0),
        ("status:503", None, 0),
        ("status:400", Some("a"), 0),
        // Its client may come back for what an operator puts back.
        ("status:503", Some("b"), 1),
    ] {
        for stream in [false, true] {
            let mut request = chat(&format!("{fault} {key:?} {stream}"));
            request["model"] = format!("m?fault={fault}").into();
            request["stream"] = stream.into();
            let mut ask = web.posted(PATH, &request);
            if let Some(key) = key {
                ask = ask.header("idempotency-key", format!("{key} {stream}"));
            }
            let reply = Reply::of(ask).await;
            assert!(reply.status.is_client_error() || reply.status.is_server_error());
            let shown = job(&web, reply.header("x-millstream-job")).await;
            assert_eq!((&shown["state"], shown["error"].is_object()), (&json!("failed"), true));
            letters += kept;
            let settled = Depth { dead: letters, ..Depth::default() };
            soon(async {
                while broker.depth(&partition).await.unwrap() != settled {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_failure_behind_the_first_token_is_an_error_object() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let _working = working(&broker, &web, instant(), tries(1)).await;
    let mut request = streamed("late");
    request["model"] = "m?fault=error:5".into();
    let stream = stream(&web, &request).await;
    let job_id = stream.headers["x-millstream-job"].to_str().unwrap().to_owned();
    let blocks = stream.rest().await;
    let (last, before) = blocks.split_last().unwrap();
    let error = &last.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("upstream_error"), &json!("server_error"))
    );
    assert!(error["message"].is_string() && error.get("param").is_some());
    let text: String = before.iter().map(Block::says).collect();
    assert_eq!(text.split(' ').filter(|word| !word.is_empty()).count(), 5, "{text}");
    assert!(blocks.iter().all(|block| block.data != "[DONE]"));
    assert_eq!(job(&web, &job_id).await["state"], "failed");
    web.until_metric("streams_open", 0.0).await;
}

#[tokio::test]
async fn a_lost_worker_goes_unnoticed_where_nothing_was_shown() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let whole = tokio::spawn(Reply::of(web.posted(PATH, &chat("whole"))));
    let mut hand = Hand::begin(&broker).await;
    hand.say("thrown away").await;
    hand.lose().await;
    hand.say("kept").await;
    hand.done().await;
    assert_eq!(whole.await.unwrap().json()["choices"][0]["message"]["content"], "kept");
    let asked = tokio::spawn(Sse::open(web.posted(PATH, &streamed("chunks"))));
    let mut hand = Hand::begin(&broker).await;
    hand.lose().await;
    hand.say("kept").await;
    hand.done().await;
    let chunks = chunks(asked.await.unwrap()).await;
    assert_eq!(said(&chunks, 0), "kept");
    assert_eq!(web.metric("streams_diverged_total").await, 0.0);
}

#[tokio::test]
async fn a_new_attempt_that_says_the_same_goes_on_where_the_old_one_was() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let asked = tokio::spawn(Sse::open(web.posted(PATH, &streamed("chunks"))));
    let mut hand = Hand::begin(&broker).await;
    hand.say("one ").await;
    hand.say("two ").await;
    let mut stream = asked.await.unwrap();
    assert_eq!(
        (stream.block().await.says(), stream.block().await.says()),
        ("one ".into(), "two ".into())
    );
    hand.lose().await;
    // Cut otherwise, and the same.
    hand.say("one t").await;
    hand.say("wo three").await;
    hand.done().await;
    assert_eq!(said(&chunks(stream).await, 0), "three");

    // The same of a real model, whose connection breaks.
    let _working = working(&broker, &web, instant(), tries(3)).await;
    let mut request = streamed("again");
    request["model"] = "m?fault=drop:20*2".into();
    let stream = self::stream(&web, &request).await;
    let id = stream.headers["x-millstream-job"].to_str().unwrap().to_owned();
    assert_eq!(said(&chunks(stream).await, 0), expected("m", "again"));
    assert_eq!(job(&web, &id).await["attempt"], 3);
    assert_eq!(web.metric("streams_diverged_total").await, 0.0);
}

#[tokio::test]
async fn a_new_attempt_that_says_something_else_ends_the_stream_and_not_the_job() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let vary = simulator::Options { vary: true, ..instant() };
    let _working = working(&broker, &web, vary, tries(3)).await;
    let mut request = streamed("vary");
    request["model"] = "m?fault=drop:20*1,rate=200".into();
    let stream = stream(&web, &request).await;
    let id = stream.headers["x-millstream-job"].to_str().unwrap().to_owned();
    let blocks = stream.rest().await;
    let (last, before) = blocks.split_last().unwrap();
    let error = &last.json()["error"];
    assert_eq!(error["code"], "answer_differs");
    assert!(error["message"].as_str().unwrap().contains(&format!("/v1/jobs/{id}")), "{error}");
    let shown: String = before.iter().map(Block::says).collect();
    assert_eq!(web.metric("streams_diverged_total").await, 1.0);
    until_state(&web, &id, "done").await;
    let job = job(&web, &id).await;
    let text = job["text"].as_str().unwrap();
    assert_eq!((text.split(' ').count(), text.starts_with(&shown)), (64, false), "{job}");
}

/// A client that sees nothing for longer than a heartbeat hears that its request lives.
#[tokio::test]
async fn a_late_first_token_is_waited_for_with_comments() {
    let broker = embedded();
    let heartbeat = Duration::from_millis(100);
    let web = Web::start(&broker, Options { heartbeat, ..options() });
    let mut stream = stream(&web, &streamed("slow")).await;
    for _ in 0..3 {
        let block = stream.any().await.unwrap();
        assert!(!block.comment.is_empty() && block.event.is_empty(), "{block:?}");
    }
    let mut hand = Hand::begin(&broker).await;
    hand.fail(Failure::new(Code::InvalidRequest, "too hard")).await;
    // The status has gone: the error is in the stream.
    let error = stream.block().await.json();
    assert_eq!(error["error"]["message"], "too hard");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn what_is_no_chat_request_is_refused_by_its_field() {
    let web = Web::start(&embedded(), options());
    let message = json!([{"role": "user", "content": "a"}]);
    for (body, code, param) in [
        (json!({"messages": message}), "invalid_request", json!("model")),
        (json!({"model": "", "messages": message}), "invalid_request", json!("model")),
        (json!({"model": 7, "messages": message}), "invalid_request", json!("model")),
        (json!({"model": "m"}), "invalid_request", json!("messages")),
        (json!({"model": "m", "messages": []}), "invalid_request", json!("messages")),
        (
            json!({"model": "m", "messages": message, "stream": "yes"}),
            "invalid_parameter",
            json!("stream"),
        ),
        (json!([1]), "invalid_json", json!(null)),
    ] {
        let reply = web.post(PATH, &body).await;
        reply.refused(400, code);
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
    }
    for body in ["", "{", "{\"model\":\"m\",}"] {
        let request = web.posted(PATH, &json!(null)).body(body);
        Reply::of(request).await.refused(400, "invalid_json");
    }
    assert_eq!(web.metric("streams_open").await, 0.0);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_job_unless_it_may_come_back() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    // One that has seen something, one that still waits, and one that has a key.
    let asked = tokio::spawn(Sse::open(web.posted(PATH, &streamed("seen"))));
    let mut seen = Hand::begin(&broker).await;
    seen.say("a").await;
    let mut stream = asked.await.unwrap();
    assert_eq!(stream.block().await.says(), "a");
    let keyed = |body: &Value| web.posted(PATH, body).header("idempotency-key", "k");
    let held = tokio::spawn(Reply::of(keyed(&chat("keyed"))));
    let mut keyed_hand = Hand::begin(&broker).await;
    let waits = tokio::spawn(Reply::of(web.posted(PATH, &chat("waits"))));
    web.until_metric("streams_open", 3.0).await;
    let listed = web.get("/v1/jobs?state=waiting").await.json();
    let waiting = listed["data"][0]["id"].as_str().unwrap().to_owned();
    held.abort();
    web.until_metric("streams_open", 2.0).await;
    drop(stream);
    waits.abort();
    until_state(&web, &waiting, "cancelled").await;
    let id = seen.attempt.job.to_string();
    soon(async {
        while job(&web, &id).await["cancelling"] != true {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    web.until_metric("streams_open", 0.0).await;
    // What has a key goes on, and whoever comes back with it gets the answer.
    keyed_hand.say("still").await;
    keyed_hand.done().await;
    let back = Reply::of(keyed(&chat("keyed"))).await;
    assert_eq!(back.json()["choices"][0]["message"]["content"], "still");
    assert_eq!(back.header("x-millstream-job"), keyed_hand.attempt.job.to_string());
    Reply::of(keyed(&chat("other"))).await.refused(409, "idempotency_conflict");
}

#[tokio::test]
async fn where_it_is_configured_a_job_goes_on_without_its_client() {
    let broker = embedded();
    let on_disconnect = OnDisconnect::Continue;
    let web = Web::start(&broker, Options { on_disconnect, ..options() });
    let asked = tokio::spawn(Sse::open(web.posted(PATH, &streamed("a"))));
    let mut hand = Hand::begin(&broker).await;
    hand.say("a").await;
    drop(asked.await.unwrap());
    web.until_metric("streams_open", 0.0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    hand.say("b").await;
    hand.done().await;
    let job = job(&web, &hand.attempt.job.to_string()).await;
    assert_eq!((&job["state"], &job["text"]), (&json!("done"), &json!("ab")));
}

/// The client leaves while its job is on the way to a server that says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_client_left_before_it_arrived_is_cancelled() {
    let stack = Stack::start(instant()).await;
    let web = Web::start(&stack.broker, options());
    let page = web.get("/v1/jobs").await.json();
    assert_eq!(page["data"], json!([]));
    stack.server.command(&["CLIENT", "PAUSE", "700", "WRITE"]);
    let asked = tokio::spawn(Reply::of(web.posted(PATH, &chat("gone"))));
    web.until_metric("streams_open", 1.0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    asked.abort();
    web.until_metric("streams_open", 0.0).await;
    let elsewhere = connect(&stack.server.url()).await;
    soon(async {
        loop {
            // Best effort: the list may not name it, the entry does.
            let keys = stack.server.command(&["KEYS", "ms:{job:*}"]);
            let job = keys.lines().next().map(|key| key[8..key.len() - 1].to_owned());
            if let Some(job) = job {
                let record = elsewhere.job(job.parse::<JobId>().unwrap()).await.unwrap().unwrap();
                if record.state.to_string() == "cancelled" {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_repeats_another_within_the_window_gets_its_answer() {
    let broker = embedded();
    let dedupe = Duration::from_secs(2);
    let web = Web::start(&broker, Options { dedupe, ..options() });
    let _working = working(&broker, &web, instant(), tries(1)).await;
    let ask = async |request: &Value| {
        let reply = web.post(PATH, request).await;
        (reply.header("x-millstream-job").to_owned(), reply.status.as_u16())
    };
    let began = Instant::now();
    let question = chat("a");
    let same = join_all((0..4).map(|_| ask(&question))).await;
    let (first, _) = same[0].clone();
    assert!(same.iter().all(|(job, status)| (job, *status) == (&first, 200)), "{same:?}");
    assert_ne!(ask(&chat("b")).await.0, first);
    // A failure is one as well: the client's own retries made the queue try again what it had tried. A limit is
    // one for as long as it lasts.
    let failing = |fault: &str| json!({"model": format!("m?fault={fault}"), "messages": chat(fault)["messages"]});
    for (fault, status) in [("status:400*1", 400), ("status:500*1", 502), ("status:429*1", 429)] {
        let failed = ask(&failing(fault)).await;
        assert_eq!(failed.1, status);
        assert_eq!(ask(&failing(fault)).await, failed);
    }
    let patient = Web::start(&broker, Options { dedupe: Duration::from_secs(600), ..options() });
    let (mut limited, mut jobs) = (429, std::collections::BTreeSet::new());
    while limited == 429 {
        let reply = patient.post(PATH, &failing("status:429*1,tokens=3")).await;
        jobs.insert(reply.header("x-millstream-job").to_owned());
        limited = reply.status.as_u16();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert_eq!((limited, jobs.len()), (200, 2));
    let mut last = first.clone();
    while last == first {
        tokio::time::sleep(Duration::from_millis(50)).await;
        last = ask(&question).await.0;
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert!(began.elapsed() >= Duration::from_millis(1990), "{:?}", began.elapsed());
    // Without a window every request is its own.
    let web = Web::start(&broker, options());
    let [one, two] = [web.post(PATH, &chat("a")).await, web.post(PATH, &chat("a")).await];
    assert_ne!(one.header("x-millstream-job"), two.header("x-millstream-job"));
}
