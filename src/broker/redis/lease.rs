//! Leases: renewing one's own, taking over what ran out, giving back.
//!
//! A lease is the time an entry has lain idle in its consumer's pending list. Nothing here needs a
//! leader: a claim with a least idle time is atomic, so of two sweepers one takes an entry.

use std::time::{Duration, Instant};

use redis::Value;

use super::{Redis, claim::number, codec, keys::GROUP, millis, settle::written};
use crate::{
    broker::{Attempt, Entry, Partition, Place, Renewed, Result, Sweep, Swept, Wake, WorkerId},
    job::Lane,
};

/// The idle time of an entry that was given back: longer than any lease, or any time that a server
/// may have been away.
const RELEASED: Duration = Duration::from_hours(10 * 365 * 24);

/// Most leases renewed by one script, which takes about 2 ms for them.
const PAGE: usize = 500;

/// Most bytes taken over by one script, which takes about 3 ms for them; a larger entry comes alone.
const BYTES: usize = 1 << 20;

/// So many entries that have lain idle for long, and whose workers have a longer lease, hide no others.
const OTHERS: usize = 64;

/// A renewal may still be on its way as an entry is given back; what was taken or renewed so much later was
/// taken again.
const LATE: Duration = Duration::from_secs(1);

/// What a sweep may take.
struct Terms {
    /// How long an entry must have lain idle.
    idle: Duration,
    /// A disturbance is so near that a lease may have run out through nobody's fault.
    disturbed: bool,
    deliveries: u32,
    lease: Duration,
}

/// An entry's ID as the server orders it.
fn stream_id(entry: &str) -> (u64, u64) {
    let (ms, seq) = entry.split_once('-').unwrap_or((entry, "0"));
    (ms.parse().unwrap_or_default(), seq.parse().unwrap_or_default())
}

/// By how much the server's clock may differ from what it should show. A live worker's entry never lies
/// idle for so long that this much more would end its lease.
fn tolerance(lease: Duration) -> Duration {
    (lease / 4).max(Duration::from_millis(100))
}

impl Redis {
    pub(super) async fn renew_leases(
        &self,
        worker: &WorkerId,
        places: &[Place],
    ) -> Result<Renewed> {
        let mut renewed = Renewed::default();
        for lane in Lane::ALL {
            let mut of_lane: Vec<&Place> =
                places.iter().filter(|place| place.lane == lane).collect();
            // Each script looks at what its worker holds between its first entry and its last.
            of_lane.sort_by_cached_key(|place| stream_id(&place.entry));
            for page in of_lane.chunks(PAGE) {
                let partition = &page[0].partition;
                let mut call = self.scripts.renew.key(self.keys.lane(partition, lane));
                call.key(self.keys.load(partition)).arg(worker.as_str()).arg(millis(RELEASED));
                for place in page {
                    call.arg(&place.entry);
                }
                let (gone, lost): (Vec<String>, u64) =
                    codec::read(self.pool.script(&call).await?, "renew")?;
                renewed.gone.extend(
                    page.iter().filter(|place| gone.contains(&place.entry)).copied().cloned(),
                );
                renewed.lost += lost;
            }
        }
        Ok(renewed)
    }

    /// As [`Claim::sweep`](crate::broker::Claim::sweep); what goes wrong ends the calm, and what
    /// works begins one.
    pub(super) async fn take_over(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        sweep: &Sweep,
    ) -> Result<Swept> {
        let connector = self.pool.connector();
        let swept = self.look_and_take(partition, worker, sweep).await;
        match &swept {
            Ok(_) => connector.answered(partition),
            Err(error) => connector.failed(partition, error),
        }
        swept
    }

