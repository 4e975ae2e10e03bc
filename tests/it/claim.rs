//! Claiming under load: no lane starves, and a broker that refuses drains no queue.

use std::time::Duration;

use futures_util::future::join_all;
use millstream::{
    job::{ChatRequest, Job, JobId, Lane},
    worker,
};

use crate::support::stack::{Stack, instant};

async fn enqueue(stack: &Stack, lane: Lane, count: usize) -> Vec<JobId> {
    let job = |n| Job { lane, ..Job::new(ChatRequest::ask("m?tokens=1", &format!("{lane} {n}"))) };
    let receipts = stack.producer().enqueue_all((0..count).map(job).collect()).await;
    receipts.into_iter().map(|receipt| receipt.unwrap().id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_job_passes_a_long_backlog() {
    let stack = Stack::start(instant()).await;
    let backlog = enqueue(&stack, Lane::Low, 600).await;
    let (_stop, _worker) =
        stack.worker(worker::Options { concurrency: 2, ..worker::Options::default() });
    let listener = stack.listener();
    // The worker has found the high lane empty, and the low one full, many times over.
    listener.listen(backlog[40]).answer().await.unwrap();
    let urgent = enqueue(&stack, Lane::High, 1).await[0];
    listener.listen(urgent).answer().await.unwrap();
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert!(depth.lanes[Lane::Low.index()].waiting > 400, "{depth:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_out_of_memory_keeps_its_queue_and_goes_on_later() {
    let stack = Stack::start(instant()).await;
    let jobs = enqueue(&stack, Lane::Normal, 100).await;
    stack.server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let (_stop, _worker) =
        stack.worker(worker::Options { concurrency: 4, ..worker::Options::default() });
    while stack.broker.depth(&stack.partition).await.unwrap().lanes[1].pending < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Every slot meets the refusal several times, and nothing more is claimed.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert_eq!(depth.lanes[1].pending, 4, "{depth:?}");
    stack.server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let listener = stack.listener();
    let answers = join_all(jobs.into_iter().map(|id| listener.listen(id).answer())).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().outcome.unwrap().attempts == 1));
}
