//! Promotion: parked jobs whose time has come go to their lanes.

use std::time::Duration;

use super::{Redis, codec, millis};
use crate::broker::{Partition, Promoted, Result};

/// Most bytes moved by one script, which takes about 3 ms for them; a larger job moves alone.
const BYTES: usize = 1 << 20;

impl Redis {
    /// As [`Claim::promote`](crate::broker::Claim::promote).
    pub(super) async fn move_due(&self, partition: &Partition, most: usize) -> Result<Promoted> {
        let mut call = self.scripts.promote.prepare_invoke();
        call.key(self.keys.parked(partition)).key(self.keys.parked_jobs(partition));
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.key(self.keys.unread(partition));
        call.arg(most).arg(self.keys.wake(partition)).arg(BYTES);
        call.arg(millis(self.options.job_ttl));
        let (count, next): (usize, i64) = codec::read(self.pool.script(&call).await?, "promote")?;
        Ok(Promoted { count, next_in: u64::try_from(next).ok().map(Duration::from_millis) })
    }
}
