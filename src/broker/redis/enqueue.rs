//! Adding jobs, and trimming what settling left behind.
//!
//! The `XADD` is the commit point: the entry carries everything. The record's immutable fields
//! follow in the same pipeline, or in a script behind it where the job has an idempotency key; state, attempt
//! and fence are written by job-slot scripts only.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::future::join_all;
use redis::{RedisError, Value};

use super::{Redis, codec, millis, reconcile::STEP, short};
use crate::{
    broker::{Enqueue, Error, Partition, Receipt, Result, Submission, Wake, proof},
    job::{Job, JobId, Lane, Timestamp},
};

/// How long an ID stays reserved where the producer dies between reserving it and the queue's answer.
/// The record of what is accepted is then kept for its whole time.
const RESERVED: Duration = Duration::from_hours(1);

/// The place of a job that waits for its time.
pub(super) const PARKED: &str = "parked";

/// How long an ID stays reserved for a job that a full queue has refused.
const REFUSED: Duration = Duration::from_secs(5);

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

/// When each partition was last told of new jobs.
pub(super) type Wakes = Mutex<HashMap<Partition, Instant>>;

/// Whoever hears of a job looks one sweep later; what is added in between is seen by then.
const WAKE_AGAIN: Duration = Duration::from_millis(500);

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
    /// A job's own time to live, and its schedule on top.
    pub(super) fn ttl(&self, job: &Job, now: Timestamp) -> u64 {
        let ahead = job.not_before.map_or(0, |due| due.0.saturating_sub(now.0));
        millis(self.options.job_ttl).saturating_add(ahead)
    }

    /// Reserves the ID of a submission with an idempotency key for its request.
    async fn reserve(&self, submission: &Submission, now: Timestamp) -> Step {
        let fingerprint = submission.job.request.fingerprint();
        let ttl = self.ttl(&submission.job, now);
        let ttl = if self.options.limits.is_off() { ttl } else { ttl.min(millis(RESERVED)) };
        let mut call = self.scripts.reserve.prepare_invoke();
        call.key(self.keys.job(submission.id)).arg(&fingerprint).arg(ttl);
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
    async fn withdraw(&self, batch: &[&Submission], answers: &[Result<bool>]) {
        let refused = batch.iter().zip(answers).filter(|(submission, answer)| {
            submission.job.idempotency_key.is_some() && matches!(answer, Err(Error::Full { .. }))
        });
        let withdrawn = join_all(refused.map(async |(submission, _)| {
            let mut call = self.scripts.withdraw.key(self.keys.job(submission.id));
            call.arg(submission.job.request.fingerprint()).arg(millis(REFUSED));
            self.pool.script(&call).await
        }));
        if let Some(error) = withdrawn.await.into_iter().find_map(Result::err) {
            tracing::debug!(%error, "keys of refused jobs stay reserved for up to an hour");
        }
    }

    /// Parks a submission until its time.
    async fn schedule(
        &self,
        submission: &Submission,
        due: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        let Submission { id, job, payload, partition } = submission;
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
        self.pool.script(&call).await?;
        if job.idempotency_key.is_some() {
            return self.accept(submission, PARKED, now).await;
        }
        let mut pipe = redis::pipe();
        self.write_record(&mut pipe, submission, now);
        self.pool.pipeline(&mut pipe).await.map(drop)
    }

    /// Writes the record of a job without a key.
    pub(super) fn write_record(
        &self,
        pipe: &mut redis::Pipeline,
        submission: &Submission,
        now: Timestamp,
    ) {
        let Submission { id, job, payload, partition } = submission;
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

    /// Adds submissions to their lanes in one pipeline; none is parked.
    async fn add(&self, batch: &[&Submission], now: Timestamp) -> Vec<Result<bool>> {
        let mut pipe = redis::pipe();
        for submission in batch {
            let Submission { id, job, payload, partition } = submission;
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
        let replies = match self.pool.pipeline_once(&mut pipe).await {
            Ok(replies) => replies,
            Err(error) => return refuse_all(batch.len(), &error),
        };
        self.have_woken(told);
        let results: Vec<_> = replies.into_iter().map(|reply| self.added(reply)).collect();
        let keyed = batch.iter().zip(&results).filter_map(|(submission, entry)| {
            let entry = entry.as_ref().ok().filter(|_| submission.job.idempotency_key.is_some())?;
            Some(self.accept(submission, entry, now))
        });
        if let Some(error) = join_all(keyed).await.into_iter().find_map(Result::err) {
            tracing::warn!(%error, "records not written; a repeat under a key may add its job again");
        }
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
        batch: &[&Submission],
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

    /// Writes the record of a job with a key, whose entry or parked copy is there: from then on a repeat does
    /// not add it again. Should this be lost, the repeat adds a second entry, and begin drops it. The record
    /// has the time of its reservation, or a few seconds where another producer was refused under the same
    /// key meanwhile; here it is given its own.
    pub(super) async fn accept(
        &self,
        submission: &Submission,
        place: &str,
        now: Timestamp,
    ) -> Result<()> {
        let Submission { id, job, payload, partition } = submission;
        let mut call = self.scripts.accept.key(self.keys.job(*id));
        call.arg(self.ttl(job, now)).arg(place).arg(job.request.fingerprint());
        for (field, value) in record_fields(partition, job.lane, now, job, payload) {
            call.arg(&*field).arg(value);
        }
        self.pool.script(&call).await.map(drop)
    }
}

/// One error for a whole batch: nothing is known of any of its jobs.
pub(super) fn refuse_all<T>(count: usize, error: &Error) -> Vec<Result<T>> {
    (0..count).map(|_| Err(copy(error))).collect()
}

/// The same error once more, without its source.
fn copy(error: &Error) -> Error {
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
        let mut steps: Vec<Step> = jobs.iter().map(|_| Step::Add).collect();
        let keyed = jobs.iter().zip(&mut steps).filter(|(s, _)| s.job.idempotency_key.is_some());
        join_all(keyed.map(async |(submission, step)| *step = self.reserve(submission, now).await))
            .await;
        drop_repeats(jobs, &mut steps);
        for (submission, step) in jobs.iter().zip(&mut steps) {
            if let (Step::Add, Some(due), false) = (&step, submission.job.not_before, is_bounded)
                && due > now
            {
                let parked = self.schedule(submission, due, now).await;
                let receipt = Receipt { id: submission.id, parked: true, duplicate: false };
                *step = Step::Answered(parked.map(|()| receipt));
            }
        }
        let to_add: Vec<&Submission> = jobs
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
