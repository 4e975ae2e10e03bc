//! One job as the embedded broker keeps it: its record, the entry that carries it, its log.

use crate::{
    broker::{Attempt, DeadLetter, Entry, Partition, Place, Record, Setback, WorkerId},
    error::{Code, Failure},
    event::{EventId, Frame},
    job::{Job, JobId, Labels, Lane, Tenant, Timestamp},
    state::State,
};

/// What a record counts against the bound of bytes, beside its log.
pub(super) const RECORD_BYTES: usize = 512;

/// A job's record and log.
#[derive(Debug)]
pub(super) struct Run {
    /// What readers and operators see.
    pub(super) record: Record,
    /// The entry that carried the last attempt; `None` before there is one, and where it is forgotten.
    pub(super) place: Option<Place>,
    /// The taking of that entry under which the last attempt was opened.
    pub(super) taking: u64,
    /// Whether the attempt that runs is to end as cancelled.
    pub(super) cancel: bool,
    /// The dead letter that opened the run.
    pub(super) letter: Option<String>,
    /// When its tenant has noted it.
    pub(super) noted: Option<Timestamp>,
    /// The mark of its job; see [`Entry::sum`](crate::broker::Entry).
    pub(super) sum: Option<String>,
    /// The request's fingerprint, where an idempotency key asks for one.
    pub(super) fingerprint: Option<String>,
    /// The events in order; `None` until the first is written.
    pub(super) log: Option<Vec<(EventId, Frame)>>,
}

impl Run {
    /// A job that waits and of which nothing else is known.
    pub(super) fn new(id: JobId, at: Timestamp) -> Self {
        let record = Record {
            id,
            state: State::Waiting,
            partition: None,
            lane: Lane::default(),
            tenant: None,
            model: String::new(),
            custom_id: None,
            labels: Labels::default(),
            attempt: 0,
            failures: 0,
            crashes: 0,
            run: 1,
            fence: 0,
            worker: None,
            enqueued_at: Some(at),
            due: None,
            began_at: None,
            cancelling: false,
            ended_at: None,
            finish_reason: None,
            usage: None,
            error: None,
            history: Vec::new(),
        };
        Self {
            record,
            place: None,
            taking: 0,
            cancel: false,
            letter: None,
            noted: None,
            sum: None,
            fingerprint: None,
            log: None,
        }
    }

    /// Writes what a job says of itself.
    pub(super) fn describe(&mut self, job: &Job, partition: &Partition) {
        self.record.partition = Some(partition.clone());
        self.record.lane = job.lane;
        self.record.tenant = Some(job.tenant.clone());
        self.record.model = job.request.model_name();
        self.record.custom_id.clone_from(&job.custom_id);
        self.record.labels = job.labels.clone();
    }

    /// The run of an entry that nothing is known of, such as one added by another language.
    pub(super) fn of_entry(entry: &Entry) -> Self {
        let mut run = Self::new(entry.id, entry.at);
        if let Ok(job) = &entry.job {
            run.describe(job, &entry.place.partition);
        }
        (run.sum, run.fingerprint) = (Some(entry.sum()), entry.fingerprint());
        run.carry(&entry.place);
        run
    }

    /// Notes which entry carries the job.
    fn carry(&mut self, place: &Place) {
        self.record.partition = Some(place.partition.clone());
        self.record.lane = place.lane;
        self.place = Some(place.clone());
    }

    /// The ID of the last event.
    pub(super) fn top(&self) -> Option<EventId> {
        self.log.as_ref()?.last().map(|(id, _)| *id)
    }

    /// The bytes it counts.
    pub(super) fn bytes(&self) -> usize {
        let log = self.log.iter().flatten().map(|(_, frame)| frame.bytes.len()).sum::<usize>();
        RECORD_BYTES + log
    }

    /// Drops the log; how many bytes it counted.
    pub(super) fn drop_log(&mut self) -> usize {
        let before = self.bytes();
        self.log = None;
        before - self.bytes()
    }

    /// Raises the fence above every earlier one, those of the log included, and to the clock.
    pub(super) fn raise(&mut self, now: Timestamp) -> u64 {
        let logged = self.top().map_or(0, |id| id.fence);
        self.record.fence = (self.record.fence.max(logged) + 1).max(now.0);
        self.record.fence
    }

    /// What the crashes come to if this entry was taken from a worker that died with an attempt, and
    /// that worker. One that takes over its own entry has lost the task that ran it.
    pub(super) fn crashes(&self, entry: &Entry, worker: Option<&WorkerId>) -> (u32, Option<&str>) {
        let mine = worker.map(WorkerId::as_str) == self.record.worker.as_deref();
        let lost = self.record.state == State::Running && (!mine || entry.crashed);
        let dead = self.record.worker.as_deref().filter(|_| lost);
        (self.record.crashes + u32::from(lost && entry.crashed), dead)
    }

    /// Notes an attempt that was lost with its worker.
    fn note_lost(&mut self, entry: &Entry, worker: Option<&WorkerId>, now: Timestamp) {
        let (crashes, dead) = self.crashes(entry, worker);
        if let Some(dead) = dead {
            let text = format!("{dead} did not renew its lease");
            self.set_back(Failure::new(Code::WorkerLost, text), now);
            self.record.crashes = crashes;
        }
    }

