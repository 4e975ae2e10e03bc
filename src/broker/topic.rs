//! Live messages: their channels, and what they say.

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
    /// A job was parked.
    Parked,
    /// An idle worker holds work: somebody must sweep from now on.
    Claimed,
    /// A worker has swept: nobody else need do it now.
    Swept,
    /// An entry was released: it can be taken over at once.
    Released,
}

impl Wake {
    const ALL: [Self; 5] = [Self::Added, Self::Parked, Self::Claimed, Self::Swept, Self::Released];

    /// The message.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Parked => "parked",
            Self::Claimed => "claimed",
            Self::Swept => "swept",
            Self::Released => "released",
        }
    }

    /// Reads a message; `None` for one of a newer version.
    pub fn read(message: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|wake| wake.as_str().as_bytes() == message)
    }
}
