//! Ending attempts, and then their entries.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{
    Redis,
    claim::{failure_text, place_text, verdict},
    codec,
    keys::GROUP,
    millis, short,
};
use crate::{
    broker::{
        Attempt, Begin, Crashes, DeadLetter, Entry, Error, Load, Outcome, Over, Partition, Place,
        Refusal, Result, Settle, Settled, Spent, WorkerId, Written,
    },
    event::Frame,
    job::{JobId, Timestamp},
};

/// A log of at most this many events is rewritten into its least space when its job ends.
const SMALL_LOG: u64 = 32;

/// Nor of more than so many bytes: that takes longer than to write them, and saves nothing of note.
const SMALL_BYTES: usize = 64 * 1024;

/// Most counted entries ended by one script, which takes only so many arguments.
const PAGE: usize = 1000;

/// An entry of more fields is kept in one: a script takes only so many arguments.
const MANY_FIELDS: usize = 256;

/// The name of that field.
pub(super) const PACKED_FIELDS: &str = "entries";

/// The answer of a script that writes under a fence.
pub(super) fn written(reply: redis::Value, script: &str) -> Result<Written> {
    let reply: String = codec::read(reply, script)?;
    Ok(match reply.as_str() {
        "yes" => Written::Yes,
        "fenced" => Written::Fenced,
        "behind" => Written::Behind,
        "missing" => Written::Missing,
        "cancelled" => Written::Cancelled,
        other => return Err(Error::Protocol(format!("{script}: unknown answer `{other}`"))),
    })
}

/// The answer of a script that moves an entry or a parked job, where it was sent.
pub(super) fn settled(reply: Option<redis::Value>, script: &str) -> Result<Settled> {
    let there = |reply| codec::read::<bool>(reply, script).map(Settled::from);
    reply.map_or(Ok(Settled::Stale), there)
}

/// What an outcome leaves in the record.
struct Effects {
    state: &'static str,
    delay: u64,
    /// The failure as JSON; empty where there was none.
    failure: String,
    fields: Vec<short::Field>,
}

fn effects(outcome: &Outcome) -> Effects {
    let end = |state, finish_reason: Option<&String>, usage: Option<&String>| {
        let mut fields = vec![("ended".into(), Timestamp::now().0.to_string())];
        if let Some(reason) = finish_reason {
            short::put(&mut fields, "finish_reason", reason.clone());
        }
        if let Some(usage) = usage {
            short::put_usage(&mut fields, usage);
        }
        Effects { state, delay: 0, failure: String::new(), fields }
    };
    match outcome {
        Outcome::Done { finish_reason, usage } => {
            end("done", finish_reason.as_ref(), usage.as_ref())
        }
        Outcome::Cancelled { usage } => end("cancelled", None, usage.as_ref()),
        Outcome::Failed(error) => {
            Effects { failure: failure_text(error), ..end("failed", None, None) }
        }
        Outcome::Retry { error, delay } => Effects {
            state: "parked",
            delay: millis(*delay),
            failure: failure_text(error),
            fields: Vec::new(),
        },
    }
}

#[async_trait]
impl Settle for Redis {
    async fn conclude(
        &self,
        attempt: &Attempt,
        frames: &[Frame],
        outcome: &Outcome,
    ) -> Result<Written> {
        let Effects { state, delay, failure, fields } = effects(outcome);
        let over = state != "parked";
        let kept = millis(self.options.job_ttl).saturating_add(delay);
        let ttl = if over { millis(self.options.result_ttl) } else { kept };
        let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
        let small = frames.last().is_some_and(|last| last.seq < SMALL_LOG) && bytes <= SMALL_BYTES;
        let mut call = self.scripts.conclude.prepare_invoke();
        call.key(self.keys.job(attempt.job))
            .key(self.keys.log(attempt.job))
            .key(self.keys.events(attempt.job))
            .arg(attempt.fence)
            .arg(state)
            .arg(ttl)
            .arg(if over { self.key_ttl() } else { delay })
            .arg(if over && small { SMALL_BYTES } else { 0 })
            .arg(failure)
            .arg(fields.len() * 2);
        for (field, value) in fields {
            call.arg(&*field).arg(value);
        }
        for frame in frames {
            call.arg(frame.seq).arg(frame.kind).arg(&frame.bytes);
        }
        match self.pool.script_within(attempt.session, &call).await? {
            Some(reply) => written(reply, "conclude"),
            None => Ok(Written::Behind),
        }
    }

