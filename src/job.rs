//! A job: a chat request with options.
//!
//! The request is passed through as it came: its top-level fields keep their order and their exact
//! bytes, unknown ones included, so that a vendor's extension or a number that no machine type can
//! hold reaches the model unchanged.
//!
//! The same three shapes are read wherever a job is read, at a producer's door and from an entry:
//! a bare chat request, an envelope `{"request": …, "lane": …}`, and an `OpenAI` Batch input line.

mod id;
mod options;
mod request;

pub use id::JobId;
pub use options::{Labels, Lane, LaneError, Letter, NameError, QueueName, Tenant, Timestamp};
pub use request::ChatRequest;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a job is not acceptable. The message names what was met and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A chat request with everything that decides where and how it runs.
///
/// ```
/// use millstream::job::Job;
/// let job = Job::parse(br#"{"model":"m","messages":[{"role":"user","content":"Hi"}],"x":1e400}"#)?;
/// assert_eq!(job.request.model(), "m");
/// assert!(serde_json::to_string(&job.request).unwrap().contains("1e400"));
/// # Ok::<(), millstream::job::Invalid>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The chat request, as it came.
    pub request: ChatRequest,
    /// The queue it waits in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub queue: QueueName,
    /// Its priority within the queue.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lane: Lane,
    /// Who owns it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tenant: Tenant,
    /// The same tenant and key give the same job. At most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The caller's own name for the job, echoed in its result. At most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// Free labels such as user and conversation, echoed in the result.
    #[serde(default, skip_serializing_if = "is_default")]
    pub labels: Labels,
    /// Not to be run before this time: milliseconds since the epoch, or RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Not to be begun after this time, but failed as `expired`: milliseconds since the epoch, or
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Longest time one attempt may take, in milliseconds; the worker's own limit applies too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Most attempts that may fail, 1 to 100; the worker's own default otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Whether chunks are published while the model speaks. Without it the answer is one chunk.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub stream: bool,
    /// Whether it becomes a dead letter when it fails; its record and its events tell of the failure anyway.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dead_letter: Letter,
}

/// The envelope's fields, in the order in which errors list them.
const FIELDS: [&str; 13] = [
    "request",
    "queue",
    "lane",
    "tenant",
    "idempotency_key",
    "custom_id",
    "labels",
    "not_before",
    "expires_at",
    "deadline_ms",
    "max_attempts",
    "stream",
    "dead_letter",
];

/// The fields of a batch line.
const BATCH_FIELDS: [&str; 4] = ["custom_id", "method", "url", "body"];

/// Whether a field is an option of the job alone: `stream` is a field of chat requests too.
fn is_option(name: &str) -> bool {
    FIELDS.contains(&name) && !matches!(name, "request" | "stream")
}

/// The options that an envelope has beside its request, and a chat request has not.
#[cfg(feature = "gateway")]
pub(crate) fn options() -> impl Iterator<Item = &'static str> {
    FIELDS.into_iter().filter(|name| is_option(name))
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The key of an envelope, with what else makes its ID; everything beside it is passed over.
#[derive(Deserialize)]
struct Keyed {
    /// Only an envelope has options.
    #[serde(rename = "request")]
    _request: serde::de::IgnoredAny,
    #[serde(default)]
    idempotency_key: Option<String>,
    #[serde(default)]
    tenant: Tenant,
}

/// What tells the three shapes apart.
#[derive(Deserialize)]
struct Shape<'a> {
    #[serde(default, borrow)]
    request: Option<&'a serde_json::value::RawValue>,
    #[serde(default, borrow)]
    body: Option<&'a serde_json::value::RawValue>,
    #[serde(default)]
    custom_id: Option<String>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    method: Option<String>,
}

impl Job {
    /// A job with default options.
    pub fn new(request: ChatRequest) -> Self {
        Self {
            request,
            queue: QueueName::default(),
            lane: Lane::default(),
            tenant: Tenant::default(),
            idempotency_key: None,
            custom_id: None,
            labels: Labels::default(),
            not_before: None,
            expires_at: None,
            deadline_ms: None,
            max_attempts: None,
            stream: true,
            dead_letter: Letter::default(),
        }
    }

