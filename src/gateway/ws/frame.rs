//! What a client sends over a WebSocket.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::super::error::Refusal;
use crate::{event::EventId, job::JobId};

/// What a request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum Op {
    Enqueue,
    Subscribe,
    Unsubscribe,
    Cancel,
}

impl Op {
    /// All there are, by the names that they have in frames.
    pub(in crate::gateway) const ALL: [(&str, Self); 4] = [
        ("enqueue", Self::Enqueue),
        ("subscribe", Self::Subscribe),
        ("unsubscribe", Self::Unsubscribe),
        ("cancel", Self::Cancel),
    ];

    /// Their names.
    pub(in crate::gateway) fn names() -> [&'static str; 4] {
        Self::ALL.map(|(name, _)| name)
    }
}

/// A request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct Request<'a> {
    /// The client's own name for it.
    #[serde(default)]
    pub(super) id: Value,
    op: String,
    #[serde(default, borrow)]
    job: Option<&'a RawValue>,
    #[serde(default)]
    after: Option<String>,
}

/// Reads a frame; of one that is no request, its `id` where it has one.
pub(in crate::gateway) fn read(text: &str) -> Result<Request<'_>, Box<(Value, Refusal)>> {
    serde_json::from_str(text).map_err(|error| {
        let frame = serde_json::from_str::<Value>(text).ok();
        let id = frame.and_then(|frame| frame.get("id").cloned());
        let text = format!("not a request: {error}");
        Box::new((id.unwrap_or_default(), Refusal::bad("invalid_frame", text)))
    })
}

impl Request<'_> {
    /// What is asked for.
    pub(in crate::gateway) fn op(&self) -> Result<Op, Refusal> {
        let known = Op::ALL.into_iter().find(|(name, _)| *name == self.op);
        known.map(|(_, op)| op).ok_or_else(|| {
            let text = format!("op is `{}`; allowed: {}", self.op, Op::names().join(", "));
            Refusal::param("op", text)
        })
    }

    /// The job to be enqueued, as JSON.
    pub(in crate::gateway) fn payload(&self) -> Result<&str, Refusal> {
        let missing = || {
            Refusal::param("job", "job is missing; it is a chat request or an envelope around one")
        };
        self.job.map(RawValue::get).ok_or_else(missing)
    }

    /// The job that is meant.
    pub(in crate::gateway) fn job(&self) -> Result<JobId, Refusal> {
        let text: Option<String> = self.job.and_then(|job| serde_json::from_str(job.get()).ok());
        let Some(text) = text else {
            return Err(Refusal::param("job", "job is missing; it is a job's ID, as text"));
        };
        text.parse().map_err(|_| Refusal::no_job(format_args!("`{text}`")))
    }

    /// The cursor.
    pub(in crate::gateway) fn after(&self) -> Result<EventId, Refusal> {
        match self.after.as_deref() {
            None | Some("") => Ok(EventId::START),
            Some(text) => text.parse().map_err(|error: crate::event::EventIdError| {
                Refusal::param("after", error.to_string())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_no_request_keeps_its_id() {
        for (text, id, word) in [
            ("{", Value::Null, "EOF"),
            ("[1]", Value::Null, "not a request"),
            (r#"{"id":7}"#, 7.into(), "op"),
            (r#"{"id":"a","op":"cancel","jobb":1}"#, "a".into(), "jobb"),
        ] {
            let (met, refusal) = *read(text).unwrap_err();
            assert_eq!(met, id, "{text}");
            assert!(refusal.error.message.contains(word), "{}", refusal.error.message);
        }
    }

    #[test]
    fn each_op_finds_what_it_needs() {
        let id = JobId::new();
        let text = format!(r#"{{"id":"r1","op":"subscribe","job":"{id}","after":"5-7"}}"#);
        let request = read(&text).unwrap();
        assert_eq!(request.job().unwrap(), id);
        assert_eq!(request.after().unwrap(), EventId { fence: 5, seq: 7 });
        let request = read(r#"{"op":"subscribe","job":{"model":1},"after":"-1"}"#).unwrap();
        assert_eq!(request.payload().unwrap(), r#"{"model":1}"#);
        assert_eq!(request.job().unwrap_err().error.param.as_deref(), Some("job"));
        assert_eq!(request.after().unwrap_err().error.param.as_deref(), Some("after"));
    }
}
