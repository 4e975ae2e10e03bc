//! Who has a job when its worker says nothing: dead before a word, frozen, replaced, panicked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use millstream::{
    broker::{Begin, Crashes, Partition, WorkerId, redis::keys::Keys},
    error::Failure,
    event::{Body, Event},
    job::{ChatRequest, JobId, Lane},
    upstream::{Part, Parts, Upstream},
    worker::{self, Stopped, Worker},
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    dying::{Fate, Plan, Side},
    program::{MILLSTREAM, Running, WORKER, run},
    redis::Server,
    stack::{Stack, connect, expected, instant, paced},
    subject::{begun, soon},
    victim::Victim,
};

const LEASE: Duration = Duration::from_millis(600);

fn options() -> worker::Options {
    worker::Options {
        lease: LEASE,
        renewal: Duration::from_millis(100),
        sweep: Duration::from_millis(100),
        ..worker::Options::default()
    }
}

/// The same, with leases that no live worker loses where the machine is slow.
fn patient() -> worker::Options {
    worker::Options {
        lease: Duration::from_secs(2),
        renewal: Duration::from_millis(300),
        ..options()
    }
}

fn lane(partition: &Partition) -> String {
    Keys::new("ms").lane(partition, Lane::Normal)
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

async fn log(stack: &Stack, id: JobId) -> Vec<Event> {
    stack.listener().listen(id).events().map(Result::unwrap).collect().await
}

/// Who began the job, and as which attempt.
fn started(events: &[Event]) -> Vec<(u32, &str)> {
    let began = |event| match event {
        &Event { body: Body::Started(ref started), .. } => {
            Some((started.attempt, started.worker.as_str()))
        }
        _ => None,
    };
    events.iter().filter_map(began).collect()
}

/// Waits until an attempt has written some text.
async fn speaks(stack: &Stack, id: JobId) {
    let mut events = stack.listener().listen(id).expected().events();
    while !matches!(soon(events.next()).await.unwrap().unwrap().body, Body::Delta(_)) {}
}

/// Waits until every thread of a process that was told to stop has stopped.
async fn stands_still(process: u32) {
    let tasks = format!("/proc/{process}/task");
    let stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    soon(async {
        while !std::fs::read_dir(&tasks).unwrap().all(stopped) {
            pause().await;
        }
    })
    .await;
}

/// Guards against a worker with a short lease that takes jobs from one that lives and has a longer one, as in
/// the middle of a rollout that changes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_different_leases_take_nothing_from_each_other() {
    let stack = Stack::start(paced(10.0)).await;
    let slow = worker::Options {
        lease: Duration::from_secs(20),
        renewal: Duration::from_secs(6),
        ..options()
    };
    let quick = worker::Options {
        lease: Duration::from_millis(300),
        renewal: Duration::from_millis(100),
        ..options()
    };
    let (stop, first) = stack.worker_on(connect(&stack.server.url()).await, slow);
    stack.blocked(1).await;
    let id = stack.ask("m?tokens=20", "long").await;
    speaks(&stack, id).await;
    let (stop_quick, second) = stack.worker_on(connect(&stack.server.url()).await, quick);
    let events = soon(log(&stack, id)).await;
    assert_eq!(started(&events).len(), 1, "{events:?}");
    assert_eq!(stack.broker.job(id).await.unwrap().unwrap().crashes, 0);
    stop.cancel();
    stop_quick.cancel();
    assert_eq!(soon(first).await.unwrap().fenced, 0);
    assert_eq!(soon(second).await.unwrap().taken_over, 0);
    let left = stack.server.command(&["EXISTS", &Keys::new("ms").leases(&stack.partition)]);
    assert_eq!(left, "0", "who leaves is forgotten");
}

/// Guards against the jobs of a worker that is dead as Redis' clock is set back: their leases began in what is
/// the future then, and would last until it has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_delays_no_takeover() {
    let stack = Stack::on(Server::with_a_clock().await, instant()).await;
    stack.server.set_clock(Duration::from_mins(5));
    let dead = WorkerId::new("dead");
    let id = stack.ask("m?tokens=2", "left").await;
    let mut reader = stack.broker.claimer(&stack.partition, &dead).await.unwrap();
    let entry = reader.read(Lane::Normal, 1).await.unwrap().remove(0);
    let crashes = Crashes { most: 3, alone: true };
    begun(stack.broker.begin(&entry, &dead, crashes).await.unwrap());
    stack.server.set_clock(Duration::ZERO);
    let (_stop, _worker) = stack.worker(options());
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.outcome.unwrap().attempts, 2);
}

