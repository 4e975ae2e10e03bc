//! Cached answers: kept for their time, forgotten with what they say.

use std::time::Duration;

use futures_util::future::join_all;
use millstream::{
    admin::{Admin, Requeued},
    gateway::Options,
    worker,
};
use reqwest::Method;
use serde_json::json;

use crate::support::{
    stack::{Stack, connect, instant},
    subject::soon,
    web::{Hand, Reply, Web, embedded, options},
};

/// Hits and misses so far.
async fn counted(web: &Web) -> (f64, f64) {
    (web.metric("cache_hits_total").await, web.metric("cache_misses_total").await)
}

#[tokio::test]
async fn hot_answers_are_kept_and_told_apart_by_their_etag() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("whole").await;
    hand.done().await;
    let job = format!("/v1/jobs/{id}");
    let routes = [
        ("/healthz", "public, max-age=60"),
        ("/whoami", "private, max-age=30"),
        ("/v1/models", "private, max-age=60"),
        (&job, "private, no-cache"),
    ];
    for (path, control) in routes {
        let (hits, misses) = counted(&web).await;
        let first = web.get(path).await;
        assert_eq!(
            (first.status.as_u16(), first.header("cache-control")),
            (200, control),
            "{path}"
        );
        let etag = first.header("etag");
        assert!(etag.starts_with('"') && etag.len() > 8, "{etag}");
        let second = web.get(path).await;
        assert_eq!((&second.text, second.header("etag")), (&first.text, etag));
        assert_eq!(second.header("vary"), "authorization, cookie, x-api-key", "{path}");
        for tags in [etag.to_owned(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()]
        {
            let same = Reply::of(web.ask(Method::GET, path).header("if-none-match", tags)).await;
            assert_eq!((same.status.as_u16(), &*same.text), (304, ""), "{path}");
            assert_eq!((same.header("etag"), same.header("cache-control")), (etag, control));
        }
        let other = Reply::of(web.ask(Method::GET, path).header("if-none-match", "\"x\"")).await;
        assert_eq!((other.status.as_u16(), &other.text), (200, &first.text));
        let head = Reply::of(web.ask(Method::HEAD, path)).await;
        assert_eq!((head.status.as_u16(), &*head.text, head.header("etag")), (200, "", etag));
        assert_eq!(head.header("content-length"), first.text.len().to_string());
        assert_eq!(counted(&web).await, (hits + 7.0, misses + 1.0), "{path}");
    }
    assert!(web.metric("cache_saved_seconds_total").await > 0.0);
    assert_eq!(web.get("/readyz").await.header("cache-control"), "no-store");
}

#[tokio::test]
async fn without_room_nothing_is_kept() {
    let web = Web::start(&embedded(), Options { cache_bytes: 0, ..options() });
    for _ in 0..3 {
        assert_eq!(web.get("/healthz").await.status, 200);
    }
    assert_eq!(counted(&web).await, (0.0, 3.0));
}

#[tokio::test]
async fn a_running_job_is_never_cached() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let path = format!("/v1/jobs/{}", web.enqueue("a").await);
    let text = async || web.get(&path).await.json()["text"].clone();
    assert_eq!(text().await, "");
    let mut hand = Hand::begin(&broker).await;
    let mut whole = String::new();
    for word in ["a", "b", "c"] {
        hand.say(word).await;
        whole.push_str(word);
        assert_eq!(text().await, whole);
    }
    assert_eq!(counted(&web).await.0, 0.0);
    // What a client has of it is known by its ETag all the same.
    let etag = web.get(&path).await.header("etag").to_owned();
    let same = Reply::of(web.ask(Method::GET, &path).header("if-none-match", &etag)).await;
    assert_eq!((same.status.as_u16(), same.header("cache-control")), (304, "no-store"));
    hand.done().await;
    assert_eq!(web.get(&path).await.json()["state"], "done");
    assert_eq!(counted(&web).await.0, 0.0);
}

/// A job that was done for is put back by another process: the cached answer is the old run's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requeue_elsewhere_makes_the_cached_answer_stale() {
    let stack = Stack::start(instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let web = Web::start(&stack.broker, options());
    let body =
        json!({"model": "m?fault=status:400*1", "messages": [{"role": "user", "content": "a"}]});
    let id = web.post("/v1/jobs", &body).await.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/jobs/{id}");
    web.events(&id, "").await.rest().await;
    let state = async || web.get(&path).await.json()["state"].as_str().unwrap().to_owned();
    assert_eq!(state().await, "failed");
    let hits = counted(&web).await.0;
    assert_eq!(state().await, "failed");
    assert_eq!(counted(&web).await.0, hits + 1.0);
    let elsewhere = connect(&stack.server.url()).await;
    let letters = soon(async {
        loop {
            let letters = elsewhere.dead_letters(&stack.partition, None, 1).await.unwrap();
            if !letters.is_empty() {
                break letters;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let requeued = Admin::new(elsewhere).requeue(&stack.partition, &letters[0]).await.unwrap();
    assert!(matches!(requeued, Requeued::Requeued { .. }), "{requeued:?}");
    web.events(&id, "").await.rest().await;
    let shown = web.get(&path).await.json();
    assert_eq!((&shown["state"], &shown["run"]), (&json!("done"), &json!(2)));
}

/// What may have been missed while the connection was away is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_not_kept_across_a_lost_connection() {
    let stack = Stack::start(instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let web = Web::start(&stack.broker, options());
    let id = web.enqueue("a").await;
    let path = format!("/v1/jobs/{id}");
    web.events(&id, "").await.rest().await;
    web.get(&path).await;
    let (hits, misses) = counted(&web).await;
    web.get(&path).await;
    assert_eq!(counted(&web).await, (hits + 1.0, misses));
    stack.server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    soon(async {
        while counted(&web).await == (hits + 1.0, misses) || counted(&web).await.1 == misses {
            assert_eq!(web.get(&path).await.json()["state"], "done");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_ask_at_once_wait_for_one_reading() {
    let stack = Stack::start(instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let web = Web::start(&stack.broker, options());
    let id = web.enqueue("a").await;
    web.events(&id, "").await.rest().await;
    // All connections are there before they ask.
    let path = format!("/v1/jobs/{id}");
    join_all((0..32).map(|_| web.get("/healthz"))).await;
    stack.server.command(&["CLIENT", "PAUSE", "300"]);
    let asked = join_all((0..32).map(|_| web.get(&path))).await;
    assert!(asked.iter().all(|reply| reply.text == asked[0].text && reply.status == 200));
    let reads = stack.command_counts()["xrange"];
    // One for the stream, one for what all of them got.
    assert!(reads <= 3, "{reads} readings for 32 requests");
}

/// What a page of the console may do, whatever an answer says: run its own scripts, and ask its own gateway.
#[tokio::test]
async fn the_console_lets_nothing_of_others_in() {
    let web = Web::start(&embedded(), options());
    for path in ["/", "/console/console.js", "/console/console.css"] {
        let file = web.get(path).await;
        assert_eq!(file.status, 200, "{path}");
        let policy = file.header("content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.split("; ").any(|part| part == rule), "{path}: {rule} in {policy}");
        }
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        assert_eq!(file.header("referrer-policy"), "no-referrer");
    }
}
