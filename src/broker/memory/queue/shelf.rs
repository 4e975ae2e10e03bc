//! What is in no lane: jobs that wait for their time, and dead letters.

use std::{collections::hash_map::Entry as Slot, time::Duration};

use super::{Fields, Queue, following, parse, text, weight};
use crate::{
    broker::{DeadLetter, Entry, Load},
    job::{JobId, Lane, Tenant, Timestamp},
};

/// Letters that are looked at for one of the same failure.
const LOOKED_AT: usize = 64;

/// A job that waits for its time.
#[derive(Debug)]
pub(in crate::broker::memory) struct Parked {
    /// When it may begin.
    pub(in crate::broker::memory) due: Timestamp,
    /// The lane it goes to.
    pub(in crate::broker::memory) lane: Lane,
    /// The job, as its entry carries it.
    pub(in crate::broker::memory) payload: Vec<u8>,
    /// When it was enqueued.
    pub(in crate::broker::memory) at: Timestamp,
    /// Attempts made.
    pub(in crate::broker::memory) attempt: u32,
    /// The run it belongs to.
    pub(in crate::broker::memory) run: u32,
    /// The tenant for which it counts.
    pub(in crate::broker::memory) mark: Option<Tenant>,
    /// Fields of the entry that are not Millstream's own.
    pub(in crate::broker::memory) foreign: Fields,
}

impl Queue {
    /// Whether a job is parked.
    pub(in crate::broker::memory) fn is_parked(&self, id: JobId) -> bool {
        self.parked.contains_key(&id)
    }

    /// Whether a parked job is due before all others.
    pub(in crate::broker::memory) fn is_first(&self, id: JobId) -> bool {
        self.by_due.first().is_some_and(|(_, first)| *first == id)
    }

    /// Keeps a job until its time. One that is parked already stays as it is; then `false`.
    pub(in crate::broker::memory) fn park(&mut self, id: JobId, parked: Parked) -> bool {
        let Slot::Vacant(slot) = self.parked.entry(id) else { return false };
        self.bytes += parked.bytes();
        self.by_due.insert((parked.due, id));
        slot.insert(parked);
        true
    }

    /// Parks a job that is to be retried, in place of what a repeated enqueue may have parked.
    pub(in crate::broker::memory) fn repark(&mut self, id: JobId, parked: Parked) {
        if let Some(stale) = self.parked.remove(&id) {
            self.by_due.remove(&(stale.due, id));
            self.bytes -= stale.bytes();
            if let Some(load) = stale.load() {
                self.ledger.give_back(&load);
            }
        }
        self.park(id, parked);
    }

    /// Takes out the job that is due first, if its time has come.
    pub(in crate::broker::memory) fn unpark(&mut self, now: Timestamp) -> Option<(JobId, Parked)> {
        let (due, id) = *self.by_due.first()?;
        if due > now {
            return None;
        }
        self.by_due.remove(&(due, id));
        let parked = self.parked.remove(&id)?;
        self.bytes -= parked.bytes();
        Some((id, parked))
    }

    /// How long until the next parked job is due.
    pub(in crate::broker::memory) fn next_in(&self, now: Timestamp) -> Option<Duration> {
        self.by_due.first().map(|(due, _)| Duration::from_millis(due.0.saturating_sub(now.0)))
    }

    /// Removes what is parked of a job's run, or of one before it; `false` when nothing is.
    pub(in crate::broker::memory) fn remove_parked(&mut self, id: JobId, run: u32) -> bool {
        let Slot::Occupied(slot) = self.parked.entry(id) else { return false };
        if slot.get().run > run {
            return false;
        }
        let parked = slot.remove();
        self.by_due.remove(&(parked.due, id));
        self.bytes -= parked.bytes();
        if let Some(load) = parked.load() {
            self.ledger.give_back(&load);
        }
        true
    }

    /// Whether one of the last letters is that of the same failure.
    pub(in crate::broker::memory) fn has_buried(&self, letter: &DeadLetter) -> bool {
        let mut last = self.dead.iter().rev().take(LOOKED_AT);
        last.any(|dead| (dead.id, dead.fence) == (letter.id, letter.fence))
    }

    /// Keeps a dead letter, up to `most` of them; none is dropped that `waits` names.
    pub(in crate::broker::memory) fn bury(
        &mut self,
        letter: DeadLetter,
        most: usize,
        now: Timestamp,
        waits: impl Fn(&DeadLetter) -> bool,
    ) {
        self.bytes += weight(&letter.fields);
        self.top_letter = following(self.top_letter, now);
        self.dead.push_back(DeadLetter { letter: text(self.top_letter), ..letter });
        while self.dead.len() > most && self.drop_dead(&waits) {}
    }

    /// Letters lie in the order of their names.
    fn place_of(&self, letter: &str) -> Option<usize> {
        let name = parse(letter)?;
        self.dead.binary_search_by_key(&Some(name), |dead| parse(&dead.letter)).ok()
    }

    /// A dead letter.
    pub(in crate::broker::memory) fn letter(&self, letter: &str) -> Option<&DeadLetter> {
        self.dead.get(self.place_of(letter)?)
    }

    /// Takes out a dead letter; `false` when it is not there.
    pub(in crate::broker::memory) fn unbury(&mut self, letter: &str) -> bool {
        let Some(at) = self.place_of(letter) else { return false };
        let dead = self.dead.remove(at);
        self.bytes -= dead.map_or(0, |dead| weight(&dead.fields));
        true
    }

    /// Drops dead letters that are older than `ttl`, but those that `waits` names; how many.
    pub(in crate::broker::memory) fn expire_dead(
        &mut self,
        ttl: Duration,
        now: Timestamp,
        waits: impl Fn(&DeadLetter) -> bool,
    ) -> u64 {
        let old = self.dead.partition_point(|letter| letter.buried_at().after(ttl) < now);
        let (before, young) = (self.dead.len(), self.dead.split_off(old));
        let gone = |letter: &DeadLetter| !waits(letter);
        self.bytes -= self
            .dead
            .iter()
            .filter(|letter| gone(letter))
            .map(|l| weight(&l.fields))
            .sum::<usize>();
        self.dead.retain(|letter| !gone(letter));
        self.dead.extend(young);
        let dropped = (before - self.dead.len()) as u64;
        self.dropped += dropped;
        dropped
    }

    /// Drops the oldest dead letter but those that `waits` names.
    pub(in crate::broker::memory) fn drop_dead(
        &mut self,
        waits: impl Fn(&DeadLetter) -> bool,
    ) -> bool {
        let oldest = self.dead.iter().position(|letter| !waits(letter));
        let Some(letter) = oldest.and_then(|at| self.dead.remove(at)) else { return false };
        self.bytes -= weight(&letter.fields);
        self.dropped += 1;
        true
    }
}

impl Parked {
    /// What an entry leaves behind when it is parked.
    pub(in crate::broker::memory) fn of_entry(entry: &Entry, attempt: u32, due: Timestamp) -> Self {
        let payload = entry.payload().to_vec();
        let mark = entry.load.as_ref().map(|load| load.tenant.clone());
        let (lane, at, run) = (entry.place.lane, entry.at, entry.run);
        let foreign = entry.foreign().cloned().collect();
        Self { due, lane, payload, at, attempt, run, mark, foreign }
    }

    fn bytes(&self) -> usize {
        self.payload.len() + weight(&self.foreign)
    }

    pub(super) fn load(&self) -> Option<Load> {
        let tenant = self.mark.clone()?;
        Some(Load { tenant, bytes: self.payload.len() as u64 })
    }
}
