//! Entries, and what is made of them.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::{
    error::{Code, Failure},
    job::{Invalid, Job, JobId, Lane, QueueName, Tenant, Timestamp},
};

/// The field of an entry that counts against its queue's limits: the tenant it counts for.
pub(super) const LOAD: &str = "load";

/// The field of an entry that holds a parked job which cannot be read.
const PARKED: &[u8] = b"parked";

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

/// Most characters of a worker's name: with what follows it stays a short value of a record.
const MOST_NAME: usize = 51;

/// A worker's incarnation: another ID at every start. Letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct WorkerId(String);

impl WorkerId {
    /// A new incarnation of the worker called `name`; characters that are not allowed become `-`.
    pub fn new(name: &str) -> Self {
        let name: String = name
            .chars()
            .take(MOST_NAME)
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
            .collect();
        Self(format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]))
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that no worker is called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no worker's ID; `millstream workers` shows them")]
pub struct WorkerIdError(String);

impl FromStr for WorkerId {
    type Err = WorkerIdError;

    fn from_str(text: &str) -> Result<Self, WorkerIdError> {
        let fits = (1..=80).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits { Ok(Self(text.to_owned())) } else { Err(WorkerIdError(text.to_owned())) }
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

/// What an entry counts against its queue's [`Limits`](super::Limits).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Load {
    /// The tenant that it counts for.
    pub tenant: Tenant,
    /// Bytes of its job, or of the parked job that cannot be read.
    pub bytes: u64,
}

impl Load {
    /// What an entry with these fields counts; `None` where nobody has counted it.
    pub(super) fn read(fields: &[(Vec<u8>, Vec<u8>)]) -> Option<Self> {
        let value = |name: &str| {
            let found = fields.iter().find(|(field, _)| field == name.as_bytes());
            found.map(|(_, value)| value.as_slice())
        };
        let tenant = std::str::from_utf8(value(LOAD)?).ok()?.parse().ok()?;
        let job = value("job").or_else(|| value("parked"));
        Some(Self { tenant, bytes: job.unwrap_or_default().len() as u64 })
    }
}

/// How the worker of an entry knows that the entry is not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Over {
    /// Its own attempt has ended the job.
    Here {
        /// The record holds an idempotency key.
        keyed: bool,
    },
    /// The broker has told it: the job is over, or another entry carries it.
    Told,
}

/// An entry whose job is over, and what is to be given back for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// Where it stands.
    pub place: Place,
    /// What it counts.
    pub load: Option<Load>,
    /// Its job. Once the entry is gone nobody needs the record to know what the entry is owed, and the
    /// record has the time of what is finished.
    pub job: JobId,
    /// How its worker knows it.
    pub over: Over,
}

impl From<&Entry> for Spent {
    fn from(entry: &Entry) -> Self {
        let (place, load) = (entry.place.clone(), entry.load.clone());
        Self { place, load, job: entry.id, over: Over::Told }
    }
}

/// An entry as a worker received it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// Its job's ID: the entry's own, or derived from its place.
    pub id: JobId,
    /// The ID that is derived from its place, which no other entry has.
    pub derived: JobId,
    /// When the job was enqueued.
    pub at: Timestamp,
    /// Attempts made before this entry was added.
    pub attempt: u32,
    /// The run of the job that it belongs to, from 1; a requeued dead letter opens the next.
    pub run: u32,
    /// Whether it was taken from a worker that let its lease run out, with nothing but the worker or
    /// the job to blame: the attempt that ran, if one did, is a crash.
    pub crashed: bool,
    /// The number of this taking, which rises with each time that the entry is given to a worker. Who takes
    /// it asks for one attempt under one number, however often the call is repeated, and for another
    /// attempt under the next.
    pub taking: u64,
    /// The broker's session ([`Log::session`](super::Log::session)) in which its worker was given it, or saw
    /// that it still has it. The worker notes it; `u64::MAX`, where nobody has, stands for any session.
    pub session: u64,
    /// What it counts against the queue's limits.
    pub load: Option<Load>,
    /// The entry's fields as they are, in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// The job, or why it cannot be run.
    pub job: Result<Job, Failure>,
}

impl Entry {
    /// Reads an entry's fields: `job` (required), `id`, `at`, `attempt`, `run` and `load`. An entry without an ID
    /// gets that of its job's idempotency key, or else one derived from `lane_key` and its entry ID, the same
    /// at every delivery. Of such an entry, which comes from a producer that writes nothing but its job, an
    /// option that is not known is a fault, and `attempt` and `run` do not count. Nothing here fails: what
    /// cannot be read is told by [`Entry::job`], with the bytes kept.
    pub fn read(place: Place, lane_key: &str, fields: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self::parse(place, lane_key, fields, None)
    }

