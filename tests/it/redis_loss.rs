//! Redis goes away and comes back, with what it had or without.

use std::time::Duration;

use futures_util::StreamExt as _;
use millstream::{
    event::{Body, Event},
    worker,
};

use crate::support::stack::{Stack, connect, expected, instant, paced};

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
