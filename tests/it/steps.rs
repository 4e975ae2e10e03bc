//! However much a queue holds, no script holds the server up: what is long goes in steps.

use std::{sync::Arc, time::Duration};

use millstream::{
    broker::{
        Counted, Crashes, Error, Limits, Outcome, Partition, Shared, Spent, Submission, Sweep,
        WorkerId, Written,
        redis::{
            Options, Redis,
            keys::{GROUP, Keys},
        },
    },
    event::Codec,
    job::{ChatRequest, Job, JobId, Lane, Tenant},
};

use crate::support::{
    stack::{Stack, instant},
    subject::{begun, delta, done, far},
};

/// Most entries of one step, as the scripts are given it.
const STEP: u64 = 500;

async fn limited(limits: Limits) -> (Stack, Shared) {
    let stack = Stack::start(instant()).await;
    let options = Options { url: stack.server.url(), limits, ..Options::default() };
    let broker: Shared = Arc::new(Redis::connect(options).await.unwrap());
    (stack, broker)
}

fn many() -> Limits {
    Limits { max_jobs: 1_000_000, ..Limits::default() }
}

fn submissions(count: usize, tenant: &str, bytes: usize) -> Vec<Submission> {
    let tenant: Tenant = tenant.parse().unwrap();
    let one = |n: usize| {
        let request = ChatRequest::ask("m", &format!("{n} {}", "x".repeat(bytes)));
        let job = Job { tenant: tenant.clone(), ..Job::new(request) };
        let payload = serde_json::to_vec(&job).unwrap();
        let partition = Partition::first(Default::default());
        Submission { id: job.assign_id(), job, payload, partition }
    };
    (0..count).map(one).collect()
}

/// How many scripts have run since the statistics were reset, without calls of one that the server did not know.
fn scripts(stack: &Stack) -> u64 {
    let info = stack.server.command(&["INFO", "commandstats"]);
    let number = |line: &str, name: &str| -> u64 {
        line.split(name).nth(1).unwrap().split(',').next().unwrap().trim().parse().unwrap()
    };
    info.lines()
        .filter(|line| line.starts_with("cmdstat_evalsha:") || line.starts_with("cmdstat_eval:"))
        .map(|line| number(line, ":calls=") - number(line, "failed_calls="))
        .sum()
}

/// Guards against scripts that read all that a queue holds, or all that a consumer has left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recount_and_a_trim_go_in_steps() {
    const JOBS: u64 = 4000;
    let (stack, broker) = limited(many()).await;
    for tenant in 0..4 {
        for result in broker.enqueue(&submissions(1000, &format!("t{tenant}"), 10)).await {
            result.unwrap();
        }
    }
    let later = Job { not_before: Some(far()), ..submissions(1, "t9", 10).remove(0).job };
    for _ in 0..3 {
        let parked = Submission {
            id: JobId::new(),
            job: later.clone(),
            ..submissions(1, "t9", 10).remove(0)
        };
        broker.enqueue(&[parked]).await.remove(0).unwrap();
    }
    let keys = Keys::new("ms");
    let (load, lane) = (keys.load(&stack.partition), keys.lane(&stack.partition, Lane::Normal));
    let right = broker.depth(&stack.partition).await.unwrap().load;
    for (field, by) in [("jobs", "7"), ("bytes", "-9"), ("t:t2", "-5"), ("t:ghost", "3")] {
        stack.server.command(&["HINCRBY", &load, field, by]);
    }
    stack.reset_counts();
    let correction = broker.reconcile(&stack.partition).await.unwrap();
    assert_eq!((correction.jobs, correction.bytes, correction.tenants), (-7, 9, 2));
    assert!(scripts(&stack) >= JOBS / STEP, "{} scripts", scripts(&stack));
    let now = broker.depth(&stack.partition).await.unwrap().load;
    assert_eq!(now, Counted { corrected: 4, ..right });
    assert_eq!(stack.server.command(&["HMGET", &load, "t:t2", "t:ghost", "t:t9"]), "1000\n\n3");

    // A consumer in another language acknowledges, and deletes nothing.
    let read = ["XREADGROUP", "GROUP", GROUP, "theirs", "COUNT", "9999", "STREAMS", &lane, ">"];
    stack.server.command(&read);
    let ack = "local p = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 7000); \
               for _, e in ipairs(p) do redis.call('XACK', KEYS[1], ARGV[1], e[1]) end";
    stack.server.command(&["EVAL", ack, "1", &lane, GROUP]);
    stack.reset_counts();
    let removed = broker.trim(&stack.partition, Lane::Normal).await.unwrap();
    assert_eq!(removed, JOBS);
    assert!(scripts(&stack) >= JOBS / STEP, "{} scripts", scripts(&stack));
    assert_eq!(broker.depth(&stack.partition).await.unwrap().load.jobs, 3);
}

