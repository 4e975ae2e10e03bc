//! Limits of queues end to end: counters through crashes, strangers and operators, and producers
//! that wait for room.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use millstream::{
    broker::{
        Correction, Counted, Error, Limits, Partition, Shared, Spent, WorkerId,
        redis::{
            Options, Redis,
            keys::{GROUP, Keys},
        },
    },
    job::{ChatRequest, Job, JobId, Lane, Timestamp},
    producer::{self, Producer},
    worker,
};
use serde_json::Value;

use crate::support::{
    program::{Folder, MILLSTREAM, PRODUCER, Ran, Running, WORKER, command, run, run_with},
    redis::Server,
    stack::{Stack, instant},
};

fn jobs(max_jobs: u64) -> Limits {
    Limits { max_jobs, ..Limits::default() }
}

/// The broker of a process that has these limits.
async fn limited(server: &Server, limits: Limits) -> Shared {
    let options = Options { url: server.url(), limits, ..Options::default() };
    let redis = Redis::connect(options).await.unwrap();
    redis.ensure_schema(&[partition()]).await.unwrap();
    Arc::new(redis)
}

fn partition() -> Partition {
    Partition::first(Default::default())
}

fn load() -> String {
    Keys::new("ms").load(&partition())
}

fn far() -> Timestamp {
    Timestamp::now().after(Duration::from_hours(1))
}

fn ask(model: &str, question: &str, tenant: &str) -> Job {
    Job { tenant: tenant.parse().unwrap(), ..Job::new(ChatRequest::ask(model, question)) }
}

async fn counted(broker: &Shared) -> Counted {
    broker.depth(&partition()).await.unwrap().load
}

/// A recount finds that every counter is right.
async fn is_exact(broker: &Shared, when: &str) {
    let correction = broker.reconcile(&partition()).await.unwrap();
    assert_eq!(correction, Correction::default(), "{when}");
}