    /// As [`Entry::read`] for an entry that was delivered so often that reading it may be what ends
    /// its workers: its job is not parsed. Only the idempotency key of an entry without an ID is looked for:
    /// its readers wait for the job of that key.
    pub fn unread(
        place: Place,
        lane_key: &str,
        fields: Vec<(Vec<u8>, Vec<u8>)>,
        deliveries: u32,
    ) -> Self {
        let text = format!("delivered {deliveries} times, and no attempt came to an end");
        Self::parse(place, lane_key, fields, Some(Failure::new(Code::Poison, text)))
    }

    fn parse(
        place: Place,
        lane_key: &str,
        fields: Vec<(Vec<u8>, Vec<u8>)>,
        unread: Option<Failure>,
    ) -> Self {
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
        let named = text("id").is_some();
        let at = number("at");
        let (attempt, run) = (number("attempt"), number("run"));
        let broken = [id.as_ref().err(), at.as_ref().err(), attempt.as_ref().err()]
            .into_iter()
            .chain([run.as_ref().err()])
            .flatten()
            .next();
        let job = match (broken, fields.iter().find(|(field, _)| field == b"job")) {
            (Some(invalid), _) => Err(invalid.clone()),
            // An entry that names its job was accepted at a door; any other has its door here.
            (None, Some((_, bytes))) if unread.is_none() && named => Job::read(bytes),
            (None, Some((_, bytes))) if unread.is_none() => Job::parse_strict(bytes),
            (None, Some(_)) => Err(Invalid(String::new())),
            (None, None) => Err(Invalid(no_job(&fields))),
        };
        let keyed = job.as_ref().ok().filter(|job| !named && job.idempotency_key.is_some());
        let payload = fields.iter().find(|(field, _)| field == b"job").map(|(_, bytes)| bytes);
        let by_key = payload.filter(|_| unread.is_some() && !named);
        let by_key = by_key.and_then(|bytes| Job::id_of_key(bytes));
        let id = by_key.or(keyed.map(Job::assign_id)).or(id.ok()).unwrap_or(derived);
        let invalid = |invalid: Invalid| Failure::new(Code::InvalidJob, invalid.to_string());
        let small = |number: u64| if named { u32::try_from(number).unwrap_or(u32::MAX) } else { 0 };
        Self {
            id,
            derived,
            at: Timestamp(at.ok().filter(|at| *at > 0).unwrap_or(born)),
            attempt: attempt.map_or(0, small),
            run: run.map_or(1, small).max(1),
            crashed: false,
            taking: 0,
            session: u64::MAX,
            job: job.map_err(|error| unread.unwrap_or_else(|| invalid(error))),
            load: Load::read(&fields),
            place,
            fields,
        }
    }

    /// Makes it an entry that cannot be read, under its own ID: the job that it names is another's, or the run of
    /// it nobody has opened, and neither is to be touched by it.
    pub fn disown(&mut self) {
        let (id, run) = (self.id, self.run);
        let text = if self.is_plain() {
            format!("its idempotency_key is that of job {id}, which has another request")
        } else if run > 1 {
            format!("the entry names run {run} of job {id}, which is another's, or has no such run")
        } else {
            format!("the entry names job {id}, which is another's")
        };
        self.job = Err(Failure::new(Code::InvalidJob, text));
        (self.id, self.attempt, self.run) = (self.derived, 0, 1);
    }

    /// Whether it stands for a parked job that could not be read.
    pub fn was_parked(&self) -> bool {
        self.fields.iter().any(|(field, _)| field == PARKED)
    }

    /// Whether it says nothing of itself but its job, as a plain `XADD` of a producer in any language.
    pub(super) fn is_plain(&self) -> bool {
        self.fields.iter().all(|(field, _)| field != b"id")
    }

    /// Whether it is in its first worker's hands since the read that brought it.
    pub fn is_new(&self) -> bool {
        self.taking == 0
    }

    /// Asks for another attempt within this taking. A crash is told once.
    pub fn anew(&mut self) {
        (self.taking, self.crashed) = (self.taking + 1, false);
    }

    /// Fields that are not Millstream's own, in order; none where they are very many: a script takes only
    /// so many arguments.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &(Vec<u8>, Vec<u8>)> {
        const OWN: [&[u8]; 6] = [b"job", b"id", b"at", b"attempt", b"run", LOAD.as_bytes()];
        let most = if self.fields.len() > 1000 { 0 } else { self.fields.len() };
        self.fields.iter().filter(|(name, _)| !OWN.contains(&name.as_slice())).take(most)
    }

    /// The bytes of the `job` field, empty when there is none.
    pub fn payload(&self) -> &[u8] {
        self.fields.iter().find(|(field, _)| field == b"job").map_or(&[], |(_, bytes)| bytes)
    }
}

