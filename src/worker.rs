//! The worker: claims entries, runs their jobs against the upstream, publishes batched chunks.
//!
//! One file per task: `claim` reads a partition's lanes, `execute` runs one entry and `attempt` one try of it, `generate`
//! reads the upstream, `batch` gathers deltas, `publish` writes events under the fence, `owed` takes the
//! step that ends an entry, `settle` acknowledges in batches, `lease` renews what is held, `sweeper` takes over what ran out of lease, `promoter` moves parked
//! jobs to their lanes, `control` hears what this worker is told, `janitor` forgets workers that are
//! gone. They share `hands`, the entries in this worker's hands, and `slots`, the room for their jobs.
//! `watch` ends the worker when one of the tasks ends before it.

mod attempt;
mod batch;
mod choices;
mod claim;
mod control;
mod execute;
mod generate;
mod hands;
mod janitor;
mod lease;
mod options;
mod owed;
mod promoter;
mod publish;
mod settle;
mod slots;
mod sweeper;
mod watch;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::join_all;
use hands::{Hands, Wakes};
pub use options::Options;
use slots::{Slot, Slots};

use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
pub use watch::Task;
use watch::Watch;

use crate::{
    broker::{Attempt, Entry, Partition, Place, Shared, WorkerId},
    job::JobId,
    listener::Hub,
    upstream::Upstream,
};

/// Why a worker stopped, and what it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Why.
    pub reason: Reason,
    /// Attempts that it ended, well or badly.
    pub finished: u64,
    /// Attempts that it gave up because another worker's counted.
    pub fenced: u64,
    /// Entries that it took over from other workers.
    pub taken_over: u64,
    /// Jobs that were still running: given back, for other workers to start again.
    pub unfinished: Vec<JobId>,
}

/// Why a worker stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It was told to, and everything in its hands ended.
    Drained,
    /// It was told to, and the time for draining passed first, or it was told to hurry.
    DrainTimeout,
    /// A task of it ended although nobody had told it to: a fault in it. It claimed nothing more and
    /// let running jobs end as in a drain, or gave them back where their leases are not renewed.
    TaskEnded(Task),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::DrainTimeout => f.write_str("drain timeout"),
            Self::TaskEnded(task) => write!(f, "its {task} task ended early"),
        }
    }
}

/// A worker, ready to run.
pub struct Worker {
    context: Arc<Context>,
    hub: Hub,
    acks: Vec<settle::Acks>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.context.id).finish_non_exhaustive()
    }
}

/// What all tasks of a worker share.
struct Context {
    id: WorkerId,
    broker: Shared,
    upstream: Arc<dyn Upstream>,
    options: Options,
    slots: Arc<Slots>,
    /// One permit: for a job that may be what its workers died of.
    suspect: Arc<Semaphore>,
    /// Room for jobs that wait for that permit.
    suspects: Arc<Semaphore>,
    hands: Hands,
    wakes: Wakes,
    acks: settle::Senders,
    finished: AtomicU64,
    fenced: AtomicU64,
    taken_over: AtomicU64,
    /// Jobs given back at the end.
    released: Mutex<Vec<JobId>>,
    /// Nothing more is claimed.
    stop: CancellationToken,
    /// Ends everything at once: the drain is over.
    abandon: CancellationToken,
    /// Ends what has not ended by then, in the middle of a call that the broker does not answer.
    cut: CancellationToken,
}

/// Runs an entry in a task of its own, in this slot.
fn start(context: &Arc<Context>, jobs: &TaskTracker, entry: Entry, mut slot: Slot) {
    let context = Arc::clone(context);
    slot.run();
    jobs.spawn(async move {
        context.cut.run_until_cancelled(execute::run(&context, entry, slot)).await;
    });
}

impl Context {
    /// Gives an entry back, so that another worker can start it at once.
    async fn release(&self, place: &Place, job: JobId, attempt: Option<&Attempt>) {
        let call = self.broker.release(&self.id, place, attempt);
        match tokio::time::timeout(self.options.renewal, call).await {
            // It has just ended, or is another's.
            Ok(Ok(false)) => return,
            Ok(Ok(true)) => {}
            Ok(Err(error)) => tracing::warn!(%job, %error, "not released; its lease runs out"),
            Err(_) => tracing::warn!(%job, "not released in time; its lease runs out"),
        }
        // A worker that goes on may be given it again.
        if self.stop.is_cancelled() || self.abandon.is_cancelled() {
            self.released.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        }
    }
}