/// Guards against a sweeper that sleeps while an entry lies with a worker that died before it could
/// tell anybody: the producer's own word must have made it look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unspoken_death_is_found_by_those_who_sleep() {
    let stack = Stack::start(instant()).await;
    let key = lane(&stack.partition);
    let client = redis::Client::open(stack.server.url()).unwrap();
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let mut doomed = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
    // First in the queue for the next entry; the worker comes second.
    let read = tokio::spawn(async move {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg("workers").arg("doomed").arg("COUNT").arg(1);
        command.arg("BLOCK").arg(0).arg("STREAMS").arg(key).arg(">");
        command.query_async::<redis::Value>(&mut doomed).await.unwrap();
    });
    stack.blocked(1).await;
    let (_stop, _worker) = stack.worker(options());
    stack.blocked(2).await;
    // It has swept, found nothing in flight, and sleeps.
    let swept = || stack.command_counts().get("xpending").copied().unwrap_or(0);
    while swept() < 3 {
        pause().await;
    }
    tokio::time::sleep(options().sweep * 3).await;
    let before = swept();
    tokio::time::sleep(options().sweep * 2).await;
    assert_eq!(swept(), before, "the worker does not sleep: the test would show nothing");

    let id = stack.ask("m", "never a word").await;
    let enqueued = Instant::now();
    soon(read).await.unwrap();
    let pending = stack.server.command(&["XPENDING", &lane(&stack.partition), "workers"]);
    assert!(pending.starts_with("1\n") && pending.contains("doomed"), "{pending}");
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    let took = enqueued.elapsed();
    assert_eq!(answer.text, expected("m", "never a word"));
    // Lease, two sweeps with their spread, and what a busy machine adds.
    assert!(took < LEASE + Duration::from_secs(2), "{took:?}");
}

/// Guards against a claim that begins late: the entry is another's by then, whose attempt it would
/// fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_claim_fences_nobody() {
    let stack = Stack::start(paced(100.0)).await;
    let id = stack.ask("m?tokens=200", "frozen claim").await;
    // The entry is in its hands, and its attempt has not begun.
    let fate = Fate::new(Plan::Freeze("wake", 1, Side::After));
    let url = stack.server.url();
    let frozen = Victim::start(&url, &stack.base_url, patient(), fate);
    soon(frozen.fate.frozen()).await;
    let (stop, heir) = stack.worker(patient());
    speaks(&stack, id).await;
    let steps = frozen.fate.steps().len();
    frozen.fate.thaw();
    let events = log(&stack, id).await;
    let began = started(&events);
    assert_eq!(began.len(), 1, "a late claim began: {began:?}");
    soon(async {
        while frozen.fate.steps().len() == steps {
            pause().await;
        }
    })
    .await;
    assert!(!frozen.fate.steps().contains(&"begin"), "{:?}", frozen.fate.steps());
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=200", "frozen claim"));
    frozen.kill().await;
    stop.cancel();
    assert_eq!(heir.await.unwrap().fenced, 0);
}

/// Guards against a worker that was stopped within its blocking read: the entry that waits in its
/// socket is another's by the time it reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_frozen_in_its_read_fences_nobody() {
    let stack = Stack::start(paced(100.0)).await;
    let url = stack.server.url();
    let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", stack.base_url.as_str())];
    let args = ["--set", "worker.lease=2s", "--set", "worker.renewal=300ms"];
    let mut stopped = Running::start(WORKER, &args, &env);
    stopped.wait_for("serving");
    stack.blocked(1).await;
    stopped.signal("STOP");
    stands_still(stopped.child.id()).await;
    let id = stack.ask("m?tokens=200", "stopped while waiting").await;
    let (stop, heir) = stack.worker(patient());
    speaks(&stack, id).await;
    stopped.signal("CONT");
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=200", "stopped while waiting"));
    let events = log(&stack, id).await;
    let began = started(&events);
    assert_eq!(began.len(), 1, "a late claim began: {began:?}");
    stop.cancel();
    assert_eq!(heir.await.unwrap().fenced, 0);
    // It lives, and works on.
    let id = stack.ask("m?tokens=3", "afterwards").await;
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=3", "afterwards"));
}

