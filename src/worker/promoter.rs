//! Moves parked jobs to their lanes when their time has come. It sleeps until the next one is due
//! or until something is parked; while nothing is, it does nothing.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Partition, Shared, Topic, Wake},
    listener::{Heard, Hub, Link, Subscription},
    retry::Backoff,
};

/// Most jobs moved by one script.
const BATCH: usize = 256;

/// How often it looks while wakes cannot reach it.
const BLIND: Duration = Duration::from_secs(5);

pub(super) async fn run(broker: Shared, hub: Hub, partition: Partition, stop: CancellationToken) {
    let mut wakes = hub.subscribe(Topic::Wake(partition.clone()));
    let mut backoff = Backoff::connecting();
    // Connected first: a job that is parked from here on wakes the promoter.
    tokio::select! {
        _ = wakes.link() => {}
        () = stop.cancelled() => return,
    }
    while !stop.is_cancelled() {
        let pause = match broker.promote(&partition, BATCH).await {
            Ok(promoted) => {
                backoff.reset();
                if promoted.count > 0 {
                    tracing::debug!(%partition, count = promoted.count, "promoted");
                }
                promoted.next_in
            }
            Err(error) => {
                tracing::warn!(%partition, %error, "parked jobs not promoted");
                Some(backoff.next_delay())
            }
        };
        tokio::select! {
            () = sleep(pause, wakes.current()) => {}
            () = parked(&mut wakes) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn sleep(pause: Option<Duration>, link: Link) {
    let pause = match link {
        Link::Live(_) => pause,
        _ => Some(pause.unwrap_or(BLIND).min(BLIND)),
    };
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// Something was parked, or something may have been missed. Losing the connection wakes as well,
/// so that the pause is chosen anew.
async fn parked(wakes: &mut Subscription) {
    loop {
        match wakes.next().await {
            Heard::Message(message) if Wake::read(&message) != Some(Wake::Parked) => {}
            Heard::Message(_) | Heard::Lagged | Heard::Link(_) => return,
        }
    }
}
