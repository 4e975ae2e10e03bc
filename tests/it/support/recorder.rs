//! A broker that notes which port methods are called and which transitions are seen.
//!
//! The suite's claim to be complete rests on it: what no behaviour exercises is missing here.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex},
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
    event::{Event, EventId, Frame},
    job::{JobId, Lane, Tenant, Timestamp},
    state::{State, Transition},
};
use tokio_util::sync::CancellationToken;

/// A row of the transition table.
pub type Row = (Option<State>, Transition, State);

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    methods: Mutex<BTreeSet<String>>,
    rows: Mutex<HashSet<Row>>,
}

impl Seen {
    /// Methods that were called, as `Trait::method`.
    pub fn methods(&self) -> BTreeSet<String> {
        self.methods.lock().unwrap().clone()
    }

    /// Transitions that happened.
    pub fn rows(&self) -> HashSet<Row> {
        self.rows.lock().unwrap().clone()
    }

    fn call(&self, method: &str) {
        self.methods.lock().unwrap().insert(method.to_owned());
    }

    fn row(&self, from: Option<State>, transition: Transition, to: State) {
        self.rows.lock().unwrap().insert((from, transition, to));
    }
}

/// The decorator.
pub struct Recorder {
    inner: Shared,
    seen: Arc<Seen>,
}

impl Recorder {
    /// Notes in `seen` what happens to `inner`.
    pub fn around(inner: Shared, seen: Arc<Seen>) -> Shared {
        Arc::new(Self { inner, seen })
    }

    /// The record as it stands, read beside what is recorded.
    async fn record(&self, job: JobId) -> Option<Record> {
        self.inner.job(job).await.unwrap()
    }

    async fn added(&self, results: &[Result<Receipt>]) {
        for receipt in results.iter().flatten().filter(|receipt| !receipt.duplicate) {
            let after = self.state(receipt.id).await;
            // With others at work the job may be further on; then this row is not observed.
            match (receipt.parked, after) {
                (true, State::Parked) => self.seen.row(None, Transition::Schedule, after),
                (false, State::Waiting) => self.seen.row(None, Transition::Enqueue, after),
                _ => {}
            }
        }
    }

    /// The state of a job whose entry is in a worker's hands: no record, or none with a state,
    /// means waiting.
    async fn state(&self, job: JobId) -> State {
        self.record(job).await.map_or(State::Waiting, |record| record.state)
    }
}

#[async_trait]
impl Enqueue for Recorder {
    async fn enqueue(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.seen.call("Enqueue::enqueue");
        let results = self.inner.enqueue(jobs).await;
        self.added(&results).await;
        results
    }

    async fn enqueue_in_order(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.seen.call("Enqueue::enqueue_in_order");
        let results = self.inner.enqueue_in_order(jobs).await;
        self.added(&results).await;
        results
    }

    async fn trim(&self, partition: &Partition, lane: Lane) -> Result<u64> {
        self.seen.call("Enqueue::trim");
        self.inner.trim(partition, lane).await
    }
}

