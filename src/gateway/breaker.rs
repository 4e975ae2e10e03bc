//! A circuit breaker before the broker: once it cannot be reached, requests are refused at once instead of
//! each waiting for its own timeout, until a probe gets through.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{app::App, error::Refusal};
use crate::{
    broker::{Topic, WorkerId},
    job::JobId,
    listener::Link,
    retry::Backoff,
};

/// How long a broker that is there takes to answer, at most.
const PROMPT: Duration = Duration::from_millis(500);

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

/// Opens the breaker when the subscriber connection is lost and a question goes unanswered, and closes it when
/// the broker is back. Silent while it is there.
pub(super) async fn probe(app: Arc<App>) {
    // Nobody writes to this topic: only its link is looked at.
    let own = Topic::Worker(WorkerId::new("gateway"));
    let mut subscription = app.listener.hub().subscribe(own);
    loop {
        tokio::select! {
            () = app.breaker.tripped.notified() => {}
            link = subscription.next_link() => {
                if link != Link::Down || answers(&app).await {
                    continue;
                }
                app.breaker.trip();
            }
        }
        let mut backoff = Backoff::reading();
        while app.breaker.open.load(Ordering::Relaxed) {
            tokio::time::sleep(backoff.next_delay()).await;
            if answers(&app).await {
                app.breaker.open.store(false, Ordering::Relaxed);
                tracing::info!("broker back");
            }
        }
    }
}

async fn answers(app: &App) -> bool {
    let asked = app.broker.job(JobId::new());
    matches!(tokio::time::timeout(PROMPT, asked).await, Ok(Ok(_)))
}
