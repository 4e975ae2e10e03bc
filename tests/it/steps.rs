//! However much a queue holds, no script holds the server up: what is long goes in steps.

use std::{sync::Arc, time::Duration};

use millstream::{
    broker::{
        Counted, Error, Limits, Partition, Shared, Spent, Submission, Sweep, WorkerId,
        redis::{
            Options, Redis,
            keys::{GROUP, Keys},
        },
    },
    job::{ChatRequest, Job, JobId, Lane, Tenant},
};

use crate::support::{
    stack::{Stack, instant},
    subject::far,
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

/// How many scripts have run since the statistics were reset.
fn scripts(stack: &Stack) -> u64 {
    let counts = stack.command_counts();
    ["evalsha", "eval"].iter().filter_map(|name| counts.get(*name)).sum()
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
    assert_eq!(accepted, (0..1200).map(|n| n < 550).collect::<Vec<_>>());
    assert!(results.into_iter().skip(550).all(|r| matches!(r, Err(Error::Full { .. }))));
    assert!(scripts(&stack) >= 2);
    let results = broker.enqueue(&batch).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 550);
}
