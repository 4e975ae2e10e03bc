//! Workers die, freeze and leave: their jobs go on elsewhere, and nobody writes an answer twice.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use millstream::{
    event::{Body, Event},
    job::JobId,
    worker,
};

use crate::support::{
    program::{Running, WORKER},
    stack::{Stack, expected, paced},
};

fn process(stack: &Stack, args: &[&str]) -> Running {
    let url = stack.server.url();
    let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", stack.base_url.as_str())];
    let mut running = Running::start(WORKER, args, &env);
    running.wait_for("serving");
    running
}

/// Waits until an attempt of the job has written some text.
async fn speaks(stack: &Stack, id: JobId) {
    let mut events = stack.listener().listen(id).events();
    let mut deltas = 0;
    while deltas < 3 {
        let event = events.next().await.unwrap().unwrap();
        deltas += u32::from(matches!(event.body, Body::Delta(_)));
    }
}

async fn log(stack: &Stack, id: JobId) -> Vec<Event> {
    stack.listener().listen(id).events().map(Result::unwrap).collect().await
}

fn started(events: &[Event]) -> Vec<u32> {
    let attempt = |event: &Event| match &event.body {
        Body::Started(started) => Some(started.attempt),
        _ => None,
    };
    events.iter().filter_map(attempt).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_begins_again_within_nine_seconds_of_a_kill() {
    let stack = Stack::start(paced(40.0)).await;
    let mut doomed = process(&stack, &["--concurrency", "1"]);
    let id = stack.ask("m?tokens=600", "within nine").await;
    speaks(&stack, id).await;
    let _heir = process(&stack, &[]);
    // The heir takes nothing within one lease of its start; the doomed one lives on meanwhile.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let mut events = stack.listener().listen(id).events();
    doomed.child.kill().unwrap();
    let killed = Instant::now();
    loop {
        let event = events.next().await.unwrap().unwrap();
        if matches!(&event.body, Body::Started(started) if started.attempt == 2) {
            break;
        }
    }
    let took = killed.elapsed();
    println!("kill to the first event of the next attempt: {took:?}");
    assert!(took <= Duration::from_secs(9), "{took:?}");
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=600", "within nine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_frozen_past_its_lease_changes_nothing() {
    let stack = Stack::start(paced(40.0)).await;
    let frozen =
        process(&stack, &["--set", "worker.lease=1500ms", "--set", "worker.renewal=300ms"]);
    let id = stack.ask("m?tokens=160", "frozen").await;
    speaks(&stack, id).await;
    let lease = Duration::from_millis(1500);
    let options = worker::Options {
        lease,
        renewal: Duration::from_millis(300),
        sweep: Duration::from_millis(200),
        ..worker::Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    tokio::time::sleep(lease).await;
    frozen.signal("STOP");
    while stack.broker.job(id).await.unwrap().unwrap().attempt < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    speaks(&stack, id).await;
    frozen.signal("CONT");
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=160", "frozen"));
    let events = log(&stack, id).await;
    assert_eq!(started(&events), [1, 2]);
    let second = events.iter().rfind(|event| matches!(event.body, Body::Started(_))).unwrap().id;
    assert!(events.iter().all(|event| event.id < second || event.id.fence == second.fence));
    // It lives, and works on.
    let id = stack.ask("m?tokens=3", "afterwards").await;
    assert_eq!(
        stack.listener().listen(id).answer().await.unwrap().text,
        expected("m?tokens=3", "afterwards")
    );
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert!(depth.lanes.iter().all(|lane| lane.waiting == 0), "{depth:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_outlasts_the_drain_starts_again_elsewhere_within_a_second() {
    let stack = Stack::start(paced(40.0)).await;
    let leaving = process(&stack, &["--set", "worker.drain=300ms"]);
    let id = stack.ask("m?tokens=150", "released").await;
    speaks(&stack, id).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    leaving.signal("TERM");
    let (code, said) = tokio::task::spawn_blocking(|| leaving.end()).await.unwrap();
    let left = Instant::now();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&id.to_string()), "it says what it left: {said}");
    let mut events = stack.listener().listen(id).events();
    let mut begun = 0;
    while begun < 2 {
        let event = events.next().await.unwrap().unwrap();
        begun += u32::from(matches!(event.body, Body::Started(_)));
    }
    assert!(left.elapsed() <= Duration::from_secs(1), "{:?}", left.elapsed());
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=150", "released"));
    assert_eq!(started(&log(&stack, id).await), [1, 1], "the attempt was not counted");
}

const QUICK: [&str; 6] =
    ["--set", "worker.lease=600ms", "--set", "worker.renewal=100ms", "--set", "worker.sweep=100ms"];

/// While the server is young, an outage may be to blame, and not a job.
async fn grown_up(stack: &Stack) {
    let uptime = || {
        let info = stack.server.command(&["INFO", "server"]);
        let seconds = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
        seconds.unwrap().parse::<u64>().unwrap()
    };
    while uptime() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One of five jobs is to blame for every death of the worker that runs them all: it alone is buried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_neighbours_of_a_job_that_kills_its_workers_are_not_buried_with_it() {
    let stack = Stack::start(paced(40.0)).await;
    grown_up(&stack).await;
    let question = |n: usize| format!("neighbour {n}");
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(stack.ask("m?tokens=120", &question(n)).await);
    }
    let attempts = async || {
        let mut attempts = Vec::new();
        for id in &ids {
            attempts.push(stack.broker.job(*id).await.unwrap().unwrap().attempt);
        }
        attempts
    };
    for death in 1..=3 {
        let mut worker = process(&stack, &QUICK);
        // All at once, and at last one by one.
        loop {
            let attempts = attempts().await;
            let begun = attempts.iter().filter(|attempt| **attempt >= death).count();
            if begun == if death < 3 { 5 } else { 1 } {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        worker.child.kill().unwrap();
    }
    let _last = process(&stack, &QUICK);
    let mut buried = 0;
    for (n, id) in ids.iter().enumerate() {
        let answer = stack.listener().listen(*id).answer().await.unwrap();
        match answer.outcome {
            Ok(_) => assert_eq!(answer.text, expected("m?tokens=120", &question(n))),
            Err(failed) => {
                assert_eq!(failed.error.code.as_str(), "poison");
                buried += 1;
            }
        }
    }
    assert_eq!(buried, 1, "the one that ran alone when the worker died");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_kills_its_workers_is_buried() {
    let stack = Stack::start(paced(40.0)).await;
    let quick = [&QUICK[..], &["--set", "worker.retry.max_crashes=2"]].concat();
    grown_up(&stack).await;
    let id = stack.ask("m?tokens=400", "poison").await;
    for attempt in 1..=2 {
        let mut worker = process(&stack, &quick);
        while stack.broker.job(id).await.unwrap().unwrap().attempt < attempt {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        worker.child.kill().unwrap();
    }
    let _last = process(&stack, &quick);
    let answer = stack.listener().listen(id).answer().await.unwrap();
    let failed = answer.outcome.unwrap_err();
    assert_eq!((failed.error.code.as_str(), failed.attempts), ("poison", 2));
    while stack.broker.depth(&stack.partition).await.unwrap().dead < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A worker that is gone when Redis comes back may have been cut off by the same outage: its jobs
/// start again, and are not held to have killed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_over_in_the_wake_of_an_outage_is_no_crash() {
    let mut stack = Stack::start(paced(20.0)).await;
    let quick = ["--set", "worker.lease=2s", "--set", "worker.renewal=900ms"];
    let mut doomed = process(&stack, &quick);
    let id = stack.ask("m?tokens=120", "outage").await;
    speaks(&stack, id).await;
    let options = worker::Options {
        lease: Duration::from_secs(2),
        renewal: Duration::from_millis(900),
        sweep: Duration::from_millis(50),
        ..worker::Options::default()
    };
    let (_stop, _heir) = stack.worker(options);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stack.server.command(&["SAVE"]);
    stack.server.stop();
    doomed.child.kill().unwrap();
    stack.server.restart().await;
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=120", "outage"));
    assert_eq!(started(&log(&stack, id).await), [1, 2]);
    let record = stack.broker.job(id).await.unwrap().unwrap();
    assert_eq!((record.crashes, record.history.len()), (0, 1), "{record:?}");
}

/// The one that runs the job stands still until a while after the outage: without a grace it would be
/// too late to renew, however quick the others are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_the_lease_takes_nobodys_jobs() {
    let mut stack = Stack::start(paced(20.0)).await;
    let lease = Duration::from_secs(4);
    let runs = process(
        &stack,
        &["--set", "worker.lease=4s", "--set", "worker.renewal=500ms", "--set", "worker.sweep=1h"],
    );
    let id = stack.ask("m?tokens=300", "outage").await;
    speaks(&stack, id).await;
    let options = worker::Options {
        lease,
        renewal: Duration::from_millis(500),
        sweep: Duration::from_millis(50),
        ..worker::Options::default()
    };
    let (_stop, _sweeps) = stack.worker(options);
    tokio::time::sleep(lease).await;
    stack.server.command(&["SAVE"]);
    runs.signal("STOP");
    stack.server.stop();
    tokio::time::sleep(lease).await;
    stack.server.restart().await;
    // The other one is back, and has looked many times.
    stack.reset_counts();
    while stack.command_counts().get("xpending").is_none_or(|calls| *calls < 30) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    runs.signal("CONT");
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=300", "outage"));
    assert_eq!(started(&log(&stack, id).await), [1], "a live worker's job was taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_longer_than_its_lease_stays_where_it_is() {
    let stack = Stack::start(paced(40.0)).await;
    let options = || worker::Options {
        lease: Duration::from_secs(2),
        renewal: Duration::from_millis(300),
        sweep: Duration::from_millis(100),
        ..worker::Options::default()
    };
    let (_stop, _first) = stack.worker(options());
    let (_stop, _second) = stack.worker(options());
    let id = stack.ask("m?tokens=200", "longer than a lease").await;
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=200", "longer than a lease"));
    assert_eq!(started(&log(&stack, id).await), [1]);
}