#[async_trait]
impl Claim for Recorder {
    async fn announce(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<()> {
        self.seen.call("Claim::announce");
        self.inner.announce(partition, worker, lease).await
    }

    async fn claimer(&self, partition: &Partition, worker: &WorkerId) -> Result<Box<dyn Claimer>> {
        self.seen.call("Claim::claimer");
        let inner = self.inner.claimer(partition, worker).await?;
        Ok(Box::new(RecordedClaimer { inner, seen: self.seen.clone() }))
    }

    async fn begin(&self, entry: &Entry, worker: &WorkerId, crashes: Crashes) -> Result<Begin> {
        self.seen.call("Claim::begin");
        let before = self.record(entry.id).await;
        let begin = self.inner.begin(entry, worker, crashes).await?;
        if let Begin::Begun(attempt) = &begin
            && before.as_ref().is_none_or(|record| record.fence != attempt.fence)
        {
            let from = before.map_or(State::Waiting, |record| record.state);
            self.seen.row(Some(from), Transition::Begin, self.state(entry.id).await);
        }
        Ok(begin)
    }

    async fn promote(&self, partition: &Partition, most: usize) -> Result<Promoted> {
        self.seen.call("Claim::promote");
        let before = self.inner.depth(partition).await?.parked;
        let promoted = self.inner.promote(partition, most).await?;
        if promoted.count > 0 && before > 0 {
            self.seen.row(Some(State::Parked), Transition::Promote, State::Waiting);
        }
        Ok(promoted)
    }

    async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Renewed> {
        self.seen.call("Claim::renew");
        self.inner.renew(worker, places).await
    }

    async fn sweep(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        sweep: &Sweep,
    ) -> Result<Swept> {
        self.seen.call("Claim::sweep");
        self.inner.sweep(partition, worker, sweep).await
    }

    async fn keep(&self, jobs: &[JobId]) -> Result<()> {
        self.seen.call("Claim::keep");
        self.inner.keep(jobs).await
    }

    async fn retire(
        &self,
        partition: &Partition,
        worker: Option<&WorkerId>,
        idle: Duration,
    ) -> Result<u64> {
        self.seen.call("Claim::retire");
        self.inner.retire(partition, worker, idle).await
    }

    async fn wake(&self, partition: &Partition, why: Wake) -> Result<()> {
        self.seen.call("Claim::wake");
        self.inner.wake(partition, why).await
    }
}

struct RecordedClaimer {
    inner: Box<dyn Claimer>,
    seen: Arc<Seen>,
}

#[async_trait]
impl Claimer for RecordedClaimer {
    async fn read(&mut self, lane: Lane, most: usize) -> Result<Vec<Entry>> {
        self.seen.call("Claimer::read");
        self.inner.read(lane, most).await
    }

    async fn wait(&mut self, block: Duration, stop: &CancellationToken) -> Result<Vec<Entry>> {
        self.seen.call("Claimer::wait");
        self.inner.wait(block, stop).await
    }

    async fn pending(&mut self) -> Result<Vec<Entry>> {
        self.seen.call("Claimer::pending");
        self.inner.pending().await
    }
}

#[async_trait]
impl Settle for Recorder {
    async fn conclude(
        &self,
        attempt: &Attempt,
        frames: &[Frame],
        outcome: &Outcome,
    ) -> Result<Written> {
        self.seen.call("Settle::conclude");
        let before = self.state(attempt.job).await;
        let written = self.inner.conclude(attempt, frames, outcome).await?;
        if written == Written::Yes && before == State::Running {
            let transition = match outcome {
                Outcome::Done { .. } => Transition::Finish,
                Outcome::Failed(_) => Transition::Fail,
                Outcome::Cancelled { .. } => Transition::Cancel,
                Outcome::Retry { .. } => Transition::Retry,
            };
            // A parked job whose time has come may read as waiting before anyone promotes it.
            let after = match self.state(attempt.job).await {
                State::Waiting if transition == Transition::Retry => State::Parked,
                after => after,
            };
            self.seen.row(Some(before), transition, after);
        }
        Ok(written)
    }

    async fn refuse(&self, entry: &Entry, refusal: &Refusal, frame: &Frame) -> Result<Begin> {
        self.seen.call("Settle::refuse");
        let before = self.state(entry.id).await;
        let answer = self.inner.refuse(entry, refusal, frame).await?;
        let transition = match refusal {
            Refusal::Failed(_) => Transition::Refuse,
            Refusal::Cancelled => Transition::Cancel,
        };
        let after = self.state(entry.id).await;
        if after != before {
            self.seen.row(Some(before), transition, after);
        }
        Ok(answer)
    }

    async fn remove(&self, spent: &[Spent], session: u64) -> Result<bool> {
        self.seen.call("Settle::remove");
        self.inner.remove(spent, session).await
    }

    async fn park(
        &self,
        entry: &Entry,
        attempt: u32,
        due: Timestamp,
        session: u64,
    ) -> Result<Settled> {
        self.seen.call("Settle::park");
        self.inner.park(entry, attempt, due, session).await
    }

