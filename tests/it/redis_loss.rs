//! Redis goes away and comes back, with what it had or without.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use millstream::{
    broker::redis::{Options, Redis},
    event::{Body, Event},
    job::{ChatRequest, Job},
    worker,
};

use crate::support::{
    dying::{Fate, Plan, Side},
    stack::{Stack, connect, expected, instant, paced},
    subject::{DEADLINE, soon},
    victim::Victim,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claiming_resumes_after_a_restart_that_forgot_everything() {
    let mut stack = Stack::start(instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m", "before").await;
    stack.listener().listen(id).answer().await.unwrap();
    stack.server.restart().await;
    // Neither lanes nor groups nor scripts are there any more.
    stack.broker = connect(&stack.server.url()).await;
    let id = stack.ask("m", "after").await;
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m", "after"));
}

/// Guards against a worker that cannot stop while Redis takes its calls and answers none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stops_while_redis_hangs() {
    let stack = Stack::start(paced(10.0)).await;
    let redis = Redis::connect(Options {
        url: stack.server.url(),
        response_timeout: Duration::from_mins(5),
        ..Options::default()
    });
    let options = worker::Options {
        lease: Duration::from_millis(900),
        renewal: Duration::from_millis(300),
        sweep: Duration::from_millis(50),
        drain: Duration::from_millis(100),
        ..worker::Options::default()
    };
    let (stop, worker) = stack.worker_on(Arc::new(redis.await.unwrap()), options);
    let id = stack.ask("m?tokens=4000", "hangs").await;
    let mut events = stack.listener().listen(id).expected().events();
    while !matches!(soon(events.next()).await.unwrap().unwrap().body, Body::Delta(_)) {}
    stack.server.signal("STOP");
    // Long enough for each of its tasks to be within a call.
    tokio::time::sleep(Duration::from_millis(400)).await;
    stop.cancel();
    let stopped = tokio::time::timeout(DEADLINE, worker).await;
    stack.server.signal("CONT");
    assert_eq!(stopped.expect("it stops").unwrap().reason, worker::Reason::DrainTimeout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_group_is_created_again_at_the_beginning() {
    let stack = Stack::start(instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m", "first").await;
    stack.listener().listen(id).answer().await.unwrap();
    // The lane goes, and with it the group; the worker's blocking read ends with an error.
    stack.server.command(&["DEL", "ms:{q:default:0}:normal"]);
    let id = stack.ask("m", "second").await;
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m", "second"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_under_way_outlives_a_restart_that_forgot_its_log() {
    let mut stack = Stack::start(paced(40.0)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m?tokens=120", "interrupted").await;
    let listener = stack.listener();
    let mut events = listener.listen(id).events();
    let mut seen: Vec<Event> = Vec::new();
    while seen.len() < 6 {
        seen.push(events.next().await.unwrap().unwrap());
    }
    stack.server.stop();
    // The model goes on meanwhile; its tokens wait in the worker.
    tokio::time::sleep(Duration::from_millis(600)).await;
    stack.server.restart().await;
    while let Some(event) = events.next().await {
        seen.push(event.unwrap());
    }
    let starts = seen.iter().filter(|event| matches!(event.body, Body::Started(_))).count();
    assert_eq!(starts, 1, "the same attempt went on");
    assert!(seen.windows(2).all(|pair| pair[0].id.precedes(pair[1].id)), "{seen:?}");
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=120", "interrupted"));
    let text: String = seen
        .iter()
        .filter_map(|event| match &event.body {
            Body::Delta(chunk) => Some(chunk.text()),
            _ => None,
        })
        .collect();
    assert_eq!(text, answer.text);
}

/// Redis comes back with the state of a moment ago, as after a crash with AOF `everysec`: every log
/// is behind what its writer knows to be acknowledged, on connections that report no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_under_way_fill_what_a_crash_took_from_their_logs() {
    let mut stack = Stack::start(paced(40.0)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let listener = stack.listener();
    let mut readers = Vec::new();
    for n in 0..12 {
        let question = format!("crash {n}");
        let id = stack.ask("m?tokens=120", &question).await;
        let mut events = listener.listen(id).events();
        readers.push(tokio::spawn(async move {
            let mut seen: Vec<Event> = Vec::new();
            while let Some(event) = events.next().await {
                seen.push(event.unwrap());
            }
            (id, question, seen)
        }));
    }
    let length = |stack: &Stack, id| -> u64 {
        stack.server.command(&["XLEN", &format!("ms:{{job:{id}}}:log")]).parse().unwrap()
    };
    let last = stack.ask("m?tokens=120", "the last").await;
    while length(&stack, last) < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack.server.command(&["SAVE"]);
    while length(&stack, last) < 9 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack.server.stop();
    stack.server.restart().await;
    for reader in readers {
        let (id, question, seen) = reader.await.unwrap();
        let log: Vec<Event> =
            stack.listener().listen(id).events().map(Result::unwrap).collect().await;
        assert!(log.windows(2).all(|pair| pair[0].id.precedes(pair[1].id)), "a hole: {log:?}");
        assert_eq!(seen, log, "what was seen is what is kept");
        let text: String = log
            .iter()
            .filter_map(|event| match &event.body {
                Body::Delta(chunk) => Some(chunk.text()),
                _ => None,
            })
            .collect();
        assert_eq!(text, expected("m?tokens=120", &question));
    }
}

/// Guards against a worker that claims nothing more: each of its slots has an entry that has not begun, and
/// Redis, which has come back without its lanes, refuses to renew them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_lets_go_of_entries_whose_lanes_are_gone() {
    let mut stack = Stack::start(instant()).await;
    let fate = Fate::new(Plan::Freeze("begin", 1, Side::Before));
    let one = worker::Options { concurrency: 1, ..worker::Options::default() };
    let victim = Victim::start(&stack.server.url(), &stack.base_url, one, fate);
    stack.ask("m?tokens=2", "forgotten").await;
    victim.fate.frozen().await;
    stack.server.restart().await;
    victim.fate.plan(Plan::Live);
    victim.fate.thaw();
    // Nobody makes the lanes again but the worker itself.
    let id = soon(async {
        loop {
            let job = Job::new(ChatRequest::ask("m?tokens=2", "later"));
            match stack.producer().enqueue(job).await {
                Ok(receipt) => return receipt.id,
                Err(error) => assert_eq!(error.code(), "broker_unavailable", "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=2", "later"));
    victim.kill().await;
}

/// After a restart every pooled connection is dead, and says so only when it is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_calls_after_a_restart_go_through() {
    let mut stack = Stack::start(instant()).await;
    let (producer, listener) = (stack.producer(), stack.listener());
    let ask = |n: u32| Job::new(ChatRequest::ask("m", &format!("restart {n}")));
    // Many at once open many connections.
    futures_util::future::join_all((0..100).map(|n| producer.enqueue(ask(n)))).await;
    let id = stack.ask("m", "before").await;
    stack.server.command(&["SAVE"]);
    stack.server.restart().await;
    // Longer than a connection is taken to live unasked.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for n in 0..20 {
        producer.enqueue(ask(1000 + n)).await.unwrap();
        assert!(stack.broker.job(id).await.unwrap().is_some());
    }
    let (_stop, _worker) = stack.worker(worker::Options::default());
    assert_eq!(listener.listen(id).answer().await.unwrap().text, expected("m", "before"));
}
