//! How long a worker waits, how often it tries, and how much it keeps.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use millstream::{
    error::Code,
    event::{Body, Failed},
    job::{ChatRequest, Job, JobId},
    retry::Schedule,
    worker::Options,
};

use super::{
    probe::{HOLD, Probe},
    until,
};
use crate::support::stack::{Stack, instant};

#[tokio::test]
async fn each_limit_ends_an_attempt_and_names_itself() {
    let stack = Stack::start(instant()).await;
    let retry = Schedule { max_attempts: 1, ..Schedule::default() };
    let options = Options { retry, ..Options::default() };
    let limit = Duration::from_millis(250);
    let first = Options { first_token_timeout: limit, ..options.clone() };
    let idle = Options { idle_timeout: limit, ..options.clone() };
    let total = Options { total_timeout: limit, ..options.clone() };
    let (silent, falling_silent, slow) = ("m?fault=silence:0", "m?fault=silence:5", "m?rate=5");
    for (options, model, deadline_ms, said) in [
        (first, silent, None, "no first token came within 0.25 s (worker.first_token_timeout)"),
        (
            idle,
            falling_silent,
            None,
            "no more of the answer came within 0.25 s (worker.idle_timeout)",
        ),
        (total, slow, None, "the answer was not whole within 0.25 s (worker.total_timeout)"),
        (
            options,
            slow,
            Some(150),
            "the answer was not whole within 0.15 s (the job's deadline_ms)",
        ),
    ] {
        let (stop, worker) = stack.worker(options);
        let job = Job { deadline_ms, ..Job::new(ChatRequest::ask(model, said)) };
        let id = stack.producer().enqueue(job).await.unwrap().id;
        let answer = stack.listener().listen(id).answer().await.unwrap();
        let Failed { error, attempts, .. } = answer.outcome.unwrap_err();
        assert_eq!((error.code, error.message.as_str(), attempts), (Code::Timeout, said, 1));
        let record = stack.broker.job(id).await.unwrap().unwrap();
        let took = record.ended_at.map_or(0, |at| at.0) - record.began_at.unwrap().0;
        assert!((140..3000).contains(&took), "{said}: {took} ms");
        stop.cancel();
        worker.await.unwrap();
    }
}

/// The delays that were announced before each further attempt, and how many attempts were made.
async fn delays(stack: &Stack, id: JobId) -> (Vec<u64>, u32) {
    let mut delays = Vec::new();
    let mut events = stack.listener().listen(id).events();
    while let Some(event) = events.next().await {
        match event.unwrap().body {
            Body::Retrying(retrying) => delays.push(retrying.delay_ms),
            Body::Failed(failed) => return (delays, failed.attempts),
            Body::Done(done) => return (delays, done.attempts),
            _ => {}
        }
    }
    panic!("{id} has no end");
}

#[tokio::test]
async fn delays_grow_from_the_first_to_the_longest() {
    let stack = Stack::start(instant()).await;
    let schedule = |max_attempts, initial, multiplier, max| Schedule {
        max_attempts,
        initial: Duration::from_millis(initial),
        multiplier,
        max: Duration::from_millis(max),
        jitter: 0.0,
        ..Schedule::default()
    };
    for (retry, fault, announced) in [
        (schedule(5, 20, 3.0, 100), "status:503", &[20, 60, 100, 100][..]),
        (schedule(3, 40, 1.0, 100), "status:503", &[40, 40]),
        // What the endpoint asks for counts, up to the longest.
        (schedule(2, 20, 2.0, 150), "status:429:retry-after:60", &[150]),
        (schedule(1, 20, 2.0, 150), "status:503", &[]),
    ] {
        let attempts = retry.max_attempts;
        let (stop, worker) = stack.worker(Options { retry, ..Options::default() });
        let id = stack.ask(&format!("m?fault={fault}"), &format!("{announced:?}")).await;
        assert_eq!(delays(&stack, id).await, (announced.to_vec(), attempts));
        stop.cancel();
        worker.await.unwrap();
    }
}

#[tokio::test]
async fn delays_are_spread_by_the_jitter() {
    let stack = Stack::start(instant()).await;
    let initial = Duration::from_millis(100);
    let retry = Schedule { max_attempts: 2, initial, jitter: 0.5, ..Schedule::default() };
    let (_stop, _worker) = stack.worker(Options { retry, ..Options::default() });
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(stack.ask("m?fault=status:503", &format!("spread {n}")).await);
    }
    let found = join_all(ids.into_iter().map(|id| delays(&stack, id))).await;
    let found: Vec<u64> = found.into_iter().flat_map(|(delays, _)| delays).collect();
    assert_eq!(found.len(), 20);
    assert!(found.iter().all(|delay| (50..=150).contains(delay)), "{found:?}");
    assert!(found.iter().any(|delay| delay.abs_diff(100) > 10), "{found:?}");
}

#[tokio::test]
async fn the_model_waits_once_the_buffer_is_full() {
    const PARTS: usize = 2000;
    const BYTES: usize = 1000;
    let stack = Stack::start(instant()).await;
    for buffer_bytes in [32 * 1024, 128 * 1024] {
        let probe = Arc::new(Probe::long(0, PARTS, BYTES));
        let (stop, worker) = probe.worker(&stack, Options { buffer_bytes, ..Options::default() });
        let id = stack.ask("m", &format!("a long answer, {buffer_bytes}")).await;
        until("a question", || probe.asked().len() == 1).await;
        // The broker takes nothing more; the model could say everything at once.
        stack.server.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
        probe.gate.add_permits(1);
        until("a full buffer", || probe.taken() * BYTES >= buffer_bytes).await;
        tokio::time::sleep(HOLD).await;
        let taken = probe.taken() * BYTES;
        assert!(taken <= buffer_bytes + 10 * BYTES, "{taken} bytes for {buffer_bytes}");
        stack.server.command(&["CLIENT", "UNPAUSE"]);
        let answer = stack.listener().listen(id).answer().await.unwrap();
        assert_eq!(answer.text.len(), PARTS * BYTES);
        assert_eq!(answer.outcome.unwrap().attempts, 1);
        stop.cancel();
        worker.await.unwrap();
    }
}
