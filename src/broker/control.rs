//! What is asked of a job from outside, and of a worker.

use async_trait::async_trait;

use super::{DeadLetter, Partition, Result, Settled, WorkerId};
use crate::{job::JobId, state::State};

/// What became of a wish to cancel a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancel {
    /// No attempt runs: the run is cancelled.
    Cancelled {
        /// Where it may still be parked.
        partition: Option<Partition>,
        /// Which run of the job it is, from 1.
        run: u32,
        /// Whether it had been cancelled before.
        again: bool,
    },
    /// An attempt runs: it ends as cancelled, whatever it comes to, and its worker was told so.
    Asked {
        /// The worker.
        worker: String,
        /// Whether it had been asked before.
        again: bool,
    },
    /// The run had ended before in another way; nothing was changed.
    Over(State),
    /// There is no such job.
    Unknown,
}

/// What became of a wish to open a new run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopened {
    /// This run is open and waits for its entry: [`Control::requeue`] adds it.
    Yes(Run),
    /// The job is not dead, or not by this letter; nothing was changed.
    No(State),
}

/// A run that a dead letter has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which run of the job it is, from 2.
    pub number: u32,
    /// Whether it was opened just now, and not by an earlier call for the same letter.
    pub fresh: bool,
}

/// What a worker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// End this job as cancelled.
    Cancel(JobId),
    /// Claim nothing more, and stop.
    Drain,
}

impl Order {
    /// The message: `cancel JOB-ID` or `drain`.
    pub fn message(self) -> String {
        match self {
            Self::Cancel(job) => format!("cancel {job}"),
            Self::Drain => "drain".to_owned(),
        }
    }

    /// Reads a message; `None` for one of a newer version.
    pub fn read(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        match text.split_once(' ') {
            Some(("cancel", job)) => job.parse().ok().map(Self::Cancel),
            None if text == "drain" => Some(Self::Drain),
            _ => None,
        }
    }
}

/// The side of owners and operators.
#[async_trait]
pub trait Control: Send + Sync {
    /// Cancels a job. Where no attempt runs, appends and publishes `cancelled` under a new fence;
    /// where one runs, notes the wish in the record and then tells the worker. From then on the run
    /// ends as cancelled and in no other way. Repeating it changes nothing.
    async fn cancel(&self, job: JobId) -> Result<Cancel>;

    /// Removes what is parked of a job's cancelled run, or of one before it, where the `session` is not
    /// over under which it was seen to be cancelled. What a later run has parked stays: a call may come
    /// so late that there is one.
    async fn unpark(
        &self,
        partition: &Partition,
        job: JobId,
        run: u32,
        session: u64,
    ) -> Result<Settled>;

    /// Those of these jobs that are to be cancelled: for a worker that may have missed an order.
    async fn cancelled(&self, jobs: &[JobId]) -> Result<Vec<JobId>>;

    /// Tells a worker something; how many heard it.
    async fn tell(&self, worker: &WorkerId, order: Order) -> Result<u64>;

    /// Opens a new run of a dead letter's job: raises the fence above every earlier one, forgets
    /// attempts, failures and crashes, and appends and publishes `requeued`, also where record and
    /// log have expired. Repeating it for the same letter opens nothing more.
    async fn reopen(&self, partition: &Partition, letter: &DeadLetter) -> Result<Reopened>;

    /// Puts a dead letter's entry back into its lane, as the entry of `run`. `false` when the letter
    /// was gone and the run is not fresh: then somebody else has added the entry. For a fresh run it
    /// is added in any case.
    async fn requeue(&self, partition: &Partition, letter: &DeadLetter, run: Run) -> Result<bool>;

    /// A dead letter by its name.
    async fn letter(&self, partition: &Partition, letter: &str) -> Result<Option<DeadLetter>>;

    /// Whether each of these letters has opened a run that has no entry yet: a requeue of it is under
    /// way, or its caller has died. Without the letter such a job would wait for ever.
    async fn unfinished(&self, letters: &[DeadLetter]) -> Result<Vec<bool>>;

    /// Deletes dead letters by their names; how many there were.
    async fn purge(&self, partition: &Partition, letters: &[String]) -> Result<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_told() {
        for order in [Order::Cancel(JobId::new()), Order::Drain] {
            assert_eq!(Order::read(order.message().as_bytes()), Some(order));
        }
        for strange in [&b"dance"[..], b"cancel", b"cancel me", b"drain now", b"\xff"] {
            assert_eq!(Order::read(strange), None);
        }
    }
}
