//! Puts back jobs that were there already and have failed.

use std::collections::HashMap;

use futures_util::StreamExt;

use super::Feed;
use crate::{
    admin::{Admin, Requeued},
    broker::{self, Partition, Receipt, Shared, Submission},
    cli::{Context, Error},
    job::JobId,
    state::State,
};

/// The dead letters that there were when the first failed job of a queue was met. What fails from then on
/// is not put back: it may fail for ever.
#[derive(Debug, Default)]
pub(super) struct Retries(HashMap<Partition, HashMap<JobId, Option<String>>>);

impl Retries {
    /// Puts a job's dead letter back; `None` where it has none.
    async fn put_back(
        &mut self,
        broker: &Shared,
        partition: &Partition,
        job: JobId,
    ) -> broker::Result<Option<Requeued>> {
        let admin = Admin::new(broker.clone());
        if !self.0.contains_key(partition) {
            let places = places(&admin, partition).await?;
            self.0.insert(partition.clone(), places);
        }
        let Some(before) = self.0.get_mut(partition).and_then(|places| places.remove(&job)) else {
            return Ok(None);
        };
        // Letters before it may have gone: it is the first of its job behind that place.
        let mut after = before;
        loop {
            let page = broker.dead_letters(partition, after.as_deref(), 1).await?;
            let Some(letter) = page.first() else { return Ok(None) };
            if letter.id == job {
                return admin.requeue(partition, letter).await.map(Some);
            }
            after = Some(letter.letter.clone());
        }
    }
}

/// Behind which letter the last letter of each job lies.
async fn places(
    admin: &Admin,
    partition: &Partition,
) -> broker::Result<HashMap<JobId, Option<String>>> {
    let (mut places, mut before) = (HashMap::new(), None);
    let mut letters = admin.dead_letters(partition);
    while let Some(letter) = letters.next().await {
        let letter = letter?;
        places.insert(letter.id, before.replace(letter.letter));
    }
    Ok(places)
}

impl Feed<'_> {
    /// Where a job stands after the attempt, with --retry-failed, to put it back.
    pub(super) async fn put_back(
        &mut self,
        line: u64,
        submission: &Submission,
        receipt: Receipt,
        state: State,
        cx: &mut Context,
    ) -> Result<State, Error> {
        if !(self.args.retry_failed && receipt.duplicate && state == State::Failed) {
            return Ok(state);
        }
        let partition = &submission.partition;
        let put = self.retries.put_back(&self.broker.shared, partition, receipt.id).await;
        match put.map_err(Error::from)? {
            Some(Requeued::Requeued { .. }) => {
                self.tally.retried += 1;
                Ok(State::Waiting)
            }
            Some(Requeued::Alive { state }) => Ok(state),
            // Somebody else puts it back.
            Some(Requeued::Gone) => Ok(state),
            None => {
                self.progress.around(|| {
                    cx.terminal.warn(format_args!(
                        "line {line}: job {} has failed and has no dead letter, so it cannot be put \
                         back; another idempotency key asks again",
                        receipt.id
                    ));
                });
                Ok(state)
            }
        }
    }
}
