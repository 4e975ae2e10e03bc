//! Acknowledges entries whose jobs are over, many at once: while one batch is on its way, the next
//! gathers. Nothing waits for a timer. Each queue has a task of its own: one that is refused for good, as by
//! an ACL, stops no other.

use std::{collections::HashMap, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Entry, Over, Partition, Result, Shared, Spent},
    job::JobId,
    retry::Backoff,
};

/// An entry whose job is over.
#[derive(Debug)]
pub(super) struct Ended {
    job: JobId,
    /// The run that is over.
    run: u32,
    spent: Spent,
    /// The broker's session under which that was seen.
    session: u64,
}

impl Ended {
    /// The end of an entry; `by_attempt` where this worker has ended the job.
    pub(super) fn new(entry: &Entry, session: u64, by_attempt: bool) -> Self {
        // Under a key it is kept for longer.
        let keyed = entry.job.as_ref().is_ok_and(|job| job.idempotency_key.is_some());
        let over = if by_attempt { Over::Here { keyed } } else { Over::Told };
        let spent = Spent { over, ..entry.into() };
        Self { job: entry.id, run: entry.run, spent, session }
    }
}

/// How long a job waits for room. There is none for so long only where its queue is refused.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) type Acks = mpsc::Receiver<Ended>;

/// Where entries to acknowledge go, by partition. Each is bounded: a job does not end faster than entries do.
#[derive(Debug)]
pub(super) struct Senders(HashMap<Partition, mpsc::Sender<Ended>>);

/// The senders, and a receiver for each partition.
pub(super) fn channels(partitions: &[Partition]) -> (Senders, Vec<Acks>) {
    let (mut senders, mut receivers) = (HashMap::new(), Vec::new());
    for partition in partitions {
        let (sender, acks) = mpsc::channel(1024);
        senders.insert(partition.clone(), sender);
        receivers.push(acks);
    }
    (Senders(senders), receivers)
}

impl Senders {
    /// Hands an entry to its queue's task. Where that takes no more the entry is left: it is taken over when
    /// its lease runs out, and found to be over.
    pub(super) async fn send(&self, entry: &Entry, ended: Ended) {
        let partition = &entry.place.partition;
        let sent = match self.0.get(partition) {
            // The receiver outlives every job.
            Some(sender) => sender.send_timeout(ended, PATIENCE).await.is_ok(),
            None => false,
        };
        if !sent {
            tracing::warn!(job = %entry.id, %partition, "entry not acknowledged");
        }
    }
}

/// Runs until every sender is gone and the queue is empty. Once `abandon` is cancelled a batch that
/// fails is given up: its jobs are over, and whoever claims their entries again finds that.
pub(super) async fn run(broker: Shared, mut acks: Acks, most: usize, abandon: CancellationToken) {
    let mut batch = Vec::new();
    while acks.recv_many(&mut batch, most.max(1)).await > 0 {
        let mut backoff = Backoff::connecting();
        while let Err(error) = acknowledge(&broker, &mut batch).await {
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

async fn acknowledge(broker: &Shared, batch: &mut Vec<Ended>) -> Result<()> {
    while let Some(session) = batch.iter().map(|ended| ended.session).min() {
        let spent: Vec<Spent> = batch.iter().map(|ended| ended.spent.clone()).collect();
        if broker.remove(&spent, session).await? {
            break;
        }
        look_again(broker, batch).await?;
    }
    Ok(())
}

/// Leaves out of a batch what the broker does not know any more. Such an entry stays with this worker,
/// which does not renew it: whoever is given it next finds what is owed.
async fn look_again(broker: &Shared, batch: &mut Vec<Ended>) -> Result<()> {
    // Taken before the reading: what is forgotten in between counts as a later session.
    let session = broker.session();
    let doubtful = batch.iter().filter(|ended| ended.session < session);
    let jobs: Vec<JobId> = doubtful.map(|ended| ended.job).collect();
    let mut records = broker.records(&jobs).await?.into_iter();
    batch.retain_mut(|ended| {
        if ended.session >= session {
            return true;
        }
        ended.session = session;
        let known = records.next().flatten().is_some_and(|record| record.has_done_with(ended.run));
        if !known {
            tracing::warn!(job = %ended.job, "the broker has forgotten the end of a job");
        }
        known
    });
    Ok(())
}
