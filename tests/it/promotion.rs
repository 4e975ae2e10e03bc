//! What promotion costs, however many workers wait for the same job.

use std::time::Duration;

use futures_util::future::join_all;
use millstream::{
    job::{ChatRequest, Job, Timestamp},
    worker,
};

use crate::support::{
    stack::{Stack, connect, instant},
    subject::soon,
};

/// Guards against a script of every worker for every job that is parked, and for every one that is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_job_costs_about_one_script_however_many_workers_wait() {
    const JOBS: usize = 60;
    const WORKERS: usize = 6;
    let stack = Stack::start(instant()).await;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let broker = connect(&stack.server.url()).await;
        workers.push(stack.worker_on(broker, worker::Options::default()));
    }
    let hear = || {
        let channel = "ms:{q:default:0}:wake";
        let said = stack.server.command(&["PUBSUB", "NUMSUB", channel]);
        said.lines().nth(1).and_then(|count| count.parse().ok()) == Some(WORKERS)
    };
    // Each looks once as it starts.
    let looks = || stack.command_counts().get("zrangebyscore").copied().unwrap_or_default();
    while !hear() || looks() < WORKERS as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack.reset_counts();
    // Due one after the other, so that none is moved together with the next.
    let start = Timestamp::now().after(Duration::from_secs(1));
    let job = |n: usize| {
        let due = start.after(Duration::from_millis(50) * u32::try_from(n).unwrap());
        let request = ChatRequest::ask("m?tokens=1", &format!("parked {n}"));
        Job { not_before: Some(due), ..Job::new(request) }
    };
    let receipts = stack.producer().enqueue_all((0..JOBS).map(job).collect()).await;
    assert!(Timestamp::now() < start);
    let parking = looks();
    println!("{JOBS} jobs parked, {WORKERS} workers: {parking} scripts");
    assert!(parking <= 10, "{parking} scripts before any job was due");
    let listener = stack.listener();
    let answers = receipts.into_iter().map(|receipt| listener.listen(receipt.unwrap().id).answer());
    assert!(soon(join_all(answers)).await.into_iter().all(|answer| answer.is_ok()));
    let all = looks();
    println!("{JOBS} jobs promoted: {all} scripts");
    assert!(all <= JOBS as u64 * 2, "{all} scripts for {JOBS} jobs");
}
