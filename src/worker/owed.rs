//! The second step: what ends an entry whose job's record is written.

use super::{Context, execute::persist, settle::Ended};
use crate::{
    broker::{self, Begin, DeadLetter, Entry, Settled},
    error::{Code, Failure},
    job::{JobId, Letter, Timestamp},
};

/// What is left to do with an entry.
#[derive(Debug)]
pub(super) enum Owed {
    /// A step that rests on what was seen under this session of the broker.
    Step(Step, u64),
    /// It belongs to another worker, or soon will.
    Nothing,
    /// The job has to start again, by this worker.
    Again,
    /// The broker is to be asked again.
    Asked,
    /// It stays in this worker's hands: the worker stops.
    Unfinished,
}

/// Where an entry goes.
#[derive(Debug)]
pub(super) enum Step {
    Remove {
        /// Whether this worker's attempt has ended the job.
        by_attempt: bool,
    },
    /// Until then, or until the time that the record tells.
    Park { attempt: u32, due: Option<Timestamp> },
    Bury {
        error: Failure,
        attempts: u32,
        fence: u64,
        /// Whether the record has told of it, and not an attempt of this worker's.
        told: bool,
    },
    /// Into the dead letters, and no record is touched: every ID that the entry may have is another's.
    BuryAlone,
}

impl Owed {
    /// What `begin` has told, asked under this session.
    pub(super) fn told(verdict: Begin, session: u64) -> Self {
        let step = match verdict {
            Begin::Begun(_)
            | Begin::Alone
            | Begin::Foreign
            | Begin::Stale
            | Begin::Newer { .. }
            | Begin::Refuse { .. } => {
                return Self::Unfinished;
            }
            Begin::Late => return Self::Nothing,
            Begin::Remove => Step::Remove { by_attempt: false },
            Begin::Park { attempt, due } => Step::Park { attempt, due: Some(due) },
            Begin::Bury { error, attempts, fence } => {
                Step::Bury { error, attempts, fence, told: true }
            }
        };
        Self::Step(step, session)
    }
}

/// Takes the step. Where the worker stops before the broker takes it, whoever claims the entry again
/// does. `false` where the broker may have forgotten what the step rests on: carried out, it could
/// take the entry from a job that knows nothing of its end.
pub(super) async fn settle(context: &Context, entry: &Entry, step: Step, session: u64) -> bool {
    let settled = match step {
        // The run's end is written: what is left of a job without a letter is its entry.
        Step::Bury { error, attempts, .. } if !leaves_letter(entry, error.code) => {
            tracing::info!(job = %entry.id, code = %error.code, "failed; its option says: no dead letter");
            context.acks.send(entry, Ended::new(entry, session, attempts > 0)).await;
            return true;
        }
        Step::Remove { by_attempt } => {
            context.acks.send(entry, Ended::new(entry, session, by_attempt)).await;
            return true;
        }
        Step::Park { attempt, due } => {
            let park = async || {
                let due = match due {
                    Some(due) => due,
                    None => recorded_due(context, entry).await?,
                };
                context.broker.park(entry, attempt, due, session).await
            };
            persist(context, "park", park).await
        }
        Step::Bury { error, attempts, fence, told } => {
            tracing::warn!(job = %entry.id, code = %error.code, attempts, "dead letter");
            let bury = async || {
                let record = context.broker.job(entry.id).await?;
                let mut letter = DeadLetter::new(entry, error.clone(), attempts, fence);
                letter.history = record.map(|record| record.history).unwrap_or_default();
                context.broker.bury(entry, &letter, told, session).await
            };
            persist(context, "bury", bury).await
        }
        Step::BuryAlone => {
            let letter = stray(entry);
            tracing::warn!(letter = %letter.id, "dead letter of an entry whose ID is another job's");
            let bury = || context.broker.bury(entry, &letter, false, session);
            persist(context, "bury", bury).await
        }
    };
    settled != Some(Settled::Stale)
}

/// The letter of an entry that has no ID of its own: it gets one that nobody can have taken.
fn stray(entry: &Entry) -> DeadLetter {
    let text = "the entry names a job that is another's, and so does its place";
    let error = Failure::new(Code::InvalidJob, text);
    DeadLetter { id: JobId::new(), ..DeadLetter::new(entry, error, 0, 0) }
}

/// Whether a job that failed so is kept for an operator.
fn leaves_letter(entry: &Entry, code: Code) -> bool {
    let Ok(job) = &entry.job else { return true };
    match job.dead_letter {
        Letter::Always => true,
        // It costs workers their lives: that concerns the operator, whoever waits for it.
        _ if code == Code::Poison => true,
        Letter::Retryable => !matches!(code, Code::InvalidRequest | Code::Expired),
        Letter::Never => false,
    }
}

/// When the job may begin again, by the broker's clock.
async fn recorded_due(context: &Context, entry: &Entry) -> broker::Result<Timestamp> {
    let record = context.broker.job(entry.id).await?;
    Ok(record.and_then(|record| record.due).unwrap_or_default())
}
