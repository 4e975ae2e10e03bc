//! What an operator does with dead letters, by the command line and under its readers' eyes.

use std::time::Duration;

use futures_util::StreamExt as _;
use millstream::{
    broker::{Depth, redis::keys::Keys},
    event::Body,
    job::{ChatRequest, Job, JobId, Letter, Timestamp},
    listener::Listener,
    retry::Schedule,
    state::State,
    worker,
};
use serde_json::Value;

use crate::support::{
    program::{MILLSTREAM, Ran, run},
    stack::{Stack, expected, instant},
    subject::soon,
};

fn dlq(stack: &Stack, args: &[&str]) -> Ran {
    let url = stack.server.url();
    run(MILLSTREAM, &[&["dlq"], args].concat(), &[("REDIS_URL", &url)])
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn options() -> worker::Options {
    let retry =
        Schedule { max_attempts: 2, initial: Duration::from_millis(5), ..Schedule::default() };
    worker::Options { retry, ..worker::Options::default() }
}

/// Enqueues jobs that fail, waits until they are buried, and gives their IDs.
async fn buried(stack: &Stack, jobs: Vec<Job>) -> Vec<JobId> {
    let count = jobs.len() as u64;
    let before = stack.broker.depth(&stack.partition).await.unwrap().dead;
    let receipts = stack.producer().enqueue_all(jobs).await;
    let (stop, worker) = stack.worker(options());
    while stack.broker.depth(&stack.partition).await.unwrap().dead < before + count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    worker.await.unwrap();
    receipts.into_iter().map(|receipt| receipt.unwrap().id).collect()
}

fn ask(model: &str, question: &str) -> Job {
    Job::new(ChatRequest::ask(model, question))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_tells_its_reason_its_history_and_its_payload() {
    let stack = Stack::start(instant()).await;
    let ids = buried(&stack, vec![ask("m?fault=status:503", "twice")]).await;
    let shown = dlq(&stack, &["show", &ids[0].to_string()]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let letter: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&letter["attempts"], &letter["run"]), (&2.into(), &1.into()));
    assert_eq!(letter["error"]["code"], "upstream_error");
    let history = letter["history"].as_array().unwrap();
    let attempts: Vec<&Value> = history.iter().map(|setback| &setback["attempt"]).collect();
    assert_eq!(attempts, [&Value::from(1), &Value::from(2)]);
    assert!(history.iter().all(|setback| setback["error"]["status"] == 503));
    assert_eq!(letter["entry"]["job"]["request"]["model"], "m?fault=status:503");
    assert!(letter["fence"].as_u64() > letter["at"].as_u64());
}

/// Guards against a look for old letters that brings the payloads of those that stay, at every start of a
/// worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_for_old_letters_reads_none_that_stays() {
    let stack = Stack::start(instant()).await;
    let dead = Keys::new("ms").dead(&stack.partition);
    let now = Timestamp::now().0;
    let payload = "x".repeat(100_000);
    let day = 24 * 60 * 60 * 1000;
    // Two are older than 30 days.
    for age in [32, 31, 5, 4, 3, 2, 1] {
        let id = format!("{}-0", now - age * day);
        stack.server.command(&[
            "XADD",
            &dead,
            &id,
            "id",
            &JobId::new().to_string(),
            "job",
            &payload,
        ]);
    }
    let sent = || {
        let info = stack.server.command(&["INFO", "stats"]);
        let line = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(stack.broker.expire(&stack.partition).await.unwrap(), 2);
    let before = sent();
    assert_eq!(stack.broker.expire(&stack.partition).await.unwrap(), 0);
    let bytes = sent() - before;
    assert!(bytes < 20_000, "{bytes} bytes to look at five letters that stay");
    assert_eq!(stack.server.command(&["XLEN", &dead]), "5");
}

/// Of a job that has no letter because its option says so, a requeue could not tell why there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_may_say_that_it_leaves_no_letter() {
    let stack = Stack::start(instant()).await;
    let of = |dead_letter, fault: &str| Job {
        dead_letter,
        ..ask(&format!("m?fault={fault}"), &format!("{dead_letter:?}"))
    };
    let expires = Timestamp::now().after(Duration::from_millis(50));
    let jobs = vec![
        of(Letter::Never, "status:503"),
        of(Letter::Never, "status:400"),
        of(Letter::Retryable, "status:400"),
        Job { expires_at: Some(expires), ..of(Letter::Retryable, "status:400") },
        of(Letter::Retryable, "status:401"),
        of(Letter::Retryable, "status:503"),
        of(Letter::Always, "status:400"),
    ];
    let ids: Vec<JobId> =
        stack.producer().enqueue_all(jobs).await.into_iter().map(|job| job.unwrap().id).collect();
    while Timestamp::now() <= expires {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (stop, worker) = stack.worker(options());
    let settled = Depth { dead: 3, ..Depth::default() };
    soon(async {
        while stack.broker.depth(&stack.partition).await.unwrap() != settled {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    stop.cancel();
    worker.await.unwrap();
    for id in &ids {
        let record = stack.broker.job(*id).await.unwrap().unwrap();
        assert_eq!(record.state, State::Failed);
        assert!(record.error.is_some());
    }
    let named: Vec<String> = ids.iter().map(JobId::to_string).collect();
    let mut requeue = vec!["requeue"];
    requeue.extend(named.iter().map(String::as_str));
    let ran = dlq(&stack, &requeue);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    for id in &named[..4] {
        assert!(ran.err.contains(&format!("{id} failed (")), "{ran:?}");
    }
    assert!(ran.err.contains("enqueue it again"), "{ran:?}");
    assert_eq!(stack.broker.depth(&stack.partition).await.unwrap().dead, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_say_which_letters_are_meant() {
    let stack = Stack::start(instant()).await;
    let of = |tenant: &str| Job {
        tenant: tenant.parse().unwrap(),
        ..ask("m?fault=status:400", &format!("of {tenant}"))
    };
    let ids =
        buried(&stack, vec![of("acme"), of("other"), ask("n?fault=status:503", "down")]).await;
    let list = |args: &[&str]| -> Vec<String> {
        let ran = dlq(&stack, &[&["list", "--output", "json"], args].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let ids = objects(&ran.out).into_iter().map(|o| o["id"].as_str().unwrap().to_owned());
        let mut ids: Vec<String> = ids.collect();
        ids.sort();
        ids
    };
    let name = |at: usize| ids[at].to_string();
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(list(&[]), sorted(vec![name(0), name(1), name(2)]));
    assert_eq!(list(&["--tenant", "acme"]), [name(0)]);
    assert_eq!(list(&["--model", "n?fault=status:503"]), [name(2)]);
    assert_eq!(list(&["--reason", "invalid_request"]), sorted(vec![name(0), name(1)]));
    assert_eq!(list(&["--older-than", "1h"]), Vec::<String>::new());
    assert_eq!(list(&["--limit", "1"]).len(), 1);
    let wrong = dlq(&stack, &["list", "--reason", "bad_luck"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("rate_limited"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deleted_or_put_back_unasked() {
    let stack = Stack::start(instant()).await;
    let ids =
        buried(&stack, vec![ask("m?fault=status:400", "a"), ask("m?fault=status:400", "b")]).await;
    let id = ids[0].to_string();
    let dead = async || stack.broker.depth(&stack.partition).await.unwrap().dead;
    for args in [&["requeue"][..], &["purge"], &["purge", "--reason", "poison"]] {
        let ran = dlq(&stack, args);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains("--all"), "{ran:?}");
    }
    for args in [&["requeue", "--all", "--dry-run"][..], &["purge", "--all", "--dry-run"]] {
        let ran = dlq(&stack, args);
        assert!(ran.code == Some(0) && ran.out.contains(&id), "{ran:?}");
    }
    // Standard input is no terminal: nobody can be asked.
    let ran = dlq(&stack, &["purge", "--all"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("--yes"), "{ran:?}");
    assert_eq!(dead().await, 2);
    let ran = dlq(&stack, &["purge", &id, "--yes"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "1 dead letters deleted\n"), "{ran:?}");
    assert_eq!(dead().await, 1);
    // One that is missing does not hold up the others.
    let ran = dlq(&stack, &["requeue", &id, &ids[1].to_string()]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.err.contains(&id) && ran.out.contains(&ids[1].to_string()), "{ran:?}");
    assert_eq!(dead().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_that_come_again_are_not_put_back_again() {
    // More than are read at once, and jobs that fail as soon as they are put back.
    const MANY: usize = 100;
    let stack = Stack::start(instant()).await;
    let job = |n: usize| ask("m?fault=status:400", &n.to_string());
    buried(&stack, (0..MANY).map(job).collect()).await;
    let (stop, worker) = stack.worker(options());
    let ran = dlq(&stack, &["requeue", "--all"]);
    assert_eq!((ran.code, ran.out.lines().count()), (Some(0), MANY), "{ran:?}");
    assert!(ran.err.contains("100 of 100 dead letters put back"), "{ran:?}");
    assert!(ran.out.lines().all(|line| line.ends_with("requeued, run 2")), "{ran:?}");
    let depth = async || stack.broker.depth(&stack.partition).await.unwrap();
    while depth().await.dead < MANY as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    worker.await.unwrap();
    let listed = dlq(&stack, &["list", "--limit", "1000", "--output", "json"]);
    assert_eq!(objects(&listed.out).len(), MANY);
    // One is being put back by somebody who has died.
    let letter = stack.broker.dead_letters(&stack.partition, None, 1).await.unwrap().remove(0);
    stack.broker.reopen(&stack.partition, &letter).await.unwrap();
    let ran = dlq(&stack, &["purge", "--all", "--yes"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(6), "99 dead letters deleted\n"), "{ran:?}");
    assert!(ran.err.contains(&format!("{} left alone", letter.id)), "{ran:?}");
    assert_eq!(depth().await.dead, 1);
    let ran = dlq(&stack, &["purge", "--all", "--yes", "--output", "json"]);
    let left = serde_json::json!({"purged": 0, "left": [letter.id]});
    assert_eq!((ran.code, &objects(&ran.out)[0]), (Some(6), &left), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requeued_job_is_read_as_one_history() {
    let stack = Stack::start(instant()).await;
    // It fails for as long as the fault lasts, twice, and then answers.
    let model = "m?tokens=20,fault=status:503*2";
    let ids = buried(&stack, vec![ask(model, "at last")]).await;
    let old =
        stack.listener().listen(ids[0]).events().map(Result::unwrap).collect::<Vec<_>>().await;
    assert_eq!(old.last().unwrap().body.kind(), "failed");
    let ran = dlq(&stack, &["requeue", "--all", "--output", "json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let object = &objects(&ran.out)[0];
    assert_eq!((&object["requeue"], &object["run"]), (&"requeued".into(), &2.into()));
    let (_stop, _worker) = stack.worker(options());
    // One that was there before goes on after its last event, and sees the new run only.
    let last = old.last().unwrap().id;
    let new = stack.listener().listen(ids[0]).after(last).events();
    let new: Vec<_> = new.map(Result::unwrap).collect().await;
    assert_eq!(new[0].body.kind(), "requeued");
    assert!(matches!(&new.last().unwrap().body, Body::Done(done) if done.attempts == 1));
    // One that comes later sees both, also where a page ends with the first run.
    for page in [1, 2, old.len(), 256] {
        let options = millstream::listener::Options { page, ..Default::default() };
        let events = Listener::new(stack.broker.clone(), options).listen(ids[0]).events();
        let all: Vec<_> = events.map(Result::unwrap).collect().await;
        assert_eq!(all, [old.clone(), new.clone()].concat(), "page of {page}");
    }
    let answer = stack.listener().listen(ids[0]).answer().await.unwrap();
    assert_eq!(answer.text, expected(model, "at last"));
    assert!(answer.outcome.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_says_when_it_drops() {
    let mut bounded = Stack::start(instant()).await;
    let options = millstream::broker::redis::Options {
        url: bounded.server.url(),
        dead_max: 2,
        ..Default::default()
    };
    let redis = millstream::broker::redis::Redis::connect(options).await.unwrap();
    bounded.broker = std::sync::Arc::new(redis);
    for n in 0..4 {
        bounded.producer().enqueue(ask("m?fault=status:400", &n.to_string())).await.unwrap();
    }
    let (_stop, _worker) = bounded.worker(self::options());
    while bounded.broker.depth(&bounded.partition).await.unwrap().dropped < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let url = bounded.server.url();
    let ran = run(MILLSTREAM, &["queues"], &[("REDIS_URL", &url)]);
    assert!(ran.err.contains("2 dead letters were dropped"), "{ran:?}");
    let ran = run(MILLSTREAM, &["queues", "--output", "json"], &[("REDIS_URL", &url)]);
    let depth = &objects(&ran.out)[0];
    assert_eq!((&depth["dead"], &depth["dropped"]), (&2.into(), &2.into()));
}
