//! Renews the leases of what this worker holds, apart from the jobs themselves.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Context, hands::Held};
use crate::broker::{Partition, Place, Renewed};

/// Renews until `stop`, which comes when nothing runs any more. While nothing is held it costs
/// nothing.
pub(super) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(context.options.renewal);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut refreshed, mut session) = (Instant::now(), context.broker.session());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let mut held: HashMap<Partition, Vec<Place>> = HashMap::new();
        for place in context.hands.lock().keys() {
            held.entry(place.partition.clone()).or_default().push(place.clone());
        }
        for (partition, places) in held {
            renew(&context, &partition, &places).await;
        }
        // The broker may have forgotten what runs. A job whose model is silent would notice only with its
        // next words, and its readers would be told meanwhile that there is no such job.
        let current = context.broker.session();
        if current != std::mem::replace(&mut session, current) {
            context.hands.look_again();
        }
        if refreshed.elapsed() >= context.options.refresh {
            refreshed = Instant::now();
            refresh(&context).await;
        }
    }
}

/// Renews entries of one partition.
async fn renew(context: &Context, partition: &Partition, places: &[Place]) {
    // A connection that died silently must not cost the leases: the second try has another.
    for _ in 0..2 {
        let before = Instant::now();
        let renew = context.broker.renew(&context.id, places);
        match tokio::time::timeout(context.options.renewal / 2, renew).await {
            Ok(Ok(renewed)) => return note(context, partition, places, renewed, before).await,
            Ok(Err(error)) => tracing::warn!(%partition, %error, "leases not renewed"),
            Err(_) => tracing::warn!(%partition, "leases not renewed in time"),
        }
    }
}

async fn note(
    context: &Context,
    partition: &Partition,
    places: &[Place],
    renewed: Renewed,
    at: Instant,
) {
    let Renewed { gone, lost } = renewed;
    if lost > 0 {
        tracing::error!(%partition, lost, "entries deleted while their jobs run: a retry is lost");
    }
    for place in places.iter().filter(|place| !gone.contains(place)) {
        if let Some(held) = context.hands.lock().get_mut(place) {
            held.renewed = Some(at);
        }
    }
    let looks = gone.iter().map(|place| end_if_fenced(context, place));
    if tokio::time::timeout(context.options.renewal / 2, join_all(looks)).await.is_err() {
        tracing::debug!(%partition, "records of entries that are gone not read in time");
    }
}

/// An entry that is not this worker's any more has just been settled, or is another's: then the
/// model is paid for nothing from the moment the other begins.
async fn end_if_fenced(context: &Context, place: &Place) {
    let running = |held: &Held| held.fence.map(|fence| (held.job, fence, held.stop.clone()));
    let Some((job, fence, stop)) = context.hands.lock().get(place).and_then(running) else {
        return;
    };
    match context.broker.job(job).await {
        Ok(Some(record)) if record.fence > fence => stop.fenced.cancel(),
        Ok(_) => tracing::debug!(%job, "entry not held any more"),
        Err(error) => tracing::debug!(%job, %error, "entry not held any more"),
    }
}

/// Gives record and log of every running job their whole time again.
async fn refresh(context: &Context) {
    let jobs = context.hands.jobs();
    if jobs.is_empty() {
        return;
    }
    match tokio::time::timeout(context.options.renewal / 2, context.broker.keep(&jobs)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "records of running jobs not refreshed"),
        Err(_) => tracing::warn!("records of running jobs not refreshed in time"),
    }
}