    async fn look_and_take(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        sweep: &Sweep,
    ) -> Result<Swept> {
        let calm = self.pool.connector().calm(partition);
        let age = calm.since.map(|since| Instant::now().duration_since(since));
        let grace = age.is_none_or(|age| age < sweep.lease);
        let terms = Terms {
            // Within the grace only what was given back is taken.
            idle: if grace { RELEASED } else { sweep.lease },
            disturbed: calm.is_younger(sweep.lease * 2),
            deliveries: sweep.deliveries,
            lease: sweep.lease,
        };
        let mut pipe = redis::pipe();
        let (sent, tells) = (Instant::now(), self.clock.is_stale(Instant::now()));
        if tells {
            pipe.cmd("TIME");
        }
        for lane in self.keys.lanes(partition) {
            let expired = pipe.cmd("XPENDING").arg(&lane).arg(GROUP);
            expired.arg("IDLE").arg(millis(terms.idle)).arg("-").arg("+").arg(sweep.most + OTHERS);
            if sweep.ask {
                pipe.cmd("XPENDING").arg(&lane).arg(GROUP);
            }
        }
        if !grace {
            pipe.cmd("PUBLISH").arg(self.keys.wake(partition)).arg(Wake::Swept.as_str());
        }
        let mut replies = self.pool.pipeline(&mut pipe).await?.into_iter();
        if tells && self.was_set(replies.next(), sent, sweep)? {
            // What has run out is looked at again after one lease.
            let lost = self.begin_anew(partition).await?;
            return Ok(Swept { in_flight: sweep.ask.then_some(true), lost, ..Swept::default() });
        }
        let mut swept = Swept { in_flight: sweep.ask.then_some(false), ..Swept::default() };
        let mut found = Vec::new();
        // All of them are looked at first: what is taken before an error would run nowhere.
        for lane in Lane::ALL {
            found.push((lane, self.pending_list(replies.next())?));
            if sweep.ask {
                let summary = self.pending_list(replies.next())?;
                let any = summary.first().is_some_and(|count| *count != Value::Int(0));
                swept.in_flight = Some(swept.in_flight == Some(true) || any);
            }
        }
        if swept.in_flight != Some(false) {
            swept.lost += self.begin_anew(partition).await?;
        }
        self.take_found(partition, worker, found, &terms, sweep.most, &mut swept).await?;
        Ok(swept)
    }