    /// Notes an attempt that came to nothing.
    pub(super) fn set_back(&mut self, error: Failure, now: Timestamp) {
        if self.record.history.len() >= 32 {
            self.record.history.remove(0);
        }
        self.record.history.push(Setback { attempt: self.record.attempt, at: now, error });
    }

    /// Whether an entry names this job, or a run of it, that is not its own. Anybody who may add an entry may write
    /// any ID, run and time into it: the record is believed. The same bytes are the same job, and of a key the same
    /// request.
    pub(super) fn is_strange_to(&self, entry: &Entry) -> bool {
        let tenant = entry.job.as_ref().ok().map(|job| &job.tenant);
        let is_other = |own: &Tenant| tenant.is_some_and(|tenant| tenant != own);
        if self.record.tenant.as_ref().is_some_and(is_other) || entry.run > self.record.run {
            return true;
        }
        if self.sum.as_ref() == Some(&entry.sum()) {
            return false;
        }
        self.fingerprint.is_none() || self.fingerprint != entry.fingerprint()
    }

    /// Notes that the job's time has not come.
    pub(super) fn schedule(&mut self, due: Timestamp) {
        self.place = None;
        self.record.state = State::Parked;
        self.record.due = Some(due);
    }

    /// Opens the next attempt.
    pub(super) fn open(&mut self, entry: &Entry, worker: &WorkerId, now: Timestamp) -> Attempt {
        self.note_lost(entry, Some(worker), now);
        self.record.run = self.record.run.max(entry.run);
        self.raise(now);
        self.carry(&entry.place);
        self.taking = entry.taking;
        self.record.state = State::Running;
        self.record.attempt += 1;
        self.record.worker = Some(worker.to_string());
        self.record.began_at = Some(now);
        self.record.due = None;
        self.attempt(entry, worker)
    }

    /// The attempt that is open.
    pub(super) fn attempt(&self, entry: &Entry, worker: &WorkerId) -> Attempt {
        Attempt {
            job: self.record.id,
            place: entry.place.clone(),
            worker: worker.clone(),
            fence: self.record.fence,
            number: self.record.attempt,
            failures: self.record.failures,
            run: entry.run,
            session: 0,
        }
    }

    /// The state as operators see it: a parked job whose time has come waits.
    pub(super) fn shown(&self, now: Timestamp) -> State {
        let due = self.record.due.is_none_or(|due| due <= now);
        if self.record.state == State::Parked && due { State::Waiting } else { self.record.state }
    }

    /// Gives back the attempt's budget, never its fence; nothing where it does not run any more.
    pub(super) fn release(&mut self, fence: u64) {
        if self.record.fence == fence && self.record.state == State::Running {
            self.record.state = State::Waiting;
            self.record.cancelling = false;
            self.record.attempt -= 1;
        }
    }

    /// Ends the job from outside any attempt.
    pub(super) fn refuse(&mut self, entry: &Entry, state: State, now: Timestamp) -> u64 {
        self.note_lost(entry, None, now);
        self.record.run = self.record.run.max(entry.run);
        self.carry(&entry.place);
        self.taking = entry.taking;
        self.record.state = state;
        self.record.cancelling = false;
        self.record.ended_at = Some(now);
        self.record.due = None;
        self.raise(now)
    }

    /// Opens a new run: what the last one left is forgotten, but never the fence.
    pub(super) fn reopen(&mut self, letter: &DeadLetter, now: Timestamp) -> u32 {
        self.record.fence = self.record.fence.max(letter.fence);
        self.raise(now);
        let run = self.record.run.max(letter.run) + 1;
        let Record { partition, lane, tenant, model, custom_id, labels, enqueued_at, .. } =
            self.record.clone();
        let blank = Self::new(self.record.id, letter.at).record;
        let fence = self.record.fence;
        let kept = Record { partition, lane, tenant, model, custom_id, labels, ..blank };
        self.record = Record { run, fence, enqueued_at, ..kept };
        (self.place, self.cancel, self.letter) = (None, false, Some(letter.letter.clone()));
        run
    }

    /// Whether this letter has opened the run, and its entry is not put back.
    pub(super) fn waits_for(&self, letter: &str) -> bool {
        let waits = self.record.state == State::Waiting && self.place.is_none();
        waits && self.letter.as_deref() == Some(letter)
    }

    /// Writes a running attempt's state again after it was forgotten. Its entry may be forgotten, too,
    /// and another carry the job in its stead: whichever comes is taken for it.
    pub(super) fn restore(&mut self, attempt: &Attempt, now: Timestamp) {
        self.carry(&attempt.place);
        self.place = None;
        self.record.state = State::Running;
        self.record.fence = attempt.fence;
        self.record.attempt = attempt.number;
        self.record.failures = attempt.failures;
        self.record.run = attempt.run;
        self.record.worker = Some(attempt.worker.to_string());
        self.record.began_at = Some(now);
        self.record.due = None;
    }
}
