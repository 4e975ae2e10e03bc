//! Ending attempts, and then their entries.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{
    Redis,
    claim::{failure_text, verdict},
    codec,
    keys::GROUP,
    millis,
};
use crate::{
    broker::{
        Attempt, Begin, DeadLetter, Entry, Error, Outcome, Place, Result, Settle, WorkerId, Written,
    },
    error::Failure,
    event::Frame,
    job::Timestamp,
};

/// A log of at most this many events is rewritten into its least space when its job ends.
const SMALL_LOG: u64 = 32;

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
        other => return Err(Error::Protocol(format!("{script}: unknown answer `{other}`"))),
    })
}

/// State, delay and fields that an outcome leaves in the record.
fn effects(outcome: &Outcome) -> (&'static str, u64, Vec<(&'static str, String)>) {
    let ended = ("ended", Timestamp::now().0.to_string());
    match outcome {
        Outcome::Done { finish_reason, usage } => {
            let fields = [("finish_reason", finish_reason), ("usage", usage)]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.clone()?)))
                .chain([ended])
                .collect();
            ("done", 0, fields)
        }
        Outcome::Failed(error) => ("failed", 0, vec![ended, ("error", failure_text(error))]),
        Outcome::Retry { error, delay } => {
            ("parked", millis(*delay), vec![("error", failure_text(error))])
        }
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
        let (state, delay, fields) = effects(outcome);
        let over = state != "parked";
        let ttl = if over { self.options.result_ttl } else { self.options.job_ttl };
        let small = frames.last().is_some_and(|last| last.seq < SMALL_LOG);
        let mut call = self.scripts.conclude.prepare_invoke();
        call.key(self.keys.job(attempt.job))
            .key(self.keys.log(attempt.job))
            .arg(attempt.fence)
            .arg(state)
            .arg(millis(ttl))
            .arg(delay)
            .arg(u8::from(over && small))
            .arg(fields.len() * 2);
        for (field, value) in fields {
            call.arg(field).arg(value);
        }
        for frame in frames {
            call.arg(frame.seq).arg(frame.kind).arg(&frame.bytes);
        }
        match self.pool.script_within(attempt.session, &call).await? {
            Some(reply) => written(reply, "conclude"),
            None => Ok(Written::Behind),
        }
    }

    async fn refuse(&self, entry: &Entry, error: &Failure, frame: &Frame) -> Result<Begin> {
        let failure = failure_text(error);
        let reply = self.open_fence(entry, (frame.kind, &frame.bytes), "", &failure).await?;
        verdict(reply, |fence, number, failures| Attempt {
            job: entry.id,
            place: entry.place.clone(),
            worker: crate::broker::WorkerId::new("none"),
            fence,
            number,
            failures,
            session: 0,
        })
    }

    async fn remove(&self, places: &[Place]) -> Result<()> {
        let mut lanes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for place in places {
            let key = self.keys.lane(&place.partition, place.lane);
            lanes.entry(key).or_default().push(&place.entry);
        }
        let mut pipe = redis::pipe();
        for (key, entries) in &lanes {
            pipe.cmd("XACK").arg(key).arg(GROUP).arg(entries);
            pipe.cmd("XDEL").arg(key).arg(entries);
        }
        if lanes.is_empty() {
            return Ok(());
        }
        for reply in self.pool.pipeline(&mut pipe).await? {
            reply.map_err(|e| self.pool.connector().classify(e))?;
        }
        Ok(())
    }

    async fn park(&self, entry: &Entry, attempt: u32, due: Timestamp) -> Result<bool> {
        let Place { partition, lane, entry: entry_id } = &entry.place;
        let mut stored = format!("{lane} {} {attempt} ", entry.at.0).into_bytes();
        stored.extend_from_slice(entry.payload());
        let mut call = self.scripts.park.prepare_invoke();
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.lane(partition, *lane))
            .arg(entry_id)
            .arg(self.keys.wake(partition))
            .arg(entry.id.to_string())
            .arg(due.0)
            .arg(stored);
        codec::read(self.pool.script(&call).await?, "park")
    }

    async fn release(
        &self,
        worker: &WorkerId,
        place: &Place,
        attempt: Option<&Attempt>,
    ) -> Result<bool> {
        self.give_back(worker, place, attempt).await
    }

    async fn bury(&self, entry: &Entry, letter: &DeadLetter) -> Result<bool> {
        let Place { partition, lane, entry: entry_id } = &entry.place;
        let mut call = self.scripts.bury.prepare_invoke();
        call.key(self.keys.lane(partition, *lane))
            .key(self.keys.dead(partition))
            .arg(entry_id)
            .arg(self.options.dead_max)
            .arg(millis(self.options.dead_ttl))
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
            .arg(letter.lane.as_str());
        if letter.fields.len() > MANY_FIELDS {
            call.arg(PACKED_FIELDS).arg(codec::pack(&letter.fields));
        } else {
            for (field, value) in &letter.fields {
                let mut name = b"entry:".to_vec();
                name.extend_from_slice(field);
                call.arg(name).arg(value);
            }
        }
        codec::read(self.pool.script(&call).await?, "bury")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn an_outcome_leaves_its_fields() {
        let done = Outcome::Done { finish_reason: Some("stop".to_owned()), usage: None };
        let (state, _, fields) = effects(&done);
        assert_eq!((state, fields[0].clone()), ("done", ("finish_reason", "stop".to_owned())));
        assert_eq!(fields.len(), 2);
        let error = Failure::new(Code::Timeout, "slow");
        let retry = Outcome::Retry { error, delay: std::time::Duration::from_secs(1) };
        let (state, delay, fields) = effects(&retry);
        assert_eq!((state, delay, fields[0].0), ("parked", 1000, "error"));
    }
}