    async fn release(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool> {
        self.seen.call("Settle::release");
        let released = self.inner.release(worker, place, attempt).await?;
        // Of a job that has ended, or runs elsewhere, only the entry is given back.
        if let (true, Some(attempt)) = (released, attempt)
            && self.state(attempt.job).await == State::Waiting
        {
            self.seen.row(Some(State::Running), Transition::Release, State::Waiting);
        }
        Ok(released)
    }

    async fn bury(
        &self,
        entry: &Entry,
        letter: &DeadLetter,
        told: bool,
        session: u64,
    ) -> Result<Settled> {
        self.seen.call("Settle::bury");
        self.inner.bury(entry, letter, told, session).await
    }

    async fn expire(&self, partition: &Partition) -> Result<u64> {
        self.seen.call("Settle::expire");
        self.inner.expire(partition).await
    }
}

struct RecordedFeed {
    inner: Box<dyn Feed>,
    seen: Arc<Seen>,
}

#[async_trait]
impl Feed for RecordedFeed {
    async fn subscribe(&self, topic: &Topic) -> Result<()> {
        self.seen.call("Feed::subscribe");
        self.inner.subscribe(topic).await
    }

    async fn unsubscribe(&self, topic: &Topic) -> Result<()> {
        self.seen.call("Feed::unsubscribe");
        self.inner.unsubscribe(topic).await
    }

    async fn ping(&self) -> Result<()> {
        self.seen.call("Feed::ping");
        self.inner.ping().await
    }
}

#[async_trait]
impl Log for Recorder {
    fn session(&self) -> u64 {
        self.inner.session()
    }

    async fn append(&self, attempt: &Attempt, frames: &[Frame]) -> Result<Written> {
        self.seen.call("Log::append");
        self.inner.append(attempt, frames).await
    }

    async fn last(&self, job: JobId) -> Result<Option<EventId>> {
        self.seen.call("Log::last");
        self.inner.last(job).await
    }

    async fn heal(&self, attempt: &Attempt, entry: &Entry, frames: &[Frame]) -> Result<Written> {
        self.seen.call("Log::heal");
        self.inner.heal(attempt, entry, frames).await
    }

    async fn page(&self, job: JobId, after: EventId, window: Window) -> Result<Page> {
        self.seen.call("Log::page");
        self.inner.page(job, after, window).await
    }

    async fn read(&self, job: JobId, after: EventId, most: usize) -> Result<Vec<Event>> {
        self.seen.call("Log::read");
        self.inner.read(job, after, most).await
    }

    async fn open(&self, job: JobId, after: EventId, window: Window) -> Result<Opened> {
        self.seen.call("Log::open");
        self.inner.open(job, after, window).await
    }

    async fn open_for(
        &self,
        tenant: &Tenant,
        job: JobId,
        after: EventId,
        window: Window,
    ) -> Result<Option<Opened>> {
        self.seen.call("Log::open_for");
        self.inner.open_for(tenant, job, after, window).await
    }

    async fn feed(&self, sink: Sink) -> Result<Box<dyn Feed>> {
        self.seen.call("Log::feed");
        let inner = self.inner.feed(sink).await?;
        Ok(Box::new(RecordedFeed { inner, seen: self.seen.clone() }))
    }
}

#[async_trait]
impl Control for Recorder {
    async fn cancel(&self, job: JobId) -> Result<Cancel> {
        self.seen.call("Control::cancel");
        let before = self.state(job).await;
        let cancel = self.inner.cancel(job).await?;
        if matches!(cancel, Cancel::Cancelled { again: false, .. }) {
            self.seen.row(Some(before), Transition::Cancel, self.state(job).await);
        }
        Ok(cancel)
    }

    async fn unpark(
        &self,
        partition: &Partition,
        job: JobId,
        run: u32,
        session: u64,
    ) -> Result<Settled> {
        self.seen.call("Control::unpark");
        self.inner.unpark(partition, job, run, session).await
    }

    async fn cancelled(&self, jobs: &[JobId]) -> Result<Vec<JobId>> {
        self.seen.call("Control::cancelled");
        self.inner.cancelled(jobs).await
    }

    async fn tell(&self, worker: &WorkerId, order: Order) -> Result<u64> {
        self.seen.call("Control::tell");
        self.inner.tell(worker, order).await
    }

