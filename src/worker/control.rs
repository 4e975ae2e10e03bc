//! Hears what this worker is told: to cancel a job, or to drain.
//!
//! A message may be missed. The wish to cancel stands in the job's record, so the records of what
//! runs are read whenever the subscription has come back, and at each renewal while it is down.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::{
    broker::{Order, Topic},
    listener::{Heard, Hub, Link},
};

pub(super) async fn run(context: Arc<Context>, hub: Hub, stop: CancellationToken) {
    let mut orders = hub.subscribe(Topic::Worker(context.id.clone()));
    let mut ticks = tokio::time::interval(context.options.renewal);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let down = !matches!(orders.current(), Link::Live(_));
        tokio::select! {
            heard = orders.next() => match heard {
                Heard::Message(message) => obey(&context, Order::read(&message)),
                Heard::Lagged | Heard::Link(Link::Live(_)) => look(&context).await,
                Heard::Link(_) => {}
            },
            _ = ticks.tick(), if down => look(&context).await,
            () = stop.cancelled() => return,
        }
    }
}

fn obey(context: &Context, order: Option<Order>) {
    match order {
        Some(Order::Cancel(job)) => context.hands.cancel(job),
        Some(Order::Drain) => {
            tracing::info!("told to drain");
            context.stop.cancel();
        }
        None => {}
    }
}

/// Reads the records of what runs.
async fn look(context: &Context) {
    let jobs = context.hands.jobs();
    if jobs.is_empty() {
        return;
    }
    let cancelled = context.broker.cancelled(&jobs);
    match tokio::time::timeout(context.options.renewal, cancelled).await {
        Ok(Ok(cancelled)) => cancelled.into_iter().for_each(|job| context.hands.cancel(job)),
        Ok(Err(error)) => tracing::debug!(%error, "records not read for wishes to cancel"),
        Err(_) => tracing::debug!("records not read in time for wishes to cancel"),
    }
}
