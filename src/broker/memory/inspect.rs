//! What operators ask.

use std::time::Duration;

use async_trait::async_trait;

use super::Memory;
use crate::{
    broker::{DeadLetter, Depth, Inspect, Partition, Record, Result, WorkerSeen},
    job::{JobId, Tenant, Timestamp},
};

#[async_trait]
impl Inspect for Memory {
    async fn ready(&self) -> Result<()> {
        Ok(())
    }

    async fn job(&self, id: JobId) -> Result<Option<Record>> {
        Ok(self.inner.lock().record(id, Timestamp::now()))
    }

    async fn job_for(&self, tenant: &Tenant, id: JobId) -> Result<Option<Record>> {
        let state = self.inner.lock();
        Ok(if state.is_of(id, tenant) { state.record(id, Timestamp::now()) } else { None })
    }

    async fn records(&self, jobs: &[JobId]) -> Result<Vec<Option<Record>>> {
        let (state, now) = (self.inner.lock(), Timestamp::now());
        Ok(jobs.iter().map(|job| state.record(*job, now)).collect())
    }

    async fn ttl(&self, job: JobId) -> Result<Option<Duration>> {
        Ok(self.inner.lock().ttl(job, Timestamp::now()))
    }

    async fn depth(&self, partition: &Partition) -> Result<Depth> {
        Ok(self.inner.lock().depth(partition))
    }

    async fn workers(&self, partition: &Partition) -> Result<Vec<WorkerSeen>> {
        Ok(self.inner.lock().workers(partition))
    }

    async fn dead_letters(
        &self,
        partition: &Partition,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<DeadLetter>> {
        Ok(self.inner.lock().dead_letters(partition, after, most))
    }
}
