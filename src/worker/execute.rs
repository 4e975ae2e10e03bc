//! Runs one entry: begin, generate, settle.
//!
//! The order of effects is fixed. The record and the log come first, under the fence; then the
//! entry is removed, parked or buried. A worker that dies between the two leaves an entry whose
//! next begin says which second step is owed.

use std::time::Duration;

use super::{
    Context,
    generate::{Ended, Generation},
    publish::{Over, Publisher},
};
use crate::{
    broker::{self, Attempt, Begin, DeadLetter, Entry, Outcome},
    error::{Code, Failure},
    event::{Body, Done, Failed, Frame, Retrying},
    job::{Job, Timestamp},
    retry::Backoff,
};

/// What is left to do with an entry.
#[derive(Debug)]
enum Owed {
    Remove,
    /// Until then, or until the time that the record tells.
    Park {
        attempt: u32,
        due: Option<Timestamp>,
    },
    Bury {
        error: Failure,
        attempts: u32,
        fence: u64,
    },
    /// It belongs to another worker.
    Nothing,
    /// The job has to start again, by this worker.
    Again,
    /// It stays in this worker's hands: the worker stops.
    Unfinished,
}

/// Runs an entry to its end.
pub(super) async fn run(context: &Context, entry: Entry) {
    let mut running = None;
    let owed = loop {
        let owed = match persist(context, "begin", || begin(context, &entry)).await {
            None => Owed::Unfinished,
            Some(Begin::Begun(attempt)) => match &entry.job {
                Ok(job) => {
                    running = Some(attempt.clone());
                    attempt_job(context, &entry, job, attempt).await
                }
                Err(_) => Owed::Unfinished,
            },
            Some(verdict) => owed(verdict),
        };
        if !matches!(owed, Owed::Again) {
            break owed;
        }
    };
    if matches!(owed, Owed::Unfinished) {
        // First, lest a renewal undoes it.
        context.held().remove(&entry.place);
        context.release(&entry.place, entry.id, running.as_ref()).await;
    } else if settle(context, &entry, owed).await {
        context.held().remove(&entry.place);
    }
}

/// Begins a job, or refuses one that cannot be read.
async fn begin(context: &Context, entry: &Entry) -> broker::Result<Begin> {
    let Err(invalid) = &entry.job else {
        return context.broker.begin(entry, &context.id).await;
    };
    // The decoder's words may quote the prompt: they go to the job's own history only.
    tracing::warn!(job = %entry.id, "unreadable entry becomes a dead letter");
    let error = Failure::new(Code::InvalidJob, invalid.to_string());
    let attempts = entry.attempt;
    let body = Body::Failed(Failed {
        error: error.clone(),
        attempts,
        custom_id: None,
        labels: crate::job::Labels::default(),
    });
    let frame = Frame::new(0, &body, context.options.codec)
        .map_err(|e| broker::Error::Protocol(e.to_string()))?;
    context.broker.refuse(entry, &error, &frame).await
}

fn owed(verdict: Begin) -> Owed {
    match verdict {
        Begin::Begun(_) => Owed::Unfinished,
        Begin::Remove => Owed::Remove,
        Begin::Park { attempt, due } => Owed::Park { attempt, due: Some(due) },
        Begin::Bury { error, attempts, fence } => Owed::Bury { error, attempts, fence },
    }
}

