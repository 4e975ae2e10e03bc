//! What is kept for each tenant: its recent jobs, which go with their records, and a bucket that goes
//! when it is full.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{Memory, state::State};
use crate::{
    broker::{Rate, Recent, Result, Tenancy},
    job::{JobId, Tenant, Timestamp},
};

/// Recent jobs in the order of their times.
type Jobs = BTreeSet<(Timestamp, JobId)>;

/// Everything that tenants have, beside their jobs.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    recent: HashMap<Tenant, Jobs>,
    /// When each bucket that is not full will be.
    buckets: HashMap<Tenant, Instant>,
    /// The same in the order of their times.
    by_time: BTreeSet<(Instant, Tenant)>,
}

impl Tenants {
    /// Forgets a job that was noted at this time.
    pub(super) fn forget(&mut self, tenant: &Tenant, job: JobId, at: Timestamp) {
        if let Some(jobs) = self.recent.get_mut(tenant) {
            jobs.remove(&(at, job));
            if jobs.is_empty() {
                self.recent.remove(tenant);
            }
        }
    }

    /// Takes a token, by the arithmetic of the script `rate.lua`; else how long until one comes.
    pub(super) fn admit(&mut self, tenant: &Tenant, rate: Rate, now: Instant) -> Option<Duration> {
        while let Some((full, _)) = self.by_time.first()
            && *full <= now
            && let Some((_, tenant)) = self.by_time.pop_first()
        {
            self.buckets.remove(&tenant);
        }
        let interval = Duration::from_micros(rate.interval());
        let empty = now + Duration::from_micros(rate.window());
        let stored = self.buckets.get(tenant).copied();
        // Emptier than empty is what a slower rate has left.
        let before = stored.unwrap_or(now).min(empty);
        let wait = (before + interval).saturating_duration_since(empty);
        let full = if wait.is_zero() { before + interval } else { before };
        if let Some(stored) = stored {
            self.by_time.remove(&(stored, tenant.clone()));
        }
        self.by_time.insert((full, tenant.clone()));
        self.buckets.insert(tenant.clone(), full);
        (!wait.is_zero()).then_some(wait)
    }
}

impl State {
    /// Notes those of these jobs that are the tenant's and whose records are there.
    fn note(&mut self, tenant: &Tenant, jobs: &[(JobId, Timestamp)]) {
        for (job, at) in jobs {
            let run = self.runs.get_mut(job).filter(|run| run.record.is_of(tenant));
            let Some(run) = run else { continue };
            let recent = self.tenants.recent.entry(tenant.clone()).or_default();
            if let Some(before) = run.noted.replace(*at) {
                recent.remove(&(before, *job));
            }
            recent.insert((*at, *job));
            if recent.len() > self.options.recent_jobs {
                recent.pop_first();
            }
        }
    }

    fn recent(&self, tenant: &Tenant, before: Option<JobId>, most: usize) -> Recent {
        let page = |jobs: &mut dyn Iterator<Item = &(Timestamp, JobId)>| {
            Recent::Jobs(jobs.take(most).map(|(_, job)| *job).collect())
        };
        let none = Jobs::new();
        let jobs = self.tenants.recent.get(tenant).unwrap_or(&none);
        let Some(before) = before else { return page(&mut jobs.iter().rev()) };
        let noted = self.runs.get(&before).and_then(|run| run.noted);
        match noted.map(|at| (at, before)).filter(|place| jobs.contains(place)) {
            Some(place) => page(&mut jobs.range(..place).rev()),
            None => Recent::Unknown,
        }
    }
}

#[async_trait]
impl Tenancy for Memory {
    async fn note(&self, tenant: &Tenant, jobs: &[(JobId, Timestamp)]) -> Result<()> {
        self.inner.lock().note(tenant, jobs);
        Ok(())
    }

    async fn recent(&self, tenant: &Tenant, before: Option<JobId>, most: usize) -> Result<Recent> {
        Ok(self.inner.lock().recent(tenant, before, most))
    }

    async fn admit(&self, tenant: &Tenant, rate: &Rate) -> Result<Option<Duration>> {
        Ok(self.inner.lock().tenants.admit(tenant, *rate, Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_is_full_again_is_forgotten() {
        let mut tenants = Tenants::default();
        let rate = Rate { per_minute: 60, burst: 2 };
        let [busy, quiet] = ["busy", "quiet"].map(|name| name.parse::<Tenant>().unwrap());
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for _ in 0..2 {
            assert_eq!(tenants.admit(&busy, rate, now), None);
        }
        assert_eq!(tenants.admit(&quiet, rate, now), None);
        assert_eq!(tenants.admit(&busy, rate, now), Some(second));
        assert_eq!(tenants.buckets.len(), 2);
        assert_eq!(tenants.admit(&busy, rate, now + second), None);
        assert_eq!(tenants.buckets.keys().collect::<Vec<_>>(), [&busy]);
        assert_eq!(tenants.admit(&busy, rate, now + second * 3 / 2), Some(second / 2));
    }
}
