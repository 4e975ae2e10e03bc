//! Entries, and what is made of them.

use std::fmt;

use serde::Serialize;

use crate::{
    error::Failure,
    job::{Invalid, Job, JobId, Lane, QueueName, Timestamp},
};

/// One shard of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Partition {
    /// The queue.
    pub queue: QueueName,
    /// Its shard, from 0.
    pub index: u16,
}

impl Partition {
    /// The first partition of a queue.
    pub fn first(queue: QueueName) -> Self {
        Self { queue, index: 0 }
    }
}

impl fmt::Display for Partition {
    /// `QUEUE:INDEX`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.queue, self.index)
    }
}

/// Where an entry stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Place {
    /// The partition.
    pub partition: Partition,
    /// The lane.
    pub lane: Lane,
    /// The entry's ID in the lane's stream.
    pub entry: String,
}

/// A worker's incarnation: another ID at every start. Letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct WorkerId(String);

impl WorkerId {
    /// A new incarnation of the worker called `name`; characters that are not allowed become `-`.
    pub fn new(name: &str) -> Self {
        let name: String = name
            .chars()
            .take(64)
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
            .collect();
        Self(format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]))
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A job on its way in: its ID, and its encoding, made once.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// The job's ID.
    pub id: JobId,
    /// The job.
    pub job: Job,
    /// The job as JSON: the entry's `job` field.
    pub payload: Vec<u8>,
    /// The partition it goes to.
    pub partition: Partition,
}

/// An entry as a worker received it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// Its job's ID: the entry's own, or derived from its place.
    pub id: JobId,
    /// When the job was enqueued.
    pub at: Timestamp,
    /// Attempts made before this entry was added.
    pub attempt: u32,
    /// The entry's fields as they are, in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// The job, or why it cannot be read.
    pub job: Result<Job, Invalid>,
}

impl Entry {
    /// Reads an entry's fields: `job` (required), `id`, `at` and `attempt`. An entry without an ID
    /// gets one derived from `lane_key` and its entry ID, the same at every delivery. Nothing here
    /// fails: what cannot be read is told by [`Entry::job`], with the bytes kept.
    pub fn read(place: Place, lane_key: &str, fields: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let text = |name: &str| {
            let value = fields.iter().find(|(field, _)| field == name.as_bytes());
            value.map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
        };
        let number = |name: &str| match text(name) {
            Some(value) => value
                .parse::<u64>()
                .map_err(|_| Invalid(format!("field `{name}` is `{value}`, not a number"))),
            None => Ok(0),
        };
        let born = place.entry.split('-').next().and_then(|ms| ms.parse().ok()).unwrap_or(0);
        let derived = JobId::from_entry(lane_key, &place.entry);
        let id = text("id").map_or(Ok(derived), |id| id.parse::<JobId>());
        let at = number("at");
        let attempt = number("attempt");
        let job = match fields.iter().find(|(field, _)| field == b"job") {
            Some((_, bytes)) => Job::parse(bytes),
            None => Err(Invalid("the entry has no field `job`".to_owned())),
        };
        let broken = id.as_ref().err().or(at.as_ref().err()).or(attempt.as_ref().err()).cloned();
        Self {
            id: id.unwrap_or(derived),
            at: Timestamp(at.ok().filter(|at| *at > 0).unwrap_or(born)),
            attempt: attempt.ok().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            job: broken.map_or(job, Err),
            place,
            fields,
        }
    }

    /// The bytes of the `job` field, empty when there is none.
    pub fn payload(&self) -> &[u8] {
        self.fields.iter().find(|(field, _)| field == b"job").map_or(&[], |(_, bytes)| bytes)
    }
}

/// A running attempt: what its worker shows at every write. Attempts are equal whatever session
/// they were last seen in.
#[derive(Debug, Clone, Eq)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// The entry that carries it.
    pub place: Place,
    /// The worker that runs it.
    pub worker: WorkerId,
    /// Decides whose writes count.
    pub fence: u64,
    /// Counted from 1.
    pub number: u32,
    /// Failures before this attempt.
    pub failures: u32,
    /// The broker's session under which the log was last seen whole; see
    /// [`Log::session`](super::Log::session).
    pub session: u64,
}

impl PartialEq for Attempt {
    fn eq(&self, other: &Self) -> bool {
        let key = |a: &Self| (a.job, a.fence, a.number, a.failures);
        key(self) == key(other) && self.place == other.place && self.worker == other.worker
    }
}

/// A job that ran out of attempts or can never succeed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeadLetter {
    /// The job.
    pub id: JobId,
    /// Why.
    pub error: Failure,
    /// Attempts made.
    pub attempts: u32,
    /// The fence under which it failed.
    pub fence: u64,
    /// When the job was enqueued.
    pub at: Timestamp,
    /// The lane it came from.
    pub lane: Lane,
    /// The entry's fields as they were, in order.
    #[serde(skip)]
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl DeadLetter {
    /// The letter of an entry.
    pub fn new(entry: &Entry, error: Failure, attempts: u32, fence: u64) -> Self {
        Self {
            id: entry.id,
            error,
            attempts,
            fence,
            at: entry.at,
            lane: entry.place.lane,
            fields: entry.fields.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &[u8])]) -> Entry {
        let place = Place {
            partition: Partition::first(QueueName::default()),
            lane: Lane::Normal,
            entry: "1763640000123-0".to_owned(),
        };
        let fields = fields.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.to_vec())).collect();
        Entry::read(place, "ms:{q:default:0}:normal", fields)
    }

    const JOB: &[u8] = br#"{"model":"m","messages":[{}]}"#;

    #[test]
    fn a_plain_entry_needs_only_its_job() {
        let entry = read(&[("job", JOB)]);
        assert!(entry.job.is_ok());
        assert_eq!(entry.id.to_string(), "e4728aed-a9be-52e5-bb5b-1f824cb5f1d6");
        assert_eq!((entry.at, entry.attempt), (Timestamp(1_763_640_000_123), 0));
    }

    #[test]
    fn what_cannot_be_read_keeps_its_bytes() {
        for fields in [
            &[("jib", JOB)][..],
            &[("job", b"\xff\xfe")],
            &[("job", JOB), ("id", b"seven")],
            &[("job", JOB), ("attempt", b"-1")],
        ] {
            let entry = read(fields);
            assert!(entry.job.is_err(), "{fields:?}");
            assert_eq!(entry.fields.len(), fields.len());
        }
    }

    #[test]
    fn every_incarnation_has_its_own_id() {
        let (a, b) = (WorkerId::new("host{1} x"), WorkerId::new("host{1} x"));
        assert_ne!(a, b);
        assert!(a.as_str().starts_with("host-1--x-"), "{a}");
    }
}
