//! Renews the leases of what this worker holds, apart from the jobs themselves.

use std::{collections::HashMap, sync::Arc};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::broker::{Partition, Place};

/// Renews until `stop`, which comes when nothing runs any more. While nothing is held it costs
/// nothing.
pub(super) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(context.options.renewal);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let mut held: HashMap<Partition, Vec<Place>> = HashMap::new();
        for place in context.held().keys() {
            held.entry(place.partition.clone()).or_default().push(place.clone());
        }
        for (partition, places) in held {
            // A connection that died silently must not cost the leases: the second try has another.
            for _ in 0..2 {
                let renew = context.broker.renew(&context.id, &places);
                match tokio::time::timeout(context.options.renewal / 2, renew).await {
                    // The fence keeps the attempts of lost ones from writing; some have just been
                    // settled.
                    Ok(Ok(lost)) => {
                        if !lost.is_empty() {
                            tracing::debug!(%partition, entries = lost.len(), "not held any more");
                        }
                        break;
                    }
                    Ok(Err(error)) => tracing::warn!(%partition, %error, "leases not renewed"),
                    Err(_) => tracing::warn!(%partition, "leases not renewed in time"),
                }
            }
        }
    }
}
