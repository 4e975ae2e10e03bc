//! Adding jobs, and trimming what settling left behind.
//!
//! The `XADD` is the commit point: the entry carries everything. The record's immutable fields
//! follow in the same pipeline, or in a second step where the job has an idempotency key, for which see
//! `incoming`; state, attempt and fence are written by job-slot scripts only.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::future::join_all;
use redis::{RedisError, Value};

use super::{
    Redis, codec,
    incoming::{Incoming, PARKED, Rest, copy, cut, refuse_all},
    millis,
    reconcile::STEP,
};
use crate::{
    broker::{Enqueue, Error, Partition, Receipt, Result, Submission, Wake},
    job::{JobId, Lane, Timestamp},
};

/// How long an ID stays reserved where the producer dies between reserving it and the queue's answer.
/// The record of what is accepted is then kept for its whole time.
const RESERVED: Duration = Duration::from_hours(1);

/// How long an ID stays reserved for a job that a full queue has refused.
const REFUSED: Duration = Duration::from_secs(5);

/// When each partition was last told of new jobs.
pub(super) type Wakes = Mutex<HashMap<Partition, Instant>>;

/// Whoever hears of a job looks one sweep later; what is added in between is seen by then.
const WAKE_AGAIN: Duration = Duration::from_millis(500);

/// How often a job is parked where its connection is cut before its record is written.
const TRIES: usize = 3;

/// Most steps of one trim, which a producer waits for; the next goes on.
const TRIM_STEPS: usize = 16;

/// Where each submission of a batch stands.
enum Step {
    /// To be added.
    Add,
    /// Settled already: there before, refused or unreachable.
    Answered(Result<Receipt>),
    /// The same job as an earlier one of the batch, whose result is its own.
    Repeat(usize),
}

impl Redis {
    /// Reserves the ID of a submission with an idempotency key for its request.
    async fn reserve(&self, submission: &Incoming<'_>, fingerprint: &str, now: Timestamp) -> Step {
        let ttl = self.ttl(&submission.job, now);
        let ttl = if self.options.limits.is_off() { ttl } else { ttl.min(millis(RESERVED)) };
        let mut call = self.scripts.reserve.prepare_invoke();
        call.key(self.keys.job(submission.id)).arg(fingerprint).arg(ttl);
        let reply = self.pool.script(&call).await;
        let reply: Result<(String, bool, String)> =
            reply.and_then(|value| codec::read(value, "reserve"));
        match reply {
            Err(error) => Step::Answered(Err(error)),
            Ok((held, ..)) if held != fingerprint => {
                Step::Answered(Err(Error::Conflict { id: submission.id }))
            }
            Ok((_, true, due)) => Step::Answered(Ok(Receipt {
                id: submission.id,
                parked: due.parse().is_ok_and(|due: u64| due > now.0),
                duplicate: true,
            })),
            Ok((_, false, _)) => Step::Add,
        }
    }

    /// Withdraws the reservations of what a full queue has refused. Where this fails they run out later.
    async fn withdraw(&self, batch: &[&Incoming<'_>], answers: &[Result<bool>]) {
        let refused = batch.iter().zip(answers).filter_map(|(submission, answer)| {
            let fingerprint = submission.fingerprint.as_ref()?;
            matches!(answer, Err(Error::Full { .. })).then_some((submission, fingerprint))
        });
        let withdrawn = join_all(refused.map(async |(submission, fingerprint)| {
            let mut call = self.scripts.withdraw.key(self.keys.job(submission.id));
            call.arg(fingerprint).arg(millis(REFUSED));
            self.pool.script(&call).await
        }));
        if let Some(error) = withdrawn.await.into_iter().find_map(Result::err) {
            tracing::debug!(%error, "keys of refused jobs stay reserved for up to an hour");
        }
    }

    /// Parks a submission until its time. Where the server was restarted before the record is written, the
    /// job is parked once more: one that is still there stays as it is.
    async fn schedule(
        &self,
        submission: &Incoming<'_>,
        due: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        let Submission { id, job, payload, partition } = &**submission;
        let mut stored = format!("{} {} 0 ", job.lane, now.0).into_bytes();
        stored.extend_from_slice(payload);
        let mut call = self.scripts.schedule.prepare_invoke();
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.lane(partition, job.lane))
            .key(self.keys.load(partition))
            .arg("")
            .arg(self.keys.wake(partition))
            .arg(id.to_string())
            .arg(due.0)
            .arg(stored);
        let (incoming, places) = ([submission], [Ok(PARKED.to_owned())]);
        for _ in 0..TRIES {
            let connection = self.pool.alive().await?;
            if self.pool.script_via(&connection, &call).await?.is_some()
                && self.write_records_via(&connection, &incoming, &places, (now, Rest::All)).await?
            {
                return Ok(());
            }
        }
        Err(cut())
    }

