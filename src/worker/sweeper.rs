//! Takes over entries whose worker has died, and starts their jobs again.
//!
//! It runs while anything is in flight in the partition, and sleeps for long otherwise. Every
//! sweep is told to all workers of the partition, who then wait their own time again: one of them
//! sweeps, whoever is first, however many there are.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Context, slots::Slot, start};
use crate::{
    broker::{Entry, Partition, Sweep, Topic, Wake},
    listener::{Heard, Hub, Link, Subscription},
};

/// Most entries taken over at once.
const BATCH: usize = 64;

/// How often it looks while nothing is in flight: an entry may have been given to a worker that died
/// before it could wake anybody.
const SLEEP: Duration = Duration::from_mins(10);

/// How often it looks while wakes cannot reach it.
const BLIND: Duration = Duration::from_secs(5);

pub(super) async fn run(
    context: Arc<Context>,
    hub: Hub,
    partition: Partition,
    jobs: TaskTracker,
    stop: CancellationToken,
) {
    let mut wakes = hub.subscribe(Topic::Wake(partition.clone()));
    // What an earlier time has left behind is found without a wake.
    let mut next = Instant::now() + context.options.sweep;
    while !stop.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {
                let in_flight = sweep(&context, &partition, &jobs, &stop).await;
                let pause = match wakes.current() {
                    _ if in_flight => context.options.sweep,
                    Link::Live(_) => SLEEP,
                    Link::Pending | Link::Down => BLIND,
                };
                next = Instant::now() + spread(pause);
            }
            why = woken(&mut wakes) => match why {
                // Another worker has looked; whether anything is in flight is still to be seen.
                Some(Wake::Swept) => next = next.max(Instant::now() + spread(context.options.sweep)),
                Some(Wake::Released) => next = Instant::now(),
                Some(Wake::Parked | Wake::Next(_)) => {}
                Some(Wake::Added | Wake::Claimed) => {
                    context.wakes.heard(&partition);
                    next = next.min(Instant::now() + spread(context.options.sweep));
                }
                None => {
                    next = next.min(Instant::now() + spread(context.options.sweep));
                }
            },
            () = stop.cancelled() => {}
        }
    }
}

/// Why the partition was woken; `None` when a wake may have been missed.
async fn woken(wakes: &mut Subscription) -> Option<Wake> {
    match wakes.next().await {
        Heard::Message(message) => Wake::read(&message),
        Heard::Lagged | Heard::Link(_) => None,
    }
}

/// The interval and up to a quarter more, so that of many workers one is first.
fn spread(interval: Duration) -> Duration {
    let part = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    interval + interval * part / 1024
}

/// One sweep, for as many entries as there are free slots. Whether anything is in flight.
async fn sweep(
    context: &Arc<Context>,
    partition: &Partition,
    jobs: &TaskTracker,
    stop: &CancellationToken,
) -> bool {
    // In turn with the reader: a worker that is never idle takes over, too.
    // Only the wait for a slot is given up: what was claimed by then must be started.
    let first = tokio::select! {
        first = context.slots.take() => first,
        () = stop.cancelled() => return false,
    };
    let mut slots = vec![first];
    while slots.len() < BATCH
        && let Some(slot) = context.slots.try_take()
    {
        slots.push(slot);
    }
    let holds = context.hands.any_of(partition);
    let options = &context.options;
    let look = Sweep {
        lease: options.lease,
        most: slots.len(),
        ask: !holds,
        deliveries: options.retry.max_attempts + options.retry.max_crashes,
    };
    let (asked, session) = (Instant::now(), context.broker.session());
    match context.broker.sweep(partition, &context.id, &look).await {
        Ok(swept) => {
            if swept.lost > 0 {
                let lost = swept.lost;
                tracing::error!(%partition, lost, "entries deleted while a worker held them");
            }
            let any = holds || !swept.entries.is_empty() || swept.in_flight == Some(true);
            let full = swept.entries.len() == slots.len();
            for mut entry in swept.entries {
                entry.session = session;
                take_over(context, jobs, (entry, asked), slots.pop());
            }
            // There may be more than there was room for: the others need not wait their time.
            if full && let Err(error) = context.broker.wake(partition, Wake::Released).await {
                tracing::debug!(%partition, %error, "nobody woken");
            }
            any
        }
        Err(error) => {
            tracing::warn!(%partition, %error, "not swept");
            true
        }
    }
}

fn take_over(
    context: &Arc<Context>,
    jobs: &TaskTracker,
    (entry, asked): (Entry, Instant),
    slot: Option<Slot>,
) {
    let Some(slot) = slot else { return };
    // An entry that this worker runs already has only been renewed late.
    if context.hands.take(&entry, Some(asked)) {
        context.taken_over.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(job = %entry.id, crashed = entry.crashed, "taken over from another worker");
        start(context, jobs, entry, slot);
    }
}
