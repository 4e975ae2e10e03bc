//! Whether the server's clock has been set.
//!
//! Idle times, by which leases run out, are counted by the server's time of day. Where that is set forward,
//! every entry seems to have lain idle for so much longer, those of live workers, too. This machine's
//! monotonic clock is never set: what the server's has gone further since the last reading is a step.
//!
//! Where it is set back, leases that began before seem to begin in the future, and do not run out until then. They
//! are begun anew, also by a process that has seen no step because it started after it.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::broker::Partition;

/// A reading is good for so long: two clocks that are not set drift apart by some milliseconds.
const FRESH: Duration = Duration::from_mins(1);

/// What the server's clock said at a time between two of this machine's.
#[derive(Debug, Clone, Copy)]
struct Reading {
    server: Duration,
    sent: Instant,
    received: Instant,
}

/// Compares the server's clock with this machine's.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Mutex<Option<Reading>>,
    /// Where no lease has begun in the future.
    trusted: Mutex<HashSet<Partition>>,
}

impl Clock {
    fn last(&self) -> MutexGuard<'_, Option<Reading>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trusted(&self) -> MutexGuard<'_, HashSet<Partition>> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether leases of a partition may have begun in the future.
    pub(super) fn is_doubtful(&self, partition: &Partition) -> bool {
        !self.trusted().contains(partition)
    }

    /// No lease of the partition has begun in the future.
    pub(super) fn trust(&self, partition: &Partition) {
        self.trusted().insert(partition.clone());
    }

    /// Whether the server is to be asked for its time again.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.last().is_none_or(|last| now.duration_since(last.received) >= FRESH)
    }

    /// Notes the server's time since 1970, which it told between `sent` and `received`. Whether it was set
    /// since the last reading, by more than `tolerance`.
    pub(super) fn read(
        &self,
        server: Duration,
        (sent, received): (Instant, Instant),
        tolerance: Duration,
    ) -> bool {
        let mut last = self.last();
        let before = last.replace(Reading { server, sent, received });
        let was_set = before.is_some_and(|before| {
            let latest = before.server + received.duration_since(before.sent) + tolerance;
            let passed = sent.saturating_duration_since(before.received);
            server > latest || server + tolerance < before.server + passed
        });
        if was_set {
            self.trusted().clear();
        }
        was_set
    }

    /// The latest time that the server's clock shows at `now` if it was not set.
    pub(super) fn latest(&self, now: Instant) -> Option<Duration> {
        self.last().map(|last| last.server + now.duration_since(last.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_was_set_has_moved() {
        let (clock, start) = (Clock::default(), Instant::now());
        let (ms, tolerance) = (Duration::from_millis, Duration::from_millis(100));
        let read = |server, sent, received| {
            clock.read(ms(server), (start + ms(sent), start + ms(received)), tolerance)
        };
        assert!(clock.is_stale(start) && clock.latest(start).is_none());
        let partition = Partition::first(crate::job::QueueName::default());
        assert!(!read(50_000, 0, 10), "nothing is known of it");
        clock.trust(&partition);
        assert!(!clock.is_stale(start + ms(59_000)) && clock.is_stale(start + ms(60_010)));
        assert_eq!(clock.latest(start + ms(20)), Some(ms(50_020)));
        // A reply that was long on its way may have been given at any time of it.
        assert!(!read(50_950, 900, 3000));
        assert!(!read(52_000, 3001, 3002), "as that one was told late");
        assert!(!read(53_099, 4000, 4001));
        assert!(!clock.is_doubtful(&partition));
        assert!(read(63_300, 4100, 4101), "ten seconds forward");
        assert!(!read(63_310, 4110, 4111));
        assert!(clock.is_doubtful(&partition));
        clock.trust(&partition);
        assert!(read(53_320, 4120, 4121), "ten seconds back");
        assert!(clock.is_doubtful(&partition), "leases may have begun in the future");
    }
}