    async fn refuse(&self, entry: &Entry, refusal: &Refusal, frame: &Frame) -> Result<Begin> {
        let failure = match refusal {
            Refusal::Failed(error) => failure_text(error),
            Refusal::Cancelled => String::new(),
        };
        let (event, nobody) = ((frame.kind, &frame.bytes[..]), Crashes { most: 0, alone: true });
        let reply = self.open_fence(entry, event, ("", nobody), &failure).await?;
        verdict(reply, |fence, number, failures| Attempt {
            job: entry.id,
            place: entry.place.clone(),
            worker: crate::broker::WorkerId::new("none"),
            fence,
            number,
            failures,
            run: entry.run,
            session: 0,
        })
    }

    async fn remove(&self, spent: &[Spent], session: u64) -> Result<bool> {
        let mut plain: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut counted: BTreeMap<(String, String), Vec<(&str, &Load)>> = BTreeMap::new();
        for Spent { place: Place { partition, lane, entry }, load, .. } in spent {
            let key = self.keys.lane(partition, *lane);
            match load {
                None => plain.entry(key).or_default().push(entry),
                Some(load) => {
                    let keys = (key, self.keys.load(partition));
                    counted.entry(keys).or_default().push((entry, load));
                }
            }
        }
        for ((lane, load), entries) in &counted {
            for page in entries.chunks(PAGE) {
                let mut call = self.scripts.remove.key(lane);
                call.key(load);
                for (entry, load) in page {
                    call.arg(*entry).arg(load.tenant.as_str()).arg(load.bytes);
                }
                if self.pool.script_within(session, &call).await?.is_none() {
                    return Ok(false);
                }
            }
        }
        if !self.remove_plain(&plain, spent, session).await? {
            return Ok(false);
        }
        let told = spent.iter().filter(|spent| spent.over == Over::Told);
        join_all(told.map(async |Spent { place, job, .. }| {
            self.let_expire(*job, "", &place_text(place)).await;
        }))
        .await;
        Ok(true)
    }

    async fn park(
        &self,
        entry: &Entry,
        attempt: u32,
        due: Timestamp,
        session: u64,
    ) -> Result<Settled> {
        let Place { partition, lane, entry: entry_id } = &entry.place;
        let mut stored = format!("{lane} {} {attempt}", entry.at.0).into_bytes();
        if entry.run > 1 {
            stored.extend_from_slice(format!(",run={}", entry.run).as_bytes());
        }
        if let Some(load) = &entry.load {
            stored.extend_from_slice(format!(",load={}", load.tenant).as_bytes());
        }
        for (name, value) in entry.foreign() {
            stored.push(b',');
            codec::escape(name, &mut stored);
            stored.push(b'=');
            codec::escape(value, &mut stored);
        }
        stored.push(b' ');
        stored.extend_from_slice(entry.payload());
        let mut call = self.scripts.park.prepare_invoke();
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.lane(partition, *lane))
            .key(self.keys.load(partition))
            .arg(entry_id)
            .arg(self.keys.wake(partition))
            .arg(entry.id.to_string())
            .arg(due.0)
            .arg(stored)
            .arg(u8::from(entry.session < session));
        settled(self.pool.script_within(session, &call).await?, "park")
    }

    async fn release(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool> {
        self.give_back(worker, place, attempt).await
    }

    async fn bury(
        &self,
        entry: &Entry,
        letter: &DeadLetter,
        told: bool,
        session: u64,
    ) -> Result<Settled> {
        let Place { partition, lane, entry: entry_id } = &entry.place;
        let mut call = self.scripts.bury.prepare_invoke();
        call.key(self.keys.lane(partition, *lane))
            .key(self.keys.dead(partition))
            .key(self.keys.load(partition))
            .arg(entry_id)
            .arg(self.options.dead_max)
            .arg(entry.load.as_ref().map_or("", |load| load.tenant.as_str()))
            .arg(entry.load.as_ref().map_or(0, |load| load.bytes))
            .arg(u8::from(entry.session < session))
            .arg(u8::from(told))
            .arg("id")
            .arg(letter.id.to_string())
            .arg("error")
            .arg(failure_text(&letter.error))
            .arg("attempts")
            .arg(letter.attempts)
            .arg("fence")
            .arg(letter.fence)
            .arg("at")
            .arg(letter.at.0)
            .arg("lane")
            .arg(letter.lane.as_str())
            .arg("run")
            .arg(letter.run)
            .arg("history")
            .arg(serde_json::to_string(&letter.history).unwrap_or_default());
        if let Some(detail) = &letter.detail {
            call.arg("detail").arg(detail);
        }
        if letter.fields.len() > MANY_FIELDS {
            call.arg(PACKED_FIELDS).arg(codec::pack(&letter.fields));
        } else {
            for (field, value) in &letter.fields {
                let mut name = b"entry:".to_vec();
                name.extend_from_slice(field);
                call.arg(name).arg(value);
            }
        }
        let Some(reply) = self.pool.script_within(session, &call).await? else {
            return Ok(Settled::Stale);
        };
        let (buried, over): (bool, usize) = codec::read(reply, "bury")?;
        if over > 0 {
            match self.drop_oldest_letters(partition, over).await {
                Ok(0) => {}
                Ok(dropped) => {
                    tracing::error!(%partition, dropped, "dead letters dropped for newer ones");
                }
                // More than the bound stay until the next burial drops them.
                Err(error) => tracing::warn!(%partition, %error, "no dead letters dropped"),
            }
        }
        self.let_expire(letter.id, &letter.fence.to_string(), "").await;
        Ok(buried.into())
    }

    async fn expire(&self, partition: &Partition) -> Result<u64> {
        self.drop_old_letters(partition).await
    }
}