/// What an upstream does after its first words.
#[derive(Clone, Copy)]
enum Then {
    Silence,
    Panic,
}

/// Misbehaves in its first calls, and then answers.
struct Unruly {
    then: Then,
    calls: AtomicUsize,
    faults: usize,
    dropped: CancellationToken,
}

struct Asked(Arc<Unruly>);

impl Unruly {
    fn new(then: Then, faults: usize) -> Arc<Self> {
        let (calls, dropped) = (AtomicUsize::new(0), CancellationToken::new());
        Arc::new(Self { then, calls, faults, dropped })
    }

    fn worker(
        self: &Arc<Self>,
        stack: &Stack,
        options: worker::Options,
    ) -> (CancellationToken, JoinHandle<Stopped>, WorkerId) {
        let upstream = Arc::new(Asked(Arc::clone(self)));
        let worker = Worker::new(stack.broker.clone(), stack.listener().hub(), upstream, options);
        let (stop, id) = (CancellationToken::new(), worker.id().clone());
        (stop.clone(), tokio::spawn(worker.run(stop)), id)
    }
}

#[async_trait]
impl Upstream for Asked {
    async fn answer(&self, _request: &ChatRequest, _stream: bool) -> Result<Parts, Failure> {
        let part = |text: &str, end: Option<&str>| {
            let piece = json!({"index": 0, "delta": {"content": text}, "finish_reason": end});
            Part { pieces: vec![serde_json::from_value(piece).unwrap()], ..Part::default() }
        };
        if self.0.calls.fetch_add(1, Ordering::SeqCst) >= self.0.faults {
            return Ok(Box::pin(stream::iter([Ok(part("well", Some("stop")))])));
        }
        let (then, open) = (self.0.then, self.0.dropped.clone().drop_guard());
        let words = stream::iter([Ok(part("some words", None))]);
        let end = stream::once(async move {
            let _open = open;
            match then {
                Then::Silence => std::future::pending().await,
                Then::Panic => {
                    // The first words are out by then.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    panic!("an upstream that panics");
                }
            }
        });
        Ok(Box::pin(words.chain(end)))
    }
}

/// Guards against paying for a model that speaks to nobody: no append is refused while it is silent,
/// so only the renewal can tell that another attempt rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_worker_drops_its_silent_model_at_the_next_renewal() {
    let stack = Stack::start(instant()).await;
    let unruly = Unruly::new(Then::Silence, 1);
    let quiet = worker::Options { sweep: Duration::from_hours(1), ..options() };
    let (stop, old, _) = unruly.worker(&stack, quiet);
    let id = stack.ask("m", "silence").await;
    speaks(&stack, id).await;
    let thief = WorkerId::new("thief");
    let key = lane(&stack.partition);
    let pending = stack.server.command(&["XPENDING", &key, "workers", "-", "+", "1"]);
    let entry = pending.lines().next().unwrap();
    stack.server.command(&["XCLAIM", &key, "workers", thief.as_str(), "0", entry]);
    // Somebody else has the entry; the attempt still counts, and its model may go on.
    tokio::time::sleep(options().renewal * 3).await;
    assert!(!unruly.dropped.is_cancelled(), "nobody else has begun");
    let mut reader = stack.broker.claimer(&stack.partition, &thief).await.unwrap();
    let entry = reader.pending().await.unwrap().remove(0);
    let begun =
        stack.broker.begin(&entry, &thief, Crashes { most: 3, alone: false }).await.unwrap();
    assert!(matches!(begun, Begin::Begun(_)), "{begun:?}");
    let fenced = Instant::now();
    soon(unruly.dropped.cancelled()).await;
    let took = fenced.elapsed();
    assert!(took < options().renewal + Duration::from_secs(1), "{took:?}");
    stop.cancel();
    let stopped = old.await.unwrap();
    assert_eq!((stopped.fenced, stopped.unfinished.len()), (1, 0));
}

