//! Who may come in, and what goes to make room: the bounds of the whole broker, and those of each
//! queue.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use super::{
    queue::Queue,
    run::Run,
    state::{State, is_put_back},
};
use crate::{
    broker::{
        Correction, Counted, DeadLetter, Error, Limits, Load, Partition, Result,
        limits::{self, Met, RETRY_AFTER},
    },
    job::{JobId, Tenant, Timestamp},
};

/// Where the configuration has the limits.
const SECTION: &str = "embedded.limits";

/// What the jobs of a partition count.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    jobs: u64,
    bytes: u64,
    tenants: HashMap<Tenant, u64>,
    corrected: u64,
}

impl Ledger {
    /// The bound that one more job meets.
    fn met(&self, limits: &Limits, load: &Load) -> Option<Met> {
        let of_tenant = self.tenants.get(&load.tenant).copied().unwrap_or_default();
        let Limits { max_jobs, max_bytes, max_jobs_per_tenant } = *limits;
        if max_jobs > 0 && self.jobs >= max_jobs {
            Some(Met::Jobs(self.jobs))
        } else if max_bytes > 0 && self.bytes + load.bytes > max_bytes {
            Some(Met::Bytes(self.bytes))
        } else if max_jobs_per_tenant > 0 && of_tenant >= max_jobs_per_tenant {
            Some(Met::Tenant(of_tenant))
        } else {
            None
        }
    }

    /// Counts a job.
    pub(super) fn take(&mut self, load: &Load) {
        self.jobs += 1;
        self.bytes += load.bytes;
        *self.tenants.entry(load.tenant.clone()).or_default() += 1;
    }

    /// Gives back what an entry counted.
    pub(super) fn give_back(&mut self, load: &Load) {
        self.jobs = self.jobs.saturating_sub(1);
        self.bytes = if self.jobs == 0 { 0 } else { self.bytes.saturating_sub(load.bytes) };
        if let Entry::Occupied(mut jobs) = self.tenants.entry(load.tenant.clone()) {
            *jobs.get_mut() = jobs.get().saturating_sub(1);
            if *jobs.get() == 0 {
                jobs.remove();
            }
        }
    }

    pub(super) fn counted(&self) -> Counted {
        Counted { jobs: self.jobs, bytes: self.bytes, corrected: self.corrected }
    }

    /// Becomes what the partition really holds.
    fn correct(&mut self, real: Self) -> Correction {
        let of = |ledger: &Self, tenant: &Tenant| ledger.tenants.get(tenant).copied();
        let more = real.tenants.keys().filter(|tenant| !self.tenants.contains_key(tenant));
        let all = self.tenants.keys().chain(more);
        let tenants = all.filter(|tenant| of(self, tenant) != of(&real, tenant)).count() as u64;
        let jobs = real.jobs.cast_signed() - self.jobs.cast_signed();
        let bytes = real.bytes.cast_signed() - self.bytes.cast_signed();
        let wrong = u64::from(jobs != 0) + u64::from(bytes != 0) + tenants;
        *self = Self { corrected: self.corrected + wrong, ..real };
        Correction { jobs, bytes, tenants }
    }
}

// The bounds of the whole.
impl State {
    pub(super) fn bytes(&self) -> usize {
        self.kept_bytes + self.queues.values().map(|queue| queue.bytes).sum::<usize>()
    }

    /// Drops finished jobs that have outlived `result_ttl`. Of those with a key the record stays until `key_ttl`.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let (ttl, key_ttl) = (self.options.result_ttl, self.options.key_ttl);
        let is_old = |run: &Run, ttl: Duration| {
            run.record.ended_at.is_some_and(|ended| ended.after(ttl) <= now)
        };
        while let Some(id) = self.next_finished(|run| is_old(run, ttl)) {
            match self.runs.get_mut(&id) {
                Some(run) if run.fingerprint.is_some() && !is_old(run, key_ttl) => {
                    self.kept_bytes -= run.drop_log();
                    self.answered_keys.push_back(id);
                }
                _ => self.forget(id),
            }
        }
        while let Some(id) = self.answered_keys.front().copied()
            && self.runs.get(&id).is_none_or(|run| is_old(run, key_ttl))
        {
            self.answered_keys.pop_front();
            self.forget(id);
        }
    }

    /// Drops the oldest finished job, or else the oldest key of one that is not kept any more.
    fn drop_finished(&mut self) -> bool {
        let id = self.next_finished(|_| true).or_else(|| self.answered_keys.pop_front());
        id.map(|id| self.forget(id)).is_some()
    }

    /// Drops a partition's oldest dead letter.
    fn drop_letter(&mut self) -> bool {
        let waits = |letter: &DeadLetter| is_put_back(&self.runs, letter);
        self.queues.values_mut().any(|queue| queue.drop_dead(waits))
    }

    /// Takes the oldest finished job that `may` go from the list of those. One whose entry is still in its lane
    /// stays: without its record the entry would run the job again.
    fn next_finished(&mut self, may: impl Fn(&Run) -> bool) -> Option<JobId> {
        for index in 0..self.finished.len() {
            let id = self.finished[index];
            if let Some(run) = self.runs.get(&id).filter(|run| run.record.state.is_terminal()) {
                if !may(run) {
                    return None;
                }
                if self.is_unsettled(run) {
                    continue;
                }
            }
            self.finished.remove(index);
            return Some(id);
        }
        None
    }

    fn is_unsettled(&self, run: &Run) -> bool {
        match (&run.place, &run.record.partition) {
            (Some(place), _) => self.queues.get(&place.partition).is_some_and(|q| q.holds(place)),
            // Cancelled before it began: nobody has noted which entry is its own.
            (None, Some(partition)) => {
                self.queues.get(partition).is_some_and(|queue| queue.carries(run.record.id))
            }
            (None, None) => false,
        }
    }

    /// Drops what may be dropped until `need` more bytes fit.
    pub(super) fn make_room(&mut self, need: usize) -> bool {
        let most = self.options.max_bytes;
        while self.bytes() + need > most {
            let dropped = self.drop_finished() || self.drop_letter();
            if !dropped {
                return false;
            }
        }
        true
    }

    /// Whether one more job of so many bytes may come into the broker.
    pub(super) fn admit(&mut self, need: usize) -> Result<()> {
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

// The bounds of each queue.
impl State {
    /// Whether one more job may come into a queue. `behind` another that was refused, none may.
    pub(super) fn admit_to(
        &mut self,
        partition: &Partition,
        load: Option<&Load>,
        need: usize,
        behind: bool,
    ) -> Result<()> {
        if behind {
            return Err(limits::behind(partition));
        }
        let limits = self.options.limits;
        if let Some(load) = load
            && let Some(met) = self.queue(partition).ledger.met(&limits, load)
        {
            return Err(met.full(SECTION, &limits, partition, (&load.tenant, load.bytes)));
        }
        self.admit(need)
    }

    /// Counts again where more jobs are counted than there are.
    pub(super) fn mend(&mut self, partition: &Partition) -> Correction {
        let above = |queue: &Queue| queue.ledger.jobs > queue.jobs() as u64;
        if self.queues.get(partition).is_some_and(above) {
            return self.reconcile(partition);
        }
        Correction::default()
    }

    pub(super) fn reconcile(&mut self, partition: &Partition) -> Correction {
        let queue = self.queue(partition);
        let mut real = Ledger::default();
        for load in queue.loads() {
            real.take(&load);
        }
        queue.ledger.correct(real)
    }
}
