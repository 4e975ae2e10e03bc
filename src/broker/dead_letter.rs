//! Dead letters: jobs that ran out of attempts or can never succeed, kept for an operator.

use serde::{Deserialize, Serialize};

use super::{
    entry::{Entry, LOAD},
    proof::LETTER,
};
use crate::{
    error::Failure,
    job::{Job, JobId, Lane, Timestamp},
};

/// An attempt that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setback {
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub error: Failure,
}

/// A job that ran out of attempts or can never succeed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeadLetter {
    /// The letter's own name, given when it is buried: its entry ID among the dead letters.
    pub letter: String,
    /// The job.
    pub id: JobId,
    /// Why.
    pub error: Failure,
    /// The part of the failure that only an operator may read; see [`Failure::detail`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Attempts made.
    pub attempts: u32,
    /// The fence under which it failed.
    pub fence: u64,
    /// When the job was enqueued.
    pub at: Timestamp,
    /// The lane it came from.
    pub lane: Lane,
    /// The run that ended in it, from 1.
    pub run: u32,
    /// The attempts of the run that came to nothing, as far as the record tells.
    pub history: Vec<Setback>,
    /// The entry's fields as they were, in order; without the mark that it counted.
    #[serde(skip)]
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl DeadLetter {
    /// The letter of an entry. It has no name yet.
    pub fn new(entry: &Entry, mut error: Failure, attempts: u32, fence: u64) -> Self {
        // The entry's count is given back with its burial: fields that are added again must not carry it.
        let is_mark = |name: &[u8]| entry.load.is_some() && name == LOAD.as_bytes();
        Self {
            letter: String::new(),
            id: entry.id,
            detail: error.detail.take(),
            error,
            attempts,
            fence,
            at: entry.at,
            lane: entry.place.lane,
            run: entry.run,
            history: Vec::new(),
            fields: entry.fields.iter().filter(|(name, _)| !is_mark(name)).cloned().collect(),
        }
    }

    /// When it was buried, as its name tells.
    pub fn buried_at(&self) -> Timestamp {
        Timestamp(self.letter.split('-').next().and_then(|ms| ms.parse().ok()).unwrap_or(0))
    }

    /// The job, where it can be read.
    pub fn job(&self) -> Option<Job> {
        Job::read(self.payload()?).ok()
    }

    /// The bytes of the job, where there are any.
    pub(super) fn payload(&self) -> Option<&[u8]> {
        let (_, bytes) = self.fields.iter().find(|(field, _)| field == b"job")?;
        Some(bytes)
    }

    /// The fields of an entry that carries its job again, as the entry of `run`: the same bytes, and
    /// what else an entry says. Of very many fields only the job is left: an entry is added by a script,
    /// which takes only so many arguments.
    pub(crate) fn entry(&self, run: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
        let own = ["id", "at", "attempt", "run", LETTER];
        let many = self.fields.len() > 1000;
        let others = self.fields.iter().filter(|(name, _)| {
            if many { name == b"job" } else { !own.iter().any(|o| o.as_bytes() == name) }
        });
        let field = |name: &str, value: String| (name.as_bytes().to_vec(), value.into_bytes());
        others
            .cloned()
            .chain([
                field("id", self.id.to_string()),
                field("at", self.at.0.to_string()),
                field("attempt", 0.to_string()),
                field("run", run.to_string()),
                field(LETTER, format!("{} {}", self.letter, self.fence)),
            ])
            .collect()
    }
}