/// Guards against a recount in steps that takes for wrong what has changed between two of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recount_beside_jobs_that_come_and_end_spoils_no_counter() {
    let (stack, broker) = limited(many()).await;
    let add = async |count| {
        for result in broker.enqueue(&submissions(count, "acme", 10)).await {
            result.unwrap();
        }
    };
    add(3000).await;
    let busy = async {
        let mut reader = broker.claimer(&stack.partition, &WorkerId::new("w")).await.unwrap();
        loop {
            let entries = reader.read(Lane::Normal, 50).await.unwrap();
            if entries.is_empty() {
                return;
            }
            let spent: Vec<Spent> = entries.iter().map(Spent::from).collect();
            assert!(broker.remove(&spent, u64::MAX).await.unwrap());
            if entries.len() == 50 {
                add(10).await;
            }
        }
    };
    let recounts = async {
        let mut ended = 0;
        while ended < 3 {
            let correction = broker.reconcile(&stack.partition).await.unwrap();
            assert!(correction.is_none(), "{correction}");
            ended += 1;
        }
    };
    tokio::join!(busy, recounts);
    let left = broker.depth(&stack.partition).await.unwrap().load;
    assert_eq!(left, Counted::default());
}

/// Guards against a recount beside jobs that end all the time, and that leaves the counters of an empty queue
/// as wrong as they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recount_under_which_everything_has_ended_leaves_nothing_counted() {
    let (stack, broker) = limited(many()).await;
    let keys = Keys::new("ms");
    let load = keys.load(&stack.partition);
    stack.server.command(&["HSET", &load, "jobs", "3", "bytes", "30", "t:acme", "3"]);
    let script = concat!(
        include_str!("../../src/broker/redis/lua/load.lua"),
        include_str!("../../src/broker/redis/lua/reconcile.lua")
    );
    let [high, normal, low] = keys.lanes(&stack.partition);
    let (parked, jobs) = (keys.parked(&stack.partition), keys.parked_jobs(&stack.partition));
    // The last step of a recount that has read five jobs of ten bytes.
    let call = ["EVAL", script, "6", &high, &normal, &low, &parked, &jobs, &load];
    let read =
        ["settle", "500", "9999", "9-0", "9-0", "9-0", "", "5", "5", "50", "10", "acme", "5"];
    let said = stack.server.command(&[&call[..], &read[..]].concat());
    assert!(said.starts_with("set\n"), "{said}");
    assert_eq!(broker.depth(&stack.partition).await.unwrap().load.bytes, 0);
    assert_eq!(stack.server.command(&["HMGET", &load, "jobs", "t:acme"]), "0\n");
}

/// Guards against a script that moves, takes over or admits so much as there is, whatever its size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_jobs_are_moved_a_few_at_a_time() {
    const LARGE: usize = 700 * 1024;
    let (stack, broker) = limited(many()).await;
    stack.reset_counts();
    let results = broker.enqueue(&submissions(4, "acme", LARGE)).await;
    assert!(results.iter().all(Result::is_ok));
    assert!(scripts(&stack) >= 4, "admitted one by one");

    let worker = WorkerId::new("w");
    let mut reader = broker.claimer(&stack.partition, &worker).await.unwrap();
    let entries = reader.read(Lane::Normal, 9).await.unwrap();
    for entry in &entries {
        assert!(broker.release(&worker, &entry.place, None).await.unwrap());
    }
    let lease = Duration::from_hours(1);
    let sweep = Sweep { lease, most: 9, ask: false, deliveries: 9 };
    stack.reset_counts();
    let swept = broker.sweep(&stack.partition, &WorkerId::new("heir"), &sweep).await.unwrap();
    assert_eq!(swept.entries.len(), 4, "all of them");
    assert!(scripts(&stack) >= 2, "{} scripts", scripts(&stack));

    for entry in &swept.entries {
        let due = millstream::job::Timestamp(1);
        broker.park(entry, 0, due, u64::MAX).await.unwrap();
    }
    for left in (0..4).rev() {
        let promoted = broker.promote(&stack.partition, 256).await.unwrap();
        assert_eq!(promoted.count, 1);
        // The others are due: whoever promotes goes on at once.
        assert_eq!(promoted.next_in, (left > 0).then_some(Duration::ZERO));
    }
}

