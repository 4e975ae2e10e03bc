//! Submissions on their way in, their records, and what becomes of one whose server goes away between the two
//! steps of its enqueue.
//!
//! The first step adds the entry, the second writes the record, or what is left of it. A server that dies in
//! between may come back without the entry. The second step alone would then leave a record of a job that is
//! nowhere, under a key that says of every repeat that it is a duplicate. So it is sent on the connection on
//! which the first was answered; where that is cut, the server is asked first whether it still knows of the
//! entry.

use std::{collections::HashSet, ops::Deref};

use futures_util::future::join_all;
use redis::Value;

use super::{Redis, millis, pool::Pooled, short};
use crate::{
    broker::{Error, Partition, Result, Submission, proof},
    job::{Job, Lane, Timestamp},
};

/// A submission, and the fingerprint of its request where it has an idempotency key: made once, for it takes
/// as long as the request is large.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    submission: &'a Submission,
    pub(super) fingerprint: Option<String>,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(submission: &'a Submission) -> Self {
        let job = &submission.job;
        let fingerprint = job.idempotency_key.as_ref().map(|_| job.request.fingerprint());
        Self { submission, fingerprint }
    }
}

impl Deref for Incoming<'_> {
    type Target = Submission;

    fn deref(&self) -> &Submission {
        self.submission
    }
}

/// Where an entry was added: what the scripts say of a job that was parked, else the entry's ID.
pub(super) const PARKED: &str = "parked";

/// Which records are left to be written once the entries are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Those of jobs with a key: the others went with the entries.
    Keyed,
    /// All, and nobody was woken for the entries.
    All,
}

/// The record's immutable fields, which are also what begin writes for a job without a record.
pub(super) fn record_fields(
    partition: &Partition,
    lane: Lane,
    at: Timestamp,
    job: &Job,
    payload: &[u8],
) -> Vec<short::Field> {
    let mut fields = vec![
        ("sum".into(), proof::sum(payload)),
        ("queue".into(), partition.to_string()),
        ("lane".into(), lane.to_string()),
        ("tenant".into(), job.tenant.to_string()),
        ("at".into(), at.0.to_string()),
    ];
    short::put(&mut fields, "model", job.request.model_name());
    if let Some(custom_id) = &job.custom_id {
        short::put(&mut fields, "custom_id", custom_id.clone());
    }
    if !job.labels.is_empty()
        && let Ok(labels) = serde_json::to_string(&job.labels)
    {
        short::put(&mut fields, "labels", labels);
    }
    if let Some(due) = job.not_before {
        fields.push(("not_before".into(), due.0.to_string()));
    }
    fields
}

/// One error for a whole batch: nothing is known of any of its jobs.
pub(super) fn refuse_all<T>(count: usize, error: &Error) -> Vec<Result<T>> {
    (0..count).map(|_| Err(copy(error))).collect()
}

/// The same error once more, without its source.
pub(super) fn copy(error: &Error) -> Error {
    match error {
        Error::Trouble { kind, message, .. } => {
            Error::Trouble { kind: *kind, message: message.clone(), source: None }
        }
        Error::Protocol(text) => Error::Protocol(text.clone()),
        Error::Conflict { id } => Error::Conflict { id: *id },
        Error::Full { message, retry_after } => {
            Error::Full { message: message.clone(), retry_after: *retry_after }
        }
        Error::Unavailable { message, .. } => {
            Error::Unavailable { message: message.clone(), source: None }
        }
        other => Error::Unavailable { message: other.to_string(), source: None },
    }
}

/// Whether a look has found anything: an entry, a parked job, or the state of one that has begun since.
fn is_there(value: &Value) -> bool {
    match value {
        Value::Array(found) => !found.is_empty(),
        Value::Int(found) => *found != 0,
        _ => false,
    }
}

impl Redis {
    /// A job's own time to live, and its schedule on top.
    pub(super) fn ttl(&self, job: &Job, now: Timestamp) -> u64 {
        let begins = job.not_before.map(|due| due.min(Timestamp::MAX));
        let ahead = begins.map_or(0, |due| due.0.saturating_sub(now.0));
        millis(self.options.job_ttl).saturating_add(ahead)
    }

    /// Writes the record of a job without a key.
    pub(super) fn write_record(
        &self,
        pipe: &mut redis::Pipeline,
        submission: &Incoming<'_>,
        now: Timestamp,
    ) {
        let Submission { id, job, payload, partition } = &**submission;
        let key = self.keys.job(*id);
        let record = pipe.cmd("HSET").arg(&key);
        for (field, value) in record_fields(partition, job.lane, now, job, payload) {
            record.arg(&*field).arg(value);
        }
        record.ignore();
        // A record that has a time already is one of a job that has begun, and may have ended: its
        // producer was slow.
        pipe.cmd("PEXPIRE").arg(&key).arg(self.ttl(job, now)).arg("NX").ignore();
    }

