//! Setting the admission counters right.
//!
//! However much a queue holds, no step takes the server more than a few milliseconds: a count is read
//! part by part, while others add and end jobs. What is added meanwhile is read before the end. The last
//! step sees, in one with the correction, whether anything that was read has gone: then it is counted
//! anew, and where that goes on and on the counters are set as near as is certain.

use std::{cmp::Reverse, collections::HashMap};

use async_trait::async_trait;
use redis::Value;

use super::{Redis, codec};
use crate::{
    broker::{Correction, Enqueue, Error, Partition, Reconcile, Result},
    job::Lane,
};

/// Most entries that one step reads or removes, and most bytes of them: about 3 ms.
pub(super) const STEP: (u64, usize) = (500, 256 * 1024);

/// How often it is counted before the counters are set as near as is certain.
const TRIES: usize = 5;

/// Most tenants whose counters are set by one recount, those first that are furthest off.
const TENANTS: usize = 1000;

/// What was counted so far.
#[derive(Debug, Default)]
struct Tally {
    /// What was read last, of each lane and of the parked jobs.
    last: [String; 4],
    /// Entries and parked jobs read, those that count, their bytes, and the bytes of the largest.
    sums: [i64; 4],
    tenants: HashMap<String, i64>,
}

/// An answer of the script: its word, what was read last, numbers, and tenants.
type Answer = (String, [String; 4], Vec<i64>, Vec<(String, i64)>);

impl Tally {
    fn add(&mut self, (_, last, sums, tenants): Answer) -> Result<()> {
        self.last = last;
        self.sums =
            sums.try_into().map_err(|_| Error::Protocol("reconcile: not four sums".to_owned()))?;
        for (tenant, jobs) in tenants {
            *self.tenants.entry(tenant).or_default() += jobs;
        }
        Ok(())
    }
}

#[async_trait]
impl Reconcile for Redis {
    async fn mend(&self, partition: &Partition) -> Result<Correction> {
        self.recount(partition, "look").await
    }

    async fn reconcile(&self, partition: &Partition) -> Result<Correction> {
        // What was only acknowledged is not held any more.
        for lane in Lane::ALL {
            while self.trim(partition, lane).await? > 0 {}
        }
        self.recount(partition, "count").await
    }
}

impl Redis {
    async fn recount(&self, partition: &Partition, first: &str) -> Result<Correction> {
        for attempt in 1..=TRIES {
            let (mut tally, mut word) = (Tally::default(), first);
            loop {
                let answer = self.read_on(partition, word, &tally, &[]).await?;
                match answer.0.as_str() {
                    "right" => return Ok(Correction::default()),
                    "more" => tally.add(answer)?,
                    "end" => break tally.add(answer)?,
                    other => return Err(unknown(other)),
                }
                word = "count";
            }
            let doubtful = self.doubtful(partition, &tally).await?;
            if tally.sums[0] < STEP.0.cast_signed() {
                // It is read again together with the correction: nothing moves in between.
                tally = Tally::default();
            }
            let word = if attempt < TRIES { "set" } else { "settle" };
            loop {
                let answer = self.read_on(partition, word, &tally, &doubtful).await?;
                match (answer.0.as_str(), answer.2.as_slice()) {
                    ("more", _) => tally.add(answer)?,
                    ("moved", _) => break,
                    ("set", [jobs, bytes, tenants]) => {
                        let tenants = tenants.unsigned_abs();
                        return Ok(Correction { jobs: *jobs, bytes: *bytes, tenants });
                    }
                    (other, _) => return Err(unknown(other)),
                }
            }
        }
        Ok(Correction::default())
    }

    /// One step.
    async fn read_on(
        &self,
        partition: &Partition,
        word: &str,
        tally: &Tally,
        tenants: &[String],
    ) -> Result<Answer> {
        let mut call = self.scripts.reconcile.prepare_invoke();
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.load(partition))
            .arg(word)
            .arg(STEP.0)
            .arg(STEP.1);
        call.arg(&tally.last).arg(&tally.sums);
        for tenant in tenants {
            call.arg(tenant).arg(tally.tenants.get(tenant).copied().unwrap_or_default());
        }
        codec::read(self.pool.script(&call).await?, "reconcile")
    }

    /// Tenants whose counters differ from what was counted.
    async fn doubtful(&self, partition: &Partition, tally: &Tally) -> Result<Vec<String>> {
        let mut off: HashMap<String, i64> = tally.tenants.clone();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(self.keys.load(partition)).arg(&cursor).arg("MATCH").arg("t:*");
            scan.arg("COUNT").arg(STEP.0);
            let reply: (String, Value) = codec::read(self.pool.command(&scan).await?, "HSCAN")?;
            for (field, counted) in codec::fields(reply.1)? {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                let tenant = text(field).split_off(2);
                let real = tally.tenants.get(&tenant).copied().unwrap_or_default();
                let counted = text(counted).parse().unwrap_or(i64::MAX);
                off.insert(tenant, counted.abs_diff(real).cast_signed());
            }
            cursor = reply.0;
            if cursor == "0" {
                break;
            }
        }
        let mut off: Vec<(String, i64)> = off.into_iter().filter(|(_, by)| *by != 0).collect();
        off.sort_by_key(|(_, by)| Reverse(*by));
        off.truncate(TENANTS);
        Ok(off.into_iter().map(|(tenant, _)| tenant).collect())
    }
}

fn unknown(word: &str) -> Error {
    Error::Protocol(format!("reconcile: unknown answer `{word}`"))
}