/// Guards against steps of a batch in which a later job finds the room that an earlier one did not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_order_no_step_of_a_batch_overtakes_what_an_earlier_one_refused() {
    let (stack, broker) = limited(Limits { max_jobs_per_tenant: 550, ..Limits::default() }).await;
    let mut batch = submissions(600, "acme", 10);
    batch.extend(submissions(600, "other", 10));
    stack.reset_counts();
    let results = broker.enqueue_in_order(&batch).await;
    let accepted: Vec<bool> = results.iter().map(Result::is_ok).collect();
    let overtaken = accepted.iter().enumerate().find(|(n, accepted)| **accepted != (*n < 550));
    assert_eq!(overtaken, None);
    assert!(results.into_iter().skip(550).all(|r| matches!(r, Err(Error::Full { .. }))));
    assert!(scripts(&stack) >= 2);
    let results = broker.enqueue(&batch).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 550);
}

/// Guards against a script that rewrites a large answer into less space, which takes much longer than to write
/// it and saves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_small_log_is_rewritten() {
    let stack = Stack::start(instant()).await;
    let broker = &stack.broker;
    let me = WorkerId::new("w");
    let mut reader = broker.claimer(&stack.partition, &me).await.unwrap();
    // Text that cannot be compressed.
    let text = |bytes: usize| (0..bytes / 36).map(|_| JobId::new().to_string()).collect::<String>();
    for (before, last, expected) in [(0, 100, [1, 1]), (0, 100_000, [0, 0]), (300_000, 100, [1, 0])]
    {
        stack.ask("m", "size").await;
        let entry = reader.read(Lane::Normal, 1).await.unwrap().remove(0);
        let crashes = Crashes { most: 9, alone: true };
        let attempt = begun(broker.begin(&entry, &me, crashes).await.unwrap());
        let first = delta(1, &text(before), Codec::Json);
        assert_eq!(broker.append(&attempt, &[first]).await.unwrap(), Written::Yes);
        stack.reset_counts();
        let outcome = Outcome::Done { finish_reason: None, usage: None };
        let frames = [delta(2, &text(last), Codec::Json), done(3)];
        assert_eq!(broker.conclude(&attempt, &frames, &outcome).await.unwrap(), Written::Yes);
        let counts = stack.command_counts();
        let calls = ["dump", "restore"].map(|name| counts.get(name).copied().unwrap_or_default());
        assert_eq!(calls, expected, "{before} bytes and {last}");
        assert_eq!(broker.last(entry.id).await.unwrap().unwrap().seq, 3);
    }
}

/// Guards against a script that looks at every worker there ever was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_are_forgotten_a_few_at_a_time() {
    const DEAD: u64 = 250;
    let stack = Stack::start(instant()).await;
    let keys = Keys::new("ms");
    let make =
        "for i = 1, ARGV[1] do redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], 'workers', i) end";
    let lane = keys.lane(&stack.partition, Lane::Low);
    stack.server.command(&["EVAL", make, "1", &lane, &DEAD.to_string()]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    stack.reset_counts();
    let gone = stack.broker.retire(&stack.partition, None, Duration::ZERO).await.unwrap();
    assert_eq!(gone, DEAD);
    assert!(scripts(&stack) >= 3, "{} scripts", scripts(&stack));
    assert!(stack.broker.workers(&stack.partition).await.unwrap().is_empty());
}

/// Guards against a renewal of some entries that looks at everything which its worker holds, and against one
/// that takes for gone what it has not looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_renewed_some_hundred_at_a_time() {
    const HELD: usize = 1600;
    let (stack, broker) = limited(Limits::default()).await;
    for result in broker.enqueue(&submissions(HELD, "acme", 10)).await {
        result.unwrap();
    }
    let me = WorkerId::new("w");
    let mut reader = broker.claimer(&stack.partition, &me).await.unwrap();
    let entries = reader.read(Lane::Normal, HELD).await.unwrap();
    let mut places: Vec<_> = entries.into_iter().map(|entry| entry.place).collect();
    // In whatever order they are held.
    places.rotate_left(HELD / 3);
    stack.reset_counts();
    let renewed = broker.renew(&me, &places).await.unwrap();
    assert!(renewed.gone.is_empty() && renewed.lost == 0);
    assert!(scripts(&stack) >= 4, "{} scripts", scripts(&stack));
    assert_eq!(stack.command_counts().get("xpending"), Some(&4), "each looks at its own");
    let heir = WorkerId::new("heir");
    let lane = Keys::new("ms").lane(&stack.partition, Lane::Normal);
    for place in &places[700..703] {
        stack.server.command(&["XCLAIM", &lane, GROUP, heir.as_str(), "0", &place.entry]);
    }
    let mut gone = broker.renew(&me, &places).await.unwrap().gone;
    gone.sort_by(|a, b| a.entry.cmp(&b.entry));
    assert_eq!(gone.len(), 3);
    assert!(gone.iter().all(|place| places[700..703].contains(place)));
}
