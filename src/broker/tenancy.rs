//! A tenant's side of the broker: which jobs it has added lately, and how fast it may ask for more.
//!
//! Both serve the web handler, of which several processes work beside each other. Nothing that a job
//! needs to reach its end stands here.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::Result;
use crate::job::{JobId, Tenant, Timestamp};

/// A page of a tenant's recent jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recent {
    /// The newest first.
    Jobs(Vec<JobId>),
    /// The job that the page was to follow is not among the tenant's recent ones.
    Unknown,
}

/// How fast a tenant may ask: a bucket of tokens, one for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come in a minute, evenly; 0 counts as 1. They come in whole microseconds.
    pub per_minute: u32,
    /// Tokens that the bucket holds, with which it begins; 0 counts as 1.
    pub burst: u32,
}

impl Rate {
    /// Microseconds in which a token comes.
    pub(super) fn interval(self) -> u64 {
        60_000_000_u64.div_ceil(self.per_minute.max(1).into())
    }

    /// Microseconds in which so many tokens come; of more than the bucket holds, as many as it holds.
    pub(super) fn cost(self, count: u32) -> u64 {
        self.interval() * u64::from(count.min(self.burst.max(1)))
    }

    /// Microseconds in which an empty bucket fills up.
    pub(super) fn window(self) -> u64 {
        self.interval() * u64::from(self.burst.max(1))
    }
}

/// Buckets of one process, each of which goes when it is full.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    /// When each bucket that is not full will be.
    full: HashMap<K, Instant>,
    /// The same in the order of their times.
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self { full: HashMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Buckets<K> {
    /// Takes so many tokens, by the arithmetic of the script `rate.lua`; else how long until they are there.
    pub(crate) fn take(
        &mut self,
        key: &K,
        rate: Rate,
        count: u32,
        now: Instant,
    ) -> Option<Duration> {
        while let Some((full, _)) = self.by_time.first()
            && *full <= now
            && let Some((_, key)) = self.by_time.pop_first()
        {
            self.full.remove(&key);
        }
        let cost = Duration::from_micros(rate.cost(count));
        let empty = now + Duration::from_micros(rate.window());
        let stored = self.full.get(key).copied();
        // Emptier than empty is what a slower rate has left.
        let before = stored.unwrap_or(now).min(empty);
        let wait = (before + cost).saturating_duration_since(empty);
        let full = if wait.is_zero() { before + cost } else { before };
        if let Some(stored) = stored {
            self.by_time.remove(&(stored, key.clone()));
        }
        self.by_time.insert((full, key.clone()));
        self.full.insert(key.clone(), full);
        (!wait.is_zero()).then_some(wait)
    }

    /// The buckets that are not full.
    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.full.keys()
    }
}

/// What is kept for each tenant.
#[async_trait]
pub trait Tenancy: Send + Sync {
    /// Remembers jobs that a tenant has added, with the times at which it did; one that is noted
    /// again moves to its new time. Best effort: only the newest are kept, as many as the options
    /// say; one without a record of this tenant may be passed over or forgotten; and Redis forgets
    /// all of them one [`job_ttl`] after the last note.
    ///
    /// [`job_ttl`]: super::redis::Options::job_ttl
    async fn note(&self, tenant: &Tenant, jobs: &[(JobId, Timestamp)]) -> Result<()>;

    /// Up to `most` of a tenant's recent jobs, the newest first and those of one time by their IDs;
    /// with `before`, those that follow that job.
    async fn recent(&self, tenant: &Tenant, before: Option<JobId>, most: usize) -> Result<Recent>;

    /// Takes a token from a tenant's bucket. `None` where there was one, else how long until the
    /// next comes. All who ask share the bucket; each brings the rate, so that a new one holds at
    /// once. Repeating it takes another.
    async fn admit(&self, tenant: &Tenant, rate: &Rate) -> Result<Option<Duration>> {
        self.admit_many(tenant, rate, 1).await
    }

    /// As [`Tenancy::admit`] for so many requests at once: all of them have their tokens, or none has. Of more than the
    /// bucket can hold, as many as it holds are asked for.
    async fn admit_many(
        &self,
        tenant: &Tenant,
        rate: &Rate,
        count: u32,
    ) -> Result<Option<Duration>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_in_whole_microseconds_and_never_too_soon() {
        for (per_minute, burst, interval, window) in [
            (60, 10, 1_000_000, 10_000_000),
            (7, 1, 8_571_429, 8_571_429),
            (0, 0, 60_000_000, 60_000_000),
            (u32::MAX, 2, 1, 2),
        ] {
            let rate = Rate { per_minute, burst };
            assert_eq!((rate.interval(), rate.window()), (interval, window), "{rate:?}");
        }
    }

    #[test]
    fn a_bucket_that_is_full_again_is_forgotten() {
        let mut buckets = Buckets::default();
        let rate = Rate { per_minute: 60, burst: 2 };
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        for _ in 0..2 {
            assert_eq!(buckets.take(&"busy", rate, 1, now), None);
        }
        assert_eq!(buckets.take(&"quiet", rate, 1, now), None);
        assert_eq!(buckets.take(&"busy", rate, 1, now), Some(second));
        assert_eq!(buckets.keys().count(), 2);
        assert_eq!(buckets.take(&"busy", rate, 1, now + second), None);
        assert_eq!(buckets.keys().collect::<Vec<_>>(), [&"busy"]);
        assert_eq!(buckets.take(&"busy", rate, 1, now + second * 3 / 2), Some(second / 2));
        // Of many at once, as many as it holds.
        assert_eq!(buckets.take(&"bulk", rate, 9, now), None);
        assert_eq!(buckets.take(&"bulk", rate, 9, now), Some(second * 2));
    }
}
