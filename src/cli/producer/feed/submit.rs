//! One batch on its way to the broker: what is accepted, what is refused, what waits for room.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};

use super::{
    super::{LineSet, report::Enqueued},
    Feed,
};
use crate::{
    broker::{self, Receipt, Submission},
    cli::{Context, Error, Exit, args::Output, ended::Ended},
    job::{Job, QueueName},
    retry::Backoff,
    state::State,
};

/// Most states of duplicates that are asked for at once.
const LOOKUPS: usize = 32;

/// What is left of a batch, and how long to wait for room.
type Left = (Vec<(u64, Submission)>, Duration);

impl Feed<'_> {
    /// Enqueues a batch; with --block all of it, however long that takes.
    pub(super) async fn enqueue(
        &mut self,
        batch: Vec<(u64, Submission)>,
        cx: &mut Context,
    ) -> Result<(), Error> {
        let fresh: BTreeSet<QueueName> =
            batch.iter().map(|(_, submission)| submission.job.queue.clone()).collect();
        let mut fresh: Vec<QueueName> = fresh.difference(&self.queues).cloned().collect();
        if !fresh.is_empty() {
            let prepared = self.broker.prepare(&fresh).await;
            prepared.map_err(|error| Error::from(error).and(self.left()))?;
        }
        let mut backoff = Backoff::waiting();
        let mut rest = batch;
        while !rest.is_empty() {
            let before = rest.len();
            let (left, retry_after) = self.submit(rest, cx).await?;
            // While it waits, too, somebody should know that nobody makes room.
            if !fresh.is_empty() {
                self.queues.extend(fresh.drain(..));
                self.look_at_workers(cx).await;
            }
            // After a line that stops everything nothing more is enqueued.
            rest = if self.stopped { Vec::new() } else { left };
            if !rest.is_empty() {
                if rest.len() < before {
                    backoff.reset();
                }
                self.wait(retry_after + backoff.next_delay(), cx).await?;
            }
        }
        Ok(())
    }

    /// Submits jobs once. Every job's fate is noted before anything ends the feed.
    async fn submit(
        &mut self,
        batch: Vec<(u64, Submission)>,
        cx: &mut Context,
    ) -> Result<Left, Error> {
        let (lines, jobs): (Vec<u64>, Vec<Submission>) = batch.into_iter().unzip();
        let results = if self.args.block {
            self.producer.submit_in_order(&jobs).await
        } else {
            self.producer.submit(&jobs).await
        };
        let states = self.states(&results).await;
        self.tally.no_room = LineSet::default();
        let (mut full, mut lost, mut unwritten) = (None, None::<Error>, None);
        let mut left = Vec::new();
        for (((line, job), result), state) in lines.into_iter().zip(jobs).zip(results).zip(states) {
            self.tally.through = self.tally.through.max(line);
            match result {
                Ok(receipt) => {
                    let put = self.put_back(line, &job, receipt, state, cx).await;
                    let state = put.unwrap_or_else(|error| {
                        lost.get_or_insert(error);
                        state
                    });
                    let written = self.accepted(line, job.job, receipt, state, cx);
                    unwritten = unwritten.or(written.err());
                }
                Err(error @ broker::Error::Full { .. }) => {
                    self.tally.no_room.push(line);
                    full.get_or_insert(error);
                    left.push((line, job));
                }
                Err(error @ broker::Error::Conflict { .. }) => {
                    self.refuse(line, error.into(), cx)?;
                }
                Err(error) => {
                    self.tally.unknown.push(line);
                    lost.get_or_insert(error.into());
                }
            }
        }
        if let Some(error) = lost {
            return Err(error.and(self.left()));
        }
        if let Some(error) = unwritten {
            let cause = format!("cannot write to standard output: {error}");
            return Err(Error::new(Exit::Unexpected, cause, self.left()));
        }
        match full {
            Some(error) if !self.args.block => {
                Err(Error::from(error).and(self.left()).and("--block waits for room"))
            }
            Some(broker::Error::Full { message, retry_after }) => {
                if !std::mem::replace(&mut self.waits, true) {
                    let warning = format!("queue full: {message}; waiting for room");
                    self.progress.around(|| cx.terminal.warn(warning));
                }
                Ok((left, retry_after))
            }
            _ => Ok((left, Duration::ZERO)),
        }
    }

    /// Waits for room, while answers that are awaited come in.
    async fn wait(&mut self, time: Duration, cx: &mut Context) -> Result<(), Error> {
        let until = Instant::now() + time;
        while self.step(sleep_until(until), cx).await?.is_none() {}
        Ok(())
    }

    /// The state of each enqueued job; one that was there already may be anywhere.
    async fn states(&self, results: &[broker::Result<Receipt>]) -> Vec<State> {
        let mut states = Vec::with_capacity(results.len());
        let asks = self.args.retry_failed || (!self.args.wait && self.args.output == Output::Json);
        for some in results.chunks(LOOKUPS) {
            let one = |result: &broker::Result<Receipt>| {
                let receipt = result.as_ref().ok().copied();
                async move {
                    let Some(receipt) = receipt else { return State::Waiting };
                    let enqueued = if receipt.parked { State::Parked } else { State::Waiting };
                    if !(asks && receipt.duplicate) {
                        return enqueued;
                    }
                    let record = self.broker.shared.job(receipt.id).await.ok().flatten();
                    record.map_or(enqueued, |record| record.state)
                }
            };
            states.extend(join_all(some.iter().map(one)).await);
        }
        states
    }

    fn accepted(
        &mut self,
        line: u64,
        job: Job,
        receipt: Receipt,
        state: State,
        cx: &mut Context,
    ) -> std::io::Result<()> {
        self.tally.enqueued += 1;
        self.tally.duplicates += u64::from(receipt.duplicate);
        let id = receipt.id;
        if self.args.wait {
            let listen = self.listener.listen(id).idle_timeout(None);
            let ended = Ended {
                custom_id: job.custom_id,
                labels: job.labels,
                was_there: true,
                ..Ended::unknown(id, line)
            };
            self.unfinished.insert(&ended);
            self.awaited.spawn(ended.wait(listen));
            return Ok(());
        }
        self.progress.around(|| match self.args.output {
            Output::Text => cx.terminal.line(id),
            Output::Json => {
                let (custom_id, labels) = (job.custom_id.as_deref(), &job.labels);
                let (id, state) = (Some(id), state.as_str());
                cx.terminal.json(&Enqueued { id, line, state, custom_id, labels })
            }
        })
    }
}
