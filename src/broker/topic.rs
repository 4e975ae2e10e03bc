//! Live messages: their channels, and what they say.

use std::time::Duration;

use super::{Partition, WorkerId};
use crate::job::JobId;

/// A channel of the broker's live messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The events of one job, each `fence-seq kind payload`.
    Job(JobId),
    /// "Something to sweep, promote or claim" in a partition.
    Wake(Partition),
    /// What one worker is told: an [`Order`](super::Order).
    Worker(WorkerId),
}

/// What a feed hands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// A message of a subscribed topic.
    Message(Topic, Vec<u8>),
    /// The connection is gone, and every subscription with it.
    Closed,
}

/// Why a partition's workers are woken: the message of [`Topic::Wake`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Jobs were added: somebody must sweep from now on, should the worker that gets one die.
    Added,
    /// A job was parked that may be due before all others. Producers of an earlier version say no more.
    Parked,
    /// An idle worker holds work: somebody must sweep from now on.
    Claimed,
    /// A worker has swept: nobody else need do it now.
    Swept,
    /// An entry was released: it can be taken over at once.
    Released,
    /// Which parked job is due first has changed, or a worker has just looked.
    Next(Next),
}

/// When the first parked job of a partition is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// From the moment at which this is said; `None` where nothing is parked.
    pub due_in: Option<Duration>,
    /// How many workers hear this, who take turns to promote; 0 where the broker cannot tell.
    pub workers: u32,
}

impl Wake {
    const WORDS: [Self; 5] =
        [Self::Added, Self::Parked, Self::Claimed, Self::Swept, Self::Released];

    /// The word with which its message begins.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Parked => "parked",
            Self::Claimed => "claimed",
            Self::Swept => "swept",
            Self::Released => "released",
            Self::Next(_) => "next",
        }
    }

    /// The message: the word, and behind `next` the milliseconds, or `-`, and the number of workers.
    pub fn message(self) -> String {
        let Self::Next(Next { due_in, workers }) = self else { return self.as_str().to_owned() };
        let due = due_in.map_or_else(|| "-".to_owned(), |due| due.as_millis().to_string());
        format!("{} {due} {workers}", self.as_str())
    }

    /// Reads a message; `None` for one of a newer version.
    pub fn read(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let Some((word, rest)) = text.split_once(' ') else {
            return Self::WORDS.into_iter().find(|wake| wake.as_str() == text);
        };
        let (due, workers) = rest.split_once(' ').filter(|_| word == "next")?;
        let due_in = match due {
            "-" => None,
            ms => Some(Duration::from_millis(ms.parse().ok()?)),
        };
        Some(Self::Next(Next { due_in, workers: workers.parse().ok()? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_survives_its_message() {
        let next = |due_in| Wake::Next(Next { due_in, workers: 3 });
        let all = [next(None), next(Some(Duration::from_millis(1500)))];
        assert_eq!(all.map(Wake::message), ["next - 3", "next 1500 3"]);
        for wake in Wake::WORDS.into_iter().chain(all) {
            assert_eq!(Wake::read(wake.message().as_bytes()), Some(wake));
        }
        for unknown in ["", "rested", "next", "next 5", "next soon 3", "then 5 3", "next 5 3 4"] {
            assert_eq!(Wake::read(unknown.as_bytes()), None, "{unknown}");
        }
    }
}
