//! What a worker does with its options.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use millstream::{
    broker::{WorkerId, redis::keys::Keys},
    event::Codec,
    job::{ChatRequest, Job, JobId, Lane},
    worker::{Options, Reason},
};

use super::{
    probe::{HOLD, Probe},
    until,
};
use crate::support::stack::{Stack, expected, instant, paced};

/// Enqueues questions, which are named by queue and number.
async fn enqueue(stack: &Stack, queue: &str, lane: Lane, count: usize) -> Vec<JobId> {
    let job = |n| Job {
        queue: queue.parse().unwrap(),
        lane,
        ..Job::new(ChatRequest::ask("m", &format!("{queue} {lane} {n}")))
    };
    let receipts = stack.producer().enqueue_all((0..count).map(job).collect()).await;
    receipts.into_iter().map(|receipt| receipt.unwrap().id).collect()
}

#[tokio::test]
async fn only_the_queues_of_a_worker_are_served() {
    let stack = Stack::start(instant()).await;
    let probe = Arc::new(Probe::new(100));
    for queue in ["default", "a", "b"] {
        enqueue(&stack, queue, Lane::Normal, 2).await;
    }
    let queues = ["a", "b"].map(|name| name.parse().unwrap()).to_vec();
    let (stop, worker) = probe.worker(&stack, Options { queues, ..Options::default() });
    until("four questions", || probe.asked().len() == 4).await;
    tokio::time::sleep(HOLD).await;
    stop.cancel();
    worker.await.unwrap();
    let mut asked = probe.asked();
    asked.sort();
    assert_eq!(asked, ["a normal 0", "a normal 1", "b normal 0", "b normal 1"]);
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert_eq!(depth.lanes[Lane::Normal.index()].waiting, 2, "nobody serves `default`");
}

#[tokio::test]
async fn no_more_jobs_run_at_once_than_allowed() {
    let stack = Stack::start(instant()).await;
    for concurrency in [1, 3] {
        let probe = Arc::new(Probe::new(0));
        let ids = enqueue(&stack, "default", Lane::Normal, 10).await;
        let (stop, worker) = probe.worker(&stack, Options { concurrency, ..Options::default() });
        until("every slot taken", || probe.asked().len() == concurrency).await;
        tokio::time::sleep(HOLD).await;
        probe.gate.add_permits(10);
        for id in ids {
            stack.listener().listen(id).answer().await.unwrap();
        }
        assert_eq!(probe.peak(), concurrency);
        stop.cancel();
        worker.await.unwrap();
    }
}

#[tokio::test]
async fn a_record_names_its_worker() {
    let stack = Stack::start(instant()).await;
    let (_stop, _worker) =
        stack.worker(Options { name: "lathe-7".to_owned(), ..Options::default() });
    let id = stack.ask("m", "who?").await;
    stack.listener().listen(id).answer().await.unwrap();
    let worker = stack.broker.job(id).await.unwrap().unwrap().worker.unwrap();
    assert!(worker.starts_with("lathe-7"), "{worker}");
}

#[tokio::test]
async fn full_lanes_are_served_in_proportion_to_their_weights() {
    for weights in [[8, 4, 1], [1, 1, 8]] {
        let stack = Stack::start(instant()).await;
        for lane in Lane::ALL {
            enqueue(&stack, "default", lane, 20).await;
        }
        let probe = Arc::new(Probe::new(60));
        let options = Options { concurrency: 1, weights, ..Options::default() };
        let (_stop, _worker) = probe.worker(&stack, options);
        let round: u32 = weights.iter().sum();
        let two_rounds = usize::try_from(round * 2).unwrap();
        until("two rounds", || probe.asked().len() >= two_rounds).await;
        let asked = probe.asked();
        for round in asked[..two_rounds].chunks(two_rounds / 2) {
            let shares = Lane::ALL.map(|lane| {
                let of_lane = round.iter().filter(|text| text.contains(lane.as_str()));
                u32::try_from(of_lane.count()).unwrap()
            });
            assert_eq!(shares, weights, "{round:?}");
        }
    }
}

