//! Housekeeping: workers that are gone are forgotten, and dead letters that are too old are dropped.
//!
//! Everything goes in steps, so that none holds the server up however much there is.

use redis::Value;

use super::{Redis, codec, inspect::letters};
use crate::{
    broker::{Control as _, Partition, Result},
    job::Timestamp,
};

/// Dead letters looked at by one step; each comes with its payload.
const LETTERS: usize = 32;

impl Redis {
    /// Drops dead letters that are too old, but none that a requeue has begun to put back: its run waits
    /// for the entry that only the letter has.
    pub(super) async fn drop_old_letters(&self, partition: &Partition) -> Result<u64> {
        let dead = self.keys.dead(partition);
        let (mut start, mut dropped) = ("-".to_owned(), 0);
        loop {
            let mut pipe = redis::pipe();
            pipe.cmd("TIME")
                .cmd("XRANGE")
                .arg(&dead)
                .arg(&start)
                .arg("+")
                .arg("COUNT")
                .arg(LETTERS);
            let mut replies = self.pool.pipeline(&mut pipe).await?.into_iter();
            let mut next = || {
                let reply = replies.next().unwrap_or(Ok(Value::Nil));
                reply.map_err(|error| self.pool.connector().classify(error))
            };
            let (seconds, micros): (u64, u64) = codec::read(next()?, "TIME")?;
            let now = Timestamp(seconds * 1000 + micros / 1000);
            let mut page = letters(next()?)?;
            page.retain(|letter| letter.buried_at().after(self.options.dead_ttl) < now);
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
}
