//! Setting the admission counters right.

use async_trait::async_trait;

use super::{Redis, codec};
use crate::{
    broker::{Correction, Enqueue, Partition, Reconcile, Result},
    job::Lane,
};

#[async_trait]
impl Reconcile for Redis {
    async fn drifted(&self, partition: &Partition) -> Result<bool> {
        let mut call = self.scripts.drift.prepare_invoke();
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.key(self.keys.parked(partition)).key(self.keys.load(partition));
        codec::read(self.pool.script(&call).await?, "drift")
    }

    async fn reconcile(&self, partition: &Partition) -> Result<Correction> {
        // What was only acknowledged is not held any more.
        for lane in Lane::ALL {
            self.trim(partition, lane).await?;
        }
        let mut call = self.scripts.reconcile.prepare_invoke();
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.load(partition));
        let (jobs, bytes, tenants) = codec::read(self.pool.script(&call).await?, "reconcile")?;
        Ok(Correction { jobs, bytes, tenants })
    }
}