    /// Writes the records of what was added on this connection. The jobs are in the queue whatever becomes of this:
    /// begin writes a record that is missing, and a repeat under a key adds a second entry, which begin drops.
    /// Of jobs that the server has forgotten none is written.
    pub(super) async fn write_records(
        &self,
        batch: &[&Incoming<'_>],
        places: &mut [Result<String>],
        (now, rest): (Timestamp, Rest),
        mut connection: Pooled,
    ) {
        loop {
            match self.write_records_via(&connection, batch, places, (now, rest)).await {
                Ok(true) => return,
                Ok(false) => match self.look_again(batch, places).await {
                    Some(another) => connection = another,
                    None => return,
                },
                Err(error) => {
                    tracing::warn!(%error, "records not written; a repeat under a key may add its job again");
                    return;
                }
            }
        }
    }

    /// One try of it: `false` where the connection is cut.
    pub(super) async fn write_records_via(
        &self,
        connection: &Pooled,
        batch: &[&Incoming<'_>],
        places: &[Result<String>],
        (now, rest): (Timestamp, Rest),
    ) -> Result<bool> {
        let (mut pipe, mut keyed, mut added) = (redis::pipe(), Vec::new(), Vec::new());
        for (submission, place) in batch.iter().zip(places) {
            let Ok(place) = place else { continue };
            if place != PARKED {
                added.push(*submission);
            }
            match &submission.fingerprint {
                Some(fingerprint) => {
                    keyed.push(self.accept(connection, submission, (place, fingerprint), now));
                }
                None if rest == Rest::All => self.write_record(&mut pipe, submission, now),
                None => {}
            }
        }
        let told = match rest {
            Rest::All => self.wake_some(&mut pipe, &added),
            Rest::Keyed => HashSet::new(),
        };
        let plain = async {
            if pipe.is_empty() {
                return Ok(true);
            }
            Ok(self.pool.pipeline_via(connection, &mut pipe).await?.is_some())
        };
        let (plain, keyed): (Result<bool>, Vec<Result<bool>>) =
            tokio::join!(plain, join_all(keyed));
        if matches!(plain, Ok(true)) {
            self.have_woken(told);
        }
        keyed.into_iter().try_fold(plain?, |all, one| Ok(all && one?))
    }

    /// Writes the record of a job with a key, whose entry or parked copy is there: from then on a repeat does
    /// not add it again. The record has the time of its reservation, or a few seconds where another producer
    /// was refused under the same key meanwhile; here it is given its own. `false` where the connection is cut.
    async fn accept(
        &self,
        connection: &Pooled,
        submission: &Incoming<'_>,
        (place, fingerprint): (&str, &str),
        now: Timestamp,
    ) -> Result<bool> {
        let Submission { id, job, payload, partition } = &**submission;
        let mut call = self.scripts.accept.key(self.keys.job(*id));
        call.arg(self.ttl(job, now)).arg(place).arg(fingerprint);
        for (field, value) in record_fields(partition, job.lane, now, job, payload) {
            call.arg(&*field).arg(value);
        }
        Ok(self.pool.script_via(connection, &call).await?.is_some())
    }

    /// Looks which of these jobs the server still knows, and gives the connection on which it was asked. Of the
    /// others the place becomes an error: whoever enqueues such a job again adds it. `None` where nothing is
    /// known of any.
    async fn look_again(
        &self,
        batch: &[&Incoming<'_>],
        places: &mut [Result<String>],
    ) -> Option<Pooled> {
        let mut pipe = redis::pipe();
        let mut asked = Vec::new();
        for (incoming, place) in batch.iter().zip(places) {
            let Ok(entry) = &place else { continue };
            if entry == PARKED {
                pipe.hexists(self.keys.parked_jobs(&incoming.partition), incoming.id.to_string());
            } else {
                let lane = self.keys.lane(&incoming.partition, incoming.job.lane);
                pipe.cmd("XRANGE").arg(lane).arg(entry).arg(entry);
            }
            pipe.hexists(self.keys.job(incoming.id), "state");
            asked.push(place);
        }
        let looked = async {
            let connection = self.pool.alive().await?;
            let replies = self.pool.pipeline_via(&connection, &mut pipe).await?.ok_or_else(cut)?;
            Ok((replies, connection))
        };
        match looked.await {
            Ok((replies, connection)) => {
                for (place, found) in asked.into_iter().zip(replies.chunks(2)) {
                    if !found.iter().flatten().any(is_there) {
                        *place = Err(forgotten());
                    }
                }
                Some(connection)
            }
            Err(error) => {
                for place in asked {
                    *place = Err(copy(&error));
                }
                None
            }
        }
    }
}

/// Nothing is known of a job whose connection was cut once more.
pub(super) fn cut() -> Error {
    let message = "the connection was cut again and again while the job was enqueued";
    Error::Unavailable { message: message.to_owned(), source: None }
}

fn forgotten() -> Error {
    let message = "Redis was restarted while the job was enqueued, and has forgotten it; enqueue it \
                   again";
    Error::Unavailable { message: message.to_owned(), source: None }
}