    async fn reopen(&self, partition: &Partition, letter: &DeadLetter) -> Result<Reopened> {
        self.seen.call("Control::reopen");
        let before = self.record(letter.id).await.map(|record| record.state);
        let reopened = self.inner.reopen(partition, letter).await?;
        if matches!(reopened, Reopened::Yes(Run { fresh: true, .. })) {
            self.seen.row(before, Transition::Requeue, self.state(letter.id).await);
        }
        Ok(reopened)
    }

    async fn requeue(&self, partition: &Partition, letter: &DeadLetter, run: Run) -> Result<bool> {
        self.seen.call("Control::requeue");
        self.inner.requeue(partition, letter, run).await
    }

    async fn letter(&self, partition: &Partition, letter: &str) -> Result<Option<DeadLetter>> {
        self.seen.call("Control::letter");
        self.inner.letter(partition, letter).await
    }

    async fn unfinished(&self, letters: &[DeadLetter]) -> Result<Vec<bool>> {
        self.seen.call("Control::unfinished");
        self.inner.unfinished(letters).await
    }

    async fn purge(&self, partition: &Partition, letters: &[String]) -> Result<u64> {
        self.seen.call("Control::purge");
        self.inner.purge(partition, letters).await
    }
}

#[async_trait]
impl Inspect for Recorder {
    async fn ready(&self) -> Result<()> {
        self.seen.call("Inspect::ready");
        self.inner.ready().await
    }

    async fn job(&self, id: JobId) -> Result<Option<Record>> {
        self.seen.call("Inspect::job");
        self.inner.job(id).await
    }

    async fn job_for(&self, tenant: &Tenant, id: JobId) -> Result<Option<Record>> {
        self.seen.call("Inspect::job_for");
        self.inner.job_for(tenant, id).await
    }

    async fn records(&self, jobs: &[JobId]) -> Result<Vec<Option<Record>>> {
        self.seen.call("Inspect::records");
        self.inner.records(jobs).await
    }

    async fn ttl(&self, job: JobId) -> Result<Option<Duration>> {
        self.seen.call("Inspect::ttl");
        self.inner.ttl(job).await
    }

    async fn depth(&self, partition: &Partition) -> Result<Depth> {
        self.seen.call("Inspect::depth");
        self.inner.depth(partition).await
    }

    async fn workers(&self, partition: &Partition) -> Result<Vec<WorkerSeen>> {
        self.seen.call("Inspect::workers");
        self.inner.workers(partition).await
    }

    async fn dead_letters(
        &self,
        partition: &Partition,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.seen.call("Inspect::dead_letters");
        self.inner.dead_letters(partition, after, most).await
    }
}

#[async_trait]
impl Reconcile for Recorder {
    async fn mend(&self, partition: &Partition) -> Result<Correction> {
        self.seen.call("Reconcile::mend");
        self.inner.mend(partition).await
    }

    async fn reconcile(&self, partition: &Partition) -> Result<Correction> {
        self.seen.call("Reconcile::reconcile");
        self.inner.reconcile(partition).await
    }
}

#[async_trait]
impl Tenancy for Recorder {
    async fn note(&self, tenant: &Tenant, jobs: &[(JobId, Timestamp)]) -> Result<()> {
        self.seen.call("Tenancy::note");
        self.inner.note(tenant, jobs).await
    }

    async fn recent(&self, tenant: &Tenant, before: Option<JobId>, most: usize) -> Result<Recent> {
        self.seen.call("Tenancy::recent");
        self.inner.recent(tenant, before, most).await
    }

    async fn admit(&self, tenant: &Tenant, rate: &Rate) -> Result<Option<Duration>> {
        self.seen.call("Tenancy::admit");
        self.inner.admit(tenant, rate).await
    }

    async fn admit_many(
        &self,
        tenant: &Tenant,
        rate: &Rate,
        count: u32,
    ) -> Result<Option<Duration>> {
        self.seen.call("Tenancy::admit_many");
        self.inner.admit_many(tenant, rate, count).await
    }
}