/// Why an entry without a job has none.
fn no_job(fields: &[(Vec<u8>, Vec<u8>)]) -> String {
    if fields.iter().any(|(field, _)| field == PARKED) {
        return "the parked job cannot be read; it is `LANE AT ATTEMPT[,FIELD=VALUE…] JOB`, with single \
                spaces"
            .to_owned();
    }
    "the entry has no field `job`".to_owned()
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
    /// The run of the job that it belongs to, from 1.
    pub run: u32,
    /// The broker's session under which the log was last seen whole; see
    /// [`Log::session`](super::Log::session).
    pub session: u64,
}

impl PartialEq for Attempt {
    fn eq(&self, other: &Self) -> bool {
        let key = |a: &Self| (a.job, a.fence, a.number, a.failures, a.run);
        key(self) == key(other) && self.place == other.place && self.worker == other.worker
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::DeadLetter;

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

    const KEYED: &[u8] =
        br#"{"request":{"model":"m","messages":[{}]},"idempotency_key":"invoice-7"}"#;

    /// Guards against a plain entry whose key counts for nothing.
    #[test]
    fn a_plain_entry_with_a_key_is_the_job_of_its_key() {
        let (by_key, named) = ("b08d34d8-ceba-5729-bdc9-d74dda2e7217", JobId::new().to_string());
        assert_eq!(read(&[("job", KEYED)]).id.to_string(), by_key);
        assert_eq!(read(&[("job", KEYED), ("id", named.as_bytes())]).id.to_string(), named);
    }

    /// Guards against an entry that is delivered too often, and buried as another job than its readers know.
    #[test]
    fn an_entry_that_is_not_read_is_the_job_of_its_key() {
        let place = |entry: Entry| entry.place;
        let unread = |fields: &[(&str, &[u8])]| {
            let Entry { fields, .. } = read(fields);
            Entry::unread(place(read(&[])), "ms:{q:default:0}:normal", fields, 9)
        };
        let entry = unread(&[("job", KEYED)]);
        assert_eq!(entry.id, read(&[("job", KEYED)]).id);
        assert_eq!(entry.job.unwrap_err().code, Code::Poison);
        for other in [JOB, br#"{"idempotency_key":"invoice-7","messages":[]}"#, b"\xff{"] {
            let entry = unread(&[("job", other)]);
            assert_eq!(entry.id, entry.derived);
        }
        let named = JobId::new().to_string();
        let entry = unread(&[("job", KEYED), ("id", named.as_bytes())]);
        assert_eq!(entry.id.to_string(), named);
    }

    /// Guards against a misspelt option that vanishes; and against a newer producer's job that an older
    /// worker refuses.
    #[test]
    fn an_unknown_option_of_a_plain_entry_is_told() {
        let job = br#"{"request":{"model":"m","messages":[{}]},"not_befor":1}"#;
        let error = read(&[("job", job)]).job.unwrap_err();
        assert_eq!(error.code, Code::InvalidJob);
        assert!(error.message.contains("`not_befor`; allowed: request, queue"), "{error}");
        assert!(read(&[("job", job), ("id", JobId::new().to_string().as_bytes())]).job.is_ok());
    }

    /// Guards against a producer that opens a later run of its job by saying so.
    #[test]
    fn a_plain_entry_is_the_first_of_its_job() {
        let entry = read(&[("job", JOB), ("run", b"7"), ("attempt", b"3")]);
        assert_eq!((entry.run, entry.attempt), (1, 0));
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
    fn an_entry_says_itself_what_it_counts() {
        let fields: [(&str, &[u8]); 3] = [("job", JOB), ("load", b"acme"), ("x", b"y")];
        let entry = read(&fields);
        let load = Load { tenant: "acme".parse().unwrap(), bytes: JOB.len() as u64 };
        assert_eq!(Spent::from(&entry).load, Some(load));
        let error = Failure::new(crate::error::Code::InvalidJob, "no");
        let letter = DeadLetter::new(&entry, error, 1, 1);
        assert_eq!(letter.fields, [entry.fields[0].clone(), entry.fields[2].clone()]);
        for other in [&b""[..], b"no tenant", b"\xff"] {
            assert_eq!(read(&[("job", JOB), ("load", other)]).load, None);
        }
        assert_eq!(read(&[("load", b"acme")]).load.unwrap().bytes, 0);
    }

    #[test]
    fn every_incarnation_has_its_own_id() {
        let (a, b) = (WorkerId::new("host{1} x"), WorkerId::new("host{1} x"));
        assert_ne!(a, b);
        assert!(a.as_str().starts_with("host-1--x-"), "{a}");
    }
}
