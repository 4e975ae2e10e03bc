//! One stream out of several attempts.
//!
//! The protocol cannot take text back. What a new attempt says is compared with what was sent,
//! per choice and per tool call: it is withheld while it is the same and goes on from there. Where
//! it differs the stream cannot go on ([`Diverged`]); the whole answer stays readable at the job.
//!
//! Only text is compared. A tool call's ID is random in every attempt, so the one that was sent
//! stands. Of log probabilities and of fields that this version does not know, as much is withheld
//! as was sent.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    field::{Field, is_text, repeats},
    parts,
};
use crate::event::{Body, Calls, Chunk, Piece};

/// What has been sent of a job's answer.
#[derive(Debug, Clone, Default)]
pub struct Splice {
    choices: BTreeMap<u32, Choice>,
    extra: Map<String, Value>,
}

/// A new attempt says something else than what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a new attempt differs from the text that was sent of choice {choice}")]
pub struct Diverged {
    /// The choice, from 0.
    pub choice: u32,
}

/// The attempt differs, somewhere within a choice.
#[derive(Debug)]
struct Differs;

impl Splice {
    /// What is to be sent for the job's next event; often nothing.
    pub fn push(&mut self, body: &Body) -> Result<Chunk, Diverged> {
        match body {
            Body::Started(_) | Body::Requeued(_) => {
                self.choices.values_mut().for_each(Choice::rewind);
                Ok(Chunk::default())
            }
            Body::Delta(chunk) => self.delta(chunk),
            Body::Done(_) => {
                let short = self.choices.iter().find(|(_, choice)| choice.message.is_short());
                short.map_or(Ok(Chunk::default()), |(index, _)| Err(Diverged { choice: *index }))
            }
            _ => Ok(Chunk::default()),
        }
    }

    fn delta(&mut self, chunk: &Chunk) -> Result<Chunk, Diverged> {
        let mut fresh = Chunk::default();
        for piece in &chunk.choices {
            let choice = self.choices.entry(piece.index).or_default();
            let rest = choice.rest_of(piece).map_err(|Differs| Diverged { choice: piece.index })?;
            if !rest.delta.is_empty() || !rest.extra.is_empty() || rest.finish_reason.is_some() {
                fresh.choices.push(rest);
            }
        }
        for (name, value) in &chunk.extra {
            if self.extra.get(name) != Some(value) {
                self.extra.insert(name.clone(), value.clone());
                fresh.extra.insert(name.clone(), value.clone());
            }
        }
        Ok(fresh)
    }
}

/// What has been sent of one choice.
#[derive(Debug, Clone, Default)]
struct Choice {
    message: Sent,
    logprobs: BTreeMap<String, Count>,
    extra: BTreeMap<String, Count>,
    finish_reason: Option<String>,
    /// An earlier attempt's finish was sent: nothing may follow.
    closed: bool,
}

impl Choice {
    fn rewind(&mut self) {
        self.message.rewind();
        self.logprobs.values_mut().chain(self.extra.values_mut()).for_each(Count::rewind);
        self.closed = self.finish_reason.is_some();
    }

    /// What of a piece has not been sent.
    fn rest_of(&mut self, piece: &Piece) -> Result<Piece, Differs> {
        let delta = self.message.rest_of(&piece.delta, self.closed)?;
        let mut extra = Map::new();
        for (name, value) in &piece.extra {
            let rest = match value.as_object() {
                Some(logprobs) if name == "logprobs" => self.logprobs(logprobs).map(Value::Object),
                _ => self.extra.entry(name.clone()).or_default().rest_of(value),
            };
            extra.extend(rest.map(|rest| (name.clone(), rest)));
        }
        let finish_reason = self.finish(piece.finish_reason.as_ref())?;
        Ok(Piece { index: piece.index, delta, finish_reason, extra })
    }

    /// Nulls stay beside what is sent: clients expect both `content` and `refusal`.
    fn logprobs(&mut self, logprobs: &Map<String, Value>) -> Option<Map<String, Value>> {
        let mut rest = Map::new();
        for (name, value) in logprobs {
            let value = if value.is_null() {
                Some(Value::Null)
            } else {
                self.logprobs.entry(name.clone()).or_default().rest_of(value)
            };
            rest.extend(value.map(|value| (name.clone(), value)));
        }
        rest.values().any(|value| !value.is_null()).then_some(rest)
    }

    fn finish(&mut self, reason: Option<&String>) -> Result<Option<String>, Differs> {
        let Some(reason) = reason else { return Ok(None) };
        if self.message.is_short() {
            return Err(Differs);
        }
        match &self.finish_reason {
            Some(sent) if sent == reason => Ok(None),
            Some(_) if self.closed => Err(Differs),
            _ => {
                self.finish_reason = Some(reason.clone());
                Ok(Some(reason.clone()))
            }
        }
    }
}

/// What has been sent of an object whose fields come in fragments: a message, a tool call, a
/// call's function.
#[derive(Debug, Clone, Default)]
struct Sent {
    once: BTreeSet<String>,
    texts: BTreeMap<String, Text>,
    objects: BTreeMap<String, Sent>,
    calls: BTreeMap<u32, Sent>,
    known: Calls,
    others: BTreeMap<String, Count>,
}

impl Sent {
    fn rewind(&mut self) {
        self.texts.values_mut().for_each(|text| text.at = 0);
        self.objects.values_mut().chain(self.calls.values_mut()).for_each(Self::rewind);
        self.others.values_mut().for_each(Count::rewind);
        self.known = Calls::default();
    }

