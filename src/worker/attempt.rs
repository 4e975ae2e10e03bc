//! Runs an attempt: from the call of the upstream to the last event, and what that means for its job.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    Context,
    generate::{End, Ended, Generation},
    hands::Hold,
    owed::{Owed, Step},
    publish::{Over, Publisher},
};
use crate::{
    broker::{Attempt, Entry, Outcome},
    error::Failure,
    event::{Body, Cancelled, Done, Failed, Retrying},
    job::Job,
};

/// Runs an attempt from the call to its last event.
pub(super) async fn run(
    context: &Context,
    entry: &Entry,
    job: &Job,
    hold: &Hold<'_>,
    attempt: Attempt,
) -> Owed {
    let (fence, number, failures) = (attempt.fence, attempt.number, attempt.failures);
    let options = &context.options;
    let publisher = Publisher::new(
        context.broker.clone(),
        entry,
        attempt,
        options.codec,
        options.buffer_bytes,
        context.abandon.clone(),
    );
    let result = match publisher {
        Ok(publisher) => Generation::new(context, job, &hold.stop, publisher).run().await,
        Err(over) => Err(over),
    };
    let (mut ended, mut publisher) = match result {
        Ok(ended) => ended,
        Err(over) => return given_up(context, entry, &over),
    };
    let mut chunk = ended.chunk.take().map(Body::Delta);
    let outcome = loop {
        let (last, outcome) = ending(context, entry, job, (number, failures), &ended);
        match publisher.conclude(chunk.take(), &last, &outcome).await {
            Ok(()) => break outcome,
            // The wish came between the end of the answer and its writing.
            Err(Over::Cancelled) => ended.end = End::Cancelled,
            Err(over) => return given_up(context, entry, &over),
        }
    };
    context.finished.fetch_add(1, Ordering::Relaxed);
    let step = match outcome {
        Outcome::Done { .. } | Outcome::Cancelled { .. } => Step::Remove { by_attempt: true },
        Outcome::Failed(error) => {
            tell(entry, number, &error);
            Step::Bury { error, attempts: number, fence, told: false }
        }
        Outcome::Retry { error, .. } => {
            tell(entry, number, &error);
            tracing::info!(job = %entry.id, code = %error.code, attempt = number, "retrying");
            Step::Park { attempt: number, due: None }
        }
    };
    Owed::Step(step, publisher.session())
}

/// Tells the operator what the job's owner is not told.
fn tell(entry: &Entry, attempt: u32, error: &Failure) {
    if let Some(detail) = &error.detail {
        let (job, code, status) = (entry.id, error.code, error.status);
        tracing::warn!(%job, %code, status, attempt, detail, "the model's endpoint failed");
    }
}

fn given_up(context: &Context, entry: &Entry, over: &Over) -> Owed {
    tracing::warn!(job = %entry.id, reason = %over, "attempt given up");
    match over {
        Over::Fenced => {
            context.fenced.fetch_add(1, Ordering::Relaxed);
            Owed::Nothing
        }
        Over::Lost => Owed::Again,
        Over::Abandoned | Over::Cancelled | Over::Unspeakable(_) => Owed::Unfinished,
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
    let usage = summary.usage.as_ref().map(ToString::to_string);
    match &ended.end {
        End::Whole => {
            let done = Done {
                finish_reason: ended.finish_reason.clone(),
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
            let outcome = Outcome::Done { finish_reason: ended.finish_reason.clone(), usage };
            (Body::Done(done), outcome)
        }
        End::Cancelled => {
            let usage_seen = summary.usage.clone();
            let data = Cancelled { attempts: number, usage: usage_seen, custom_id, labels };
            (Body::Cancelled(data), Outcome::Cancelled { usage })
        }
        End::Failed(error) => {
            let schedule = &context.options.retry;
            let most = job.max_attempts.unwrap_or(schedule.max_attempts);
            let error = error.clone();
            if error.code.is_transient() && failures + 1 < most {
                let delay = schedule.delay(failures + 1, error.retry_after());
                let delay_ms = millis(delay);
                let data = Retrying { error: error.clone(), attempt: number, delay_ms };
                return (Body::Retrying(data), Outcome::Retry { error, delay });
            }
            let data = Failed { error: error.clone(), attempts: number, custom_id, labels };
            (Body::Failed(data), Outcome::Failed(error))
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
