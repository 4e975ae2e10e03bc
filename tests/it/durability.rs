//! What an acknowledged enqueue survives: Redis is killed under concurrent producers, and comes back
//! with its append-only file.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use millstream::{
    job::{ChatRequest, Job, JobId},
    producer::Producer,
    worker,
};
use tokio::task::JoinSet;

use crate::support::{
    redis::Server,
    stack::{Stack, instant, oracle},
    subject::soon,
};

const PRODUCERS: u32 = 4;

/// Jobs that must be there afterwards, at least.
const SAFE: usize = 200;

/// A job that was acknowledged, and when.
struct Accepted {
    id: JobId,
    question: String,
    at: Instant,
}

/// Enqueues one job after the other, until the server does not answer any more, and counts them.
async fn produce(producer: Arc<Producer>, name: u32, count: Arc<AtomicUsize>) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    for number in 0.. {
        let question = format!("durable {name} {number}");
        let job = Job::new(ChatRequest::ask("m?tokens=3", &question));
        let Ok(receipt) = producer.enqueue(job).await else { break };
        accepted.push(Accepted { id: receipt.id, question, at: Instant::now() });
        count.fetch_add(1, Ordering::SeqCst);
        // Enough to be many, and few enough to be run within the test.
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    accepted
}

/// Kills the server under load, once `grace` has passed since enough jobs were acknowledged, starts it
/// again, and finds every job that was acknowledged longer than `grace` before.
async fn survive(server: Server, grace: Duration) {
    let mut stack = Stack::on(server, instant()).await;
    // It lives through it, and has some of the jobs in its hands.
    let (_stop, _worker) =
        stack.worker(worker::Options { concurrency: 8, ..worker::Options::default() });
    let producer = Arc::new(stack.producer());
    let (mut producers, count) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for name in 0..PRODUCERS {
        producers.spawn(produce(producer.clone(), name, count.clone()));
    }
    soon(async {
        while count.load(Ordering::SeqCst) < SAFE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    tokio::time::sleep(grace).await;
    stack.server.stop();
    let killed = Instant::now();
    let accepted: Vec<Accepted> = producers.join_all().await.into_iter().flatten().collect();
    stack.server.restart().await;
    let safe: Vec<Accepted> =
        accepted.into_iter().filter(|accepted| accepted.at + grace <= killed).collect();
    println!("{} acknowledged jobs must be there", safe.len());
    assert!(safe.len() >= SAFE, "only {}", safe.len());
    let requests: Vec<String> = safe
        .iter()
        .map(|a| serde_json::to_string(&ChatRequest::ask("m?tokens=3", &a.question)).unwrap())
        .collect();
    let listener = stack.listener();
    for (accepted, text) in safe.iter().zip(oracle(&requests, &[])) {
        let answer = soon(listener.listen(accepted.id).answer()).await;
        let answer =
            answer.unwrap_or_else(|error| panic!("{} is lost: {error}", accepted.question));
        assert!(answer.outcome.is_ok(), "{:?}", answer.outcome);
        assert_eq!(answer.text, text, "{}", accepted.question);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_write_synced_no_acknowledged_job_is_lost() {
    survive(Server::durable().await, Duration::ZERO).await;
}

/// A second is the promise of `everysec` while the disk keeps up. Where it does not, Redis puts the
/// write itself off, for up to two seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_sync_every_second_only_the_last_seconds_jobs_can_be_lost() {
    survive(Server::every_second().await, Duration::from_secs(2)).await;
}
