//! Claiming under load: no lane starves, and a broker that refuses drains no queue.

use std::time::Duration;

use futures_util::future::join_all;
use millstream::{
    broker::WorkerId,
    job::{ChatRequest, Job, JobId, Lane},
    simulator, worker,
};

use crate::support::stack::{Stack, expected, instant, paced};

async fn enqueue(stack: &Stack, lane: Lane, count: usize) -> Vec<JobId> {
    let job = |n| Job { lane, ..Job::new(ChatRequest::ask("m?tokens=1", &format!("{lane} {n}"))) };
    let receipts = stack.producer().enqueue_all((0..count).map(job).collect()).await;
    receipts.into_iter().map(|receipt| receipt.unwrap().id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_job_passes_a_long_backlog() {
    // Two at a time, the backlog lasts for seconds.
    let ttft = Duration::from_millis(50);
    let stack = Stack::start(simulator::Options { ttft, ..instant() }).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_answer_larger_than_the_buffer_goes_through() {
    let stack = Stack::start(instant()).await;
    let options = worker::Options {
        buffer_bytes: 1024,
        total_timeout: Duration::from_secs(10),
        ..worker::Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    let request = ChatRequest::ask("m?tokens=2000", "larger than the buffer");
    let job = Job { stream: false, max_attempts: Some(1), ..Job::new(request) };
    let id = stack.producer().enqueue(job).await.unwrap().id;
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert!(answer.outcome.is_ok(), "{:?}", answer.outcome);
    assert_eq!(answer.text, expected("m?tokens=2000", "larger than the buffer"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_never_idle_takes_over_in_its_turn() {
    let stack = Stack::start(paced(20.0)).await;
    // A worker that died with a job in its hands.
    let lost = enqueue(&stack, Lane::Low, 1).await[0];
    let dead = WorkerId::new("dead");
    let mut reader = stack.broker.claimer(&stack.partition, &dead).await.unwrap();
    assert_eq!(reader.read(Lane::Low, 1).await.unwrap().len(), 1);
    let job = |n| Job::new(ChatRequest::ask("m?tokens=4", &format!("backlog {n}")));
    let backlog = stack.producer().enqueue_all((0..400).map(job).collect()).await;
    assert!(backlog.iter().all(Result::is_ok));
    let options = worker::Options {
        concurrency: 2,
        lease: Duration::from_millis(600),
        renewal: Duration::from_millis(150),
        sweep: Duration::from_millis(100),
        ..worker::Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    let answer = stack.listener().listen(lost).answer().await.unwrap();
    assert!(answer.outcome.is_ok());
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert!(depth.lanes[Lane::Normal.index()].waiting > 200, "{depth:?}");
}
