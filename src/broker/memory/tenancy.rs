//! What is kept for each tenant: its recent jobs, which go with their records, and a bucket that goes
//! when it is full.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{Memory, state::State};
use crate::{
    broker::{Rate, Recent, Result, Tenancy, tenancy::Buckets},
    job::{JobId, Tenant, Timestamp},
};

/// Recent jobs in the order of their times.
type Jobs = BTreeSet<(Timestamp, JobId)>;

/// Everything that tenants have, beside their jobs.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    recent: HashMap<Tenant, Jobs>,
    buckets: Buckets<Tenant>,
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

    async fn admit_many(
        &self,
        tenant: &Tenant,
        rate: &Rate,
        count: u32,
    ) -> Result<Option<Duration>> {
        Ok(self.inner.lock().tenants.buckets.take(tenant, *rate, count, Instant::now()))
    }
}
