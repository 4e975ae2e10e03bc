//! Leases: renewing one's own, taking over what ran out, giving back.
//!
//! A lease is the time an entry has lain idle in its consumer's pending list. Nothing here needs a
//! leader: a claim with a least idle time is atomic, so of two sweepers one takes an entry.

use std::time::{Duration, Instant};

use redis::Value;

use super::{Redis, codec, keys::GROUP, millis, settle::written};
use crate::{
    broker::{Attempt, Entry, Partition, Place, Result, Swept, Wake, WorkerId},
    job::Lane,
};

/// The idle time of an entry that was given back: longer than any lease, or any time that a server
/// may have been away.
const RELEASED: Duration = Duration::from_hours(10 * 365 * 24);

/// Most leases renewed by one script, which takes only so many arguments.
const PAGE: usize = 1000;

impl Redis {
    pub(super) async fn renew_leases(
        &self,
        worker: &WorkerId,
        places: &[Place],
    ) -> Result<Vec<Place>> {
        let mut lost = Vec::new();
        for lane in Lane::ALL {
            let of_lane: Vec<&Place> = places.iter().filter(|place| place.lane == lane).collect();
            for page in of_lane.chunks(PAGE) {
                let mut call = self.scripts.renew.key(self.keys.lane(&page[0].partition, lane));
                call.arg(worker.as_str()).arg(millis(RELEASED));
                for place in page {
                    call.arg(&place.entry);
                }
                let gone: Vec<String> = codec::read(self.pool.script(&call).await?, "renew")?;
                lost.extend(page.iter().filter(|p| gone.contains(&p.entry)).copied().cloned());
            }
        }
        Ok(lost)
    }

    /// As [`Claim::sweep`](crate::broker::Claim::sweep); what goes wrong ends the calm, and what
    /// works begins one.
    pub(super) async fn take_over(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
        most: usize,
        ask: bool,
    ) -> Result<Swept> {
        let connector = self.pool.connector();
        let swept = self.look_and_take(partition, worker, lease, most, ask).await;
        match &swept {
            Ok(_) => connector.answered(),
            Err(_) => connector.disturbed(),
        }
        swept
    }

    async fn look_and_take(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
        most: usize,
        ask: bool,
    ) -> Result<Swept> {
        let calm = self.pool.connector().calm_since();
        let grace = calm.is_none_or(|since| Instant::now().duration_since(since) < lease);
        // Within the grace only what was given back is taken.
        let idle = if grace { RELEASED } else { lease };
        let mut pipe = redis::pipe();
        for lane in self.keys.lanes(partition) {
            let expired = pipe.cmd("XPENDING").arg(&lane).arg(GROUP).arg("IDLE").arg(millis(idle));
            expired.arg("-").arg("+").arg(most.max(1));
            if ask {
                pipe.cmd("XPENDING").arg(&lane).arg(GROUP);
            }
        }
        if !grace {
            pipe.cmd("PUBLISH").arg(self.keys.wake(partition)).arg(Wake::Swept.as_str());
        }
        let mut replies = self.pool.pipeline(&mut pipe).await?.into_iter();
        let mut swept = Swept { entries: Vec::new(), in_flight: ask.then_some(false) };
        for lane in Lane::ALL {
            let expired = self.pending_list(replies.next())?;
            if ask {
                let summary = self.pending_list(replies.next())?;
                let any = summary.first().is_some_and(|count| *count != Value::Int(0));
                swept.in_flight = Some(swept.in_flight == Some(true) || any);
            }
            let room = most - swept.entries.len();
            if room > 0 && !expired.is_empty() {
                let taken = self.claim_expired(partition, lane, worker, idle, &expired, room);
                swept.entries.extend(taken.await?);
            }
        }
        Ok(swept)
    }

    /// A reply of XPENDING; a lane without a group has nothing pending.
    fn pending_list(&self, reply: Option<redis::RedisResult<Value>>) -> Result<Vec<Value>> {
        match reply {
            Some(Err(error)) if error.code() == Some("NOGROUP") => Ok(Vec::new()),
            Some(Err(error)) => Err(self.pool.connector().classify(error)),
            Some(Ok(value)) => codec::array(value, "XPENDING"),
            None => Ok(Vec::new()),
        }
    }

    async fn claim_expired(
        &self,
        partition: &Partition,
        lane: Lane,
        worker: &WorkerId,
        idle: Duration,
        expired: &[Value],
        room: usize,
    ) -> Result<Vec<Entry>> {
        let key = self.keys.lane(partition, lane);
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(&key).arg(GROUP).arg(worker.as_str()).arg(millis(idle));
        let mut asked = 0;
        for entry in expired.iter().take(room) {
            let mut parts = codec::array(entry.clone(), "pending entry")?.into_iter();
            let id: String = codec::read(parts.next().unwrap_or(Value::Nil), "entry ID")?;
            claim.arg(id);
            asked += 1;
        }
        let entries = codec::entries(self.pool.command(&claim).await?)?;
        if entries.len() < asked {
            // Taken by another sweeper, or deleted while it was pending.
            tracing::debug!(%partition, %lane, missing = asked - entries.len(), "not taken over");
        }
        let read = |(entry, fields): codec::RawEntry| {
            let place = Place { partition: partition.clone(), lane, entry };
            Entry::read(place, &key, fields.unwrap_or_default())
        };
        Ok(entries.into_iter().map(read).collect())
    }

    pub(super) async fn give_back(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool> {
        if let Some(attempt) = attempt {
            let mut call = self.scripts.release.key(self.keys.job(attempt.job));
            call.arg(attempt.fence);
            // Refused where the job has just ended: its entry is given back all the same, so that
            // the second step is not long in coming.
            written(self.pool.script(&call).await?, "release")?;
        }
        let mut call = self.scripts.hand_back.key(self.keys.lane(&place.partition, place.lane));
        call.arg(worker.as_str())
            .arg(&place.entry)
            .arg(millis(RELEASED))
            .arg(self.keys.wake(&place.partition));
        codec::read(self.pool.script(&call).await?, "hand back")
    }
}