#[tokio::test]
async fn an_idle_worker_reads_once_per_block() {
    let stack = Stack::start(instant()).await;
    let reads = || stack.command_counts().get("xreadgroup").copied().unwrap_or_default();
    let idle = async |block| {
        let (stop, worker) = stack.worker(Options { block, ..Options::default() });
        until("a blocking read", || stack.server.command(&["CLIENT", "LIST"]).contains("flags=b"))
            .await;
        stack.reset_counts();
        (stop, worker)
    };
    let (stop, worker) = idle(Duration::from_secs(30)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(reads(), 0, "it waits in the read that it began with");
    stop.cancel();
    worker.await.unwrap();
    let (_stop, _worker) = idle(Duration::from_millis(100)).await;
    let began = Instant::now();
    until("five reads", || reads() >= 5).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(390) && took < Duration::from_secs(3), "{took:?}");
}

/// The payloads of the deltas in a job's log, byte for byte.
fn deltas(stack: &Stack, id: JobId) -> Vec<Vec<u8>> {
    type Entry = (String, Vec<(String, Vec<u8>)>);
    let client = redis::Client::open(stack.server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut range = redis::cmd("XRANGE");
    range.arg(Keys::new("ms").log(id)).arg("-").arg("+");
    let entries: Vec<Entry> = range.query(&mut connection).unwrap();
    let fields = entries.into_iter().flat_map(|(_, fields)| fields);
    fields.filter(|(kind, _)| kind == "delta").map(|(_, payload)| payload).collect()
}

/// The deltas of an answer of `tokens` tokens in 400 ms, as a worker with these options writes it.
async fn written(stack: &Stack, model: &str, options: Options) -> Vec<Vec<u8>> {
    let (stop, worker) = stack.worker(options);
    let id = stack.ask(model, "how many?").await;
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected(model, "how many?"));
    stop.cancel();
    worker.await.unwrap();
    deltas(stack, id)
}

#[tokio::test]
async fn deltas_are_gathered_for_the_interval() {
    let stack = Stack::start(paced(100.0)).await;
    let with = async |flush_interval| {
        let options = Options { flush_interval, flush_bytes: 1_000_000, ..Options::default() };
        written(&stack, "m?tokens=40", options).await.len()
    };
    // The first goes at once, and what has gathered goes with the end.
    assert_eq!(with(Duration::from_mins(1)).await, 2);
    let counts = (with(Duration::from_millis(100)).await, with(Duration::from_millis(1)).await);
    println!("deltas at 100 ms and at 1 ms: {counts:?}");
    assert!((3..=6).contains(&counts.0), "{} deltas in 400 ms", counts.0);
    assert!(counts.1 > 10, "{} deltas of 40 tokens", counts.1);
}

#[tokio::test]
async fn deltas_of_enough_bytes_do_not_wait_for_the_interval() {
    let stack = Stack::start(paced(200.0)).await;
    let with = async |flush_bytes| {
        let options =
            Options { flush_interval: Duration::from_mins(1), flush_bytes, ..Options::default() };
        written(&stack, "m?tokens=60", options).await.len()
    };
    let counts = (with(1).await, with(100).await, with(1_000_000).await);
    println!("deltas at 1, 100 and 1000000 bytes: {counts:?}");
    assert!(counts.0 > 10 && counts.1 > 2 && counts.1 < counts.0 && counts.2 == 2, "{counts:?}");
}

#[tokio::test]
async fn chunks_are_written_with_the_codec() {
    let stack = Stack::start(instant()).await;
    for (codec, is_json) in [(Codec::Json, true), (Codec::MessagePack, false)] {
        let deltas = written(&stack, "m", Options { codec, ..Options::default() }).await;
        assert!(!deltas.is_empty());
        for payload in deltas {
            assert_eq!(payload[0] == b'{', is_json, "{codec:?}: {payload:?}");
        }
    }
}