/// Ends everything in the normal lane, and tells the questions in order.
async fn end_all(broker: &Shared) -> Vec<String> {
    let mut reader = broker.claimer(&partition(), &WorkerId::new("ender")).await.unwrap();
    let entries = reader.read(Lane::Normal, 10_000).await.unwrap();
    let spent: Vec<Spent> = entries.iter().map(Spent::from).collect();
    assert!(broker.remove(&spent, u64::MAX).await.unwrap());
    let question = |entry: &millstream::broker::Entry| {
        let job: Value = serde_json::from_slice(entry.payload()).unwrap();
        job["request"]["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    entries.iter().map(question).collect()
}

// Exact counters.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_exact_through_the_deaths_of_workers() {
    const JOBS: usize = 80;
    let mut stack = Stack::start(instant()).await;
    stack.broker = limited(&stack.server, jobs(1_000_000)).await;
    let url = stack.server.url();
    let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", stack.base_url.as_str())];
    let quick = [
        "worker.lease=600ms",
        "worker.renewal=100ms",
        "worker.sweep=100ms",
        "worker.retry.initial=20ms",
        "worker.retry.max_attempts=100",
        "worker.concurrency=8",
    ];
    let args: Vec<&str> = quick.iter().flat_map(|setting| ["--set", setting]).collect();
    // Some fail at first and are parked, some fail for good and are buried.
    let models =
        ["m?tokens=3", "m?fault=status:503*2", "m?fault=status:400", "m?rate=50,tokens=10"];
    let job = |n: usize| ask(models[n % 4], &format!("mortal {n}"), &format!("t{}", n % 3));
    let receipts = stack.producer().enqueue_all((0..JOBS).map(job).collect()).await;
    let ids: Vec<JobId> = receipts.into_iter().map(|receipt| receipt.unwrap().id).collect();
    for death in 0..6 {
        let mut doomed = Running::start(WORKER, &args, &env);
        doomed.wait_for("serving");
        tokio::time::sleep(Duration::from_millis(30 + 25 * death)).await;
        doomed.child.kill().unwrap();
        is_exact(&stack.broker, &format!("after death {death}")).await;
    }
    let _heir = Running::start(WORKER, &args, &env);
    let answers = ids.iter().map(|id| stack.listener().listen(*id).idle_timeout(None).answer());
    assert!(join_all(answers).await.iter().all(Result::is_ok));
    while stack.broker.depth(&partition()).await.unwrap().lanes.iter().any(|lane| lane.pending > 0)
    {
        is_exact(&stack.broker, "while the last are settled").await;
    }
    let load = counted(&stack.broker).await;
    assert_eq!(load, Counted::default());
    let fields = stack.server.command(&["HKEYS", &self::load()]);
    assert!(!fields.lines().any(|field| field.starts_with("t:")), "a tenant is left: {fields}");
    assert_eq!(stack.broker.depth(&partition()).await.unwrap().dead, JOBS as u64 / 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_exact_after_redis_was_killed() {
    let mut server = Server::durable().await;
    for round in 0..3 {
        let broker = limited(&server, jobs(50)).await;
        let over = AtomicBool::new(false);
        let acknowledged = AtomicU64::new(0);
        let produce = async |name: usize| {
            let producer = Producer::new(broker.clone(), producer::Options::default());
            while !over.load(Ordering::Relaxed) {
                let batch = (0..7).map(|n| ask("m", &format!("{round} {name} {n}"), "acme"));
                for result in producer.enqueue_all(batch.collect()).await {
                    acknowledged.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                }
            }
        };
        let drain = async {
            let mut reader = broker.claimer(&partition(), &WorkerId::new("d")).await.unwrap();
            while let Ok(entries) = reader.read(Lane::Normal, 5).await {
                let spent: Vec<Spent> = entries.iter().map(Spent::from).collect();
                if broker.remove(&spent, u64::MAX).await.is_err() {
                    break;
                }
            }
        };
        let kill = async {
            while acknowledged.load(Ordering::Relaxed) < 300 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            server.stop();
            over.store(true, Ordering::Relaxed);
        };
        tokio::join!(join_all((0..2).map(produce)), drain, kill);
        server.restart().await;
        let broker = limited(&server, jobs(50)).await;
        let depth = broker.depth(&partition()).await.unwrap();
        let held = depth.lanes[1].waiting + depth.lanes[1].pending;
        assert_eq!(depth.load.jobs, held, "round {round}");
        assert!(held > 0, "nothing was left to count");
        is_exact(&broker, &format!("round {round}")).await;
    }
}

#[tokio::test]
async fn counters_that_somebody_changed_are_set_right() {
    let server = Server::start().await;
    let broker = limited(&server, jobs(10)).await;
    let producer = Producer::new(broker.clone(), producer::Options::default());
    let three = || ["a", "a", "b"].map(|tenant| ask("m", "q", tenant)).to_vec();
    for result in producer.enqueue_all(three()).await {
        result.unwrap();
    }
    let right = server.command(&["HMGET", &load(), "jobs", "bytes", "t:a", "t:b"]);
    let tampered = ["HSET", &load(), "jobs", "10", "bytes", "1", "t:a", "x", "t:ghost", "7"];
    server.command(&tampered);
    let refusal = producer.enqueue(ask("m", "q", "a")).await.unwrap_err().to_string();
    assert!(refusal.contains("holds 10 jobs"), "{refusal}");

    let url = server.url();
    let env = [("REDIS_URL", url.as_str())];
    let ran = run(MILLSTREAM, &["queues", "reconcile", "default", "--output", "json"], &env);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &told["queue"]), (Some(0), &"default".into()), "{ran:?}");
    let corrected = &told["corrected"];
    assert_eq!((&corrected["jobs"], &corrected["tenants"]), (&(-7).into(), &2.into()), "{told}");
    assert_eq!(server.command(&["HMGET", &load(), "jobs", "bytes", "t:a", "t:b"]), right);
    assert_eq!(server.command(&["HGET", &load(), "t:ghost"]), "");
    let again = run(MILLSTREAM, &["queues", "reconcile"], &env);
    assert_eq!(again.out, "default: nothing to correct\n", "{again:?}");

    // Lost altogether: what is there does not count below nothing, and a recount finds the rest.
    server.command(&["DEL", &load()]);
    producer.enqueue(ask("m", "q", "c")).await.unwrap();
    assert!(broker.mend(&partition()).await.unwrap().is_none(), "nobody is refused for it");
    let correction = broker.reconcile(&partition()).await.unwrap();
    assert_eq!((correction.jobs, correction.tenants), (3, 2));
    server.command(&["DEL", &load()]);
    assert_eq!(end_all(&broker).await.len(), 4);
    assert_eq!(server.command(&["HMGET", &load(), "jobs", "bytes"]), "0\n0");
    assert_eq!(server.command(&["HLEN", &load()]), "2");
    // Entries that a stranger deletes.
    producer.enqueue(ask("m", "q", "c")).await.unwrap();
    server.command(&["DEL", &Keys::new("ms").lane(&partition(), Lane::Normal)]);
    assert_eq!(broker.reconcile(&partition()).await.unwrap().jobs, -1);
    is_exact(&broker, "at last").await;
}

/// Guards against workers that hold the server up by recounts while nothing is wrong: entries that
/// nobody has counted lie beside counted ones.
#[tokio::test]
async fn workers_recount_where_too_much_is_counted_and_nowhere_else() {
    let mut stack = Stack::start(instant()).await;
    stack.broker = limited(&stack.server, jobs(1000)).await;
    let keys = Keys::new("ms");
    // Parked for good: they are held while workers look.
    let later = Job { not_before: Some(far()), ..ask("m", "q", "a") };
    stack.producer().enqueue(later).await.unwrap();
    let stored = r#"low 1763640000123 2 {"model":"m","messages":[{}]}"#;
    let id = JobId::new().to_string();
    stack.server.command(&["HSET", &keys.parked_jobs(&partition()), &id, stored]);
    stack.server.command(&["ZADD", &keys.parked(&partition()), &far().0.to_string(), &id]);
    stack.reset_counts();
    let forget = Duration::from_millis(50);
    let options =
        worker::Options { forget, block: Duration::from_millis(20), ..Default::default() };
    let workers: Vec<_> = (0..3).map(|_| stack.worker(options.clone())).collect();
    let looks = || stack.command_counts().get("hmget").copied().unwrap_or_default();
    while looks() < 12 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Each look begins with one at the dead letters; more than that are lanes.
    let ranges = stack.command_counts().get("xrange").copied().unwrap_or_default();
    assert!(ranges <= looks() + 3, "lanes were read: {ranges}");
    assert_eq!(counted(&stack.broker).await.corrected, 0);
    stack.server.command(&["HSET", &load(), "jobs", "3"]);
    while counted(&stack.broker).await.jobs != 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seen = looks();
    while looks() < seen + 12 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(counted(&stack.broker).await.corrected, 1, "one of them counted, once");
    drop(workers);
}

/// Reads everything in the normal lane and acknowledges it, as a consumer in another language may.
fn only_ack(server: &Server) {
    let lane = Keys::new("ms").lane(&partition(), Lane::Normal);
    let read =
        ["XREADGROUP", "GROUP", GROUP, "theirs", "COUNT", "10000", "STREAMS", lane.as_str(), ">"];
    let reply = server.command(&read);
    let is_id = |line: &&str| {
        line.split_once('-').is_some_and(|(ms, seq)| ms.len() == 13 && seq.parse::<u32>().is_ok())
    };
    let ids: Vec<&str> = reply.lines().filter(is_id).collect();
    assert!(!ids.is_empty());
    server.command(&[&["XACK", lane.as_str(), GROUP], &ids[..]].concat());
}

#[tokio::test]
async fn a_trim_gives_back_what_was_only_acknowledged() {
    let server = Server::start().await;
    let broker = limited(&server, jobs(100)).await;
    let producer = Producer::new(broker.clone(), producer::Options::default());
    let batch = |count: usize| vec![ask("m", "q", "acme"); count];
    assert!(producer.enqueue_all(batch(100)).await.iter().all(Result::is_ok));
    only_ack(&server);
    assert_eq!(counted(&broker).await.jobs, 100);
    // A queue that is full of what is over is trimmed soon, though nothing is added to it.
    let mut tries = 0;
    while producer.enqueue(ask("m", "q", "acme")).await.is_err() {
        tries += 1;
        assert!(tries <= 11, "still full");
    }
    assert_eq!(counted(&broker).await.jobs, 1);
    is_exact(&broker, "after the trim").await;
    assert!(producer.enqueue_all(batch(70)).await.iter().all(Result::is_ok));
    only_ack(&server);
    // A recount does not count them either.
    broker.reconcile(&partition()).await.unwrap();
    assert_eq!((counted(&broker).await.jobs, counted(&broker).await.corrected), (0, 0));
}

#[tokio::test]
async fn a_job_parked_before_jobs_counted_is_promoted() {
    let server = Server::start().await;
    let broker = limited(&server, jobs(100)).await;
    let keys = Keys::new("ms");
    let id = JobId::new();
    let stored = r#"low 1763640000123 2 {"model":"m","messages":[{}]}"#;
    server.command(&["HSET", &keys.parked_jobs(&partition()), &id.to_string(), stored]);
    server.command(&["ZADD", &keys.parked(&partition()), "1", &id.to_string()]);
    is_exact(&broker, "it does not count").await;
    assert_eq!(broker.promote(&partition(), 9).await.unwrap().count, 1);
    let mut reader = broker.claimer(&partition(), &WorkerId::new("w")).await.unwrap();
    let entry = reader.read(Lane::Low, 9).await.unwrap().remove(0);
    assert_eq!(
        (entry.id, entry.attempt, entry.at.0, &entry.load),
        (id, 2, 1_763_640_000_123, &None)
    );
    assert!(entry.job.is_ok());
}

#[tokio::test]
async fn a_refused_key_is_kept_for_seconds_and_an_accepted_one_for_its_time() {
    let server = Server::start().await;
    let broker = limited(&server, jobs(1)).await;
    let producer = Producer::new(broker.clone(), producer::Options::default());
    let keyed = |key: &str| Job { idempotency_key: Some(key.to_owned()), ..ask("m", key, "acme") };
    let minutes = |job: &Job| {
        let left = server.command(&["PTTL", &Keys::new("ms").job(job.assign_id())]);
        left.parse::<u64>().unwrap().div_ceil(60_000)
    };
    let (first, second) = (keyed("first"), keyed("second"));
    producer.enqueue(first.clone()).await.unwrap();
    producer.enqueue(second.clone()).await.unwrap_err();
    assert_eq!((minutes(&first), minutes(&second)), (7 * 24 * 60, 1));
    end_all(&broker).await;
    producer.enqueue(second.clone()).await.unwrap();
    assert_eq!(minutes(&second), 7 * 24 * 60);
}

#[tokio::test]
async fn a_job_under_limits_costs_few_commands_more() {
    const JOBS: u64 = 200;
    let mut stack = Stack::start(instant()).await;
    stack.broker = limited(&stack.server, jobs(1_000_000)).await;
    let (stop, worker) = stack.worker(worker::Options::default());
    let warm = stack.ask("m?tokens=1", "warm up").await;
    stack.listener().listen(warm).answer().await.unwrap();
    while counted(&stack.broker).await.jobs > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (listener, producer) = (stack.listener(), stack.producer());
    stack.reset_counts();
    let job = |n| Job { stream: false, ..Job::new(ChatRequest::ask("m", &format!("whole {n}"))) };
    let receipts = producer.enqueue_all((0..JOBS).map(job).collect()).await;
    let answers = receipts.into_iter().map(|receipt| listener.listen(receipt.unwrap().id).answer());
    assert!(join_all(answers).await.into_iter().all(|answer| answer.is_ok()));
    stop.cancel();
    worker.await.unwrap();
    let counts = stack.command_counts();
    let own = ["info", "config|resetstat"];
    let total: u64 =
        counts.iter().filter(|(name, _)| !own.contains(&name.as_str())).map(|(_, n)| n).sum();
    let each = total as f64 / JOBS as f64;
    println!("job that does not stream, under limits: {each} commands: {counts:?}");
    // One XDEL for each instead of for many, and the counters of each batch.
    assert!(each <= 26.0, "{counts:?}");
    assert_eq!(counted(&stack.broker).await, Counted::default());
}

// Producers at a full queue.

struct Site {
    server: Server,
    folder: Folder,
}

impl Site {
    async fn new() -> Self {
        Self { server: Server::start().await, folder: Folder::new() }
    }

    fn env(&self, limits: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let limits = limits.iter().map(|(name, value)| (*name, (*value).to_owned()));
        [("REDIS_URL", self.server.url())].into_iter().chain(limits).collect()
    }

    fn run(&self, args: &[&str], limits: &[(&'static str, &str)], input: &str) -> Ran {
        let env = self.env(limits);
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run_with(PRODUCER, args, &env, input.as_bytes())
    }

    /// A producer of these lines in the background; what it writes goes to a file.
    fn start(&self, args: &[&str], limits: &[(&'static str, &str)], input: &str) -> Running {
        let input = self.folder.write("input", input);
        let out = std::fs::File::create(self.folder.path().join("out")).unwrap();
        let folder = Folder::new();
        let args = [&["--file", input.as_str()], args].concat();
        let env = self.env(limits);
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut command = command(PRODUCER, &args, &env, folder.path());
        command.stdout(out).stderr(Stdio::piped());
        Running::spawn(command, folder)
    }

    fn out(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("out")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn lines(count: usize) -> String {
    let line = |n| serde_json::to_string(&ChatRequest::ask("m", &format!("line {n}"))).unwrap();
    (1..=count).map(|n| format!("{}\n", line(n))).collect()
}

const TEN: (&str, &str) = ("MILLSTREAM_REDIS__LIMITS__MAX_JOBS", "10");

#[tokio::test]
async fn what_a_full_queue_refuses_is_told_line_by_line() {
    let site = Site::new().await;
    let tenants = ["a", "a", "a", "b", "a", "c", "a"];
    let input: String = tenants
        .iter()
        .map(|tenant| {
            let request = serde_json::to_string(&ChatRequest::ask("m", "q")).unwrap();
            format!("{{\"request\":{request},\"tenant\":\"{tenant}\"}}\n")
        })
        .collect();
    let bound = [("MILLSTREAM_REDIS__LIMITS__MAX_JOBS_PER_TENANT", "2")];
    let ran = site.run(&["--file", "-", "--output", "json"], &bound, &input);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let accepted: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].clone())
        .collect();
    assert_eq!(accepted, [1, 2, 4, 6]);
    let said = "queue full: queue `default` holds 2 jobs of tenant `a`, \
                redis.limits.max_jobs_per_tenant is 2; try again in 1.0 s; read up to line 7: 4 jobs \
                enqueued; not enqueued, for want of room: line 3,5,7; the same command with --lines 3,5,7- goes on";
    assert!(ran.err.contains(said) && ran.err.contains("--block waits"), "{ran:?}");
    assert_eq!(site.server.command(&["XLEN", "ms:{q:default:0}:normal"]), "4");
    let one = site.run(&["--model=m", "--user=q", "--tenant=a"], &bound, "");
    assert_eq!((one.code, one.out.as_str()), (Some(4), ""), "{one:?}");
    assert!(one.err.contains("nothing is enqueued"), "{one:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_producer_waits_for_room_and_keeps_the_order() {
    const LINES: usize = 35;
    let site = Site::new().await;
    let broker = limited(&site.server, Limits::default()).await;
    // Every fifth is another tenant's, and would find room sooner.
    let input: String = (1..)
        .zip(lines(LINES).lines())
        .map(|(n, request)| {
            let tenant = if n % 5 == 0 { "other" } else { "most" };
            format!("{{\"request\":{request},\"tenant\":\"{tenant}\"}}\n")
        })
        .collect();
    let eight = ("MILLSTREAM_REDIS__LIMITS__MAX_JOBS_PER_TENANT", "8");
    let mut producer = site.start(&["--block", "--output", "json"], &[eight], &input);
    let waiting = producer.wait_for("waiting for room");
    assert!(waiting.contains("queue `default` holds 8 jobs of tenant `most`"), "{waiting}");
    let mut seen = Vec::new();
    while seen.len() < LINES {
        let depth = broker.depth(&partition()).await.unwrap();
        assert!(depth.lanes[1].waiting <= 10 && depth.load.jobs <= 10, "{depth:?}");
        seen.extend(end_all(&broker).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (code, said) = tokio::task::spawn_blocking(|| producer.end()).await.unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("waiting for room").count(), 1, "it says so once: {said}");
    assert!(said.contains("35 jobs enqueued"), "{said}");
    let expected: Vec<String> = (1..=LINES).map(|n| format!("line {n}")).collect();
    assert_eq!(seen, expected);
    let told: Vec<u64> = site.out().iter().map(|job| job["line"].as_u64().unwrap()).collect();
    assert_eq!(told, (1..=LINES as u64).collect::<Vec<_>>());
    assert_eq!(counted(&broker).await, Counted::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_producer_says_what_it_leaves_when_it_is_interrupted() {
    for (signal, args) in [("INT", &["--output", "json"][..]), ("TERM", &["--wait"])] {
        let site = Site::new().await;
        let args = [&["--block"], args].concat();
        let mut producer = site.start(&args, &[TEN], &lines(30));
        producer.wait_for("waiting for room");
        producer.signal(signal);
        let (code, said) = tokio::task::spawn_blocking(|| producer.end()).await.unwrap();
        assert_eq!(code, Some(130), "{said}");
        let left = "interrupted; read up to line 30: 10 jobs enqueued; not enqueued, for want of \
                    room: line 11-30; the same command with --lines 11- goes on";
        assert!(said.contains(left), "{said}");
        assert_eq!(site.server.command(&["XLEN", "ms:{q:default:0}:normal"]), "10");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_producers_and_real_workers_get_everything_done() {
    const LINES: usize = 120;
    let stack = Stack::start(instant()).await;
    let url = stack.server.url();
    let env = [
        ("REDIS_URL", url.as_str()),
        ("OPENAI_BASE_URL", stack.base_url.as_str()),
        ("MILLSTREAM_REDIS__LIMITS__MAX_JOBS", "40"),
    ];
    let _worker = Running::start(WORKER, &[], &env);
    let args = ["--file", "-", "--block", "--wait", "--output", "json"];
    let ran = join_all((0..2).map(|_| {
        let env: Vec<(String, String)> =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        tokio::task::spawn_blocking(move || {
            let env: Vec<_> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            run_with(PRODUCER, &args, &env, lines(LINES).as_bytes())
        })
    }))
    .await;
    for ran in ran {
        let ran = ran.unwrap();
        assert_eq!((ran.code, ran.out.lines().count()), (Some(0), LINES), "{ran:?}");
        assert_eq!(ran.out.matches(r#""state":"done""#).count(), LINES);
    }
    while stack.broker.depth(&partition()).await.unwrap().lanes[1].pending > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(counted(&stack.broker).await, Counted::default());
    assert!(stack.broker.reconcile(&partition()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_job_waits_for_room_too() {
    let site = Site::new().await;
    let one = ("MILLSTREAM_REDIS__LIMITS__MAX_JOBS", "1");
    let broker = limited(&site.server, jobs(1)).await;
    let producer = Producer::new(broker.clone(), producer::Options::default());
    producer.enqueue(ask("m", "in the way", "acme")).await.unwrap();
    let env = site.env(&[one]);
    for (args, gives_room) in [(&["--stream"][..], false), (&[], false), (&[], true)] {
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let args = [&["--model=m", "--user=hi", "--block"], args].concat();
        let mut running = Running::start(PRODUCER, &args, &env);
        running.wait_for("waiting for room");
        if gives_room {
            end_all(&broker).await;
        } else {
            running.signal("INT");
        }
        let (code, said) = tokio::task::spawn_blocking(|| running.end()).await.unwrap();
        assert_eq!(code, Some(if gives_room { 0 } else { 130 }), "{said}");
        assert_eq!(said.contains("nothing is enqueued"), !gives_room, "{said}");
    }
    assert_eq!(end_all(&broker).await, ["hi"]);
}

#[tokio::test]
async fn the_library_waits_for_room_until_it_is_told_to_stop() {
    let server = Server::start().await;
    let broker = limited(&server, jobs(1)).await;
    let producer = Arc::new(Producer::new(broker.clone(), producer::Options::default()));
    let stop = tokio_util::sync::CancellationToken::new();
    producer.enqueue_waiting(ask("m", "first", "acme"), &stop).await.unwrap();
    let waiting = tokio::spawn({
        let (producer, stop) = (producer.clone(), stop.clone());
        async move { producer.enqueue_waiting(ask("m", "second", "acme"), &stop).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    assert_eq!(end_all(&broker).await, ["first"]);
    assert!(!waiting.await.unwrap().unwrap().duplicate);
    stop.cancel();
    let refused = producer.enqueue_waiting(ask("m", "third", "acme"), &stop).await.unwrap_err();
    assert!(matches!(refused, producer::Error::Broker(Error::Full { .. })), "{refused}");
    assert_eq!(end_all(&broker).await, ["second"]);
}

#[tokio::test]
async fn an_operator_sees_what_counts_and_the_limits() {
    let site = Site::new().await;
    let limits = [TEN, ("MILLSTREAM_REDIS__LIMITS__MAX_BYTES", "2000000")];
    assert_eq!(site.run(&["--file", "-"], &limits, &lines(3)).code, Some(0));
    let env = site.env(&limits);
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let shown = run(MILLSTREAM, &["queues", "--output", "json"], &env);
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    let bytes: u64 = site.server.command(&["HGET", &load(), "bytes"]).parse().unwrap();
    assert_eq!(shown["load"], serde_json::json!({"jobs": 3, "bytes": bytes, "corrected": 0}));
    let limits = serde_json::json!(
        {"max_jobs": 10, "max_bytes": 2_000_000, "max_jobs_per_tenant": 0});
    assert_eq!(shown["limits"], limits);
    let table = run(MILLSTREAM, &["queues"], &env).out;
    assert!(table.contains("3/10") && table.contains(&format!("{bytes}/2000000")), "{table}");
    let refused = run(MILLSTREAM, &["queues", "reconcile"], &[]);
    assert_eq!(
        refused.code,
        Some(3),
        "there is nothing to count on an embedded broker: {refused:?}"
    );
}
