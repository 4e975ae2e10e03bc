//! Adding jobs within the limits of their queues.
//!
//! One script per step of a batch and partition decides, adds and counts, so that producers at work
//! together never pass a bound. Only of what it has accepted are the records written, in a pipeline behind it.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::{
    Redis, codec,
    incoming::{Incoming, PARKED, Rest, refuse_all},
};
use crate::{
    broker::{
        Error, Partition, Result, Submission,
        limits::{Met, behind},
    },
    job::Timestamp,
};

/// Where the configuration has the limits.
const SECTION: &str = "redis.limits";

/// Most jobs that one script admits, and most bytes of them, which takes it about 5 ms; a larger job is
/// admitted alone.
const STEP: (usize, usize) = (500, 1 << 20);

/// How many submissions one script may admit.
fn one_step(batch: &[&Incoming<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |submission: &&&Incoming<'_>| {
        bytes += submission.payload.len();
        bytes <= STEP.1
    };
    batch.iter().take(STEP.0).take_while(fits).count().max(1)
}

impl Redis {
    /// Adds submissions to their lanes, or parks those whose time lies ahead, as far as the limits
    /// allow; whether each is parked.
    pub(super) async fn admit_all(
        &self,
        batch: &[&Incoming<'_>],
        now: Timestamp,
        in_order: bool,
    ) -> Vec<Result<bool>> {
        let mut groups: BTreeMap<&Partition, Vec<usize>> = BTreeMap::new();
        for (index, submission) in batch.iter().enumerate() {
            groups.entry(&submission.partition).or_default().push(index);
        }
        let answers = join_all(groups.iter().map(async |(partition, indices)| {
            let group: Vec<&Incoming<'_>> = indices.iter().map(|index| batch[*index]).collect();
            self.admit_to(partition, &group, now, in_order).await
        }))
        .await;
        let mut all: Vec<(usize, Result<bool>)> =
            groups.into_values().flatten().zip(answers.into_iter().flatten()).collect();
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn admit_to(
        &self,
        partition: &Partition,
        batch: &[&Incoming<'_>],
        now: Timestamp,
        in_order: bool,
    ) -> Vec<Result<bool>> {
        let mut answers: Vec<Result<bool>> = Vec::with_capacity(batch.len());
        while answers.len() < batch.len() {
            let rest = &batch[answers.len()..];
            let is_full = |answer: &Result<bool>| matches!(answer, Err(Error::Full { .. }));
            if in_order && answers.iter().any(is_full) {
                answers.extend(rest.iter().map(|_| Err(behind(partition))));
            } else if let Some(Err(error)) = answers.last().filter(|last| !is_full(last)) {
                answers.extend(refuse_all(rest.len(), error));
            } else {
                let step = &rest[..one_step(rest)];
                answers.extend(self.admit_some(partition, step, now, in_order).await);
            }
        }
        answers
    }

    async fn admit_some(
        &self,
        partition: &Partition,
        batch: &[&Incoming<'_>],
        now: Timestamp,
        in_order: bool,
    ) -> Vec<Result<bool>> {
        let limits = &self.options.limits;
        let mut call = self.scripts.admit.prepare_invoke();
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.load(partition))
            .arg(self.keys.wake(partition))
            .arg(now.0)
            .arg(limits.max_jobs)
            .arg(limits.max_bytes)
            .arg(limits.max_jobs_per_tenant)
            .arg(u8::from(in_order));
        // What many jobs have in common is sent once.
        let due = |s: &Incoming<'_>| s.job.not_before.filter(|due| *due > now).unwrap_or_default();
        for run in batch.chunk_by(|a, b| {
            (a.job.lane, &a.job.tenant, due(a)) == (b.job.lane, &b.job.tenant, due(b))
        }) {
            let job = &run[0].job;
            call.arg(run.len()).arg(job.lane.as_str()).arg(job.tenant.as_str()).arg(due(run[0]).0);
            for incoming in run {
                let Submission { id, payload, .. } = &***incoming;
                call.arg(id.to_string()).arg(payload);
            }
        }
        let reply = self.pool.script_once(&call).await.and_then(|(value, connection)| {
            Ok((codec::read::<Vec<String>>(value, "admit")?, connection))
        });
        let (replies, connection) = match reply {
            Ok(answered) if answered.0.len() == batch.len() => answered,
            Ok(_) => {
                let error = Error::Protocol("admit: a reply is missing".to_owned());
                return refuse_all(batch.len(), &error);
            }
            Err(error) => return refuse_all(batch.len(), &error),
        };
        let mut places: Vec<Result<String>> = batch
            .iter()
            .zip(replies)
            .map(|(submission, reply)| self.admitted(submission, reply))
            .collect();
        self.write_records(batch, &mut places, (now, Rest::All), connection).await;
        places.into_iter().map(|place| place.map(|place| place == PARKED)).collect()
    }

    /// Where a job went, or why it did not.
    fn admitted(&self, submission: &Submission, reply: String) -> Result<String> {
        let unknown = || Error::Protocol(format!("admit: unknown answer `{reply}`"));
        let met = match reply.split_once(' ') {
            None if reply == "behind" => return Err(behind(&submission.partition)),
            None => return Ok(reply),
            Some((bound, count)) => {
                let count = count.parse().map_err(|_| unknown())?;
                match bound {
                    "jobs" => Met::Jobs(count),
                    "bytes" => Met::Bytes(count),
                    "tenant" => Met::Tenant(count),
                    _ => return Err(unknown()),
                }
            }
        };
        let Submission { partition, job, payload, .. } = submission;
        let asked = (&job.tenant, payload.len() as u64);
        Err(met.full(SECTION, &self.options.limits, partition, asked))
    }
}
