//! Everything the embedded broker holds, and each transition as one step on it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    Options,
    feed::Topics,
    queue::{self, Fields, Parked, Queue},
    run::{RECORD_BYTES, Run},
    tenancy::Tenants,
};
use crate::{
    broker::{
        Attempt, DeadLetter, Depth, Entry, Error, Load, Next, Partition, Place, Promoted, Receipt,
        Record, Result, Spent, Submission, Topic, Wake, WorkerId, WorkerSeen, proof,
    },
    job::{JobId, Lane, Timestamp},
    state::State as JobState,
};

/// The whole broker.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) queues: HashMap<Partition, Queue>,
    /// Records and logs.
    pub(super) runs: HashMap<JobId, Run>,
    /// Jobs that are over, in the order in which they ended.
    pub(super) finished: VecDeque<JobId>,
    /// Jobs with a key that are over and whose logs are gone, in the same order.
    pub(super) answered_keys: VecDeque<JobId>,
    /// Bytes of records and logs; each queue counts its own.
    pub(super) kept_bytes: usize,
    /// Who hears live messages.
    pub(super) topics: Topics,
    /// What each tenant has.
    pub(super) tenants: Tenants,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            queues: HashMap::new(),
            runs: HashMap::new(),
            finished: VecDeque::new(),
            answered_keys: VecDeque::new(),
            kept_bytes: 0,
            topics: Topics::default(),
            tenants: Tenants::default(),
        }
    }
}

/// Whether a requeue has begun to put a letter back: the run that it opened waits for the entry that only
/// the letter has.
pub(super) fn is_put_back(runs: &HashMap<JobId, Run>, letter: &DeadLetter) -> bool {
    runs.get(&letter.id).is_some_and(|run| run.waits_for(&letter.letter))
}

// Jobs on their way to a worker.
impl State {
    /// A partition, made at its first use.
    pub(super) fn queue(&mut self, partition: &Partition) -> &mut Queue {
        self.queues.entry(partition.clone()).or_default()
    }

    pub(super) fn add_raw(
        &mut self,
        partition: &Partition,
        lane: Lane,
        fields: Fields,
        now: Timestamp,
    ) -> Result<String> {
        self.admit(queue::weight(&fields))?;
        Ok(self.queue(partition).add(lane, fields, now))
    }

    pub(super) fn enqueue(
        &mut self,
        submission: &Submission,
        fingerprint: Option<String>,
        now: Timestamp,
        behind: bool,
    ) -> Result<Receipt> {
        let Submission { id, job, payload, partition } = submission;
        if fingerprint.is_some()
            && let Some(run) = self.runs.get(id)
        {
            if run.fingerprint != fingerprint {
                return Err(Error::Conflict { id: *id });
            }
            let parked = run.shown(now) == JobState::Parked;
            return Ok(Receipt { id: *id, parked, duplicate: true });
        }
        let is_counted = !self.options.limits.is_off();
        let load =
            is_counted.then(|| Load { tenant: job.tenant.clone(), bytes: payload.len() as u64 });
        let mark = load.as_ref().map(|load| &load.tenant);
        let fields = queue::fields(*id, payload, now, (0, 1), mark);
        let due = job.not_before.filter(|due| *due > now);
        // What is parked already stays as it is.
        if due.is_none() || !self.queue(partition).is_parked(*id) {
            let need = queue::weight(&fields) + RECORD_BYTES;
            self.admit_to(partition, load.as_ref(), need, behind)?;
        }
        let mut run = Run::new(*id, now);
        run.describe(job, partition);
        (run.sum, run.fingerprint) = (Some(proof::sum(payload)), fingerprint);
        run.record.due = due;
        if let Some(due) = due {
            run.record.state = JobState::Parked;
            let (lane, payload, mark) = (job.lane, payload.clone(), mark.cloned());
            let (at, foreign) = (now, Fields::new());
            let parked = Parked { due, lane, payload, at, attempt: 0, run: 1, mark, foreign };
            if let (true, Some(load)) = (self.queue(partition).park(*id, parked), &load) {
                self.queue(partition).ledger.take(load);
            }
            if self.queue(partition).is_first(*id) {
                self.tell_next(partition, now);
            }
        } else {
            let queue = self.queue(partition);
            queue.add(job.lane, fields, now);
            if let Some(load) = &load {
                queue.ledger.take(load);
            }
            self.wake(partition, Wake::Added);
        }
        // The same ID without a key is a caller's repeat: the record of the first one stays.
        if !self.runs.contains_key(id) {
            self.keep(run);
        }
        Ok(Receipt { id: *id, parked: due.is_some(), duplicate: false })
    }

    pub(super) fn keep(&mut self, run: Run) {
        self.kept_bytes += run.bytes();
        self.runs.insert(run.record.id, run);
    }

    /// Drops a record and its log.
    pub(super) fn forget(&mut self, job: JobId) {
        let Some(run) = self.runs.remove(&job) else { return };
        self.kept_bytes -= run.bytes();
        if let (Some(at), Some(tenant)) = (run.noted, &run.record.tenant) {
            self.tenants.forget(tenant, job, at);
        }
    }

    /// The run of an entry's job, made where there is none.
    pub(super) fn run_of(&mut self, entry: &Entry) -> &mut Run {
        if !self.runs.contains_key(&entry.id) {
            self.kept_bytes += RECORD_BYTES;
        }
        self.runs.entry(entry.id).or_insert_with(|| Run::of_entry(entry))
    }