/// Guards against a job that is renewed for ever though its task has panicked, and against the slot
/// that goes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_task_panicked_runs_out_of_lease_and_starts_again() {
    let stack = Stack::start(instant()).await;
    let unruly = Unruly::new(Then::Panic, 1);
    let one = worker::Options { concurrency: 1, ..options() };
    let (stop, worker, name) = unruly.worker(&stack, one.clone());
    let id = stack.ask("m", "panic").await;
    soon(unruly.dropped.cancelled()).await;
    let panicked = Instant::now();
    let (_stop, _heir, heir) = unruly.worker(&stack, one);
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    let took = panicked.elapsed();
    assert_eq!((answer.text.as_str(), answer.outcome.unwrap().attempts), ("well", 2));
    assert!(took < LEASE + Duration::from_secs(3), "{took:?}");
    let events = log(&stack, id).await;
    let began = started(&events);
    assert_eq!(began[0].1, name.as_str());
    assert!([name.as_str(), heir.as_str()].contains(&began[1].1), "{began:?}");
    // Its only slot is free, and nothing is left in its hands.
    stop.cancel();
    let stopped = soon(worker).await.unwrap();
    assert!(stopped.unfinished.is_empty(), "{stopped:?}");
}

/// Guards against a job whose task panics in every attempt: the one worker that there is must not
/// pay for it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_always_panics_is_buried() {
    let stack = Stack::start(instant()).await;
    let unruly = Unruly::new(Then::Panic, usize::MAX);
    let (_stop, _worker, _) = unruly.worker(&stack, options());
    let id = stack.ask("m", "always").await;
    let failed = soon(stack.listener().listen(id).answer()).await.unwrap().outcome.unwrap_err();
    assert_eq!(failed.error.code.as_str(), "poison", "{failed:?}");
    let calls = unruly.calls.load(Ordering::SeqCst);
    assert!(calls <= 5, "{calls} calls of the model");
}

/// Guards against an entry that vanishes without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_deleted_under_its_worker_is_reported() {
    let stack = Stack::start(paced(100.0)).await;
    let (_stop, _worker) = stack.worker(options());
    let id = stack.ask("m?tokens=300", "deleted").await;
    speaks(&stack, id).await;
    let key = lane(&stack.partition);
    let pending = stack.server.command(&["XPENDING", &key, "workers", "-", "+", "1"]);
    assert_eq!(stack.server.command(&["XDEL", &key, pending.lines().next().unwrap()]), "1");
    soon(async {
        while stack.broker.depth(&stack.partition).await.unwrap().lost_entries == 0 {
            pause().await;
        }
    })
    .await;
    let url = stack.server.url();
    let show = async |output: &'static str| {
        let url = url.clone();
        let run = move || {
            run(MILLSTREAM, &["queues", "--output", output], &[("REDIS_URL", url.as_str())])
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    let shown = show("json").await;
    let depth: serde_json::Value = serde_json::from_str(shown.out.trim()).unwrap();
    assert_eq!(depth["lost_entries"], 1, "{depth}");
    let shown = show("text").await;
    assert!(shown.err.contains("queue default: 1 entries were deleted by a stranger"), "{shown:?}");
    // The job itself comes to its end.
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=300", "deleted"));
}

/// Guards against a clock of the Redis host that is set forward: every entry then seems to have lain
/// idle for longer than its lease, those of live workers, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_forward_takes_no_job_from_a_live_worker() {
    let stack = Stack::on(Server::with_a_clock().await, paced(10.0)).await;
    // Only the other sweeps: whoever takes over what it runs itself goes on with it.
    let runs = worker::Options { sweep: Duration::from_mins(1), ..patient() };
    let (_stop, _working) = stack.worker_on(connect(&stack.server.url()).await, runs);
    let id = stack.ask("m?tokens=80", "long").await;
    let mut events = stack.listener().listen(id).events();
    soon(events.next()).await.unwrap().unwrap();
    let (_other, idle) = stack.worker_on(connect(&stack.server.url()).await, patient());
    let lease = patient().lease;
    // The other has swept for longer than the grace that follows its start.
    tokio::time::sleep(lease * 2).await;
    for step in 1..=2 {
        stack.server.set_clock(Duration::from_secs(10) * step);
        tokio::time::sleep(lease + lease / 4).await;
    }
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=80", "long"));
    let record = stack.broker.job(id).await.unwrap().unwrap();
    assert_eq!((record.attempt, record.crashes, record.history.len()), (1, 0, 0));
    drop(idle);
}
