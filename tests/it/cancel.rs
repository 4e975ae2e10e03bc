//! Jobs that are not wanted any more: waiting, parked and running ones, cancelled from anywhere.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use millstream::{
    admin::{Admin, Cancelled},
    broker::{Topic, redis::keys::Keys},
    error::Code,
    event::{Body, Event},
    job::{Job, JobId},
    simulator::Stats,
    state::State,
    worker,
};
use serde_json::Value;

use crate::support::{
    program::{MILLSTREAM, PRODUCER, Running, WORKER, run},
    proxy::{Cut, Proxy},
    stack::{Stack, connect, paced},
    subject::{far, job},
};

async fn stats(stack: &Stack) -> Stats {
    let url = stack.base_url.replace("/v1", "/stats");
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    serde_json::from_str(&text).unwrap()
}

async fn until_active(stack: &Stack, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while stats(stack).await.active != count {
        assert!(Instant::now() < deadline, "{:?}", stats(stack).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Follows a job until it has said something.
async fn speaking(
    stack: &Stack,
    id: JobId,
) -> impl futures_util::Stream<Item = Result<Event, millstream::listener::Error>> + use<> {
    let mut events = stack.listener().listen(id).events();
    loop {
        if matches!(events.next().await.unwrap().unwrap().body, Body::Delta(_)) {
            return events;
        }
    }
}

/// Guards against a cancel that is told as somebody else's: its reply was lost, and the call was made
/// again on the next connection.
#[tokio::test]
async fn a_cancel_whose_reply_was_lost_is_told_as_its_own() {
    let stack = Stack::start(paced(40.0)).await;
    let proxy = Proxy::start(stack.server.port()).await;
    let admin = Admin::new(connect(&proxy.url()).await);
    // The script is known, and the connection is there.
    assert_eq!(admin.cancel(JobId::new()).await.unwrap(), Cancelled::Unknown);
    let id = stack.ask("m", "not wanted").await;
    proxy.arm(Cut::Reply(1));
    assert_eq!(admin.cancel(id).await.unwrap(), Cancelled::Cancelled);
    assert!(!proxy.disarm(), "no reply was lost");
    let over = Cancelled::Over { state: State::Cancelled };
    assert_eq!(admin.cancel(id).await.unwrap(), over);

    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m?tokens=4000", "running").await;
    until_active(&stack, 1).await;
    proxy.arm(Cut::Reply(1));
    let asked = admin.cancel(id).await.unwrap();
    assert!(!proxy.disarm(), "no reply was lost");
    // Its worker may have ended it before the call was made again.
    let own = matches!(asked, Cancelled::Asked { again: false, .. } | Cancelled::Cancelled);
    assert!(own, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_job_drops_its_model_call_and_keeps_its_text() {
    let stack = Stack::start(paced(40.0)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m?tokens=4000", "stop me").await;
    let mut events = speaking(&stack, id).await;
    let admin = Admin::new(stack.broker.clone());
    let asked = admin.cancel(id).await.unwrap();
    assert!(matches!(asked, Cancelled::Asked { again: false, .. }), "{asked:?}");
    let last = loop {
        match events.next().await {
            Some(event) => {
                let event = event.unwrap();
                if event.body.is_terminal() {
                    break event;
                }
            }
            None => panic!("no end"),
        }
    };
    assert!(matches!(&last.body, Body::Cancelled(data) if data.attempts == 1), "{last:?}");
    assert!(events.next().await.is_none());
    until_active(&stack, 0).await;
    assert_eq!(stats(&stack).await.aborted, 1, "the model call was dropped");
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert!(!answer.text.is_empty());
    assert_eq!(answer.outcome.unwrap_err().error.code, Code::Cancelled);
    assert_eq!(admin.cancel(id).await.unwrap(), Cancelled::Over { state: State::Cancelled });
    // Nothing is left of its entry, and nothing is buried.
    while stack.broker.depth(&stack.partition).await.unwrap() != Default::default() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_while_its_model_is_silent() {
    let stack = Stack::start(paced(40.0)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    for model in ["m?ttft=600000", "m?tokens=100000"] {
        let job = Job { stream: false, ..job(model) };
        let request = millstream::job::ChatRequest::ask(model, "silent");
        let id = stack.producer().enqueue(Job { request, ..job }).await.unwrap().id;
        until_active(&stack, 1).await;
        Admin::new(stack.broker.clone()).cancel(id).await.unwrap();
        until_active(&stack, 0).await;
        let answer = stack.listener().listen(id).answer().await.unwrap();
        assert_eq!(answer.outcome.unwrap_err().error.code, Code::Cancelled);
    }
}

/// Guards against a message that is published while the worker's control subscription is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_hears_nothing_reads_the_wish_at_its_next_renewal() {
    let stack = Stack::start(paced(20.0)).await;
    // The worker's user may not subscribe to channels of workers.
    let rules = "ACL SETUSER deaf on >deaf ~* +@all resetchannels &ms:{*";
    assert_eq!(stack.server.command(&rules.split(' ').collect::<Vec<_>>()), "OK");
    let url = stack.server.url().replace("redis://", "redis://deaf:deaf@");
    let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", stack.base_url.as_str())];
    let mut worker = Running::start(WORKER, &["--set", "worker.renewal=300ms"], &env);
    worker.wait_for("serving");
    let id = stack.ask("m?tokens=4000", "stop me").await;
    let events = speaking(&stack, id).await;
    let asked = Admin::new(stack.broker.clone()).cancel(id).await.unwrap();
    let Cancelled::Asked { worker, .. } = asked else { panic!("{asked:?}") };
    let channel = Keys::new("ms").channel(&Topic::Worker(worker.parse().unwrap()));
    assert_eq!(stack.server.command(&["PUBSUB", "NUMSUB", &channel]), format!("{channel}\n0"));
    let ends = events.filter(|event| {
        std::future::ready(matches!(event, Ok(Event { body: Body::Cancelled(_), .. })))
    });
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), ends.count()).await, Ok(1));
    assert_eq!(stack.broker.job(id).await.unwrap().unwrap().state, State::Cancelled);
}

/// The whole answer is ready, and its end on its way: the wish that came first counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_that_comes_with_the_end_counts() {
    let stack = Stack::start(paced(20.0)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m?tokens=60", "nearly done").await;
    drop(speaking(&stack, id).await);
    // As a canceller does that dies between its two steps: the worker is not told.
    stack.server.command(&["HSET", &Keys::new("ms").job(id), "cancel", "1"]);
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.outcome.unwrap_err().error.code, Code::Cancelled);
    assert_eq!(answer.text, crate::support::stack::expected("m?tokens=60", "nearly done"));
    assert_eq!(stack.broker.job(id).await.unwrap().unwrap().state, State::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_of_a_dead_worker_is_ended_by_the_next() {
    let stack = Stack::start(paced(40.0)).await;
    let quick = ["--set", "worker.lease=600ms", "--set", "worker.renewal=100ms"];
    let env_url = stack.server.url();
    let env = [("REDIS_URL", env_url.as_str()), ("OPENAI_BASE_URL", stack.base_url.as_str())];
    let mut doomed = Running::start(WORKER, &quick, &env);
    doomed.wait_for("serving");
    let id = stack.ask("m?tokens=4000", "orphan").await;
    drop(speaking(&stack, id).await);
    doomed.child.kill().unwrap();
    let asked = Admin::new(stack.broker.clone()).cancel(id).await.unwrap();
    assert!(matches!(asked, Cancelled::Asked { .. }), "{asked:?}");
    let options = worker::Options {
        lease: Duration::from_millis(600),
        renewal: Duration::from_millis(100),
        sweep: Duration::from_millis(50),
        ..worker::Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    let events: Vec<Event> =
        stack.listener().listen(id).events().map(Result::unwrap).collect().await;
    let started = events.iter().filter(|e| matches!(e.body, Body::Started(_))).count();
    assert_eq!((started, events.last().unwrap().body.kind()), (1, "cancelled"));
}

fn programs(stack: &Stack, args: &[&str]) -> (Option<i32>, String, String) {
    let url = stack.server.url();
    let ran = run(MILLSTREAM, args, &[("REDIS_URL", &url)]);
    (ran.code, ran.out, ran.err)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_says_what_became_of_the_wish() {
    let stack = Stack::start(paced(20.0)).await;
    let waiting = stack.ask("m", "waiting").await.to_string();
    let parked = stack.producer().enqueue(Job { not_before: Some(far()), ..job("later") }).await;
    let parked = parked.unwrap().id.to_string();
    let args = ["jobs", "cancel", &waiting, &parked];
    let (code, out, _) = programs(&stack, &args);
    assert_eq!((code, out), (Some(0), format!("{waiting} cancelled\n{parked} cancelled\n")));
    assert_eq!(stack.broker.depth(&stack.partition).await.unwrap().parked, 0);
    let (code, out, _) = programs(&stack, &args);
    assert_eq!(code, Some(6));
    assert!(out.contains("was cancelled already; nothing changed"), "{out}");
    let unknown = JobId::new().to_string();
    let (code, out, err) = programs(&stack, &["jobs", "cancel", &unknown, "--output", "json"]);
    assert_eq!(code, Some(2), "{err}");
    let object: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!((&object["cancel"], &object["id"]), (&"unknown".into(), &unknown.into()));
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let running = stack.ask("m?tokens=4000", "running").await;
    drop(speaking(&stack, running).await);
    let (code, out, _) = programs(&stack, &["jobs", "cancel", &running.to_string()]);
    assert!(code == Some(0) && out.contains("cancelling on worker-"), "{out}");
    let tail = programs(&stack, &["jobs", "tail", &running.to_string()]);
    assert_eq!(tail.0, Some(6), "{tail:?}");
    assert!(tail.2.contains("was cancelled"), "{tail:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_expires_fails_without_a_call() {
    let stack = Stack::start(paced(20.0)).await;
    let url = stack.server.url();
    let env = [("REDIS_URL", url.as_str())];
    let args = ["--model", "m", "--user", "late", "--expires-in", "1s", "--output", "json"];
    let added = run(PRODUCER, &args, &env);
    assert_eq!(added.code, Some(0), "{added:?}");
    let id: JobId =
        serde_json::from_str::<Value>(&added.out).unwrap()["id"].as_str().unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let answer = stack.listener().listen(id).answer().await.unwrap();
    let failed = answer.outcome.unwrap_err();
    assert_eq!((failed.error.code, failed.attempts), (Code::Expired, 0));
    assert_eq!(stats(&stack).await.requests, 0);
    let refused = run(
        PRODUCER,
        &["--model", "m", "--user", "x", "--expires-at", "2020-01-01T00:00:00Z"],
        &env,
    );
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("has passed"), "{refused:?}");
}
