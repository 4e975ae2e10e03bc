//! What the simulator counts: answers for `/stats`, and attempts per canonical request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// How many canonical requests a generation of [`Attempts`] remembers.
const GENERATION: usize = 65_536;

/// What `/stats` says, as JSON with these names. All but `active` only grow; `requests` less the
/// others is what was refused (no key, not JSON, an unknown directive).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Chat requests received, refused ones included.
    pub requests: u64,
    /// Answers produced to their end without a fault.
    pub completed: u64,
    /// Answers cut short because the client left (or the simulator stopped) before their end.
    pub aborted: u64,
    /// Answers that ended in the fault they were told to have. A `silence` ends as `aborted`.
    pub faulted: u64,
    /// Answers in progress, streamed or not.
    pub active: u64,
}

/// The counters behind [`Stats`]: each is a statistic of its own, so relaxed ordering is enough.
#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: AtomicU64,
    completed: AtomicU64,
    aborted: AtomicU64,
    faulted: AtomicU64,
    active: AtomicU64,
    /// Told whenever an answer is cut short.
    cut: Notify,
}

/// Looks at the counters of a simulator from within its process.
#[derive(Debug, Clone)]
pub struct Meter(pub(super) Arc<Tally>);

impl Meter {
    /// What is counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Waits until so many answers were cut short, and returns as the last of them is.
    pub async fn aborted(&self, count: u64) {
        loop {
            let cut = self.0.cut.notified();
            tokio::pin!(cut);
            // From here on nothing is missed.
            cut.as_mut().enable();
            if self.stats().aborted >= count {
                return;
            }
            cut.await;
        }
    }
}

impl Tally {
    pub(super) fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.active.fetch_add(1, Ordering::Relaxed);
        Open { tally: Arc::clone(self), ended: false }
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            requests: self.requests.load(Ordering::Relaxed),
            completed: self.completed.load(Ordering::Relaxed),
            aborted: self.aborted.load(Ordering::Relaxed),
            faulted: self.faulted.load(Ordering::Relaxed),
            active: self.active.load(Ordering::Relaxed),
        }
    }
}

/// An answer in progress. Dropped before its end, it counts as aborted: hyper drops handler and
/// body when the client leaves.
#[derive(Debug)]
pub(super) struct Open {
    tally: Arc<Tally>,
    ended: bool,
}

impl Open {
    /// Counts the end of the answer; a second call changes nothing.
    pub(super) fn end(&mut self, faulted: bool) {
        let counter = if faulted { &self.tally.faulted } else { &self.tally.completed };
        self.settle(counter);
        self.ended = true;
    }

    fn settle(&self, counter: &AtomicU64) {
        if !self.ended {
            counter.fetch_add(1, Ordering::Relaxed);
            self.tally.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.settle(&self.tally.aborted);
        self.tally.cut.notify_waiters();
    }
}

/// How often each canonical request was asked, by the seed of its text.
///
/// Memory is bounded by two generations: when the young one is full it becomes the old one, and
/// what was not asked again since is forgotten and counts from 1.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, u32>,
    old: HashMap<u64, u32>,
}

impl Attempts {
    /// Counts one more attempt of the request and returns its number, from 1.
    pub(super) fn next(&self, seed: u64) -> u32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.young.len() >= GENERATION {
            counts.old = std::mem::take(&mut counts.young);
        }
        let before =
            counts.young.get(&seed).or_else(|| counts.old.get(&seed)).copied().unwrap_or(0);
        let attempt = before.saturating_add(1);
        counts.young.insert(seed, attempt);
        attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_per_request_in_bounded_memory() {
        let attempts = Attempts::default();
        assert_eq!([1, 1, 2, 1].map(|seed| attempts.next(seed)), [1, 2, 1, 3]);
        for seed in 10..(3 * GENERATION as u64) {
            attempts.next(seed);
            if seed % 1_000 == 0 {
                attempts.next(1);
            }
        }
        assert!(attempts.next(1) > 100, "a request that keeps being asked is not forgotten");
        assert_eq!(attempts.next(2), 1, "one that is not asked again is");
    }

    #[tokio::test]
    async fn a_meter_returns_as_the_last_answer_is_cut_short() {
        let tally = Arc::new(Tally::default());
        let meter = Meter(Arc::clone(&tally));
        meter.aborted(0).await;
        let waiting = tokio::spawn(async move { meter.aborted(2).await });
        let (first, mut whole, second) = (tally.open(), tally.open(), tally.open());
        drop(first);
        whole.end(false);
        drop(whole);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
    }

    #[test]
    fn an_answer_counts_once() {
        let tally = Arc::new(Tally::default());
        let mut whole = tally.open();
        let cut = tally.open();
        assert_eq!(tally.stats().active, 2);
        whole.end(false);
        drop(whole);
        drop(cut);
        assert_eq!(tally.stats(), Stats { completed: 1, aborted: 1, ..Stats::default() });
    }
}