    /// Whether the attempt has not yet said all the text that was sent.
    fn is_short(&self) -> bool {
        self.texts.values().any(|text| text.at < text.sent.len())
            || self.objects.values().chain(self.calls.values()).any(Self::is_short)
    }

    fn rest_of(
        &mut self,
        delta: &Map<String, Value>,
        closed: bool,
    ) -> Result<Map<String, Value>, Differs> {
        let mut rest = Map::new();
        // Whoever reads which fields there are reads it from the delta that names the speaker.
        let is_first = delta.contains_key("role") && !self.once.contains("role");
        for (name, value) in delta {
            let value = match Field::of(name, value) {
                Field::Nothing => (is_first && value.is_null()).then_some(Value::Null),
                Field::Once => self.once.insert(name.clone()).then(|| value.clone()),
                Field::Text(text) => {
                    self.texts.entry(name.clone()).or_default().rest_of(name, text, closed)?
                }
                Field::Object(inner) => {
                    let inner =
                        self.objects.entry(name.clone()).or_default().rest_of(inner, closed)?;
                    (!inner.is_empty()).then_some(inner.into())
                }
                Field::Calls(calls) => {
                    let calls = self.rest_of_calls(calls, closed)?;
                    (!calls.is_empty()).then_some(calls.into())
                }
                Field::Other(Value::Array(parts)) if is_text(name) => {
                    let parts = self.rest_of_parts(name, parts, closed)?;
                    (!parts.is_empty()).then_some(parts.into())
                }
                Field::Other(value) => self.others.entry(name.clone()).or_default().rest_of(value),
            };
            rest.extend(value.map(|value| (name.clone(), value)));
        }
        Ok(rest)
    }

    /// Of content that is a list, the text parts are compared as text is that comes without a list.
    fn rest_of_parts(
        &mut self,
        name: &str,
        parts: &[Value],
        closed: bool,
    ) -> Result<Vec<Value>, Differs> {
        let mut rest = Vec::new();
        for part in parts {
            if let Some(text) = parts::text_in(part) {
                let sent = self.texts.entry(name.to_owned()).or_default();
                if let Some(text) = sent.rest_of(name, text, closed)? {
                    let mut part = part.clone();
                    part["text"] = text;
                    rest.push(part);
                }
            } else if self.others.entry(name.to_owned()).or_default().passes(part) {
                rest.push(part.clone());
            }
        }
        Ok(rest)
    }

    fn rest_of_calls(&mut self, calls: &[Value], closed: bool) -> Result<Vec<Value>, Differs> {
        let mut rest = Vec::new();
        for call in calls.iter().filter_map(Value::as_object) {
            let slot = self.known.place(call).0;
            let fields = self.calls.entry(slot).or_default().rest_of(call, closed)?;
            if !fields.is_empty() {
                let mut call = Map::from_iter([("index".to_owned(), slot.into())]);
                call.extend(fields);
                rest.push(call.into());
            }
        }
        Ok(rest)
    }
}

/// A text that has been sent, and how far the running attempt has said it again. Both ends of
/// every comparison are ends of whole fragments, so a cut is always between characters.
#[derive(Debug, Clone, Default)]
struct Text {
    sent: String,
    at: usize,
    /// It was mentioned, were it only as empty.
    begun: bool,
}

impl Text {
    fn rest_of(&mut self, name: &str, text: &str, closed: bool) -> Result<Option<Value>, Differs> {
        let (said, due) = self.sent.split_at_checked(self.at).ok_or(Differs)?;
        if repeats(name, said, text) {
            return Ok(None);
        }
        let same = due.len().min(text.len());
        if due.as_bytes()[..same] != text.as_bytes()[..same] {
            return Err(Differs);
        }
        let rest = text.get(same..).ok_or(Differs)?;
        if closed && !rest.is_empty() {
            return Err(Differs);
        }
        self.at += text.len();
        self.sent.push_str(rest);
        let begins = !std::mem::replace(&mut self.begun, true);
        Ok((begins || !rest.is_empty()).then(|| rest.into()))
    }
}

/// How much has been sent of what is not compared: values, those of an array each by itself, and
/// the length of the tokens among them.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    sent: Extent,
    at: Extent,
}

#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    values: usize,
    bytes: usize,
}

impl Count {
    fn rewind(&mut self) {
        self.at = Extent::default();
    }

    fn rest_of(&mut self, value: &Value) -> Option<Value> {
        let Value::Array(values) = value else {
            return (!value.is_null() && self.passes(value)).then(|| value.clone());
        };
        let rest: Vec<Value> = values.iter().filter(|value| self.passes(value)).cloned().collect();
        (!rest.is_empty()).then_some(rest.into())
    }

    /// Whether a value has not been sent. A token has been when its text has: another attempt may
    /// have cut the same text into other tokens.
    fn passes(&mut self, value: &Value) -> bool {
        let bytes = token_length(value);
        self.at.values += 1;
        self.at.bytes += bytes;
        let passes = match bytes {
            0 => self.at.values > self.sent.values,
            _ => self.at.bytes > self.sent.bytes,
        };
        self.sent.values = self.sent.values.max(self.at.values);
        self.sent.bytes = self.sent.bytes.max(self.at.bytes);
        passes
    }
}

/// The bytes of a token with its log probability; 0 for anything else.
fn token_length(value: &Value) -> usize {
    match (value.get("bytes"), value.get("token")) {
        (Some(Value::Array(bytes)), Some(_)) => bytes.len(),
        (_, Some(Value::String(token))) => token.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
