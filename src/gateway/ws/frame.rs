//! What a client sends over a WebSocket, and how it is answered.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::super::error::{ErrorObject, Refusal, brief};
use crate::{
    event::{Codec, Event, EventId, Frame},
    job::JobId,
};

/// Longest `id` of a request, in bytes of JSON: it is said again with the answer.
const LONGEST_ID: usize = 256;

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
    #[serde(default, borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(default, borrow)]
    job: Option<&'a RawValue>,
    #[serde(default)]
    after: Option<String>,
}

/// Of a frame that is no request, its `id`.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(default, borrow)]
    id: Option<&'a RawValue>,
}

/// Reads a frame, and the `id` that is said again with its answer; of one that is no request, that `id` where it
/// has one.
pub(in crate::gateway) fn read(text: &str) -> Result<(Value, Request<'_>), Box<(Value, Refusal)>> {
    let refused = |id, text| Err(Box::new((id, Refusal::bad("invalid_frame", text))));
    if !text.trim_start().starts_with('{') {
        return refused(Value::Null, "not a request: it is no JSON object".to_owned());
    }
    match serde_json::from_str::<Request<'_>>(text) {
        Ok(request) => match named(request.id) {
            Ok(id) => Ok((id, request)),
            Err(why) => refused(Value::Null, why),
        },
        Err(error) => {
            let id = serde_json::from_str::<Named<'_>>(text).ok();
            let id = id.and_then(|frame| named(frame.id).ok());
            refused(id.unwrap_or_default(), format!("not a request: {error}"))
        }
    }
}

/// An `id` that may be said again.
fn named(id: Option<&RawValue>) -> Result<Value, String> {
    let Some(id) = id.map(RawValue::get) else { return Ok(Value::Null) };
    if id.len() > LONGEST_ID {
        return Err(format!("id has {} bytes; allowed: at most {LONGEST_ID}", id.len()));
    }
    serde_json::from_str(id).map_err(|error| format!("not a request: id: {error}"))
}

/// What is said to a request, as JSON.
pub(super) fn answered(id: Value, answer: Result<impl Serialize, Refusal>) -> String {
    #[derive(Serialize)]
    struct Answer<T> {
        id: Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        ok: Option<T>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<ErrorObject>,
    }
    let (ok, error) = match answer {
        Ok(ok) => (Some(ok), None),
        Err(refusal) => (None, Some(refusal.error)),
    };
    serde_json::to_string(&Answer { id, ok, error }).unwrap_or_default()
}

impl Request<'_> {
    /// What is asked for.
    pub(in crate::gateway) fn op(&self) -> Result<Op, Refusal> {
        let known = Op::ALL.into_iter().find(|(name, _)| *name == self.op);
        known.map(|(_, op)| op).ok_or_else(|| {
            let text = format!("op is `{}`; allowed: {}", brief(&self.op), Op::names().join(", "));
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
        text.parse().map_err(|_| Refusal::no_job(format_args!("`{}`", brief(&text))))
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

/// An event of a job. Its data goes on as text, as values would take many times the bytes.
pub(super) fn shown(job: JobId, event: &Event) -> String {
    #[derive(Serialize)]
    struct Shown<'a> {
        job: JobId,
        event: &'a str,
        event_id: EventId,
        data: Option<&'a RawValue>,
    }
    let frame = Frame::new(event.id.seq, &event.body, Codec::Json);
    let data = frame.map_or_else(|_| b"{}".to_vec(), |frame| frame.bytes);
    let data = serde_json::from_slice(&data).ok();
    let shown = Shown { job, event: event.body.kind(), event_id: event.id, data };
    serde_json::to_string(&shown).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_no_request_keeps_its_id() {
        let long = format!(r#"{{"id":"{}","op":"cancel"}}"#, "x".repeat(LONGEST_ID));
        for (text, id, word) in [
            ("{", Value::Null, "EOF"),
            ("[1]", Value::Null, "not a request"),
            (r#"["a","cancel"]"#, Value::Null, "not a request"),
            (r#"{"id":7}"#, 7.into(), "op"),
            (r#"{"id":"a","op":"cancel","jobb":1}"#, "a".into(), "jobb"),
            (r#"{"id":"\ud800","op":"cancel"}"#, Value::Null, "id: unexpected end"),
            (&long, Value::Null, "id has 258 bytes; allowed: at most 256"),
            (&long.replace("op", "po"), Value::Null, "po"),
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
        let (_, request) = read(&text).unwrap();
        assert_eq!(request.job().unwrap(), id);
        assert_eq!(request.after().unwrap(), EventId { fence: 5, seq: 7 });
        let (_, request) = read(r#"{"op":"subscribe","job":{"model":1},"after":"-1"}"#).unwrap();
        assert_eq!(request.payload().unwrap(), r#"{"model":1}"#);
        assert_eq!(request.job().unwrap_err().error.param.as_deref(), Some("job"));
        assert_eq!(request.after().unwrap_err().error.param.as_deref(), Some("after"));
    }
}
