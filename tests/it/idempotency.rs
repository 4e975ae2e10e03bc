//! An enqueue with an idempotency key that is cut anywhere and repeated: one job, which runs once.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use millstream::{
    broker::{
        Limits, Partition, Shared,
        redis::{Options, Redis, keys::Keys},
    },
    event::{Body, Event},
    job::{ChatRequest, Job, JobId, Lane, Timestamp},
    producer::{self, Producer},
    worker,
};

use crate::support::{
    proxy::{Cut, Proxy},
    stack::{Stack, instant, oracle},
    subject::soon,
};

/// How long a scheduled job of these tests is parked: longer than its two enqueues take.
const AHEAD: Duration = Duration::from_secs(3);

async fn broker(url: String, limits: Limits) -> Shared {
    Arc::new(Redis::connect(Options { url, limits, ..Options::default() }).await.unwrap())
}

fn keyed(question: &str, scheduled: bool) -> Job {
    let mut job = Job::new(ChatRequest::ask("m?tokens=4", question));
    job.idempotency_key = Some(question.to_owned());
    job.not_before = scheduled.then(|| Timestamp::now().after(AHEAD));
    job
}

/// Entries and parked jobs of the partition.
async fn held(stack: &Stack) -> u64 {
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    depth.lanes.iter().map(|lane| lane.waiting + lane.pending).sum::<u64>() + depth.parked
}

/// An enqueue that was cut, and its repeat.
struct Cutting {
    id: JobId,
    question: String,
    cut: Cut,
    /// The first one was answered nevertheless.
    answered: bool,
    duplicate: bool,
    /// Entries and parked jobs that the two have added.
    added: u64,
}

/// Cuts an enqueue at one request, unless it is over by then, and repeats it.
async fn cut_and_repeat(
    stack: &Stack,
    proxy: &Proxy,
    producer: &Producer,
    (cut, scheduled): (Cut, bool),
) -> Option<Cutting> {
    let question = format!("{cut:?} {scheduled}");
    let job = keyed(&question, scheduled);
    let before = held(stack).await;
    proxy.arm(cut);
    let first = producer.enqueue(job.clone()).await;
    let missed = proxy.disarm();
    let repeat = producer.enqueue(job.clone()).await.unwrap();
    assert_eq!(repeat.id, job.assign_id(), "{question}");
    assert_eq!(repeat.parked, scheduled, "{question}");
    if let Ok(first) = &first {
        assert_eq!(first.id, repeat.id, "{question}");
        assert!(repeat.duplicate, "{question}: it was acknowledged, and then it was new");
    }
    let added = held(stack).await - before;
    let (id, answered) = (repeat.id, first.is_ok());
    let cutting = Cutting { id, question, cut, answered, duplicate: repeat.duplicate, added };
    (!missed).then_some(cutting)
}