/// Repeats a step until the broker takes it; `None` when the worker stops first. One that the
/// broker refuses for good keeps its slot: a worker that cannot settle must not claim the queue dry.
async fn persist<T, F>(context: &Context, step: &str, call: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = broker::Result<T>>,
{
    let mut backoff = Backoff::connecting();
    loop {
        match call().await {
            Ok(value) => return Some(value),
            Err(error) if error.is_transient() => {
                tracing::warn!(step, %error, "trying again");
            }
            Err(error) => tracing::error!(step, %error, "the broker refuses a step; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = context.abandon.cancelled() => return None,
        }
    }
}

/// The second step. Whether it was taken.
async fn settle(context: &Context, entry: &Entry, owed: Owed) -> bool {
    match owed {
        Owed::Nothing | Owed::Again | Owed::Unfinished => true,
        Owed::Remove => context.acks.send(entry.place.clone()).await.is_ok(),
        Owed::Park { attempt, due } => {
            let park = async || {
                let due = match due {
                    Some(due) => due,
                    None => recorded_due(context, entry).await?,
                };
                context.broker.park(entry, attempt, due).await
            };
            persist(context, "park", park).await.is_some()
        }
        Owed::Bury { error, attempts, fence } => {
            tracing::warn!(job = %entry.id, code = %error.code, attempts, "dead letter");
            let letter = DeadLetter::new(entry, error, attempts, fence);
            persist(context, "bury", || context.broker.bury(entry, &letter)).await.is_some()
        }
    }
}

/// When the job may begin again, by the broker's clock.
async fn recorded_due(context: &Context, entry: &Entry) -> broker::Result<Timestamp> {
    let record = context.broker.job(entry.id).await?;
    Ok(record.and_then(|record| record.due).unwrap_or_default())
}

/// Runs an attempt from the call to its last event.
async fn attempt_job(context: &Context, entry: &Entry, job: &Job, attempt: Attempt) -> Owed {
    let (fence, number, failures) = (attempt.fence, attempt.number, attempt.failures);
    let options = &context.options;
    let most = job.max_attempts.unwrap_or(options.retry.max_attempts);
    let publisher = Publisher::new(
        context.broker.clone(),
        attempt,
        options.codec,
        options.buffer_bytes,
        context.abandon.clone(),
    );
    let result = match publisher {
        // More attempts than are allowed begin only where workers died with the earlier ones.
        Ok(publisher) if number > most => Ok((Ended::poison(most), Box::new(publisher))),
        Ok(publisher) => Generation::new(context, job, publisher).run().await,
        Err(over) => Err(over),
    };
    let (ended, mut publisher) = match result {
        Ok(ended) => ended,
        Err(over) => return given_up(entry, &over),
    };
    let (last, outcome) = ending(context, entry, job, (number, failures), &ended);
    let chunk = ended.chunk.map(Body::Delta);
    if let Err(over) = publisher.conclude(chunk, &last, &outcome).await {
        return given_up(entry, &over);
    }
    context.finished.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    match outcome {
        Outcome::Done { .. } => Owed::Remove,
        Outcome::Failed(error) => Owed::Bury { error, attempts: number, fence },
        Outcome::Retry { error, .. } => {
            tracing::info!(job = %entry.id, code = %error.code, attempt = number, "retrying");
            Owed::Park { attempt: number, due: None }
        }
    }
}

fn given_up(entry: &Entry, over: &Over) -> Owed {
    tracing::warn!(job = %entry.id, reason = %over, "attempt given up");
    match over {
        Over::Fenced => Owed::Nothing,
        Over::Lost => Owed::Again,
        Over::Abandoned | Over::Unspeakable(_) => Owed::Unfinished,
    }
}

/// The last event and what it means for the job.
fn ending(
    context: &Context,
    entry: &Entry,
    job: &Job,
    (number, failures): (u32, u32),
    ended: &Ended,
) -> (Body, Outcome) {
    let (custom_id, labels) = (job.custom_id.clone(), job.labels.clone());
    let summary = &ended.summary;
    let Some(error) = ended.failure.clone() else {
        let done = Done {
            finish_reason: summary.finish_reason.clone(),
            usage: summary.usage.clone(),
            model: summary.model.clone(),
            upstream_id: summary.upstream_id.clone(),
            attempts: number,
            ttft_ms: ended.ttft.map(millis),
            run_ms: millis(ended.took),
            enqueued_at: entry.at,
            custom_id,
            labels,
        };
        let usage = summary.usage.as_ref().map(ToString::to_string);
        let outcome = Outcome::Done { finish_reason: summary.finish_reason.clone(), usage };
        return (Body::Done(done), outcome);
    };
    let schedule = &context.options.retry;
    let most = job.max_attempts.unwrap_or(schedule.max_attempts);
    if error.code.is_transient() && number < most {
        let delay = schedule.delay(failures + 1, error.retry_after());
        let data = Retrying { error: error.clone(), attempt: number, delay_ms: millis(delay) };
        return (Body::Retrying(data), Outcome::Retry { error, delay });
    }
    let data = Failed { error: error.clone(), attempts: number, custom_id, labels };
    (Body::Failed(data), Outcome::Failed(error))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
