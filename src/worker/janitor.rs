//! Forgets the names of workers that are gone. A name that holds entries is never forgotten: its
//! entries would go with it.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::broker::Partition;

pub(super) async fn run(context: Arc<Context>, partition: Partition, stop: CancellationToken) {
    let forget = context.options.forget;
    let mut ticks = tokio::time::interval(forget);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        match context.broker.retire(&partition, None, forget).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(%partition, count, "forgot workers that are gone"),
            Err(error) => tracing::debug!(%partition, %error, "workers not looked through"),
        }
    }
}
