//! Entries from outside that are not as a worker expects them: none holds a slot, and none costs an innocent
//! job its turn.

use std::time::Duration;

use futures_util::future::join_all;
use millstream::{
    broker::redis::keys::Keys,
    job::{JobId, Lane},
    listener::{self, Listener},
    upstream::openai::{self, OpenAi},
    worker::{self, Worker},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    stack::{Stack, instant},
    subject::{Subject, job, memory_broker, partitions, redis_broker, soon, worker},
};

const GOOD: &str = r#"{"model":"m?tokens=2","messages":[{"role":"user","content":"hi"}]}"#;

fn one() -> worker::Options {
    worker::Options { concurrency: 1, ..worker::Options::default() }
}

/// With leases that run out soon.
fn brief() -> worker::Options {
    worker::Options {
        lease: Duration::from_millis(600),
        renewal: Duration::from_millis(200),
        sweep: Duration::from_millis(100),
        ..one()
    }
}

fn lane(stack: &Stack) -> String {
    Keys::new("ms").lane(&stack.partition, Lane::Normal)
}

/// Enqueues a job, which the only slot must have time for.
async fn innocent(stack: &Stack) {
    let id = stack.ask("m?tokens=2", "innocent").await;
    soon(stack.listener().listen(id).answer()).await.unwrap();
}

/// Guards against two entries from outside that set a worker turning without a pause, deaf to every signal:
/// the second can be read by nobody, and the first has taken the ID that its place gives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_whose_every_id_is_anothers_is_buried() {
    let stack = Stack::start(instant()).await;
    let lane = lane(&stack);
    let place = "1763640000123-0";
    let derived = JobId::from_entry(&lane, place);
    let named = derived.to_string();
    let first = ["XADD", &lane, "1763640000122-0", "job", GOOD, "id", &named, "at", "1"];
    stack.server.command(&first);
    stack.server.command(&["XADD", &lane, place, "jib", "x"]);
    let (stop, worker) = stack.worker(one());
    innocent(&stack).await;
    soon(stack.listener().listen(derived).answer()).await.unwrap();
    let letters = stack.broker.dead_letters(&stack.partition, None, 9).await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_ne!(letters[0].id, derived, "the letter would open another's job again");
    assert_eq!(letters[0].fields, [(b"jib".to_vec(), b"x".to_vec())]);
    let record = stack.broker.job(derived).await.unwrap().unwrap();
    assert_eq!((record.state.as_str(), record.run), ("done", 1), "another's record was touched");
    stop.cancel();
    soon(worker).await.unwrap();
}

/// Guards against the same on either broker: an entry that nobody can read, and whose ID was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_buries_an_entry_that_has_no_id_of_its_own() {
    let name = "a_worker_buries_an_entry";
    for broker in [memory_broker(), redis_broker(&partitions(name)).await] {
        let s = Subject::new(name, broker, std::sync::Arc::default());
        s.add_raw(Lane::Normal, &[("jib", b"x")]);
        let other = worker("other");
        let entry = s.claim(&other).await;
        // It was enqueued at another time, or it could be the entry's own.
        tokio::time::sleep(Duration::from_millis(3)).await;
        let mut theirs = s.submission(job("theirs"));
        theirs.id = entry.derived;
        s.enqueue(&[theirs]).await.remove(0).unwrap();
        s.cancel(entry.derived).await.unwrap();
        let before = s.job(entry.derived).await.unwrap().unwrap();
        assert!(s.release(&other, &entry.place, None).await.unwrap());

        let options = openai::Options::default();
        let upstream = std::sync::Arc::new(OpenAi::new(&options).unwrap());
        let hub = Listener::new(s.shared(), listener::Options::default()).hub();
        let queues = vec![s.partition.queue.clone()];
        let worker = Worker::new(s.shared(), hub, upstream, worker::Options { queues, ..brief() });
        let stop = CancellationToken::new();
        let running = tokio::spawn(worker.run(stop.clone()));
        soon(async {
            loop {
                let depth = s.depth(&s.partition).await.unwrap();
                if depth.dead == 1 && depth.lanes[1].pending + depth.lanes[1].waiting == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(s.job(entry.derived).await.unwrap().unwrap(), before);
        stop.cancel();
        soon(running).await.unwrap();
    }
}

/// Guards against a job in a newer version's state that keeps an older worker's slot until that one stops;
/// and against one that older workers deliver so often that it is buried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_in_a_state_of_a_newer_version_is_left_to_a_newer_worker() {
    let stack = Stack::start(instant()).await;
    let newer = stack.ask("m?tokens=2", "newer").await;
    let record = Keys::new("ms").job(newer);
    stack.server.command(&["HSET", &record, "state", "dreaming", "place", "normal 1-1"]);
    let (stop, worker) = stack.worker(brief());
    innocent(&stack).await;
    let delivered = || -> u64 {
        let pending = ["XPENDING", &lane(&stack), "workers", "-", "+", "9"];
        let pending = stack.server.command(&pending);
        pending.lines().nth(3).unwrap().parse().unwrap()
    };
    // As many deliveries as would bury it, were each of them counted.
    for _ in 0..12 {
        tokio::time::sleep(brief().lease).await;
        assert!(delivered() <= 2, "{} deliveries", delivered());
    }
    assert_eq!(stack.server.command(&["HGET", &record, "state"]), "dreaming");
    // A newer worker, in whose place stands the operator's hand, puts it into a state that is known.
    stack.server.command(&["HDEL", &record, "state", "place"]);
    soon(stack.listener().listen(newer).answer()).await.unwrap();
    stop.cancel();
    soon(worker).await.unwrap();
}

/// Guards against a time beyond all that Redis takes, which left a record that is never dropped, and an entry
/// that held its slot for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_begins_at_the_end_of_time_is_parked() {
    let stack = Stack::start(instant()).await;
    let lane = lane(&stack);
    let far = r#","not_before":18446744073709551615}"#;
    let job = format!(r#"{{"request":{GOOD}{far}"#);
    let ids = [JobId::new(), JobId::new()];
    for id in ids {
        stack.server.command(&["XADD", &lane, "*", "job", &job, "id", &id.to_string()]);
    }
    let (stop, worker) = stack.worker(one());
    innocent(&stack).await;
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert_eq!((depth.parked, depth.dead), (2, 0), "{depth:?}");
    for id in ids {
        let left = stack.server.command(&["PTTL", &Keys::new("ms").job(id)]);
        assert!(left.parse::<i64>().unwrap() > 0, "{left}");
    }
    // They are jobs as others are: their owner finds them, and takes them back.
    let cancelled = join_all(ids.map(|id| stack.broker.cancel(id))).await;
    assert!(cancelled.iter().all(Result::is_ok), "{cancelled:?}");
    stop.cancel();
    soon(worker).await.unwrap();
}

/// Guards against a lane that somebody has given the last of all IDs, told as an unexpected answer.
#[tokio::test]
async fn a_lane_that_has_exhausted_its_ids_is_told() {
    let stack = Stack::start(instant()).await;
    let last = format!("{0}-{0}", u64::MAX);
    stack.server.command(&["XADD", &lane(&stack), &last, "job", GOOD]);
    let job = millstream::job::Job::new(millstream::job::ChatRequest::ask("m", "q"));
    let error = stack.producer().enqueue(job).await.unwrap_err();
    assert_eq!(error.code(), "broker_stream_exhausted");
    let text = error.to_string();
    assert!(text.contains("XSETID"), "{text}");
}
