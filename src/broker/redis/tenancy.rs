//! A tenant's recent jobs, and its bucket of requests.

use std::time::Duration;

use async_trait::async_trait;
use redis::Value;

use super::{Redis, codec, millis};
use crate::{
    broker::{Rate, Recent, Result, Tenancy},
    job::{JobId, Tenant, Timestamp},
};

#[async_trait]
impl Tenancy for Redis {
    async fn note(&self, tenant: &Tenant, jobs: &[(JobId, Timestamp)]) -> Result<()> {
        if jobs.is_empty() {
            return Ok(());
        }
        let key = self.keys.recent(tenant);
        let mut pipe = redis::pipe();
        let add = pipe.cmd("ZADD").arg(&key);
        for (job, at) in jobs {
            add.arg(at.0).arg(job.to_string());
        }
        let surplus = -1 - i64::from(self.options.recent_jobs);
        pipe.cmd("ZREMRANGEBYRANK").arg(&key).arg(0).arg(surplus);
        pipe.cmd("PEXPIRE").arg(&key).arg(millis(self.options.job_ttl));
        for reply in self.pool.pipeline(&mut pipe).await? {
            reply.map_err(|e| self.pool.connector().classify(e))?;
        }
        Ok(())
    }

    async fn recent(&self, tenant: &Tenant, before: Option<JobId>, most: usize) -> Result<Recent> {
        // Beyond this a list is not kept; 0 would reach back to its end.
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let mut call = self.scripts.recent.key(self.keys.recent(tenant));
        call.arg(before.map_or(String::new(), |job| job.to_string())).arg(most.max(1));
        let value = self.pool.script(&call).await?;
        if value == Value::Nil {
            return Ok(Recent::Unknown);
        }
        let names: Vec<String> = codec::read(value, "recent")?;
        // What a stranger has put there is no job.
        let jobs = names.iter().filter_map(|name| name.parse().ok());
        Ok(Recent::Jobs(jobs.take(most as usize).collect()))
    }

    async fn admit_many(
        &self,
        tenant: &Tenant,
        rate: &Rate,
        count: u32,
    ) -> Result<Option<Duration>> {
        let mut call = self.scripts.rate.key(self.keys.rate(tenant));
        call.arg(rate.cost(count)).arg(rate.window());
        let wait: u64 = codec::read(self.pool.script(&call).await?, "rate")?;
        Ok((wait > 0).then(|| Duration::from_micros(wait)))
    }
}
