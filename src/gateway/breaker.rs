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

/// How long one that comes back may take.
const PATIENT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Breaker {
    open: AtomicBool,
    /// Nothing is asked of the broker yet, whether it answers or not.
    held: AtomicBool,
    suspected: Notify,
    released: Notify,
}

impl Breaker {
    /// Refuses while the broker is away.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let is_away = self.open.load(Ordering::Relaxed) || self.held.load(Ordering::Relaxed);
        if is_away { Err(Refusal::away()) } else { Ok(()) }
    }

    /// Refuses until [`Breaker::release`].
    pub(super) fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// The broker may be asked from here on.
    pub(super) fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
        self.released.notify_one();
    }

    /// A call of the broker failed: whether it is away is asked at once.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }
}

/// Opens the breaker when a call has failed or the subscriber connection is lost and a question goes unanswered,
/// and closes it when the broker is back. Silent while it is there.
pub(super) async fn probe(app: Arc<App>) {
    while app.breaker.held.load(Ordering::Relaxed) {
        app.breaker.released.notified().await;
    }
    // Nobody writes to this topic: only its link is looked at.
    let own = Topic::Worker(WorkerId::new("gateway"));
    let mut subscription = app.listener.hub().subscribe(own);
    loop {
        tokio::select! {
            () = app.breaker.suspected.notified() => {}
            link = subscription.next_link() => {
                if link != Link::Down {
                    continue;
                }
            }
        }
        // One that refuses a command may well serve others.
        if answers(&app, PROMPT).await {
            continue;
        }
        tracing::warn!("broker away; requests are refused until it is back");
        app.breaker.open.store(true, Ordering::Relaxed);
        let mut backoff = Backoff::reading();
        while !answers(&app, PATIENT).await {
            tokio::time::sleep(backoff.next_delay()).await;
        }
        app.breaker.open.store(false, Ordering::Relaxed);
        tracing::info!("broker back");
    }
}

async fn answers(app: &App, within: Duration) -> bool {
    let asked = app.broker.job(JobId::new());
    matches!(tokio::time::timeout(within, asked).await, Ok(Ok(_)))
}
