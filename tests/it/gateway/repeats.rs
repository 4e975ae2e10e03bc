//! What comes again: a request under its key, a job that is put back, a refusal.

use std::time::Duration;

use millstream::{
    admin::{Admin, Requeued},
    broker::redis::{Options as RedisOptions, Redis},
    broker::{Limits, Partition, Shared},
    error::{Code, Failure},
    gateway::{Options, Right},
    job::{ChatRequest, Tenant, Timestamp},
    retry::Schedule,
    worker,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::access::Keys;
use crate::support::{
    redis::Server,
    stack::{Stack, connect, instant},
    subject::soon,
    web::{Block, Hand, Reply, Sse, Web, chat, embedded, options, streamed},
};

const PATH: &str = "/v1/chat/completions";

fn keyed(web: &Web, request: &Value) -> reqwest::RequestBuilder {
    web.posted(PATH, request).header("idempotency-key", "once")
}

/// A client that asks again has been shown nothing of what a dead attempt said.
#[tokio::test]
async fn a_repeated_stream_begins_with_the_present_attempt() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let first = tokio::spawn(Sse::open(keyed(&web, &streamed("again"))));
    let mut hand = Hand::begin(&broker).await;
    hand.say("one ").await;
    let mut first = first.await.unwrap();
    assert_eq!(first.block().await.says(), "one ");
    drop(first);
    hand.lose().await;
    hand.say("uno ").await;
    let mut second = Sse::open(keyed(&web, &streamed("again"))).await;
    assert_eq!(second.block().await.says(), "uno ");
    hand.say("dos").await;
    hand.done().await;
    let rest = second.rest().await;
    let text: String = rest[..rest.len() - 1].iter().map(Block::says).collect();
    assert_eq!((text.as_str(), rest.last().unwrap().data.as_str()), ("dos", "[DONE]"));
}

