//! Nothing but queues lives for ever: what a hundred thousand jobs leave is gone with their time.

use std::time::{Duration, Instant};

use millstream::{
    broker::{
        Depth,
        redis::{Options, Redis},
    },
    job::{ChatRequest, Job},
    worker,
};

use crate::support::stack::{Stack, instant};

const JOBS: usize = 100_000;
const TTL: Duration = Duration::from_secs(60);

fn used_memory(stack: &Stack) -> u64 {
    let info = stack.server.command(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    used.parse().unwrap()
}

fn keys(stack: &Stack) -> u64 {
    stack.server.command(&["DBSIZE"]).parse().unwrap()
}

async fn through(stack: &Stack, name: &str, count: usize) {
    let producer = stack.producer();
    let ask = |n| Job {
        stream: false,
        ..Job::new(ChatRequest::ask("m?tokens=5", &format!("{name} {n}")))
    };
    for start in (0..count).step_by(1000) {
        let jobs = (start..count.min(start + 1000)).map(ask).collect();
        for receipt in producer.enqueue_all(jobs).await {
            receipt.unwrap();
        }
        // The queue stays short: what is measured is what finished jobs leave.
        while stack.broker.depth(&stack.partition).await.unwrap() != Depth::default() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes several minutes; `make soak` runs it"]
async fn memory_comes_back_after_a_hundred_thousand_jobs() {
    let mut stack = Stack::start(instant()).await;
    let options = Options { url: stack.server.url(), result_ttl: TTL, ..Options::default() };
    stack.broker = std::sync::Arc::new(Redis::connect(options).await.unwrap());
    let (_stop, _worker) = stack.worker(worker::Options::default());
    // Connections, scripts and the tables of the server are there before anything is measured.
    through(&stack, "warm up", 2000).await;
    while keys(&stack) > 5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let before = used_memory(&stack);
    let began = Instant::now();
    let mut curve = vec![(0, before, keys(&stack))];
    let look = |curve: &mut Vec<(u64, u64, u64)>| {
        let row = (began.elapsed().as_secs(), used_memory(&stack), keys(&stack));
        println!("{:>4} s  {:>8.2} MB  {:>7} keys", row.0, row.1 as f64 / 1e6, row.2);
        curve.push(row);
    };
    println!("   0 s  {:>8.2} MB  {:>7} keys", before as f64 / 1e6, curve[0].2);
    let work = through(&stack, "soak", JOBS);
    tokio::pin!(work);
    loop {
        tokio::select! {
            () = &mut work => break,
            () = tokio::time::sleep(Duration::from_secs(10)) => look(&mut curve),
        }
    }
    println!("all {JOBS} jobs are over after {} s", began.elapsed().as_secs());
    let over = Instant::now();
    while over.elapsed() < TTL + Duration::from_secs(30) && keys(&stack) > 5 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        look(&mut curve);
    }
    let after = used_memory(&stack);
    let peak = curve.iter().map(|row| row.1).max().unwrap();
    let ratio = after as f64 / before as f64;
    println!("start {before}, peak {peak}, end {after} bytes: {ratio:.3} of the start");
    assert!(ratio <= 1.05, "{curve:?}");
}
