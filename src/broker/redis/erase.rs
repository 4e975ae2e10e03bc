//! Taking away everything under a prefix, for whoever had it to itself.

use redis::Value;

use super::{Redis, codec};
use crate::broker::Result;

/// Keys looked at by one step.
const PAGE: usize = 1000;

impl Redis {
    /// Deletes every key of this prefix, whatever it holds, and returns how many there were. What
    /// is written meanwhile may stay: nobody must be at work under the prefix any more.
    pub(crate) async fn erase(&self) -> Result<u64> {
        let (mut erased, mut cursor) = (0, String::from("0"));
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(self.keys.all()).arg("COUNT").arg(PAGE);
            let (next, keys): (String, Vec<Vec<u8>>) =
                codec::read(self.pool.command(&scan).await?, "SCAN")?;
            if !keys.is_empty() {
                let reply: Value = self.pool.command(redis::cmd("UNLINK").arg(keys)).await?;
                erased += codec::read::<u64>(reply, "UNLINK")?;
            }
            cursor = next;
            if cursor == "0" {
                return Ok(erased);
            }
        }
    }
}
