//! The bounds, which only the embedded broker has; its behaviours stand in the conformance suite.

use super::*;
use crate::{
    broker::{Inspect, Log, Recent, Tenancy, Window},
    event::{Body, Codec, Done, EventId},
    job::{ChatRequest, Job, QueueName, Tenant},
};

fn submission(text: &str) -> Submission {
    let job = Job::new(ChatRequest::ask("m", text));
    let payload = serde_json::to_vec(&job).unwrap();
    let partition = Partition::first(QueueName::default());
    Submission { id: job.assign_id(), job, payload, partition }
}

async fn add(broker: &Memory, text: &str) -> Result<Receipt> {
    broker.enqueue(&[submission(text)]).await.remove(0)
}

/// Takes the next entry and answers it.
async fn run_one(broker: &Memory) -> (Entry, JobId) {
    let worker = WorkerId::new("w");
    let partition = Partition::first(QueueName::default());
    let mut claimer = broker.claimer(&partition, &worker).await.unwrap();
    let entry = claimer.read(Lane::Normal, 1).await.unwrap().remove(0);
    let Begin::Begun(attempt) =
        broker.begin(&entry, &worker, Crashes { most: 3, alone: false }).await.unwrap()
    else {
        panic!("not begun")
    };
    let frame = Frame::new(1, &Body::Done(Done::default()), Codec::Json).unwrap();
    let outcome = Outcome::Done { finish_reason: None, usage: None };
    assert_eq!(broker.conclude(&attempt, &[frame], &outcome).await.unwrap(), Written::Yes);
    (entry, attempt.job)
}

#[tokio::test]
async fn a_full_broker_says_so_until_a_job_is_over() {
    let broker = Memory::new(Options { max_jobs: 2, ..Options::default() });
    for text in ["a", "b"] {
        add(&broker, text).await.unwrap();
    }
    let error = add(&broker, "c").await.unwrap_err();
    assert_eq!((error.code(), error.is_transient()), ("queue_full", true));
    assert!(error.to_string().contains("max_jobs is 2"), "{error}");
    let (entry, _) = run_one(&broker).await;
    broker.remove(&[Spent::from(&entry)], 0).await.unwrap();
    add(&broker, "c").await.unwrap();
}

#[tokio::test]
async fn finished_jobs_make_room_before_an_enqueue_is_refused() {
    let broker = Memory::new(Options { max_bytes: 3_800, ..Options::default() });
    let long = "x".repeat(1_000);
    add(&broker, &long).await.unwrap();
    let (entry, finished) = run_one(&broker).await;
    let waiting = add(&broker, &long).await.unwrap().id;
    // The finished job's entry is still in its lane: without the record it would run again.
    assert!(add(&broker, &long).await.is_err());
    assert!(broker.job(finished).await.unwrap().is_some());
    broker.remove(&[Spent::from(&entry)], 0).await.unwrap();
    let next = add(&broker, &long).await;
    assert!(next.is_ok(), "{next:?}");
    assert!(broker.job(finished).await.unwrap().is_none());
    assert!(broker.job(waiting).await.unwrap().is_some());
    let error = add(&broker, &long).await.unwrap_err();
    assert!(error.to_string().contains("max_bytes is 3800"), "{error}");
}

/// Guards against a key that is forgotten with its answer, which the same request then pays for again.
#[tokio::test]
async fn a_key_outlives_the_log_of_its_job() {
    let day = Duration::from_hours(24);
    for key_ttl in [day, Duration::ZERO] {
        let options = Options { result_ttl: Duration::ZERO, key_ttl, ..Options::default() };
        let broker = Memory::new(options);
        let mut keyed = submission("once");
        keyed.job.idempotency_key = Some("k".to_owned());
        keyed.id = keyed.job.assign_id();
        broker.enqueue(&[keyed.clone()]).await.remove(0).unwrap();
        let (entry, job) = run_one(&broker).await;
        broker.remove(&[Spent::from(&entry)], 0).await.unwrap();
        // Every call drops what has outlived its time.
        add(&broker, "another").await.unwrap();
        let opened = broker.open(job, EventId::START, Window::of(9)).await.unwrap();
        assert!(opened.page.events.is_empty());
        assert_eq!(opened.record.is_some(), key_ttl == day);
        let again = broker.enqueue(&[keyed]).await.remove(0).unwrap();
        assert_eq!(again.duplicate, key_ttl == day);
    }
}