    pub(super) fn wake(&self, partition: &Partition, why: Wake) {
        self.topics.publish(&Topic::Wake(partition.clone()), why.message().as_bytes());
    }

    /// Tells a partition's workers when the next parked job is due.
    fn tell_next(&mut self, partition: &Partition, now: Timestamp) -> Option<Duration> {
        let due_in = self.queue(partition).next_in(now);
        let workers = self.topics.count(&Topic::Wake(partition.clone()));
        self.wake(partition, Wake::Next(Next { due_in, workers }));
        due_in
    }

    pub(super) fn promote(
        &mut self,
        partition: &Partition,
        most: usize,
        now: Timestamp,
    ) -> Promoted {
        let (mut count, mut bytes) = (0, 0);
        while count < most
            && bytes < queue::STEP_BYTES
            && let Some((id, parked)) = self.queue(partition).unpark(now)
        {
            bytes += parked.payload.len();
            let Parked { payload, at, attempt, run, mark, .. } = &parked;
            let mut fields = queue::fields(id, payload, *at, (*attempt, *run), mark.as_ref());
            fields.extend(parked.foreign);
            self.queue(partition).add(parked.lane, fields, now);
            // The record stays as it is until the next attempt begins: a stale entry of the one
            // that asked for a retry is still to be parked, and not to be run.
            count += 1;
        }
        if count > 0 {
            self.wake(partition, Wake::Added);
        }
        Promoted { count, next_in: self.tell_next(partition, now) }
    }
}

// The end of entries; each acts only where the entry is still in its lane.
impl State {
    pub(super) fn remove(&mut self, spent: &[Spent]) {
        for Spent { place, load, .. } in spent {
            let queue = self.queue(&place.partition);
            if let (true, Some(load)) = (queue.remove(place), load) {
                queue.ledger.give_back(load);
            }
        }
    }

    pub(super) fn release(
        &mut self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> bool {
        // Where the job has just ended its entry is given back all the same, so that the second step
        // is not long in coming.
        if let Some(attempt) = attempt
            && let Some(run) = self.runs.get_mut(&attempt.job)
        {
            run.release(attempt.fence);
        }
        let released = self.queue(&place.partition).release(worker, place);
        if released {
            self.wake(&place.partition, Wake::Released);
        }
        released
    }

    pub(super) fn park(&mut self, entry: &Entry, attempt: u32, due: Timestamp) -> bool {
        let queue = self.queue(&entry.place.partition);
        if !queue.remove(&entry.place) {
            return false;
        }
        queue.repark(entry.id, Parked::of_entry(entry, attempt, due));
        if queue.is_first(entry.id) {
            self.tell_next(&entry.place.partition, Timestamp::now());
        }
        true
    }

    pub(super) fn bury(
        &mut self,
        entry: &Entry,
        letter: &DeadLetter,
        told: bool,
        now: Timestamp,
    ) -> bool {
        let (most, runs) = (self.options.dead_max, &self.runs);
        let Some(queue) = self.queues.get_mut(&entry.place.partition) else { return false };
        let removed = queue.remove(&entry.place);
        if removed {
            if !(told && queue.has_buried(letter)) {
                queue.bury(letter.clone(), most, now, |letter| is_put_back(runs, letter));
            }
            if let Some(load) = &entry.load {
                queue.ledger.give_back(load);
            }
        }
        removed
    }

    /// Drops dead letters that have outlived `dead_ttl`, but none that is being put back.
    pub(super) fn expire_dead(&mut self, partition: &Partition, now: Timestamp) -> u64 {
        let (ttl, runs) = (self.options.dead_ttl, &self.runs);
        let waits = |letter: &DeadLetter| is_put_back(runs, letter);
        self.queues.get_mut(partition).map_or(0, |queue| queue.expire_dead(ttl, now, waits))
    }
}

// What operators ask.
impl State {
    pub(super) fn record(&self, job: JobId, now: Timestamp) -> Option<Record> {
        self.runs.get(&job).map(|run| Record { state: run.shown(now), ..run.record.clone() })
    }

    /// How long until a job that is over may be dropped.
    pub(super) fn ttl(&self, job: JobId, now: Timestamp) -> Option<Duration> {
        let run = self.runs.get(&job)?;
        let Options { result_ttl, key_ttl, .. } = self.options;
        let ttl = if run.fingerprint.is_some() { key_ttl.max(result_ttl) } else { result_ttl };
        let end = run.record.ended_at?.after(ttl);
        Some(Duration::from_millis(end.0.saturating_sub(now.0)))
    }

    pub(super) fn depth(&self, partition: &Partition) -> Depth {
        self.queues.get(partition).map(Queue::depth).unwrap_or_default()
    }

    pub(super) fn workers(&self, partition: &Partition) -> Vec<WorkerSeen> {
        let listening = self.topics.workers();
        let workers = |queue: &Queue| queue.workers(&listening);
        self.queues.get(partition).map(workers).unwrap_or_default()
    }

    pub(super) fn dead_letters(
        &self,
        partition: &Partition,
        after: Option<&str>,
        most: usize,
    ) -> Vec<DeadLetter> {
        self.queues.get(partition).map(|queue| queue.dead_letters(after, most)).unwrap_or_default()
    }
}
