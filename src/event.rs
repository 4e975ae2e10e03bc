//! Events: the steps of a job's history, and how they travel.
//!
//! An event's ID is `fence-seq`. It is also the ID of its entry in the job's log, which is a Redis
//! stream, so Redis itself refuses a write whose fence is stale or whose sequence went back. A
//! reader's resume token is the last ID that it saw.
//!
//! Only [`Body::Started`] tells a reader to discard the text that it has; a higher fence alone
//! does not.

#[cfg(any(feature = "gateway", feature = "worker"))]
mod calls;
mod chunk;
mod codec;
#[cfg(feature = "worker")]
mod cut;

#[cfg(any(feature = "gateway", feature = "worker"))]
pub(crate) use calls::Calls;
#[cfg(feature = "worker")]
pub(crate) use calls::name_of;
pub use chunk::{Chunk, Piece};
#[cfg(feature = "gateway")]
pub(crate) use chunk::{TEXT_FIELDS, text_of};
pub use codec::{Codec, DecodeError, Frame, Stored};

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{Code, Failure},
    job::Labels,
    job::Timestamp,
};

/// The place of an event: the fence of its writer, then a sequence from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Decides whose writes count: `max(previous fence + 1, Redis TIME in ms)`.
    pub fence: u64,
    /// Counts the events under this fence.
    pub seq: u64,
}

impl EventId {
    /// Before every event.
    pub const START: Self = Self { fence: 0, seq: 0 };
    /// The last that there can be.
    pub const END: Self = Self { fence: u64::MAX, seq: u64::MAX };

    /// Whether `next` follows this one with nothing in between that the IDs can tell of.
    pub fn precedes(self, next: Self) -> bool {
        self.fence == next.fence && self.seq.checked_add(1) == Some(next.seq)
    }

    /// The greatest ID below this one.
    #[must_use]
    pub(crate) fn before(self) -> Self {
        match (self.fence, self.seq.checked_sub(1)) {
            (fence, Some(seq)) => Self { fence, seq },
            (0, None) => Self::START,
            (fence, None) => Self { fence: fence - 1, seq: u64::MAX },
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.fence, self.seq)
    }
}

/// Text that is no event ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an event ID; an event ID is FENCE-SEQ such as 1763640000123-57")]
pub struct EventIdError(String);

impl FromStr for EventId {
    type Err = EventIdError;

    fn from_str(text: &str) -> Result<Self, EventIdError> {
        let digits = |part: &str| {
            (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
                .then(|| part.parse().ok())
                .flatten()
        };
        text.split_once('-')
            .and_then(|(fence, seq)| Some(Self { fence: digits(fence)?, seq: digits(seq)? }))
            .ok_or_else(|| EventIdError(text.to_owned()))
    }
}

impl Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One step of a job's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Its place.
    pub id: EventId,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

/// What happened. The names in lower case are the field names in the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "event", content = "data")]
#[non_exhaustive]
pub enum Body {
    /// An attempt began: text seen so far is to be discarded.
    Started(Started),
    /// A batch of token deltas.
    Delta(Chunk),
    /// The attempt failed and another follows after a delay.
    Retrying(Retrying),
    /// The answer is whole. Terminal.
    Done(Done),
    /// The job will not be tried again. Terminal.
    Failed(Failed),
    /// The job's owner does not want it any more. Terminal.
    Cancelled(Cancelled),
    /// A new run begins: the job is tried again from the start.
    Requeued(Requeued),
    /// An event of a kind that this version does not know; passed over by readers of text.
    Unknown {
        /// Its name in the log.
        kind: String,
    },
}

impl Body {
    /// The event's name in the log.
    pub fn kind(&self) -> &str {
        match self {
            Self::Started(_) => "started",
            Self::Delta(_) => "delta",
            Self::Retrying(_) => "retrying",
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
            Self::Cancelled(_) => "cancelled",
            Self::Requeued(_) => "requeued",
            Self::Unknown { kind } => kind,
        }
    }

    /// Whether it ends the job's run.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed(_) | Self::Cancelled(_))
    }
}

/// An attempt began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Counted from 1.
    pub attempt: u32,
    /// The worker that runs it.
    pub worker: String,
}

/// The attempt failed; the job is parked until its next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retrying {
    /// Why.
    pub error: Failure,
    /// The attempt that failed, from 1.
    pub attempt: u32,
    /// How long the job is parked, in milliseconds.
    pub delay_ms: u64,
}

/// The answer is whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Why the model stopped, for the first choice: `stop`, `length`, `tool_calls`, ….
    pub finish_reason: Option<String>,
    /// The model's own count, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Value>,
    /// The model that answered, as it names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The model's own ID of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_id: Option<String>,
    /// Attempts used, from 1.
    pub attempts: u32,
    /// Time from begin to the first delta, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<u64>,
    /// Time from begin to the end of the answer, in milliseconds.
    #[serde(default)]
    pub run_ms: u64,
    /// When the job was enqueued.
    #[serde(default)]
    pub enqueued_at: Timestamp,
    /// The caller's own name for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// The job's labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// The job will not be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub error: Failure,
    /// Attempts used; 0 when none began.
    pub attempts: u32,
    /// The caller's own name for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// The job's labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// The job was cancelled. The text that was written by then stays readable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Attempts begun; 0 when none was.
    pub attempts: u32,
    /// The model's own count as far as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Value>,
    /// The caller's own name for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// The job's labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

impl From<Cancelled> for Failed {
    /// What a cancelled job is to those who wait for its whole answer.
    fn from(cancelled: Cancelled) -> Self {
        let Cancelled { attempts, custom_id, labels, .. } = cancelled;
        let error = Failure::new(Code::Cancelled, "the job was cancelled");
        Self { error, attempts, custom_id, labels }
    }
}

/// A dead letter was put back: a new run of the same job, with a new budget of attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// Which run of the job begins, from 2.
    pub run: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_is_two_numbers() {
        let id: EventId = "1763640000123-57".parse().unwrap();
        assert_eq!(id, EventId { fence: 1_763_640_000_123, seq: 57 });
        assert_eq!(id.to_string(), "1763640000123-57");
        for bad in ["", "-1", "1", "1-", "-", "+1-2", "1-2-3", "a-b", "99999999999999999999-1"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn order_is_by_fence_then_sequence() {
        let id = |fence, seq| EventId { fence, seq };
        assert!(id(1, 9) < id(2, 0));
        assert!(id(2, 0).precedes(id(2, 1)));
        assert!(!id(1, 9).precedes(id(2, 0)) && !id(2, 0).precedes(id(2, 2)));
    }
}
