//! Forgets the names of workers that are gone, drops dead letters that are too old, and sets counters
//! right. A name that holds entries is never forgotten: its entries would go with it.

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
        match context.broker.expire(&partition).await {
            Ok(0) => {}
            Ok(dropped) => {
                tracing::error!(%partition, dropped, "dead letters dropped for their age");
            }
            Err(error) => tracing::debug!(%partition, %error, "dead letters not looked through"),
        }
        match context.broker.mend(&partition).await {
            Ok(correction) if correction.is_none() => {}
            Ok(correction) => tracing::warn!(%partition, %correction, "counters corrected"),
            Err(error) => tracing::debug!(%partition, %error, "counters not looked at"),
        }
    }
}