/// Whoever knew a request could take the place of its repetitions beforehand, by an idempotency key of the form that
/// the gateway gave them; and another key of the same name went on with the answers of the one before.
#[tokio::test]
async fn no_client_takes_the_place_of_another_keys_repetitions() {
    let mut keys = Keys::new();
    let web_key = keys.add("web", "t", &Right::ALL, None);
    let other = keys.add("other", "t", &Right::ALL, None);
    let broker = embedded();
    let dedupe = Duration::from_secs(600);
    let web = Web::start(
        &broker,
        Options { dedupe, heartbeat: Duration::from_millis(100), ..keys.options() },
    );
    let request = streamed("again");
    let print = serde_json::from_value::<ChatRequest>(request.clone()).unwrap().fingerprint();
    let ask = async |key: &str, idempotency_key: Option<&str>| {
        let mut asked = web.posted(PATH, &request).bearer_auth(key);
        if let Some(key) = idempotency_key {
            asked = asked.header("idempotency-key", key);
        }
        let reply = asked.send().await.unwrap();
        reply.headers()["x-millstream-job"].to_str().unwrap().to_owned()
    };
    let number = Timestamp::now().0 / 600_000;
    let mut forged = Vec::new();
    for number in [number, number + 1] {
        forged.push(ask(&other, Some(&format!("same:web:{number}:0:{print}"))).await);
    }
    let own = ask(&web_key, None).await;
    assert!(!forged.contains(&own));
    assert_eq!(ask(&web_key, None).await, own);
    assert_ne!(ask(&other, None).await, own);
    // The same name is not the same key.
    let mut anew = Keys::new();
    let successor = anew.add("web", "t", &Right::ALL, None);
    keys.write(&anew.text);
    soon(async {
        let whoami = || web.ask(Method::GET, "/whoami").bearer_auth(&successor);
        while Reply::of(whoami()).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_ne!(ask(&successor, None).await, own);
}

/// The failure of a run that was put back is no answer any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_requeue_a_key_gets_the_new_runs_answer() {
    let stack = Stack::start(instant()).await;
    let retry = Schedule { max_attempts: 1, ..Schedule::default() };
    let (_stop, _worker) = stack.worker(worker::Options { retry, ..worker::Options::default() });
    let web = Web::start(&stack.broker, options());
    for stream in [false, true] {
        let question = if stream { "streamed" } else { "whole" };
        let mut request = chat(question);
        request["model"] = "m?fault=status:503*1".into();
        request["stream"] = stream.into();
        let again = || web.posted(PATH, &request).header("idempotency-key", question);
        Reply::of(again()).await.refused(502, "upstream_error");
        let elsewhere = connect(&stack.server.url()).await;
        let letter = soon(async {
            loop {
                if let Some(letter) =
                    elsewhere.dead_letters(&stack.partition, None, 1).await.unwrap().pop()
                {
                    break letter;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let requeued = Admin::new(elsewhere).requeue(&stack.partition, &letter).await.unwrap();
        assert!(matches!(requeued, Requeued::Requeued { .. }), "{requeued:?}");
        // While it waits or runs, and once it is done.
        for _ in 0..2 {
            let reply = Reply::of(again()).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            assert!(reply.text.contains("stop") && !reply.text.contains("error"), "{}", reply.text);
        }
    }
}

async fn bounded(server: &Server, limits: Limits) -> Shared {
    let options = RedisOptions { url: server.url(), limits, ..RedisOptions::default() };
    let redis = Redis::connect(options).await.unwrap();
    redis.ensure_schema(&[Partition::first(Default::default())]).await.unwrap();
    std::sync::Arc::new(redis)
}

/// Clients that are refused try again: what they sent must not drive real jobs from the list.
#[tokio::test]
async fn a_refused_job_is_not_among_its_tenants() {
    let server = Server::start().await;
    let broker = bounded(&server, Limits { max_jobs: 1, ..Limits::default() }).await;
    let web = Web::start(&broker, options());
    let id = web.enqueue("first").await;
    for _ in 0..3 {
        let full = web.post("/v1/jobs", &chat("more")).await;
        full.refused(429, "queue_full");
        let wait = full.header("retry-after").parse::<u32>().unwrap();
        assert!(wait >= 1);
        assert_eq!(full.json()["error"]["retry_after"], wait);
        let several = web.post("/v1/jobs", &json!([chat("more")])).await.json();
        assert_eq!(several["data"][0]["error"]["retry_after"], wait, "{several}");
    }
    let recent = broker.recent(&Tenant::default(), None, 10).await.unwrap();
    assert_eq!(recent, millstream::broker::Recent::Jobs(vec![id.parse().unwrap()]));
}

/// A server that is out of memory refuses writes, and still reads.
#[tokio::test]
async fn a_broker_that_refuses_a_command_serves_the_others() {
    let server = Server::start().await;
    let web = Web::start(&bounded(&server, Limits::default()).await, options());
    let id = web.enqueue("first").await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..5 {
        let refused = web.post("/v1/jobs", &chat("more")).await;
        // What it has refused for that, it has not done.
        assert!(refused.refused(503, "broker_out_of_memory").contains("nothing was added"));
        let job = web.get(&format!("/v1/jobs/{id}")).await;
        assert_eq!((job.status.as_u16(), &job.json()["state"]), (200, &json!("waiting")));
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    web.enqueue("second").await;
}

/// Guards against a failure that is still the answer after the operator has mended what it came from.
#[tokio::test]
async fn a_failure_that_an_operator_mends_is_asked_again_after_a_minute() {
    let server = Server::start().await;
    let broker = connect(&server.url()).await;
    let dedupe = Duration::from_secs(3600);
    let web = Web::start(&broker, Options { dedupe, ..options() });
    for code in [Code::UpstreamAuth, Code::Expired, Code::UpstreamError] {
        let question = chat(&format!("{code:?}"));
        let first = tokio::spawn(Reply::of(web.posted(PATH, &question)));
        let mut hand = Hand::begin(&broker).await;
        hand.fail(Failure::new(code, "not now")).await;
        let first = first.await.unwrap();
        let job = first.header("x-millstream-job");
        assert!(first.status.is_server_error(), "{}", first.text);
        assert_eq!(web.post(PATH, &question).await.header("x-millstream-job"), job);
        let record = format!("ms:{{job:{job}}}");
        let minute_ago = Timestamp::now().0 - 60_001;
        assert_eq!(server.command(&["HSET", &record, "ended", &minute_ago.to_string()]), "0");
        let again = tokio::spawn(Reply::of(web.posted(PATH, &question)));
        let mut hand = Hand::begin(&broker).await;
        hand.done().await;
        let again = again.await.unwrap();
        assert_eq!(again.status, 200, "{}", again.text);
        assert_ne!(again.header("x-millstream-job"), job);
    }
}