    /// Takes what was found of each lane, as much as there is room for.
    async fn take_found(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        found: Vec<(Lane, Vec<Value>)>,
        terms: &Terms,
        most: usize,
        swept: &mut Swept,
    ) -> Result<()> {
        for (lane, expired) in found {
            let room = most - swept.entries.len();
            if room == 0 || expired.is_empty() {
                continue;
            }
            match self.claim_expired(partition, lane, worker, &expired, (room, terms)).await {
                Ok((entries, lost)) => {
                    swept.entries.extend(entries);
                    swept.lost += lost;
                }
                // What was taken from another lane is this worker's by now.
                Err(error) if !swept.entries.is_empty() => {
                    tracing::warn!(%partition, %lane, %error, "not swept");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the server's clock was set, as its reply to TIME tells.
    fn was_set(
        &self,
        reply: Option<redis::RedisResult<Value>>,
        sent: Instant,
        sweep: &Sweep,
    ) -> Result<bool> {
        let value = reply.unwrap_or(Ok(Value::Nil));
        let value = value.map_err(|error| self.pool.connector().classify(error))?;
        let (seconds, micros): (u64, u64) = codec::read(value, "TIME")?;
        let now = Duration::from_secs(seconds) + Duration::from_micros(micros);
        Ok(self.notes(now, sent, sweep.lease))
    }

    /// Notes the server's time; where its clock was set, a new calm begins.
    fn notes(&self, server: Duration, sent: Instant, lease: Duration) -> bool {
        let was_set = self.clock.read(server, (sent, Instant::now()), tolerance(lease));
        if was_set {
            tracing::warn!("the clock of Redis was set; nothing is taken over for one lease");
            self.pool.connector().stepped();
        }
        was_set
    }

    /// Begins the leases anew that seem to have begun only now, where that was not done since the server's clock
    /// was set. How many of their entries were deleted.
    async fn begin_anew(&self, partition: &Partition) -> Result<u64> {
        if !self.clock.is_doubtful(partition) {
            return Ok(0);
        }
        let mut all = 0;
        for lane in self.keys.lanes(partition) {
            let mut start = "-".to_owned();
            while !start.is_empty() {
                let mut call = self.scripts.anew.key(&lane);
                call.key(self.keys.load(partition)).arg(&start).arg(PAGE);
                let lost: u64;
                (start, lost) = codec::read(self.pool.script(&call).await?, "begin anew")?;
                all += lost;
            }
        }
        self.clock.trust(partition);
        Ok(all)
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
        expired: &[Value],
        (room, terms): (usize, &Terms),
    ) -> Result<(Vec<Entry>, u64)> {
        let id = |entry: &Value| {
            let mut parts = codec::array(entry.clone(), "pending entry")?.into_iter();
            codec::read::<String>(parts.next().unwrap_or(Value::Nil), "entry ID")
        };
        let ids = expired.iter().map(id).collect::<Result<Vec<_>>>()?;
        let (mut rest, mut entries, mut lost) = (ids.as_slice(), Vec::new(), 0);
        while !rest.is_empty() && entries.len() < room {
            let more = (room - entries.len(), !entries.is_empty());
            match self.claim_some(partition, lane, worker, rest, (more, terms)).await {
                Ok(Some((taken, gone, done))) => {
                    entries.extend(taken);
                    lost += gone;
                    rest = rest.get(done.max(1)..).unwrap_or_default();
                }
                Ok(None) => break,
                // What was taken before is this worker's by now.
                Err(error) if !entries.is_empty() => {
                    tracing::warn!(%partition, %lane, %error, "not swept to the end");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok((entries, lost))
    }

    /// One step of a takeover: entries, how many were deleted, and how many of the IDs are dealt with.
    /// `None` where the server's clock is ahead of what it can show, or the step was long on its way.
    async fn claim_some(
        &self,
        partition: &Partition,
        lane: Lane,
        worker: &WorkerId,
        ids: &[String],
        ((room, has_others), terms): ((usize, bool), &Terms),
    ) -> Result<Option<(Vec<Entry>, u64, usize)>> {
        let key = self.keys.lane(partition, lane);
        let mut call = self.scripts.take_over.key(&key);
        call.key(self.keys.load(partition)).key(self.keys.leases(partition));
        call.arg(worker.as_str()).arg(millis(terms.idle)).arg(room);
        let sent = Instant::now();
        let latest = self.clock.latest(sent).map_or(0, |now| millis(now + tolerance(terms.lease)));
        call.arg((terms.deliveries / 2).max(1)).arg(BYTES).arg(u8::from(has_others));
        call.arg(latest).arg(ids);
        let reply = self.pool.script(&call).await?;
        let (taken, before, lost, done, taking): (Value, Vec<(u32, u64)>, u64, i64, String) =
            codec::read(reply, "take over")?;
        let Ok(done) = usize::try_from(done) else {
            self.notes(Duration::from_micros(lost), sent, terms.lease);
            return Ok(None);
        };
        let taking = number(&taking, "take over")?;
        let read = |((entry, fields), (deliveries, idle)): (codec::RawEntry, (u32, u64))| {
            let place = Place { partition: partition.clone(), lane, entry };
            let fields = fields.unwrap_or_default();
            let mut entry = if deliveries > terms.deliveries {
                Entry::unread(place, &key, fields, deliveries)
            } else {
                Entry::read(place, &key, fields)
            };
            entry.crashed = !terms.disturbed && idle < millis(RELEASED);
            entry.taking = taking;
            entry
        };
        Ok(Some((codec::entries(taken)?.into_iter().zip(before).map(read).collect(), lost, done)))
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
        let latest = self.clock.latest(Instant::now()).map_or(0, |now| millis(now + LATE));
        let mut call = self.scripts.hand_back.key(self.keys.lane(&place.partition, place.lane));
        call.arg(worker.as_str())
            .arg(&place.entry)
            .arg(millis(RELEASED))
            .arg(self.keys.wake(&place.partition))
            .arg(latest);
        codec::read(self.pool.script(&call).await?, "hand back")
    }
}