async fn at_every_request(limits: Limits, scheduled: bool) {
    let stack = Stack::start(instant()).await;
    let proxy = Proxy::start(stack.server.port()).await;
    let producer = Producer::new(broker(proxy.url(), limits).await, producer::Options::default());
    // Scripts are loaded and connections made: what counts from here on are the steps.
    producer.enqueue(keyed("before", scheduled)).await.unwrap();
    let mut cuttings = Vec::new();
    for number in 1.. {
        let reply = cut_and_repeat(&stack, &proxy, &producer, (Cut::Reply(number), scheduled));
        let Some(reply) = soon(reply).await else { break };
        cuttings.push(reply);
        let lost = cut_and_repeat(&stack, &proxy, &producer, (Cut::Request(number), scheduled));
        cuttings.extend(soon(lost).await);
    }
    let requests = cuttings.iter().filter(|c| matches!(c.cut, Cut::Reply(_))).count();
    println!("{requests} requests, {} cuts", cuttings.len());
    for c in &cuttings {
        println!(
            "{}: answered {}, duplicate {}, added {}",
            c.question, c.answered, c.duplicate, c.added
        );
        // A second entry is added at most, where nobody could tell that the first was there.
        assert!((1..=2).contains(&c.added), "{}: {} entries", c.question, c.added);
        assert!(c.added == 1 || !(c.duplicate || scheduled), "{}: a duplicate added", c.question);
    }
    assert!(requests >= 3, "{requests}: reserving, adding and noting are three steps at least");
    // Everything but the last reply was there: the repeat finds that.
    let last = cuttings.iter().rfind(|c| matches!(c.cut, Cut::Reply(_))).unwrap();
    assert!(last.duplicate && last.added == 1, "{}", last.question);

    // Each runs once, whatever was added.
    let (stop, worker) = stack.worker(worker::Options::default());
    let requests: Vec<String> = cuttings
        .iter()
        .map(|c| serde_json::to_string(&keyed(&c.question, false).request).unwrap())
        .collect();
    for (cutting, text) in cuttings.iter().zip(oracle(&requests, &[])) {
        let answer = soon(stack.listener().listen(cutting.id).answer()).await.unwrap();
        assert_eq!(answer.text, text, "{}", cutting.question);
        assert_eq!(answer.outcome.unwrap().attempts, 1, "{}", cutting.question);
    }
    soon(async {
        while held(&stack).await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for cutting in &cuttings {
        assert_eq!(runs(&stack, cutting.id).await, 1, "{}", cutting.question);
    }
    assert!(stack.broker.mend(&stack.partition).await.unwrap().is_none(), "something still counts");
    stop.cancel();
    worker.await.unwrap();
}

/// How often a job began.
async fn runs(stack: &Stack, id: JobId) -> usize {
    let events: Vec<Event> =
        stack.listener().listen(id).events().map(Result::unwrap).collect().await;
    events.iter().filter(|event| matches!(event.body, Body::Started(_))).count()
}

const BOUNDED: Limits = Limits { max_jobs: 1000, max_bytes: 1 << 20, max_jobs_per_tenant: 1000 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enqueue_cut_anywhere_and_repeated_is_one_job() {
    at_every_request(Limits::default(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_enqueue_cut_anywhere_and_repeated_is_one_job() {
    at_every_request(Limits::default(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_enqueue_cut_anywhere_and_repeated_is_one_job() {
    at_every_request(BOUNDED, false).await;
}

/// Guards against an enqueue that is acknowledged although Redis was restarted between its two steps, and has
/// forgotten the first: its job is nowhere, its key says "duplicate", and its reader waits for good.
async fn forgotten_between_two_steps(limits: Limits, has_key: bool, scheduled: bool) {
    let mut stack = Stack::start(instant()).await;
    let proxy = Proxy::start(stack.server.port()).await;
    let producer = Producer::new(broker(proxy.url(), limits).await, producer::Options::default());
    let make = |question: &str| {
        let mut job = keyed(question, false);
        job.idempotency_key = job.idempotency_key.filter(|_| has_key);
        job.not_before = scheduled.then(|| Timestamp::now().after(Duration::from_secs(1)));
        job
    };
    producer.enqueue(make("before")).await.unwrap();
    stack.server.command(&["SAVE"]);
    // The reply of what adds the entry, and whatever comes behind it, waits until the server is back.
    proxy.hold_behind("forgotten?".to_owned());
    let producer = Arc::new(producer);
    let (theirs, job) = (producer.clone(), make("forgotten?"));
    let enqueue = tokio::spawn(async move { theirs.enqueue(job).await });
    soon(proxy.replied()).await;
    assert_eq!(held(&stack).await, 2);
    stack.server.stop();
    stack.server.restart().await;
    proxy.let_through();
    let id = match soon(enqueue).await.unwrap() {
        Ok(receipt) => receipt.id,
        Err(error) => {
            assert_eq!(error.code(), "broker_unavailable", "{error}");
            // Each of the other connections says that it is dead when it is used.
            let again = soon(async {
                loop {
                    match producer.enqueue(make("forgotten?")).await {
                        Ok(receipt) => break receipt,
                        Err(error) => assert_eq!(error.code(), "broker_unavailable", "{error}"),
                    }
                }
            });
            let again = again.await;
            assert!(!again.duplicate, "its key is burnt");
            again.id
        }
    };
    assert_eq!(held(&stack).await, 2);
    let record = Keys::new("ms").job(id);
    let left = stack.server.command(&["PTTL", &record]).parse::<i64>().unwrap();
    assert!(left > 0, "a record for good, or none: {left}");
    if has_key {
        let mut other = make("another question");
        other.idempotency_key = Some("forgotten?".to_owned());
        let refused = producer.enqueue(other).await.unwrap_err();
        assert_eq!(refused.code(), "idempotency_conflict", "{refused}");
    }
    let (_stop, _worker) = stack.worker(worker::Options::default());
    soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(runs(&stack, id).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enqueue_forgotten_between_its_two_steps_is_not_acknowledged() {
    forgotten_between_two_steps(Limits::default(), true, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_enqueue_forgotten_between_its_two_steps_is_not_acknowledged() {
    forgotten_between_two_steps(BOUNDED, true, false).await;
    forgotten_between_two_steps(BOUNDED, false, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_enqueue_forgotten_between_its_two_steps_is_parked_again() {
    forgotten_between_two_steps(Limits::default(), true, true).await;
    forgotten_between_two_steps(Limits::default(), false, true).await;
}

/// Guards against a key that is forgotten with its result, so that the same command pays for the answer once
/// more without a word; and against one that is remembered for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_outlives_its_result_and_is_new_afterwards() {
    let mut stack = Stack::start(instant()).await;
    let (result_ttl, key_ttl) = (Duration::from_secs(1), Duration::from_secs(4));
    let options = Options { url: stack.server.url(), result_ttl, key_ttl, ..Options::default() };
    stack.broker = Arc::new(Redis::connect(options).await.unwrap());
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let producer = stack.producer();
    let job = keyed("again and again", false);
    let first = producer.enqueue(job.clone()).await.unwrap();
    soon(stack.listener().listen(first.id).answer()).await.unwrap();
    let record = Keys::new("ms").job(first.id);
    let left = || stack.server.command(&["PTTL", &record]).parse::<i64>().unwrap();
    let log = Keys::new("ms").log(first.id);
    soon(async {
        while stack.server.command(&["EXISTS", &log]) != "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let repeated = producer.enqueue(job.clone()).await.unwrap();
    assert!(repeated.duplicate && repeated.id == first.id && left() > 0, "{repeated:?}");
    let error = stack.listener().listen(first.id).answer().await.unwrap_err();
    assert_eq!(error.code(), "events_expired");
    soon(async {
        // The worker settles what is done a moment later; the repeat has added nothing.
        while stack.server.command(&["XLEN", &lane(&stack.partition)]) != "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while left() != -2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let anew = producer.enqueue(job).await.unwrap();
    assert!(!anew.duplicate && anew.id == first.id, "{anew:?}");
    soon(stack.listener().listen(first.id).answer()).await.unwrap();
    assert_eq!(runs(&stack, first.id).await, 1, "the first run is forgotten, the second ran");
}

fn lane(partition: &Partition) -> String {
    Keys::new("ms").lane(partition, Lane::Normal)
}