    /// Reads any of the three shapes and checks it, as every door does. Fields of an envelope that this
    /// version does not know are passed over, so that an older worker runs a newer producer's jobs.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let job = Self::read(bytes)?;
        job.check()?;
        Ok(job)
    }

    /// Reads a job that was accepted before. Only a model and messages are asked for, without which it
    /// cannot run: other bounds may be narrower than those under which it was accepted.
    pub fn read(bytes: &[u8]) -> Result<Self, Invalid> {
        let job = Self::decode(bytes)?;
        job.request.require()?;
        Ok(job)
    }

    /// As [`Job::parse`], and refuses an option that would vanish: a field that an envelope or a batch line
    /// does not have, and an option beside `messages`, from where it would go to the model. For a
    /// producer's door.
    pub fn parse_strict(bytes: &[u8]) -> Result<Self, Invalid> {
        let job = Self::draft(bytes)?;
        job.check()?;
        Ok(job)
    }

    /// As [`Job::parse_strict`], without [`Job::check`]: for a caller that completes the job first.
    pub(crate) fn draft(bytes: &[u8]) -> Result<Self, Invalid> {
        let job = Self::decode(bytes)?;
        let fields = serde_json::from_slice::<
            indexmap::IndexMap<String, Option<serde::de::IgnoredAny>>,
        >(bytes);
        let Ok(fields) = fields else { return Ok(job) };
        let known: &[&str] = match () {
            () if fields.contains_key("request") => &FIELDS,
            () if fields.get("body").is_some_and(Option::is_some) => &BATCH_FIELDS,
            () => {
                return match fields.keys().find(|name| is_option(name)) {
                    Some(option) => Err(Invalid::new(format!(
                        "`{option}` is an option of the job and no field of a chat request; write \
                         {{\"request\": {{…}}, \"{option}\": …}}"
                    ))),
                    None => Ok(job),
                };
            }
        };
        if let Some(unknown) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            let known = known.join(", ");
            return Err(Invalid::new(format!("unknown field `{unknown}`; allowed: {known}")));
        }
        Ok(job)
    }

    /// The ID that the idempotency key of an encoded job gives it, where it has one. Nothing of the job is
    /// built, so that one whose reading has ended its workers is known all the same.
    pub(crate) fn id_of_key(bytes: &[u8]) -> Option<JobId> {
        let keyed: Keyed = serde_json::from_slice(bytes).ok()?;
        Some(JobId::from_key(&keyed.tenant, &keyed.idempotency_key?))
    }

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            Invalid::new(format!("the job is not UTF-8 (byte {})", e.valid_up_to()))
        })?;
        let shape: Shape<'_> = serde_json::from_str(text).map_err(not_json)?;
        if shape.request.is_some() {
            serde_json::from_str::<Self>(text).map_err(not_json)
        } else if let Some(body) = shape.body {
            if let Some(url) = shape.url.filter(|url| url != "/v1/chat/completions") {
                return Err(Invalid::new(format!(
                    "batch line asks for url `{url}`; only /v1/chat/completions is served"
                )));
            }
            if let Some(method) = shape.method.filter(|method| method != "POST") {
                return Err(Invalid::new(format!(
                    "batch line has the method `{method}`; allowed: POST"
                )));
            }
            let mut job = Self::new(serde_json::from_str(body.get()).map_err(not_json)?);
            job.custom_id = shape.custom_id;
            Ok(job)
        } else {
            Ok(Self::new(serde_json::from_str(text).map_err(not_json)?))
        }
    }

    /// Checks everything that has a bound.
    pub fn check(&self) -> Result<(), Invalid> {
        self.request.check()?;
        self.labels.check()?;
        for (name, value) in
            [("idempotency_key", &self.idempotency_key), ("custom_id", &self.custom_id)]
        {
            let length = value.as_ref().map_or(0, String::len);
            if length > 256 || value.as_deref() == Some("") {
                return Err(Invalid::new(format!(
                    "{name} has {length} bytes; allowed: 1 to 256 bytes"
                )));
            }
        }
        if let Some(most) = self.max_attempts
            && !(1..=100).contains(&most)
        {
            return Err(Invalid::new(format!("max_attempts is {most}; allowed: 1 to 100")));
        }
        for (name, time) in [("not_before", self.not_before), ("expires_at", self.expires_at)] {
            if time.is_some_and(|time| time > Timestamp::MAX) {
                return Err(Invalid::new(format!(
                    "{name} is later than {}, the last time that is allowed",
                    Timestamp::MAX
                )));
            }
        }
        if let (Some(expires), Some(begins)) = (self.expires_at, self.not_before)
            && expires <= begins
        {
            return Err(Invalid::new(format!(
                "expires_at is {expires}, not after not_before, {begins}; the job could never run"
            )));
        }
        if self.deadline_ms == Some(0) {
            return Err(Invalid::new("deadline_ms is 0; allowed: 1 or more"));
        }
        Ok(())
    }

    /// The job's ID: from tenant and key where there is a key, else a new one.
    pub fn assign_id(&self) -> JobId {
        match &self.idempotency_key {
            Some(key) => JobId::from_key(&self.tenant, key),
            None => JobId::new(),
        }
    }

    /// Longest time one attempt may take, where the job sets one.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline_ms.map(Duration::from_millis)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is a `map_err` function")]
fn not_json(error: serde_json::Error) -> Invalid {
    Invalid::new(match error.classify() {
        serde_json::error::Category::Data => format!("not a job: {error}"),
        _ => format!("not JSON: {error}"),
    })
}

#[cfg(test)]
mod tests;
