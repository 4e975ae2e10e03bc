//! Housekeeping: workers that are gone are forgotten, and dead letters that are too old, or too many, are
//! dropped.
//!
//! Everything goes in steps, so that none holds the server up however much there is.

use super::{Redis, codec, inspect::letters, millis};
use crate::broker::{Control as _, Inspect as _, Partition, Result};

/// Dead letters looked at by one step; each comes with its payload.
const LETTERS: usize = 32;

/// Most steps by which one burial makes room; the next goes on.
const MOST_PAGES: usize = 16;

impl Redis {
    /// Drops dead letters that are too old, but none that a requeue has begun to put back: its run waits
    /// for the entry that only the letter has.
    pub(super) async fn drop_old_letters(&self, partition: &Partition) -> Result<u64> {
        let dead = self.keys.dead(partition);
        let time = self.pool.command(&redis::cmd("TIME")).await?;
        let (seconds, micros): (u64, u64) = codec::read(time, "TIME")?;
        let now = seconds * 1000 + micros / 1000;
        // The names tell their age: of those that stay no payload is read.
        let Some(latest) = now.checked_sub(millis(self.options.dead_ttl).saturating_add(1)) else {
            return Ok(0);
        };
        let (mut start, mut dropped) = ("-".to_owned(), 0);
        loop {
            let mut range = redis::cmd("XRANGE");
            range.arg(&dead).arg(&start).arg(latest).arg("COUNT").arg(LETTERS);
            let page = letters(self.pool.command(&range).await?)?;
            let Some(last) = page.last() else { return Ok(dropped) };
            start = format!("({}", last.letter);
            let waits = self.unfinished(&page).await?;
            let old: Vec<&str> = page
                .iter()
                .zip(waits)
                .filter_map(|(letter, waits)| (!waits).then_some(letter.letter.as_str()))
                .collect();
            if !old.is_empty() {
                let mut call = self.scripts.expire.key(&dead);
                call.key(self.keys.load(partition)).arg(old);
                dropped += codec::read::<u64>(self.pool.script(&call).await?, "expire")?;
            }
            if page.len() < LETTERS {
                return Ok(dropped);
            }
        }
    }

    /// Drops the oldest dead letters for newer ones, `over` of them at the most, but none that a requeue has
    /// begun to put back: that one stays beyond the bound until it is back in its lane.
    pub(super) async fn drop_oldest_letters(
        &self,
        partition: &Partition,
        mut over: usize,
    ) -> Result<u64> {
        let (mut after, mut dropped) = (None, 0);
        for _ in 0..MOST_PAGES {
            let most = (over + 1).min(LETTERS);
            let page = self.dead_letters(partition, after.as_deref(), most).await?;
            let waits = self.unfinished(&page).await?;
            let free =
                page.iter().zip(waits).filter_map(|(letter, waits)| (!waits).then_some(letter));
            let names: Vec<&str> = free.take(over).map(|letter| letter.letter.as_str()).collect();
            if !names.is_empty() {
                let mut call = self.scripts.drop.key(self.keys.dead(partition));
                call.key(self.keys.load(partition)).arg(self.options.dead_max).arg(&names);
                dropped += codec::read::<u64>(self.pool.script(&call).await?, "drop")?;
                over -= names.len();
            }
            if over == 0 || page.len() < most {
                break;
            }
            after = page.last().map(|letter| letter.letter.clone());
        }
        Ok(dropped)
    }
}
