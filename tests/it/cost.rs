//! What an answer costs, in commands that the server counted, those inside scripts included.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use millstream::{
    broker::{
        Depth, Partition,
        redis::{Options, Redis},
    },
    job::{ChatRequest, Job, QueueName},
    worker,
};

use crate::support::stack::{Stack, expected, instant, paced};

/// Commands of jobs: without those by which the test itself looks at the server.
fn total(counts: &BTreeMap<String, u64>) -> u64 {
    // Nor those by which a worker takes its leave, once in its life.
    let own = ["info", "config|resetstat", "xinfo|consumers", "xgroup|delconsumer", "hdel"];
    counts.iter().filter(|(name, _)| !own.contains(&name.as_str())).map(|(_, calls)| calls).sum()
}

/// Commands of answers: leases and sweeps are counted by themselves, and a worker that leaves looks whether it
/// holds anything.
fn of_answers(counts: &BTreeMap<String, u64>) -> u64 {
    total(counts) - counts.get("xpending").copied().unwrap_or_default()
}

/// The worker idles in its blocking read, and has made its connections.
async fn settled(stack: &Stack) {
    while stack.broker.workers(&stack.partition).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One job first: scripts are loaded, connections open, lanes known to be empty.
    let id = stack.ask("m?tokens=1", "warm up").await;
    stack.listener().listen(id).answer().await.unwrap();
    while stack.broker.depth(&stack.partition).await.unwrap() != Depth::default() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn five_hundred_tokens_in_ten_seconds_stay_within_the_budget() {
    let stack = Stack::start(paced(50.0)).await;
    // Leases and sweeps are counted by themselves, below.
    let quiet = worker::Options {
        lease: Duration::from_hours(1),
        renewal: Duration::from_secs(1000),
        sweep: Duration::from_secs(1000),
        ..worker::Options::default()
    };
    let (stop, worker) = stack.worker(quiet);
    settled(&stack).await;
    let (listener, producer) = (stack.listener(), stack.producer());
    stack.reset_counts();
    let job = Job::new(ChatRequest::ask("m?tokens=500", "cost"));
    let id = producer.enqueue(job).await.unwrap().id;
    let answer = listener.listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=500", "cost"));
    stop.cancel();
    worker.await.unwrap();
    let counts = stack.command_counts();
    let flushes = counts["xadd"] - 3;
    let all = of_answers(&counts);
    println!("streamed answer: {all} commands, {flushes} flushes: {counts:?}");
    // Connecting the listener is in it: HELLO and CLIENT, once per process.
    assert!(all <= 30 + 2 * flushes, "{counts:?}");
    assert!(all <= 230, "{counts:?}");
}

const JOBS: u64 = 200;

#[tokio::test]
async fn leases_and_sweeps_of_a_busy_worker_stay_within_the_budget() {
    let stack = Stack::start(paced(20.0)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    settled(&stack).await;
    for n in 0..20 {
        // Whole answers: while they are generated, nothing else speaks to the server.
        let request = ChatRequest::ask("m?tokens=220", &format!("busy {n}"));
        let job = Job { stream: false, ..Job::new(request) };
        stack.producer().enqueue(job).await.unwrap();
    }
    while stack.broker.depth(&stack.partition).await.unwrap().lanes[1].pending < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack.reset_counts();
    const SECONDS: u64 = 8;
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let counts = stack.command_counts();
    let each = total(&counts) as f64 / SECONDS as f64;
    println!("leases and sweeps of a busy worker: {each} commands a second: {counts:?}");
    assert!(each > 2.0 && each <= 6.0, "{counts:?}");
}

#[tokio::test]
async fn a_job_that_does_not_stream_stays_within_the_budget() {
    let stack = Stack::start(instant()).await;
    let (stop, worker) = stack.worker(worker::Options::default());
    settled(&stack).await;
    let (listener, producer) = (stack.listener(), stack.producer());
    stack.reset_counts();
    let job = |n| Job { stream: false, ..Job::new(ChatRequest::ask("m", &format!("whole {n}"))) };
    let receipts = producer.enqueue_all((0..JOBS).map(job).collect()).await;
    let answers = receipts.into_iter().map(|receipt| listener.listen(receipt.unwrap().id).answer());
    assert!(join_all(answers).await.into_iter().all(|answer| answer.is_ok()));
    stop.cancel();
    worker.await.unwrap();
    let counts = stack.command_counts();
    let each = of_answers(&counts) as f64 / JOBS as f64;
    println!("job that does not stream: {each} commands: {counts:?}");
    assert!(each <= 24.0, "{counts:?}");
}

/// Guards against quiet queues that cost their worker commands for each job of a busy one.
#[tokio::test]
async fn a_job_costs_no_more_beside_quiet_queues() {
    let mut each = Vec::new();
    for quiet in [0, 6] {
        let stack = Stack::start(instant()).await;
        let names = (0..quiet).map(|n| format!("quiet{n}").parse().unwrap());
        let queues: Vec<QueueName> = std::iter::once(QueueName::default()).chain(names).collect();
        let redis = Redis::connect(Options { url: stack.server.url(), ..Options::default() });
        let redis = redis.await.unwrap();
        let partitions: Vec<Partition> = queues.iter().cloned().map(Partition::first).collect();
        redis.ensure_schema(&partitions).await.unwrap();
        let options = worker::Options { queues, concurrency: 2, ..worker::Options::default() };
        let (stop, worker) = stack.worker_on(Arc::new(redis), options);
        settled(&stack).await;
        stack.blocked(quiet + 1).await;
        stack.reset_counts();
        let job = |n| Job { stream: false, ..Job::new(ChatRequest::ask("m", &format!("{n}"))) };
        let receipts = stack.producer().enqueue_all((0..JOBS).map(job).collect()).await;
        let listener = stack.listener();
        let answers =
            receipts.into_iter().map(|receipt| listener.listen(receipt.unwrap().id).answer());
        assert!(join_all(answers).await.into_iter().all(|answer| answer.is_ok()));
        let counts = stack.command_counts();
        each.push(of_answers(&counts) as f64 / JOBS as f64);
        println!("{quiet} quiet queues: {each:?}: {counts:?}");
        stop.cancel();
        worker.await.unwrap();
    }
    assert!(each[1] <= each[0] + 2.0, "{each:?}");
}

#[tokio::test]
#[ignore = "takes five minutes; `make bench-idle` runs it"]
async fn idle_worker_and_idle_listener_over_five_minutes() {
    const TIME: Duration = Duration::from_mins(5);
    let worker = async {
        let stack = Stack::start(instant()).await;
        let (_stop, _worker) = stack.worker(worker::Options::default());
        settled(&stack).await;
        stack.reset_counts();
        tokio::time::sleep(TIME).await;
        let counts = stack.command_counts();
        println!("idle worker: {} commands in 5 minutes: {counts:?}", total(&counts));
        // The last look after the job that warmed it up falls into the time: 7 commands, once.
        assert!(total(&counts) <= 300 / 12 + 7, "{counts:?}");
    };
    let listener = async {
        let stack = Stack::start(instant()).await;
        let listener = stack.listener();
        let mut readers = Vec::new();
        for n in 0..100 {
            let id = stack.ask("m", &format!("quiet {n}")).await;
            let reader = listener.listen(id).idle_timeout(None);
            readers.push(tokio::spawn(async move { reader.answer().await }));
        }
        while listener.hub().topics() < 100 || stack.command_counts().get("xrange") != Some(&100) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stack.reset_counts();
        tokio::time::sleep(TIME).await;
        let counts = stack.command_counts();
        println!("100 idle listeners: {} commands in 5 minutes: {counts:?}", total(&counts));
        // The shared connection's ping, every 30 s, and nothing else.
        assert!(total(&counts) <= 11, "{counts:?}");
        readers.iter().for_each(tokio::task::JoinHandle::abort);
    };
    tokio::join!(worker, listener);
}
