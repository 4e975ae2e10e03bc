//! A broker whose worker dies or freezes at a chosen step.
//!
//! A step is a port call that moves a job. Before it nothing has happened, after it everything has
//! and its reply is lost; from then on no call returns, as for a process that was killed. What goes
//! on beside a job, such as renewals, is no step, but it ends with the worker all the same.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use millstream::{
    broker::{
        Attempt, Begin, Cancel, Claim, Claimer, Control, Correction, Crashes, DeadLetter, Depth,
        Enqueue, Entry, Feed, Inspect, Log, Opened, Order, Outcome, Page, Partition, Place,
        Promoted, Rate, Receipt, Recent, Reconcile, Record, Refusal, Renewed, Reopened, Result,
        Run, Settle, Settled, Shared, Sink, Spent, Submission, Sweep, Swept, Tenancy, Topic, Wake,
        Window, WorkerId, WorkerSeen, Written,
    },
    event::{EventId, Frame},
    job::{JobId, Lane, Tenant, Timestamp},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where within a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Nothing of it has happened.
    Before,
    /// All of it has happened, and nobody knows.
    After,
}

/// What befalls a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    Live,
    /// It dies at the step of this name and number, from 1.
    Die(&'static str, usize, Side),
    /// It freezes at the step of this name and number, until it is thawed.
    Freeze(&'static str, usize, Side),
    /// Whoever is the first to make the call of this name panics.
    Panic(&'static str),
}

/// A worker's fate, shared with the test.
pub struct Fate {
    plan: Mutex<Plan>,
    steps: Mutex<Vec<&'static str>>,
    /// It died by plan.
    fell: AtomicBool,
    pub dead: CancellationToken,
    frozen: watch::Sender<bool>,
}

impl Fate {
    pub fn new(plan: Plan) -> Arc<Self> {
        Arc::new(Self {
            plan: Mutex::new(plan),
            steps: Mutex::default(),
            fell: AtomicBool::new(false),
            dead: CancellationToken::new(),
            frozen: watch::Sender::new(false),
        })
    }

    /// What befalls it from here on.
    pub fn plan(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }

    /// The steps taken, in order.
    pub fn steps(&self) -> Vec<&'static str> {
        self.steps.lock().unwrap().clone()
    }

    /// Whether it died as it was planned.
    pub fn fell(&self) -> bool {
        self.fell.load(Ordering::SeqCst)
    }

    /// Whether the step that it is to die of has begun. A read that blocks may never end.
    pub fn is_due(&self) -> bool {
        match *self.plan.lock().unwrap() {
            Plan::Die(name, number, _) if name != "wait" => {
                self.steps().iter().filter(|step| **step == name).count() >= number
            }
            _ => false,
        }
    }

    /// Waits until it is frozen.
    pub async fn frozen(&self) {
        self.frozen.subscribe().wait_for(|frozen| *frozen).await.unwrap();
    }

    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// Notes a step; which of its name it is, from 1.
    fn count(&self, name: &'static str) -> usize {
        let mut steps = self.steps.lock().unwrap();
        steps.push(name);
        steps.iter().filter(|step| **step == name).count()
    }

    fn meet(&self, name: &'static str, number: usize, side: Side) {
        let here = (name, number, side);
        match *self.plan.lock().unwrap() {
            Plan::Die(name, number, side) if here == (name, number, side) => {
                self.fell.store(true, Ordering::SeqCst);
                self.dead.cancel();
            }
            Plan::Freeze(name, number, side) if here == (name, number, side) => {
                self.frozen.send_replace(true);
            }
            _ => {}
        }
    }

    /// Waits while it is frozen; for ever once it is dead.
    async fn pass(&self) {
        let mut frozen = self.frozen.subscribe();
        tokio::select! {
            biased;
            () = self.dead.cancelled() => std::future::pending().await,
            () = async { drop(frozen.wait_for(|frozen| !*frozen).await) } => {}
        }
    }

    /// A call beside the steps.
    async fn beside<T>(&self, name: &'static str, call: impl Future<Output = T>) -> T {
        self.pass().await;
        let plan = *self.plan.lock().unwrap();
        if matches!(plan, Plan::Panic(fault) if fault == name) {
            assert!(self.fell.swap(true, Ordering::SeqCst), "a planned fault in {name}");
        }
        let result = tokio::select! {
            biased;
            () = self.dead.cancelled() => std::future::pending().await,
            result = call => result,
        };
        self.pass().await;
        result
    }

    async fn step<T>(&self, name: &'static str, call: impl Future<Output = T>) -> T {
        self.pass().await;
        let number = self.count(name);
        self.meet(name, number, Side::Before);
        let result = self.beside(name, call).await;
        self.meet(name, number, Side::After);
        self.pass().await;
        result
    }

    /// A call that is a step where it moved something. Without that there was nothing to die of.
    async fn step_if<T>(
        &self,
        name: &'static str,
        moved: impl Fn(&T) -> bool,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let result = self.beside(name, call).await;
        if result.as_ref().is_ok_and(moved) {
            let number = self.count(name);
            self.meet(name, number, Side::After);
            self.pass().await;
        }
        result
    }
}

/// The decorator.
pub struct Dying {
    inner: Shared,
    fate: Arc<Fate>,
}

impl Dying {
    /// The broker of a worker with this fate.
    pub fn around(inner: Shared, fate: Arc<Fate>) -> Shared {
        Arc::new(Self { inner, fate })
    }
}

#[async_trait]
impl Enqueue for Dying {
    async fn enqueue(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.fate.step("enqueue", self.inner.enqueue(jobs)).await
    }
    async fn enqueue_in_order(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.fate.step("enqueue", self.inner.enqueue_in_order(jobs)).await
    }
    async fn trim(&self, partition: &Partition, lane: Lane) -> Result<u64> {
        self.fate.beside("trim", self.inner.trim(partition, lane)).await
    }
}

#[async_trait]
impl Claim for Dying {
    async fn announce(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<()> {
        self.fate.beside("announce", self.inner.announce(partition, worker, lease)).await
    }
    async fn claimer(&self, partition: &Partition, worker: &WorkerId) -> Result<Box<dyn Claimer>> {
        let inner = self.fate.step("claimer", self.inner.claimer(partition, worker)).await?;
        Ok(Box::new(DyingClaimer { inner, fate: Arc::clone(&self.fate) }))
    }
    async fn begin(&self, entry: &Entry, worker: &WorkerId, crashes: Crashes) -> Result<Begin> {
        self.fate.step("begin", self.inner.begin(entry, worker, crashes)).await
    }
    async fn promote(&self, partition: &Partition, most: usize) -> Result<Promoted> {
        let moved = |promoted: &Promoted| promoted.count > 0;
        self.fate.step_if("promote", moved, self.inner.promote(partition, most)).await
    }
    async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Renewed> {
        self.fate.beside("renew", self.inner.renew(worker, places)).await
    }
    async fn keep(&self, jobs: &[JobId]) -> Result<()> {
        self.fate.beside("keep", self.inner.keep(jobs)).await
    }
    async fn sweep(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        sweep: &Sweep,
    ) -> Result<Swept> {
        let moved = |swept: &Swept| !swept.entries.is_empty();
        self.fate.step_if("sweep", moved, self.inner.sweep(partition, worker, sweep)).await
    }
    async fn retire(
        &self,
        partition: &Partition,
        worker: Option<&WorkerId>,
        idle: Duration,
    ) -> Result<u64> {
        self.fate.beside("retire", self.inner.retire(partition, worker, idle)).await
    }
    async fn wake(&self, partition: &Partition, why: Wake) -> Result<()> {
        self.fate.step("wake", self.inner.wake(partition, why)).await
    }
}

struct DyingClaimer {
    inner: Box<dyn Claimer>,
    fate: Arc<Fate>,
}

#[async_trait]
impl Claimer for DyingClaimer {
    async fn read(&mut self, lane: Lane, most: usize) -> Result<Vec<Entry>> {
        self.fate.step("read", self.inner.read(lane, most)).await
    }
    async fn wait(&mut self, block: Duration, stop: &CancellationToken) -> Result<Vec<Entry>> {
        self.fate.step("wait", self.inner.wait(block, stop)).await
    }
    async fn pending(&mut self) -> Result<Vec<Entry>> {
        self.fate.step("pending", self.inner.pending()).await
    }
}

#[async_trait]
impl Settle for Dying {
    async fn conclude(
        &self,
        attempt: &Attempt,
        frames: &[Frame],
        outcome: &Outcome,
    ) -> Result<Written> {
        self.fate.step("conclude", self.inner.conclude(attempt, frames, outcome)).await
    }
    async fn refuse(&self, entry: &Entry, refusal: &Refusal, frame: &Frame) -> Result<Begin> {
        self.fate.step("refuse", self.inner.refuse(entry, refusal, frame)).await
    }
    async fn remove(&self, spent: &[Spent], session: u64) -> Result<bool> {
        self.fate.step("remove", self.inner.remove(spent, session)).await
    }
    async fn park(
        &self,
        entry: &Entry,
        attempt: u32,
        due: Timestamp,
        session: u64,
    ) -> Result<Settled> {
        self.fate.step("park", self.inner.park(entry, attempt, due, session)).await
    }
    async fn release(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool> {
        self.fate.step("release", self.inner.release(worker, place, attempt)).await
    }
    async fn bury(
        &self,
        entry: &Entry,
        letter: &DeadLetter,
        told: bool,
        session: u64,
    ) -> Result<Settled> {
        self.fate.step("bury", self.inner.bury(entry, letter, told, session)).await
    }
    async fn expire(&self, partition: &Partition) -> Result<u64> {
        self.fate.beside("expire", self.inner.expire(partition)).await
    }
}

#[async_trait]
impl Log for Dying {
    fn session(&self) -> u64 {
        self.inner.session()
    }
    async fn append(&self, attempt: &Attempt, frames: &[Frame]) -> Result<Written> {
        self.fate.step("append", self.inner.append(attempt, frames)).await
    }
    async fn last(&self, job: JobId) -> Result<Option<EventId>> {
        self.fate.step("last", self.inner.last(job)).await
    }
    async fn heal(&self, attempt: &Attempt, entry: &Entry, frames: &[Frame]) -> Result<Written> {
        self.fate.step("heal", self.inner.heal(attempt, entry, frames)).await
    }
    async fn page(&self, job: JobId, after: EventId, window: Window) -> Result<Page> {
        self.fate.beside("page", self.inner.page(job, after, window)).await
    }
    async fn open(&self, job: JobId, after: EventId, window: Window) -> Result<Opened> {
        self.fate.beside("open", self.inner.open(job, after, window)).await
    }
    async fn open_for(
        &self,
        tenant: &Tenant,
        job: JobId,
        after: EventId,
        window: Window,
    ) -> Result<Option<Opened>> {
        self.fate.beside("open", self.inner.open_for(tenant, job, after, window)).await
    }
    async fn feed(&self, sink: Sink) -> Result<Box<dyn Feed>> {
        let inner = self.fate.beside("feed", self.inner.feed(sink)).await?;
        Ok(Box::new(DyingFeed { inner, fate: Arc::clone(&self.fate) }))
    }
}

struct DyingFeed {
    inner: Box<dyn Feed>,
    fate: Arc<Fate>,
}

#[async_trait]
impl Feed for DyingFeed {
    async fn subscribe(&self, topic: &Topic) -> Result<()> {
        self.fate.beside("subscribe", self.inner.subscribe(topic)).await
    }
    async fn unsubscribe(&self, topic: &Topic) -> Result<()> {
        self.fate.beside("unsubscribe", self.inner.unsubscribe(topic)).await
    }
    async fn ping(&self) -> Result<()> {
        self.fate.beside("ping", self.inner.ping()).await
    }
}

#[async_trait]
impl Control for Dying {
    async fn cancel(&self, job: JobId) -> Result<Cancel> {
        self.fate.step("cancel", self.inner.cancel(job)).await
    }
    async fn unpark(
        &self,
        partition: &Partition,
        job: JobId,
        run: u32,
        session: u64,
    ) -> Result<Settled> {
        self.fate.step("unpark", self.inner.unpark(partition, job, run, session)).await
    }
    async fn cancelled(&self, jobs: &[JobId]) -> Result<Vec<JobId>> {
        self.fate.beside("cancelled", self.inner.cancelled(jobs)).await
    }
    async fn tell(&self, worker: &WorkerId, order: Order) -> Result<u64> {
        self.fate.beside("tell", self.inner.tell(worker, order)).await
    }
    async fn reopen(&self, partition: &Partition, letter: &DeadLetter) -> Result<Reopened> {
        self.fate.step("reopen", self.inner.reopen(partition, letter)).await
    }
    async fn requeue(&self, partition: &Partition, letter: &DeadLetter, run: Run) -> Result<bool> {
        self.fate.step("requeue", self.inner.requeue(partition, letter, run)).await
    }
    async fn letter(&self, partition: &Partition, letter: &str) -> Result<Option<DeadLetter>> {
        self.fate.step("letter", self.inner.letter(partition, letter)).await
    }

    async fn unfinished(&self, letters: &[DeadLetter]) -> Result<Vec<bool>> {
        self.fate.beside("unfinished", self.inner.unfinished(letters)).await
    }
    async fn purge(&self, partition: &Partition, letters: &[String]) -> Result<u64> {
        self.fate.beside("purge", self.inner.purge(partition, letters)).await
    }
}

#[async_trait]
impl Inspect for Dying {
    async fn ready(&self) -> Result<()> {
        self.fate.beside("ready", self.inner.ready()).await
    }
    async fn job(&self, id: JobId) -> Result<Option<Record>> {
        self.fate.step("job", self.inner.job(id)).await
    }
    async fn job_for(&self, tenant: &Tenant, id: JobId) -> Result<Option<Record>> {
        self.fate.beside("job", self.inner.job_for(tenant, id)).await
    }
    async fn records(&self, jobs: &[JobId]) -> Result<Vec<Option<Record>>> {
        self.fate.beside("records", self.inner.records(jobs)).await
    }
    async fn ttl(&self, job: JobId) -> Result<Option<Duration>> {
        self.fate.beside("ttl", self.inner.ttl(job)).await
    }
    async fn depth(&self, partition: &Partition) -> Result<Depth> {
        self.fate.beside("depth", self.inner.depth(partition)).await
    }
    async fn workers(&self, partition: &Partition) -> Result<Vec<WorkerSeen>> {
        self.fate.beside("workers", self.inner.workers(partition)).await
    }
    async fn dead_letters(
        &self,
        partition: &Partition,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.fate.beside("dead_letters", self.inner.dead_letters(partition, after, most)).await
    }
}

#[async_trait]
impl Reconcile for Dying {
    async fn mend(&self, partition: &Partition) -> Result<Correction> {
        self.fate.beside("mend", self.inner.mend(partition)).await
    }
    async fn reconcile(&self, partition: &Partition) -> Result<Correction> {
        self.fate.beside("reconcile", self.inner.reconcile(partition)).await
    }
}

#[async_trait]
impl Tenancy for Dying {
    async fn note(&self, tenant: &Tenant, jobs: &[(JobId, Timestamp)]) -> Result<()> {
        self.fate.beside("note", self.inner.note(tenant, jobs)).await
    }
    async fn recent(&self, tenant: &Tenant, before: Option<JobId>, most: usize) -> Result<Recent> {
        self.fate.beside("recent", self.inner.recent(tenant, before, most)).await
    }
    async fn admit_many(
        &self,
        tenant: &Tenant,
        rate: &Rate,
        count: u32,
    ) -> Result<Option<Duration>> {
        self.fate.beside("admit", self.inner.admit_many(tenant, rate, count)).await
    }
}