impl Worker {
    /// A new incarnation. `hub` is the process's subscriber connection.
    pub fn new(broker: Shared, hub: Hub, upstream: Arc<dyn Upstream>, options: Options) -> Self {
        let id = WorkerId::new(if options.name.is_empty() { "worker" } else { &options.name });
        let (senders, acks) = settle::channels(&partitions(&options));
        let context = Context {
            id,
            broker,
            upstream,
            slots: Slots::new(options.concurrency),
            suspect: Arc::new(Semaphore::new(1)),
            suspects: Arc::new(Semaphore::new(options.concurrency)),
            options,
            hands: Hands::default(),
            wakes: Wakes::default(),
            acks: senders,
            finished: AtomicU64::new(0),
            fenced: AtomicU64::new(0),
            taken_over: AtomicU64::new(0),
            released: Mutex::default(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        Self { context: Arc::new(context), hub, acks }
    }

    /// This incarnation's ID.
    pub fn id(&self) -> &WorkerId {
        &self.context.id
    }

    /// Cancelling it gives back at once what runs, and ends the worker without a drain.
    pub fn hurry(&self) -> CancellationToken {
        self.context.abandon.clone()
    }

    /// Runs until `shutdown` is cancelled or it is told to drain; then claims nothing more and lets
    /// running jobs end, for at most `drain`.
    pub async fn run(self, shutdown: CancellationToken) -> Stopped {
        let Self { context, hub, acks } = self;
        let (loops, keepers, jobs) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (stop, abandon) = (context.stop.clone(), context.abandon.clone());
        let cut = context.cut.clone();
        let watch = Watch::new(stop.clone(), abandon.clone(), cut.clone());
        let partitions = partitions(&context.options);
        for partition in &partitions {
            tracing::info!(worker = %context.id, %partition, "serving");
            serve(&context, &hub, partition, &watch, &loops, &jobs);
        }
        let idle = CancellationToken::new();
        let renewing = lease::run(Arc::clone(&context), idle.clone());
        keepers.spawn(watch.clone().over(Task::Lease, idle.clone(), renewing));
        let listening = control::run(Arc::clone(&context), hub, idle.clone());
        keepers.spawn(watch.clone().over(Task::Control, idle.clone(), listening));
        let most = context.options.ack_batch;
        let acking = acks.into_iter().map(|acks| {
            let acking = settle::run(context.broker.clone(), acks, most, abandon.clone());
            tokio::spawn(watch.clone().over(Task::Settle, idle.clone(), acking))
        });
        let acking: Vec<JoinHandle<()>> = acking.collect();
        loops.close();
        keepers.close();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = abandon.cancelled() => {}
            () = stop.cancelled() => {}
        }
        stop.cancel();
        let drain = all_ended(&loops, &jobs);
        let drained = tokio::select! {
            drained = tokio::time::timeout(context.options.drain, drain) => drained.is_ok(),
            () = abandon.cancelled() => false,
        };
        abandon.cancel();
        let ended = all_ended(&loops, &jobs);
        // By then nothing is its own any more.
        if tokio::time::timeout(context.options.lease, ended).await.is_err() {
            tracing::warn!("the broker does not answer: the worker stops without it");
            idle.cancel();
            cut.cancel();
            all_ended(&loops, &jobs).await;
        }
        // Whoever was to start these has ended early itself.
        let left = context.hands.leave();
        join_all(left.iter().map(|(place, job)| context.release(place, *job, None))).await;
        idle.cancel();
        keepers.wait().await;
        let told = if drained { Reason::Drained } else { Reason::DrainTimeout };
        let stopped = leave(context, &partitions, acking, told).await;
        Stopped { reason: watch.ended().map_or(told, Reason::TaskEnded), ..stopped }
    }
}

/// Waits for the loops, and for the jobs that they have started.
async fn all_ended(loops: &TaskTracker, jobs: &TaskTracker) {
    loops.wait().await;
    jobs.close();
    jobs.wait().await;
}

/// What it serves.
fn partitions(options: &Options) -> Vec<Partition> {
    options.queues.iter().cloned().map(Partition::first).collect()
}

/// Starts the tasks of a partition.
fn serve(
    context: &Arc<Context>,
    hub: &Hub,
    partition: &Partition,
    watch: &Arc<Watch>,
    loops: &TaskTracker,
    jobs: &TaskTracker,
) {
    let stop = || context.stop.clone();
    let reading =
        claim::Reader::new(Arc::clone(context), partition.clone(), jobs.clone()).run(stop());
    loops.spawn(watch.clone().over(Task::Reader, stop(), reading));
    let (own, taken) = (Arc::clone(context), jobs.clone());
    let sweeping = sweeper::run(own, hub.clone(), partition.clone(), taken, stop());
    loops.spawn(watch.clone().over(Task::Sweeper, stop(), sweeping));
    let broker = context.broker.clone();
    let promoting = promoter::run(broker, hub.clone(), partition.clone(), stop());
    loops.spawn(watch.clone().over(Task::Promoter, stop(), promoting));
    let forgetting = janitor::run(Arc::clone(context), partition.clone(), stop());
    loops.spawn(watch.clone().over(Task::Janitor, stop(), forgetting));
}

/// The last steps of a worker whose jobs are out of its hands.
async fn leave(
    context: Arc<Context>,
    partitions: &[Partition],
    acking: Vec<JoinHandle<()>>,
    reason: Reason,
) -> Stopped {
    let stopped = Stopped {
        reason,
        finished: context.finished.load(Ordering::Relaxed),
        fenced: context.fenced.load(Ordering::Relaxed),
        taken_over: context.taken_over.load(Ordering::Relaxed),
        unfinished: context.released.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    };
    let (broker, id, options, cut) =
        (context.broker.clone(), context.id.clone(), context.options.clone(), context.cut.clone());
    // The last senders go with the context; what is queued is acknowledged first.
    drop(context);
    let mut acking = join_all(acking);
    let acked = match tokio::time::timeout(options.lease, &mut acking).await {
        Ok(acked) => acked,
        Err(_) => {
            cut.cancel();
            acking.await
        }
    };
    if acked.iter().any(Result::is_err) {
        tracing::error!("an acknowledging task failed");
    }
    for partition in partitions {
        let retired = broker.retire(partition, Some(&id), options.forget);
        if !matches!(tokio::time::timeout(options.renewal, retired).await, Ok(Ok(_))) {
            tracing::debug!(%partition, "left without a word; the others forget it in time");
        }
    }
    stopped
}
