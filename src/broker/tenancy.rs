//! A tenant's side of the broker: which jobs it has added lately, and how fast it may ask for more.
//!
//! Both serve the web handler, of which several processes work beside each other. Nothing that a job
//! needs to reach its end stands here.

use std::time::Duration;

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

    /// Microseconds in which an empty bucket fills up.
    pub(super) fn window(self) -> u64 {
        self.interval() * u64::from(self.burst.max(1))
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
    async fn admit(&self, tenant: &Tenant, rate: &Rate) -> Result<Option<Duration>>;
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
}