#[tokio::test]
async fn a_job_that_outlasts_the_drain_is_named() {
    let stack = Stack::start(paced(10.0)).await;
    for drain in [Duration::ZERO, Duration::from_millis(500)] {
        let (stop, worker) = stack.worker(Options { drain, ..Options::default() });
        let id = stack.ask("m?tokens=1000", &format!("endless, {drain:?}")).await;
        let key = Keys::new("ms").job(id);
        until("a running job", || stack.server.command(&["HGET", &key, "state"]) == "running")
            .await;
        let began = Instant::now();
        stop.cancel();
        let stopped = worker.await.unwrap();
        let took = began.elapsed();
        assert_eq!((stopped.reason, stopped.finished), (Reason::DrainTimeout, 0));
        assert_eq!(stopped.unfinished, [id]);
        assert!(took >= drain && took < drain + Duration::from_secs(3), "{took:?} for {drain:?}");
    }
}

#[tokio::test]
async fn entries_are_acknowledged_in_batches() {
    const JOBS: usize = 60;
    let stack = Stack::start(instant()).await;
    let mut acks = Vec::new();
    for ack_batch in [1, 128] {
        let probe = Arc::new(Probe::new(0));
        enqueue(&stack, "default", Lane::Normal, JOBS).await;
        let (stop, worker) = probe.worker(&stack, Options { ack_batch, ..Options::default() });
        until("every question", || probe.asked().len() == JOBS).await;
        stack.reset_counts();
        // All end together.
        probe.gate.add_permits(JOBS);
        let lane = Keys::new("ms").lane(&stack.partition, Lane::Normal);
        until("an empty lane", || stack.server.command(&["XLEN", &lane]) == "0").await;
        acks.push(stack.command_counts()["xack"]);
        stop.cancel();
        worker.await.unwrap();
    }
    println!("XACKs of {JOBS} jobs, one by one and in batches: {acks:?}");
    assert!(acks[0] == JOBS as u64 && acks[1] < acks[0], "{acks:?}");
}

#[tokio::test]
async fn a_running_jobs_record_and_log_are_kept() {
    let stack = Stack::start(paced(10.0)).await;
    let options = Options {
        refresh: Duration::from_millis(200),
        renewal: Duration::from_millis(100),
        ..Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    let id = stack.ask("m?tokens=1000", "kept").await;
    let keys = Keys::new("ms");
    until("a running job", || stack.server.command(&["HGET", &keys.job(id), "state"]) == "running")
        .await;
    for key in [keys.job(id), keys.log(id)] {
        stack.server.command(&["PEXPIRE", &key, "60000"]);
        until("a whole time to live", || {
            stack.server.command(&["PTTL", &key]).parse::<u64>().unwrap() > 60_000
        })
        .await;
    }
}

#[tokio::test]
async fn a_worker_that_died_with_empty_hands_is_forgotten() {
    let stack = Stack::start(instant()).await;
    let (holds, empty) = (WorkerId::new("holds"), WorkerId::new("empty"));
    stack.ask("m", "held").await;
    let mut holder = stack.broker.claimer(&stack.partition, &holds).await.unwrap();
    assert_eq!(holder.read(Lane::Normal, 1).await.unwrap().len(), 1);
    let mut idler = stack.broker.claimer(&stack.partition, &empty).await.unwrap();
    assert!(idler.read(Lane::Normal, 1).await.unwrap().is_empty());
    let forget = Duration::from_millis(500);
    let options = Options { forget, block: Duration::from_millis(100), ..Options::default() };
    let (stop, worker) = stack.worker(options);
    let names =
        || stack.server.command(&["XINFO", "CONSUMERS", "ms:{q:default:0}:normal", "workers"]);
    until("the one with empty hands is forgotten", || !names().contains(empty.as_str())).await;
    assert!(names().contains(holds.as_str()), "its entry would go with it");
    // One that leaves in order is forgotten at once.
    stop.cancel();
    worker.await.unwrap();
    assert!(names().contains(holds.as_str()) && !names().contains("worker-"), "{}", names());
}
