//! The same request twice.
//!
//! `OpenAI`'s clients repeat a request whose answer was lost, and send no idempotency key. Where a window is
//! configured, a request that equals an earlier one of the same API key within that time gets the same job. The
//! key is made of the request's fingerprint and the window's number; of the window before, a job that is younger
//! than one window still counts. A job that failed or was cancelled is no answer: another one follows it.

use crate::{
    gateway::{app::App, auth::Caller, error::Refusal},
    job::{ChatRequest, JobId, Timestamp},
    state::State,
};

/// Jobs of one window that may have failed before the last of them is taken as it is.
const TRIES: u32 = 16;

/// The idempotency key of this request.
pub(super) async fn key(
    app: &App,
    caller: &Caller,
    request: &ChatRequest,
) -> Result<String, Refusal> {
    let window = u64::try_from(app.options.dedupe.as_millis()).unwrap_or(u64::MAX).max(1);
    let (now, print) = (Timestamp::now(), request.fingerprint());
    let owner = caller.key.as_deref().unwrap_or_default();
    let number = now.0 / window;
    let mut key = String::new();
    for number in [number.saturating_sub(1), number] {
        for attempt in 0..TRIES {
            key = format!("same:{owner}:{number}:{attempt}:{print}");
            let id = JobId::from_key(&caller.tenant, &key);
            let Some(record) = app.noticed(app.broker.job(id).await)? else { break };
            let fresh = record.enqueued_at.is_some_and(|at| at.0.saturating_add(window) > now.0);
            if fresh && !matches!(record.state, State::Failed | State::Cancelled) {
                return Ok(key);
            }
        }
    }
    Ok(key)
}
