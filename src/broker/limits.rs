//! Bounds of what a queue holds, and what is counted for them.
//!
//! A job counts from its enqueue until its entry ends, wherever it is meanwhile: in its lane, parked,
//! or in a worker's hands. An entry that was counted says so itself ([`Load`](super::Load)), so that
//! whoever ends it gives back what was counted, whatever its own configuration. Entries that nobody
//! counted (of a producer without limits, or of a plain `XADD`) do not weigh on the bounds.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Error, Partition};
use crate::job::Tenant;

/// When a full queue may have room again: it depends on the workers, so it is a guess.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The bounds of each queue; 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most jobs that a queue holds.
    pub max_jobs: u64,
    /// Most bytes of JSON of the jobs that a queue holds. A job larger than this is never accepted.
    pub max_bytes: u64,
    /// Most jobs of one tenant that a queue holds.
    pub max_jobs_per_tenant: u64,
}

impl Limits {
    /// Whether there is no bound: then nothing is counted either.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

/// The bound that a job has met, and how much there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// So many jobs in the queue.
    Jobs(u64),
    /// So many bytes in the queue.
    Bytes(u64),
    /// So many jobs of the tenant.
    Tenant(u64),
}

impl Met {
    /// The error of a job of `bytes` that has met it. `section` is where the configuration has the
    /// limits.
    pub(super) fn full(
        self,
        section: &str,
        limits: &Limits,
        partition: &Partition,
        (tenant, bytes): (&Tenant, u64),
    ) -> Error {
        let queue = &partition.queue;
        let message = match self {
            Self::Jobs(held) => {
                let most = limits.max_jobs;
                format!("queue `{queue}` holds {held} jobs, {section}.max_jobs is {most}")
            }
            Self::Bytes(held) => format!(
                "queue `{queue}` holds {held} bytes and {bytes} more are asked for, \
                 {section}.max_bytes is {}",
                limits.max_bytes
            ),
            Self::Tenant(held) => format!(
                "queue `{queue}` holds {held} jobs of tenant `{tenant}`, \
                 {section}.max_jobs_per_tenant is {}",
                limits.max_jobs_per_tenant
            ),
        };
        Error::Full { message, retry_after: RETRY_AFTER }
    }
}

/// The error of a job that must not overtake another, which was refused.
pub(super) fn behind(partition: &Partition) -> Error {
    let message = format!("a job before this one found no room in queue `{}`", partition.queue);
    Error::Full { message, retry_after: RETRY_AFTER }
}

/// What is counted in a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Jobs that count.
    pub jobs: u64,
    /// Bytes of their JSON.
    pub bytes: u64,
    /// Counters that were found wrong and set right, ever.
    pub corrected: u64,
}

/// What a recount has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Correction {
    /// Jobs that were missing in the counter; below 0 where it held too many.
    pub jobs: i64,
    /// Bytes that were missing in the counter.
    pub bytes: i64,
    /// Tenants whose counter was wrong.
    pub tenants: u64,
}

impl Correction {
    /// Whether every counter was right.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Correction {
    /// Such as `jobs +3, bytes +612, tenants 2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "jobs {:+}, bytes {:+}, tenants {}", self.jobs, self.bytes, self.tenants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::QueueName;

    #[test]
    fn an_error_names_the_bound_and_its_key() {
        let limits = Limits { max_jobs: 10, max_bytes: 900, max_jobs_per_tenant: 3 };
        let (partition, tenant) = (Partition::first(QueueName::default()), Tenant::default());
        for (met, words) in [
            (
                Met::Jobs(10),
                "queue full: queue `default` holds 10 jobs, redis.limits.max_jobs is 10",
            ),
            (Met::Bytes(800), "holds 800 bytes and 200 more are asked for, redis.limits.max_bytes"),
            (Met::Tenant(3), "3 jobs of tenant `default`, redis.limits.max_jobs_per_tenant is 3"),
        ] {
            let error = met.full("redis.limits", &limits, &partition, (&tenant, 200));
            let text = error.to_string();
            assert!(text.contains(words) && text.ends_with("try again in 1.0 s"), "{text}");
            assert_eq!(error.code(), "queue_full");
        }
    }

    #[test]
    fn a_single_bound_is_enough_to_count() {
        assert!(Limits::default().is_off());
        for one in [r#"{"max_jobs":1}"#, r#"{"max_bytes":1}"#, r#"{"max_jobs_per_tenant":1}"#] {
            assert!(!serde_json::from_str::<Limits>(one).unwrap().is_off(), "{one}");
        }
        assert!(serde_json::from_str::<Limits>(r#"{"max_job":1}"#).is_err());
    }
}
