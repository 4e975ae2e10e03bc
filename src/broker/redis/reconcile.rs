//! Setting the admission counters right.

use async_trait::async_trait;

use super::{Redis, codec};
use crate::{
    broker::{Correction, Enqueue, Partition, Reconcile, Result},
    job::Lane,
};

#[async_trait]
impl Reconcile for Redis {
    async fn mend(&self, partition: &Partition) -> Result<Correction> {
        self.recount(partition, true).await
    }

    async fn reconcile(&self, partition: &Partition) -> Result<Correction> {
        // What was only acknowledged is not held any more.
        for lane in Lane::ALL {
            self.trim(partition, lane).await?;
        }
        self.recount(partition, false).await
    }
}

impl Redis {
    async fn recount(&self, partition: &Partition, only_above: bool) -> Result<Correction> {
        let mut call = self.scripts.reconcile.prepare_invoke();
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.load(partition))
            .arg(u8::from(only_above));
        let (jobs, bytes, tenants) = codec::read(self.pool.script(&call).await?, "reconcile")?;
        Ok(Correction { jobs, bytes, tenants })
    }
}
