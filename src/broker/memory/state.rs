//! Everything the embedded broker holds, and each transition as one step on it.

use std::collections::{HashMap, VecDeque};

use super::{
    Options,
    feed::Topics,
    queue::{self, Fields, Parked, Queue},
    run::{RECORD_BYTES, Run},
};
use crate::{
    broker::{
        Attempt, DeadLetter, Depth, Entry, Error, Partition, Place, Promoted, Receipt, Record,
        Result, Submission, Topic, Wake, WorkerId, WorkerSeen,
    },
    job::{JobId, Lane, Timestamp},
    state::State as JobState,
};

/// When a full broker may have room again: it depends on the workers, so it is a guess.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// The whole broker.
#[derive(Debug)]
pub(super) struct State {
    options: Options,
    queues: HashMap<Partition, Queue>,
    /// Records and logs.
    pub(super) runs: HashMap<JobId, Run>,
    /// Jobs that are over, in the order in which they ended.
    pub(super) finished: VecDeque<JobId>,
    /// Bytes of records and logs; each queue counts its own.
    pub(super) kept_bytes: usize,
    /// Who hears live messages.
    pub(super) topics: Topics,
}

// Bounds.
impl State {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            queues: HashMap::new(),
            runs: HashMap::new(),
            finished: VecDeque::new(),
            kept_bytes: 0,
            topics: Topics::default(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.kept_bytes + self.queues.values().map(|queue| queue.bytes).sum::<usize>()
    }

    /// Drops finished jobs that have outlived `result_ttl`.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let ttl = self.options.result_ttl;
        let old = |run: &Run| run.record.ended_at.is_some_and(|ended| ended.after(ttl) <= now);
        while self.drop_finished(old) {}
    }

    /// Drops the oldest finished job that `may` go. One whose entry is still in its lane stays:
    /// without its record the entry would run the job again.
    fn drop_finished(&mut self, may: impl Fn(&Run) -> bool) -> bool {
        for index in 0..self.finished.len() {
            let id = self.finished[index];
            if let Some(run) = self.runs.get(&id).filter(|run| run.record.state.is_terminal()) {
                if !may(run) {
                    return false;
                }
                if self.is_unsettled(run) {
                    continue;
                }
            }
            self.finished.remove(index);
            self.forget(id);
            return true;
        }
        false
    }

    fn is_unsettled(&self, run: &Run) -> bool {
        let place = run.place.as_ref();
        place.is_some_and(|place| self.queues.get(&place.partition).is_some_and(|q| q.holds(place)))
    }

    /// Drops what may be dropped until `need` more bytes fit.
    pub(super) fn make_room(&mut self, need: usize) -> bool {
        let most = self.options.max_bytes;
        while self.bytes() + need > most {
            let dropped =
                self.drop_finished(|_| true) || self.queues.values_mut().any(Queue::drop_dead);
            if !dropped {
                return false;
            }
        }
        true
    }

    /// Whether one more job of so many bytes may come in.
    fn admit(&mut self, need: usize) -> Result<()> {
        let jobs = self.queues.values().map(Queue::jobs).sum::<usize>();
        let message = if jobs >= self.options.max_jobs {
            format!("{jobs} jobs are held, max_jobs is {}", self.options.max_jobs)
        } else if !self.make_room(need) {
            let (have, most) = (self.bytes(), self.options.max_bytes);
            format!("{have} bytes are held and {need} more are asked for, max_bytes is {most}")
        } else {
            return Ok(());
        };
        Err(Error::Full { message, retry_after: RETRY_AFTER })
    }
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
    ) -> Result<Receipt> {
        let Submission { id, job, payload, partition } = submission;
        if fingerprint.is_some()
            && let Some(run) = self.runs.get(id)
        {
            if run.fingerprint != fingerprint && run.fingerprint.is_some() {
                return Err(Error::Conflict { id: *id });
            }
            let parked = run.record.state == JobState::Parked;
            return Ok(Receipt { id: *id, parked, duplicate: true });
        }
        let fields = queue::fields(*id, payload, now, (0, 1));
        self.admit(queue::weight(&fields) + RECORD_BYTES)?;
        let due = job.not_before.filter(|due| *due > now);
        let mut run = Run::new(*id, now);
        run.describe(job, partition);
        run.fingerprint = fingerprint;
        run.record.due = due;
        if let Some(due) = due {
            run.record.state = JobState::Parked;
            let (lane, payload) = (job.lane, payload.clone());
            let parked = Parked { due, lane, payload, at: now, attempt: 0, run: 1 };
            self.queue(partition).park(*id, parked);
            self.wake(partition, Wake::Parked);
        } else {
            self.queue(partition).add(job.lane, fields, now);
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
        self.kept_bytes -= self.runs.remove(&job).map_or(0, |run| run.bytes());
    }

    /// The run of an entry's job, made where there is none.
    pub(super) fn run_of(&mut self, entry: &Entry) -> &mut Run {
        if !self.runs.contains_key(&entry.id) {
            self.kept_bytes += RECORD_BYTES;
        }
        self.runs.entry(entry.id).or_insert_with(|| Run::of_entry(entry))
    }

    pub(super) fn wake(&self, partition: &Partition, why: Wake) {
        self.topics.publish(&Topic::Wake(partition.clone()), why.as_str().as_bytes());
    }

    pub(super) fn promote(
        &mut self,
        partition: &Partition,
        most: usize,
        now: Timestamp,
    ) -> Promoted {
        let mut count = 0;
        while count < most
            && let Some((id, parked)) = self.queue(partition).unpark(now)
        {
            let fields =
                queue::fields(id, &parked.payload, parked.at, (parked.attempt, parked.run));
            self.queue(partition).add(parked.lane, fields, now);
            let record = self.runs.get_mut(&id).map(|run| &mut run.record);
            if let Some(record) = record.filter(|record| record.state == JobState::Parked) {
                record.state = JobState::Waiting;
                record.due = None;
            }
            count += 1;
        }
        if count > 0 {
            self.wake(partition, Wake::Added);
        }
        Promoted { count, next_in: self.queue(partition).next_in(now) }
    }
}

// The end of entries; each acts only where the entry is still in its lane.
impl State {
    pub(super) fn remove(&mut self, places: &[Place]) {
        for place in places {
            self.queue(&place.partition).remove(place);
        }
    }

    pub(super) fn release(
        &mut self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> bool {
        if let Some(attempt) = attempt {
            let run = self.runs.get_mut(&attempt.job);
            if !run.is_some_and(|run| run.release(attempt.fence)) {
                return false;
            }
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
        self.wake(&entry.place.partition, Wake::Parked);
        true
    }

    pub(super) fn bury(&mut self, entry: &Entry, letter: &DeadLetter, now: Timestamp) -> bool {
        let most = self.options.dead_max;
        let queue = self.queue(&entry.place.partition);
        let removed = queue.remove(&entry.place);
        if removed {
            queue.bury(letter.clone(), most, now);
        }
        removed
    }
}

// What operators ask.
impl State {
    pub(super) fn record(&self, job: JobId) -> Option<Record> {
        self.runs.get(&job).map(|run| run.record.clone())
    }

    pub(super) fn depth(&self, partition: &Partition) -> Depth {
        self.queues.get(partition).map(Queue::depth).unwrap_or_default()
    }

    pub(super) fn workers(&self, partition: &Partition) -> Vec<WorkerSeen> {
        self.queues.get(partition).map(Queue::workers).unwrap_or_default()
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
