//! A queue that nobody serves: whoever waits for it hears that. Guards against requests that hang without a
//! word, behind a gateway that calls itself ready.

use std::time::{Duration, Instant};

use millstream::{gateway::Limits, worker};

use serde_json::json;

use crate::support::{
    stack::{Stack, instant},
    subject::soon,
    web::{Hand, Reply, Sse, Web, chat, embedded, options, streamed},
};

const HEADER: &str = "x-millstream-warning";
const WORDS: &str = "no live worker serves queue `default`";

#[tokio::test]
async fn a_stream_that_nobody_serves_says_so_at_once_and_again() {
    let broker = embedded();
    let heartbeat = Duration::from_millis(300);
    let web = Web::start(&broker, millstream::gateway::Options { heartbeat, ..options() });
    let began = Instant::now();
    let mut stream = Sse::open(web.posted("/v1/chat/completions", &streamed("a"))).await;
    assert!(began.elapsed() < heartbeat, "{:?}", began.elapsed());
    assert!(stream.headers[HEADER].to_str().unwrap().contains(WORDS));
    for _ in 0..3 {
        let said = soon(async {
            loop {
                let block = stream.any().await.unwrap();
                if block.comment != "ping" {
                    break block;
                }
            }
        });
        assert!(said.await.comment.contains(WORDS));
    }
    let mut hand = Hand::begin(&broker).await;
    hand.say("at last").await;
    assert_eq!(stream.block().await.says(), "at last");
}

#[tokio::test]
async fn a_job_that_nobody_serves_is_taken_with_a_warning() {
    let broker = embedded();
    let limits = Limits { answer_timeout: Duration::from_millis(100), ..Limits::default() };
    let web = Web::start(&broker, millstream::gateway::Options { limits, ..options() });
    let taken = web.post("/v1/jobs", &chat("a")).await;
    assert_eq!(taken.status, 202);
    assert!(taken.header(HEADER).contains(WORDS), "{:?}", taken.headers);
    let id = taken.json()["id"].as_str().unwrap().to_owned();
    let mut events = web.events(&id, "").await;
    assert!(events.any().await.unwrap().comment.contains(WORDS));
    // An answer that does not stream has no other place for it.
    let late = web.post("/v1/chat/completions", &chat("b")).await;
    assert!(late.header(HEADER).contains(WORDS));
    assert!(late.refused(504, "answer_timeout").contains(WORDS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_names_a_queue_without_workers_and_only_that() {
    let stack = Stack::start(instant()).await;
    let web = Web::start(&stack.broker, options());
    let ready = web.get("/readyz").await;
    assert_eq!(ready.status, 200, "jobs are taken, and wait");
    assert!(ready.json()["warning"].as_str().unwrap().contains(WORDS), "{}", ready.text);
    let (_stop, _worker) = stack.worker(worker::Options::default());
    soon(async {
        while web.get("/readyz").await.json().get("warning").is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let served = Reply::of(web.posted("/v1/chat/completions", &chat("m"))).await;
    assert!(served.status == 200 && served.headers.get(HEADER).is_none(), "{:?}", served.headers);
    let mut stream = Sse::open(web.posted("/v1/chat/completions", &streamed("m"))).await;
    assert_eq!(stream.any().await.unwrap().comment, "");
}

/// Guards against an array of jobs that is taken without a word about the queues that nobody serves.
#[tokio::test]
async fn an_array_of_jobs_that_nobody_serves_is_taken_with_a_warning() {
    let queues = ["batch", "unused"].map(|name| name.parse().unwrap()).to_vec();
    let web = Web::start(&embedded(), millstream::gateway::Options { queues, ..options() });
    let elsewhere = json!({"request": chat("b"), "queue": "batch"});
    let taken = web.post("/v1/jobs", &json!([chat("a"), elsewhere, chat("c"), {}])).await;
    assert_eq!((taken.status.as_u16(), &taken.json()["accepted"]), (200, &json!(3)));
    let warning = taken.header(HEADER);
    assert_eq!(warning.matches(WORDS).count(), 1, "{warning}");
    assert!(warning.contains("queue `batch`") && !warning.contains("unused"), "{warning}");
    let refused = web.post("/v1/jobs", &json!([{}])).await;
    assert_eq!((&refused.json()["accepted"], refused.header(HEADER)), (&json!(0), ""));
}