impl Redis {
    /// How long a record that holds an idempotency key is kept at the least, from the end of its job on.
    fn key_ttl(&self) -> u64 {
        millis(self.options.key_ttl.max(self.options.result_ttl))
    }

    /// Lets the record of a job that is over go in its time, where this fence has ended it or this entry
    /// has carried it.
    async fn let_expire(&self, job: JobId, fence: &str, place: &str) {
        let mut call = self.scripts.let_expire.key(self.keys.job(job));
        call.key(self.keys.log(job)).arg(fence).arg(place);
        call.arg(millis(self.options.result_ttl)).arg(self.key_ttl());
        if let Err(error) = self.pool.script(&call).await {
            tracing::debug!(%job, %error, "record kept longer than its log");
        }
    }

    /// Acknowledges and deletes entries that nobody has counted, by lane: no script is needed. Then the
    /// records of the jobs that their workers have ended have the time of what is finished. `false` where
    /// the session is over.
    async fn remove_plain(
        &self,
        lanes: &BTreeMap<String, Vec<&str>>,
        spent: &[Spent],
        session: u64,
    ) -> Result<bool> {
        let mut pipe = redis::pipe();
        for (key, entries) in lanes {
            pipe.cmd("XACK").arg(key).arg(GROUP).arg(entries);
            pipe.cmd("XDEL").arg(key).arg(entries);
        }
        for Spent { job, over, .. } in spent {
            // Of a run that has ended in an attempt; one that is opened since begins its time anew.
            let key = self.keys.job(*job);
            match over {
                Over::Here { keyed: true } => {
                    pipe.cmd("PEXPIRE").arg(key).arg(self.key_ttl()).arg("LT");
                }
                Over::Here { keyed: false } => {
                    pipe.cmd("PEXPIRE").arg(key).arg(millis(self.options.result_ttl));
                }
                Over::Told => {}
            }
        }
        if pipe.is_empty() {
            return Ok(true);
        }
        let Some(replies) = self.pool.pipeline_within(session, &mut pipe).await? else {
            return Ok(false);
        };
        for reply in replies {
            reply.map_err(|e| self.pool.connector().classify(e))?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, Failure};

    #[test]
    fn an_outcome_leaves_its_fields() {
        let done = Outcome::Done { finish_reason: Some("stop".to_owned()), usage: None };
        let left = effects(&done);
        let reason = ("finish_reason".into(), "stop".to_owned());
        assert_eq!((left.state, &left.fields[1]), ("done", &reason));
        assert_eq!((left.fields.len(), left.failure.as_str()), (2, ""));
        let error = Failure::new(Code::Timeout, "slow");
        let retry = Outcome::Retry { error, delay: std::time::Duration::from_secs(1) };
        let left = effects(&retry);
        assert_eq!((left.state, left.delay, left.fields.len()), ("parked", 1000, 0));
        assert!(left.failure.contains("slow"));
    }
}