#[tokio::test]
async fn a_finished_job_outlives_its_time_only_while_its_entry_is_there() {
    let broker = Memory::new(Options { result_ttl: Duration::ZERO, ..Options::default() });
    add(&broker, "a").await.unwrap();
    let (entry, job) = run_one(&broker).await;
    assert!(broker.job(job).await.unwrap().is_some());
    broker.remove(&[Spent::from(&entry)], 0).await.unwrap();
    assert!(broker.job(job).await.unwrap().is_none());
}

#[tokio::test]
async fn the_oldest_dead_letter_goes_first() {
    let broker = Memory::new(Options { dead_max: 2, ..Options::default() });
    let partition = Partition::first(QueueName::default());
    let error = crate::error::Failure::new(crate::error::Code::InvalidJob, "no");
    for text in ["a", "b", "c"] {
        add(&broker, text).await.unwrap();
    }
    let mut claimer = broker.claimer(&partition, &WorkerId::new("w")).await.unwrap();
    let entries = claimer.read(Lane::Normal, 3).await.unwrap();
    for entry in &entries {
        let letter = DeadLetter::new(entry, error.clone(), 0, 1);
        assert_eq!(broker.bury(entry, &letter, false, 0).await.unwrap(), Settled::Yes);
    }
    let dead: Vec<JobId> =
        broker.dead_letters(&partition, None, 9).await.unwrap().iter().map(|d| d.id).collect();
    assert_eq!(dead, [entries[1].id, entries[2].id]);
}

#[tokio::test]
async fn a_dead_letter_that_is_too_old_goes() {
    let broker = Memory::new(Options { dead_ttl: Duration::from_millis(30), ..Options::default() });
    let partition = Partition::first(QueueName::default());
    let error = crate::error::Failure::new(crate::error::Code::InvalidJob, "no");
    for text in ["a", "b"] {
        add(&broker, text).await.unwrap();
    }
    let mut claimer = broker.claimer(&partition, &WorkerId::new("w")).await.unwrap();
    let entries = claimer.read(Lane::Normal, 2).await.unwrap();
    let letter = DeadLetter::new(&entries[0], error, 0, 1);
    assert_eq!(broker.bury(&entries[0], &letter, false, 0).await.unwrap(), Settled::Yes);
    assert_eq!(broker.expire(&partition).await.unwrap(), 0, "it is young");
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(broker.bury(&entries[1], &letter, false, 0).await.unwrap(), Settled::Yes);
    assert_eq!(broker.depth(&partition).await.unwrap().dead, 2, "nobody has looked");
    assert_eq!(broker.expire(&partition).await.unwrap(), 1);
    let depth = broker.depth(&partition).await.unwrap();
    assert_eq!((depth.dead, depth.dropped), (1, 1));
}

#[tokio::test]
async fn everything_that_is_counted_is_given_back() {
    let broker = Memory::new(Options { result_ttl: Duration::ZERO, ..Options::default() });
    add(&broker, "a").await.unwrap();
    let (entry, _) = run_one(&broker).await;
    broker.remove(&[Spent::from(&entry)], 0).await.unwrap();
    assert_eq!(broker.inner.lock().bytes(), 0);
}

#[tokio::test]
async fn recent_jobs_go_with_their_records() {
    let broker = Memory::new(Options { result_ttl: Duration::ZERO, ..Options::default() });
    let tenant = Tenant::default();
    let done = add(&broker, "a").await.unwrap().id;
    let (entry, _) = run_one(&broker).await;
    let waiting = add(&broker, "b").await.unwrap().id;
    let at = Timestamp::now();
    broker.note(&tenant, &[(done, at), (waiting, at), (JobId::new(), at)]).await.unwrap();
    let Recent::Jobs(jobs) = broker.recent(&tenant, None, 9).await.unwrap() else {
        panic!("a page")
    };
    assert_eq!(jobs, [waiting, done], "those with a record");
    broker.remove(&[Spent::from(&entry)], 0).await.unwrap();
    assert_eq!(broker.recent(&tenant, None, 9).await.unwrap(), Recent::Jobs(vec![waiting]));
    assert_eq!(broker.recent(&tenant, Some(done), 9).await.unwrap(), Recent::Unknown);
    broker.forget(waiting);
    assert_eq!(broker.recent(&tenant, None, 9).await.unwrap(), Recent::Jobs(vec![]));
}

#[test]
fn options_are_written_for_people_and_refuse_what_they_do_not_know() {
    let options: Options = serde_json::from_str(r#"{"result_ttl":"2h"}"#).unwrap();
    assert_eq!(options, Options { result_ttl: Duration::from_hours(2), ..Options::default() });
    assert!(serde_json::from_str::<Options>(r#"{"max_job":1}"#).is_err());
}
