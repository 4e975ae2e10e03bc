//! The same request twice.
//!
//! `OpenAI`'s clients repeat a request whose answer was lost, and send no idempotency key. Where a window is
//! configured, a request that equals an earlier one of the same API key within that time gets the same job. The
//! idempotency key is made of the API key, the request's fingerprint and the window's number, and no client can find
//! it without the gateway's secret; of the window before, a job that is younger
//! than one window still counts. A failure is an answer as well: the queue has tried as often as it does, and a
//! client that repeats what has failed is told the same, for a shorter time where time may help. A cancelled job is
//! no answer: another one follows it.

use std::time::Duration;

use crate::{
    broker::Record,
    error::Code,
    gateway::{app::App, auth::Caller, error::Refusal},
    job::{ChatRequest, JobId, Timestamp},
    state::State,
};

/// Jobs of one window that may have failed before the last of them is taken as it is.
const TRIES: u32 = 16;

/// How long a failure that may pass is an answer: as long as clients go on repeating by themselves.
const PASSING: Duration = Duration::from_secs(60);

/// How long a limit is one where the upstream does not tell.
const LIMITED: Duration = Duration::from_secs(1);

/// The idempotency key of this request.
pub(super) async fn key(
    app: &App,
    caller: &Caller,
    request: &ChatRequest,
) -> Result<String, Refusal> {
    let window = millis(app.options.dedupe).max(1);
    let (now, print) = (Timestamp::now(), request.fingerprint());
    // Another key of the same name is another one.
    let (owner, hash) = (caller.key.as_deref().unwrap_or_default(), &caller.hash);
    let number = now.0 / window;
    let mut key = String::new();
    for number in [number.saturating_sub(1), number] {
        for attempt in 0..TRIES {
            let text = format!("{owner}:{hash}:{number}:{attempt}:{print}");
            key = format!("same:{}", app.keys.signer().name(&text));
            let id = JobId::from_key(&caller.tenant, &key);
            let Some(record) = app.noticed(app.broker.job(id).await)? else { break };
            if counts(&record, window, now) {
                return Ok(key);
            }
        }
    }
    Ok(key)
}

/// Whether a job is still the answer to its request.
fn counts(record: &Record, window: u64, now: Timestamp) -> bool {
    let lasts = |from: Timestamp, time: u64| from.0.saturating_add(time) > now.0;
    let young = record.enqueued_at.is_some_and(|at| lasts(at, window));
    match (record.state, &record.error) {
        (State::Cancelled, _) => false,
        // An operator mends a key while clients ask again.
        (State::Failed, Some(error))
            if error.code.is_transient()
                || matches!(error.code, Code::UpstreamAuth | Code::Expired) =>
        {
            let wait = if error.code == Code::RateLimited {
                error.retry_after().unwrap_or(LIMITED).max(LIMITED)
            } else {
                PASSING
            };
            young && record.ended_at.is_some_and(|at| lasts(at, millis(wait)))
        }
        _ => young,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
