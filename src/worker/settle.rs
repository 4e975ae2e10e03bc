//! Acknowledges entries whose jobs are over, many at once: while one batch is on its way, the next
//! gathers. Nothing waits for a timer.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Shared, Spent},
    retry::Backoff,
};

pub(super) type Sender = mpsc::Sender<Spent>;
pub(super) type Acks = mpsc::Receiver<Spent>;

/// The queue of entries to acknowledge. It is bounded: a job does not end faster than entries do.
pub(super) fn channel() -> (Sender, Acks) {
    mpsc::channel(1024)
}

/// Runs until every sender is gone and the queue is empty. Once `abandon` is cancelled a batch that
/// fails is given up: its jobs are over, and whoever claims their entries again finds that.
pub(super) async fn run(broker: Shared, mut acks: Acks, most: usize, abandon: CancellationToken) {
    let mut batch = Vec::new();
    while acks.recv_many(&mut batch, most.max(1)).await > 0 {
        let mut backoff = Backoff::connecting();
        while let Err(error) = broker.remove(&batch).await {
            if abandon.is_cancelled() {
                tracing::warn!(%error, entries = batch.len(), "entries not acknowledged");
                break;
            }
            tracing::warn!(%error, entries = batch.len(), "acknowledging again");
            tokio::time::sleep(backoff.next_delay()).await;
        }
        batch.clear();
    }
}
