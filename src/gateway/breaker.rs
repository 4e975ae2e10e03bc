//! A circuit breaker before the broker: once it cannot be reached, requests are refused at once instead of
//! each waiting for its own timeout, until a probe gets through.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use super::{app::App, error::Refusal};
use crate::{job::JobId, retry::Backoff};

#[derive(Debug, Default)]
pub(super) struct Breaker {
    open: AtomicBool,
    tripped: Notify,
}

impl Breaker {
    /// Refuses while the broker is away.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.open.load(Ordering::Relaxed) { Err(Refusal::away()) } else { Ok(()) }
    }

    /// The broker could not be reached.
    pub(super) fn trip(&self) {
        if !self.open.swap(true, Ordering::Relaxed) {
            tracing::warn!("broker away; requests are refused until it is back");
            self.tripped.notify_one();
        }
    }
}

/// Closes the breaker when the broker is back. Silent while it is there.
pub(super) async fn probe(app: Arc<App>) {
    loop {
        app.breaker.tripped.notified().await;
        let mut backoff = Backoff::reading();
        while app.breaker.open.load(Ordering::Relaxed) {
            tokio::time::sleep(backoff.next_delay()).await;
            if app.broker.job(JobId::new()).await.is_ok() {
                app.breaker.open.store(false, Ordering::Relaxed);
                tracing::info!("broker back");
            }
        }
    }
}
