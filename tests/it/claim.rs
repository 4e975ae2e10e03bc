//! Claiming under load: no lane starves, and a broker that refuses drains no queue.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use millstream::{
    broker::{
        Crashes, Depth, Partition, Shared, Sweep, WorkerId,
        memory::{self, Memory},
        redis::{Options, Redis},
    },
    job::{ChatRequest, Job, JobId, Lane},
    listener::{self, Listener},
    producer::{self, Producer},
    simulator,
    state::State,
    upstream::openai::{self, OpenAi},
    worker::{self, Stopped, Worker},
};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{
    stack::{Stack, connect, expected, instant, paced, simulate},
    subject::{begun, soon},
};

async fn enqueue(stack: &Stack, lane: Lane, count: usize) -> Vec<JobId> {
    let job = |n| Job { lane, ..Job::new(ChatRequest::ask("m?tokens=1", &format!("{lane} {n}"))) };
    let receipts = stack.producer().enqueue_all((0..count).map(job).collect()).await;
    receipts.into_iter().map(|receipt| receipt.unwrap().id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_job_passes_a_long_backlog() {
    // Two at a time, the backlog lasts for seconds.
    let ttft = Duration::from_millis(50);
    let stack = Stack::start(simulator::Options { ttft, ..instant() }).await;
    let backlog = enqueue(&stack, Lane::Low, 600).await;
    let (_stop, _worker) =
        stack.worker(worker::Options { concurrency: 2, ..worker::Options::default() });
    let listener = stack.listener();
    // The worker has found the high lane empty, and the low one full, many times over.
    listener.listen(backlog[40]).answer().await.unwrap();
    let urgent = enqueue(&stack, Lane::High, 1).await[0];
    listener.listen(urgent).answer().await.unwrap();
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert!(depth.lanes[Lane::Low.index()].waiting > 400, "{depth:?}");
}

/// Guards against a queue whose entries cannot be removed, and that keeps those of the others from being
/// acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_refused_for_good_stops_no_acknowledging_on_others() {
    let stack = Stack::start(paced(20.0)).await;
    let redis = Redis::connect(Options { url: stack.server.url(), ..Options::default() });
    let redis = redis.await.unwrap();
    let refused = Partition::first("refused".parse().unwrap());
    redis.ensure_schema(&[stack.partition.clone(), refused.clone()]).await.unwrap();
    let queues = vec![refused.queue.clone(), stack.partition.queue.clone()];
    let options = worker::Options { queues, ..worker::Options::default() };
    let (stop, worker) = stack.worker_on(Arc::new(redis), options);
    let job = Job {
        queue: refused.queue.clone(),
        ..Job::new(ChatRequest::ask("m?tokens=10", "refused"))
    };
    let id = stack.producer().enqueue(job).await.unwrap().id;
    let listener = stack.listener();
    soon(async {
        while stack.broker.job(id).await.unwrap().is_none_or(|job| job.state != State::Running) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Its lane is none any more.
    stack.server.command(&["SET", "ms:{q:refused:0}:normal", "text"]);
    soon(listener.listen(id).answer()).await.unwrap();
    let other = stack.ask("m?tokens=1", "acknowledged").await;
    soon(listener.listen(other).answer()).await.unwrap();
    soon(async {
        while stack.broker.depth(&stack.partition).await.unwrap().lanes[1].pending > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    stop.cancel();
    soon(worker).await.unwrap();
}

/// Guards against an urgent job that waits for a dozen others in a worker of one slot, which looks at the
/// other lanes only after so many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_urgent_job_waits_for_no_more_jobs_than_there_are_slots() {
    let ttft = Duration::from_millis(100);
    let stack = Stack::start(simulator::Options { ttft, ..instant() }).await;
    let backlog = enqueue(&stack, Lane::Normal, 40).await;
    let (_stop, _worker) =
        stack.worker(worker::Options { concurrency: 1, ..worker::Options::default() });
    let listener = stack.listener();
    // Just as it has looked, so that it has the most before it.
    for last in [0, 13, 26] {
        soon(listener.listen(backlog[last]).answer()).await.unwrap();
        let urgent = enqueue(&stack, Lane::High, 1).await[0];
        soon(listener.listen(urgent).answer()).await.unwrap();
        let depth = stack.broker.depth(&stack.partition).await.unwrap();
        let started = 40 - depth.lanes[Lane::Normal.index()].waiting;
        // One runs while it is enqueued, and one may run behind it.
        assert!(started <= last as u64 + 4, "{started} normal jobs, at {last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
/// Guards against a Redis that waiting jobs have filled to its last byte, and in which nothing ever begins
/// again; and against an answer whose end waits for a chunk that a full server refuses.
async fn a_redis_that_is_full_of_waiting_jobs_is_emptied_by_its_workers() {
    let stack = Stack::start(instant()).await;
    let jobs = enqueue(&stack, Lane::Normal, 100).await;
    stack.server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let job = Job::new(ChatRequest::ask("m", "one more"));
    let refused = stack.producer().enqueue(job).await.unwrap_err();
    assert_eq!(refused.code(), "broker_out_of_memory");
    let (_stop, _worker) =
        stack.worker(worker::Options { concurrency: 4, ..worker::Options::default() });
    let listener = stack.listener();
    let answers = soon(join_all(jobs.into_iter().map(|id| listener.listen(id).answer()))).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.outcome.unwrap().attempts, 1);
        assert!(!answer.text.is_empty(), "the end has come without its text");
    }
    soon(async {
        while stack.broker.depth(&stack.partition).await.unwrap() != Depth::default() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_answer_larger_than_the_buffer_goes_through() {
    let stack = Stack::start(instant()).await;
    let options = worker::Options {
        buffer_bytes: 1024,
        total_timeout: Duration::from_secs(10),
        ..worker::Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    let request = ChatRequest::ask("m?tokens=2000", "larger than the buffer");
    let job = Job { stream: false, max_attempts: Some(1), ..Job::new(request) };
    let id = stack.producer().enqueue(job).await.unwrap().id;
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert!(answer.outcome.is_ok(), "{:?}", answer.outcome);
    assert_eq!(answer.text, expected("m?tokens=2000", "larger than the buffer"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_never_idle_takes_over_in_its_turn() {
    let stack = Stack::start(paced(20.0)).await;
    // A worker that died with a job in its hands.
    let lost = enqueue(&stack, Lane::Low, 1).await[0];
    let dead = WorkerId::new("dead");
    let mut reader = stack.broker.claimer(&stack.partition, &dead).await.unwrap();
    assert_eq!(reader.read(Lane::Low, 1).await.unwrap().len(), 1);
    let job = |n| Job::new(ChatRequest::ask("m?tokens=4", &format!("backlog {n}")));
    let backlog = stack.producer().enqueue_all((0..400).map(job).collect()).await;
    assert!(backlog.iter().all(Result::is_ok));
    let options = worker::Options {
        concurrency: 2,
        lease: Duration::from_millis(600),
        renewal: Duration::from_millis(150),
        sweep: Duration::from_millis(100),
        ..worker::Options::default()
    };
    let (_stop, _worker) = stack.worker(options);
    let answer = stack.listener().listen(lost).answer().await.unwrap();
    assert!(answer.outcome.is_ok());
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert!(depth.lanes[Lane::Normal.index()].waiting > 200, "{depth:?}");
}

/// Guards against a worker of several queues that is given a job of one while its only slot is taken
/// by another: it kept that job from idle workers until the other had ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_free_slot_takes_no_job_of_its_other_queue() {
    let stack = Stack::start(paced(5.0)).await;
    let other: millstream::job::QueueName = "other".parse().unwrap();
    stack.broker.claimer(&Partition::first(other.clone()), &WorkerId::new("first")).await.unwrap();
    let options = |queues| worker::Options { queues, concurrency: 1, ..Default::default() };
    let (_stop, _busy) = stack.worker(options(vec![Default::default(), other.clone()]));
    stack.blocked(2).await;
    let long = stack.ask("m?tokens=100", "takes the only slot").await;
    stack.blocked(0).await;
    let (_stop, _idle) = stack.worker(options(vec![other.clone()]));
    stack.blocked(1).await;
    let job = Job { queue: other, ..Job::new(ChatRequest::ask("m?tokens=1", "of the other")) };
    let id = stack.producer().enqueue(job).await.unwrap().id;
    soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(stack.broker.job(long).await.unwrap().unwrap().state, State::Running);
}

/// Guards against a queue that is not read again after its read was ended for want of a slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slot_serves_all_queues_in_turn() {
    let stack = Stack::start(instant()).await;
    let names = ["default", "second", "third"];
    let queues: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
    let (_stop, _worker) = stack.worker(worker::Options {
        queues: queues.clone(),
        concurrency: 1,
        ..Default::default()
    });
    stack.blocked(3).await;
    let job = |n: usize| Job {
        queue: queues[n % 3].clone(),
        lane: Lane::ALL[n / 3 % 3],
        ..Job::new(ChatRequest::ask("m?tokens=1", &format!("turn {n}")))
    };
    let jobs = stack.producer().enqueue_all((0..90).map(job).collect()).await;
    let listener = stack.listener();
    let answers = jobs.into_iter().map(|receipt| listener.listen(receipt.unwrap().id).answer());
    assert!(soon(join_all(answers)).await.into_iter().all(|answer| answer.is_ok()));
    // Nothing turns while there is nothing to do.
    stack.blocked(3).await;
    stack.reset_counts();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let reads = stack.command_counts().get("xreadgroup").copied().unwrap_or(0);
    assert!(reads <= 3, "{reads} reads of an idle worker");
}

/// Workers on the embedded broker, which hands out the entries of a batch in one piece.
struct Embedded {
    broker: Shared,
    partition: Partition,
    base_url: String,
    _simulator: DropGuard,
}

impl Embedded {
    async fn start(simulator: simulator::Options) -> Self {
        let (base_url, guard) = simulate(simulator).await;
        let broker: Shared = Arc::new(Memory::new(memory::Options::default()));
        let partition = Partition::first(Default::default());
        Self { broker, partition, base_url, _simulator: guard }
    }

    fn listener(&self) -> Listener {
        Listener::new(self.broker.clone(), listener::Options::default())
    }

    fn worker(&self, options: worker::Options) -> (CancellationToken, JoinHandle<Stopped>) {
        let base_url = self.base_url.clone();
        let upstream = OpenAi::new(&openai::Options { base_url, ..Default::default() }).unwrap();
        let worker =
            Worker::new(self.broker.clone(), self.listener().hub(), Arc::new(upstream), options);
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(worker.run(stop)))
    }

    /// Enqueues questions to this model at once, each in a lane of its own.
    async fn ask_at_once(&self, model: &str, count: usize) -> Vec<JobId> {
        let job = |n| Job {
            lane: Lane::ALL[n % 3],
            ..Job::new(ChatRequest::ask(model, &format!("at once {n}")))
        };
        let producer = Producer::new(self.broker.clone(), producer::Options::default());
        let receipts = producer.enqueue_all((0..count).map(job).collect()).await;
        receipts.into_iter().map(|receipt| receipt.unwrap().id).collect()
    }

    async fn state(&self, job: JobId) -> State {
        self.broker.job(job).await.unwrap().unwrap().state
    }

    /// A worker of one slot whose blocking read has brought it two jobs: one runs, one waits.
    async fn overfull(&self, options: worker::Options) -> (CancellationToken, [JobId; 2]) {
        let (stop, _worker) = self.worker(worker::Options { concurrency: 1, ..options });
        while self.broker.workers(&self.partition).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Its lanes are empty, as it knows by then, and it waits for any of them.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let jobs = self.ask_at_once("m?tokens=100", 2).await;
        soon(async {
            while self.broker.depth(&self.partition).await.unwrap().lanes[1].pending < 1
                || self.state(jobs[0]).await != State::Running
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        assert_eq!(self.state(jobs[1]).await, State::Waiting);
        (stop, [jobs[0], jobs[1]])
    }

    /// Waits until a job runs.
    async fn runs(&self, job: JobId) {
        soon(async {
            while self.state(job).await != State::Running {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// Guards against an entry that a worker was given beyond its slots, and kept until one came free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_finds_no_slot_is_given_back() {
    let system = Embedded::start(paced(5.0)).await;
    let sweep = Duration::from_millis(300);
    let (_stop, [first, second]) =
        system.overfull(worker::Options { sweep, ..Default::default() }).await;
    let (_stop, _idle) = system.worker(worker::Options::default());
    system.runs(second).await;
    assert_eq!(system.state(first).await, State::Running);
}

/// Guards against the same of a worker that stops: it would start the job only after the one that runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_finds_no_slot_is_given_back_at_once_by_a_worker_that_stops() {
    let system = Embedded::start(paced(5.0)).await;
    let sweep = Duration::from_hours(1);
    let (stop, [first, second]) =
        system.overfull(worker::Options { sweep, ..Default::default() }).await;
    let (_stop, _idle) = system.worker(worker::Options::default());
    stop.cancel();
    system.runs(second).await;
    assert_eq!(system.state(first).await, State::Running);
}

/// Guards against suspects that wait for their turn in the slots of a worker, and stop it so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_have_to_run_alone_wait_without_a_slot() {
    let system = Embedded::start(paced(5.0)).await;
    let suspects = system.ask_at_once("m?tokens=100", 3).await;
    let crashes = Crashes { most: 9, alone: true };
    for n in 0..3 {
        let dead = WorkerId::new("dead");
        let mut entries = Vec::new();
        let mut reader = system.broker.claimer(&system.partition, &dead).await.unwrap();
        while entries.len() < 3 {
            entries.extend(if n == 0 {
                reader.wait(Duration::from_secs(1), &CancellationToken::new()).await.unwrap()
            } else {
                let lease = Duration::from_millis(2);
                let look = Sweep { lease, most: 3, ask: false, deliveries: 100 };
                system.broker.sweep(&system.partition, &dead, &look).await.unwrap().entries
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for entry in entries {
            begun(system.broker.begin(&entry, &dead, crashes).await.unwrap());
            if n == 2 {
                assert!(system.broker.release(&dead, &entry.place, None).await.unwrap());
            }
        }
    }
    let options = worker::Options {
        concurrency: 2,
        lease: Duration::from_hours(1),
        sweep: Duration::from_millis(100),
        ..worker::Options::default()
    };
    let (_stop, _worker) = system.worker(options);
    let running = async || {
        let mut running = 0;
        for id in &suspects {
            let worker = system.broker.job(*id).await.unwrap().unwrap().worker.unwrap();
            running += usize::from(!worker.starts_with("dead"));
        }
        running
    };
    soon(async {
        while running().await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // By then the others are there, too, and were told to wait.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let innocent = system.ask_at_once("m?tokens=1", 1).await[0];
    soon(system.listener().listen(innocent).answer()).await.unwrap();
    assert_eq!(running().await, 1, "two suspects run at once");
    for id in suspects {
        assert_eq!(system.state(id).await, State::Running, "a suspect has ended");
    }
}

/// Guards against a drain that lasts a whole blocking read where the server does not let a client end one,
/// as many managed hosts do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_may_not_unblock_its_reads_stops_at_once() {
    for denied in ["-client|unblock", "-client|id"] {
        let stack = Stack::start(instant()).await;
        let rules = ["ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", denied];
        stack.server.command(&rules);
        let broker = connect(&stack.server.url().replace("redis://", "redis://limited:pw@")).await;
        let block = Duration::from_mins(2);
        let (stop, worker) =
            stack.worker_on(broker, worker::Options { block, ..Default::default() });
        stack.blocked(1).await;
        stop.cancel();
        let stopped = soon(worker).await.unwrap();
        assert!(stopped.unfinished.is_empty(), "{stopped:?}");
        // Where it is refused, it is not asked again.
        let stats = stack.server.command(&["INFO", "commandstats"]);
        let unblock = stats.lines().find(|line| line.starts_with("cmdstat_client|unblock:"));
        let refused = unblock.and_then(|line| line.split("rejected_calls=").nth(1));
        let refused = refused.map_or("0", |rest| rest.split(',').next().unwrap());
        assert!(refused.parse::<u32>().unwrap() <= 1, "{denied}: asked {refused} times");
        // No entry is given to a connection that nobody reads.
        let id = stack.ask("m?tokens=1", "afterwards").await;
        let (_stop, _worker) = stack.worker(worker::Options::default());
        soon(stack.listener().listen(id).answer()).await.unwrap();
    }
}

/// Guards against an entry that its worker has had for nobody knows how long, and begins as if it had just come:
/// another worker may be about to take it over. Where a blocking read cannot be ended, the worker asks for all
/// that it was given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_was_given_before_is_renewed_before_it_begins() {
    let stack = Stack::start(instant()).await;
    let denied = "-client|unblock";
    stack.server.command(&["ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", denied]);
    let broker = connect(&stack.server.url().replace("redis://", "redis://limited:pw@")).await;
    let long = Duration::from_hours(1);
    let options = worker::Options {
        lease: long,
        renewal: long / 4,
        sweep: long,
        block: Duration::from_mins(2),
        ..worker::Options::default()
    };
    let (stop, worker) = stack.worker_on(broker, options);
    stack.blocked(1).await;
    // Its connections are there from the first job on: no session begins under the second.
    let first = stack.ask("m?tokens=1", "first").await;
    soon(stack.listener().listen(first).answer()).await.unwrap();
    stack.blocked(1).await;
    // It was given an entry by a reply that nobody has read.
    let name = stack.broker.workers(&stack.partition).await.unwrap().remove(0).id;
    let give = "redis.call('XADD', KEYS[1], '*', 'job', ARGV[2], 'id', ARGV[3]) \
                return redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'STREAMS', KEYS[1], '>')";
    let job = serde_json::to_string(&ChatRequest::ask("m?tokens=1", "given")).unwrap();
    let id = JobId::new();
    let lane = "ms:{q:default:0}:normal";
    stack.server.command(&["EVAL", give, "1", lane, &name, &job, &id.to_string()]);
    stack.reset_counts();
    stop.cancel();
    assert_eq!(soon(worker).await.unwrap().finished, 2);
    assert_eq!(stack.broker.job(id).await.unwrap().unwrap().state, State::Done);
    assert_eq!(stack.command_counts().get("xclaim"), Some(&1), "its lease was not renewed");
}

/// Guards against an entry that names another tenant's job and fails it, or hangs for being no job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_names_another_tenants_job_becomes_a_dead_letter_of_its_own() {
    let stack = Stack::start(instant()).await;
    let tenant = "acme".parse().unwrap();
    let theirs = Job { tenant, ..Job::new(ChatRequest::ask("m?tokens=3", "theirs")) };
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.producer().enqueue(theirs).await.unwrap().id;
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    let forged = r#"{"model":"m","messages":[{"role":"user","content":"forged"}]}"#;
    let lane = "ms:{q:default:0}:normal";
    let name = id.to_string();
    stack.server.command(&["XADD", lane, "*", "job", forged, "id", &name, "run", "4294967295"]);
    let letters = soon(async {
        loop {
            let letters = stack.broker.dead_letters(&stack.partition, None, 9).await.unwrap();
            if !letters.is_empty() {
                return letters;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_ne!(letters[0].id, id);
    assert_eq!((letters[0].error.code.as_str(), letters[0].run), ("invalid_job", 1));
    assert!(letters[0].error.message.contains(&name), "{letters:?}");
    let again = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!((again.text, again.outcome.is_ok()), (answer.text, true));
}