    /// Adds submissions to their lanes in one pipeline; none is parked.
    async fn add(&self, batch: &[&Incoming<'_>], now: Timestamp) -> Vec<Result<bool>> {
        let mut pipe = redis::pipe();
        for submission in batch {
            let Submission { id, job, payload, partition } = &***submission;
            pipe.cmd("XADD")
                .arg(self.keys.lane(partition, job.lane))
                .arg("*")
                .arg("job")
                .arg(payload)
                .arg("id")
                .arg(id.to_string())
                .arg("at")
                .arg(now.0)
                .arg("attempt")
                .arg(0);
            if job.idempotency_key.is_none() {
                self.write_record(&mut pipe, submission, now);
            }
        }
        let told = self.wake_some(&mut pipe, batch);
        let (replies, connection) = match self.pool.pipeline_once(&mut pipe).await {
            Ok(answered) => answered,
            Err(error) => return refuse_all(batch.len(), &error),
        };
        self.have_woken(told);
        let mut results: Vec<_> = replies.into_iter().map(|reply| self.added(reply)).collect();
        self.write_records(batch, &mut results, (now, Rest::Keyed), connection).await;
        results.into_iter().map(|result| result.map(|_| false)).collect()
    }

    fn woken(&self) -> std::sync::MutexGuard<'_, HashMap<Partition, Instant>> {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the sweepers of partitions that were not woken just now: should the worker that is
    /// given a job die before it says a word, somebody looks.
    pub(super) fn wake_some(
        &self,
        pipe: &mut redis::Pipeline,
        batch: &[&Incoming<'_>],
    ) -> HashSet<Partition> {
        let woken = self.woken();
        let due = |partition: &Partition| {
            woken.get(partition).is_none_or(|at| at.elapsed() >= WAKE_AGAIN)
        };
        let partitions = batch.iter().map(|submission| &submission.partition);
        let told: HashSet<Partition> = partitions.filter(|p| due(p)).cloned().collect();
        for partition in &told {
            pipe.publish(self.keys.wake(partition), Wake::Added.as_str()).ignore();
        }
        told
    }

    pub(super) fn have_woken(&self, told: HashSet<Partition>) {
        self.woken().extend(told.into_iter().map(|partition| (partition, Instant::now())));
    }

    fn added(&self, reply: std::result::Result<Value, RedisError>) -> Result<String> {
        let value = reply.map_err(|e| self.pool.connector().classify(e))?;
        codec::read(value, "XADD")
    }
}

/// The result of a job that the batch holds a second time.
fn repeated(first: &Result<Receipt>) -> Result<Receipt> {
    match first {
        Ok(receipt) => Ok(Receipt { duplicate: true, ..*receipt }),
        Err(error) => Err(copy(error)),
    }
}

#[async_trait]
impl Enqueue for Redis {
    async fn enqueue(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.take_in(jobs, false).await
    }

    async fn enqueue_in_order(&self, jobs: &[Submission]) -> Vec<Result<Receipt>> {
        self.take_in(jobs, true).await
    }

    async fn trim(&self, partition: &Partition, lane: Lane) -> Result<u64> {
        let mut call = self.scripts.trim.key(self.keys.lane(partition, lane));
        call.key(self.keys.load(partition)).arg(STEP.0).arg(STEP.1);
        let mut removed = 0;
        for _ in 0..TRIM_STEPS {
            let (more, goes_on): (u64, bool) = codec::read(self.pool.script(&call).await?, "trim")?;
            removed += more;
            if !goes_on {
                break;
            }
        }
        Ok(removed)
    }
}

impl Redis {
    async fn take_in(&self, jobs: &[Submission], in_order: bool) -> Vec<Result<Receipt>> {
        let now = Timestamp::now();
        let is_bounded = !self.options.limits.is_off();
        let incoming: Vec<Incoming<'_>> = jobs.iter().map(Incoming::new).collect();
        let mut steps: Vec<Step> = jobs.iter().map(|_| Step::Add).collect();
        join_all(incoming.iter().zip(&mut steps).map(async |(submission, step)| {
            if let Some(fingerprint) = &submission.fingerprint {
                *step = self.reserve(submission, fingerprint, now).await;
            }
        }))
        .await;
        drop_repeats(jobs, &mut steps);
        for (submission, step) in incoming.iter().zip(&mut steps) {
            if let (Step::Add, Some(due), false) = (&step, submission.job.not_before, is_bounded)
                && due > now
            {
                let parked = self.schedule(submission, due, now).await;
                let receipt = Receipt { id: submission.id, parked: true, duplicate: false };
                *step = Step::Answered(parked.map(|()| receipt));
            }
        }
        let to_add: Vec<&Incoming<'_>> = incoming
            .iter()
            .zip(&steps)
            .filter_map(|(submission, step)| matches!(step, Step::Add).then_some(submission))
            .collect();
        let added = match is_bounded {
            _ if to_add.is_empty() => Vec::new(),
            true => {
                let answers = self.admit_all(&to_add, now, in_order).await;
                self.withdraw(&to_add, &answers).await;
                answers
            }
            false => self.add(&to_add, now).await,
        };
        let mut added = added.into_iter();
        let mut results: Vec<Result<Receipt>> = Vec::with_capacity(jobs.len());
        for (submission, step) in jobs.iter().zip(steps) {
            let result = match step {
                Step::Answered(result) => result,
                Step::Repeat(first) => repeated(&results[first]),
                Step::Add => added
                    .next()
                    .unwrap_or_else(|| Err(Error::Protocol("a reply is missing".to_owned())))
                    .map(|parked| Receipt { id: submission.id, parked, duplicate: false }),
            };
            results.push(result);
        }
        results
    }
}

/// Two submissions of one batch under the same key are one job: the second is a duplicate.
fn drop_repeats(jobs: &[Submission], steps: &mut [Step]) {
    let mut first: HashMap<JobId, usize> = HashMap::new();
    for (index, submission) in jobs.iter().enumerate() {
        if submission.job.idempotency_key.is_none() || !matches!(steps[index], Step::Add) {
            continue;
        }
        match first.entry(submission.id) {
            Entry::Occupied(first) => steps[index] = Step::Repeat(*first.get()),
            Entry::Vacant(slot) => {
                slot.insert(index);
            }
        }
    }
}
