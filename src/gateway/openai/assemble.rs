//! A job's events folded into the whole answer.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value, json};

use super::{
    field::{Field, is_text, repeats},
    parts,
};
use crate::event::{Body, Calls, Chunk, Event, EventId, Piece, text_of};

/// The answer as far as it has come. It is never larger than the log that it is made of.
#[derive(Debug, Clone, Default)]
pub struct Assembly {
    choices: BTreeMap<u32, Choice>,
    extra: Map<String, Value>,
    last: Option<EventId>,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    message: Message,
    logprobs: Option<Map<String, Value>>,
    finish_reason: Option<String>,
    extra: Map<String, Value>,
}

/// An object whose fields come in fragments: a message, a tool call, a call's function.
#[derive(Debug, Clone, Default)]
struct Message {
    fields: Map<String, Value>,
    objects: BTreeMap<String, Message>,
    calls: BTreeMap<u32, Message>,
    known: Calls,
}

impl Assembly {
    /// Takes the job's next event. A new attempt discards what the one before it said.
    pub fn push(&mut self, event: &Event) {
        self.last = Some(event.id);
        match &event.body {
            Body::Started(_) => {
                self.choices.clear();
                self.extra.clear();
            }
            Body::Delta(chunk) => self.merge(chunk),
            _ => {}
        }
    }

    fn merge(&mut self, chunk: &Chunk) {
        for piece in &chunk.choices {
            self.choices.entry(piece.index).or_default().merge(piece);
        }
        self.extra.extend(chunk.extra.clone());
    }

    /// The first choice's text; of content that is a list, that of its text parts.
    pub fn text(&self) -> Cow<'_, str> {
        let content = self.choices.get(&0).and_then(|choice| choice.message.fields.get("content"));
        content.map(text_of).unwrap_or_default()
    }

    /// Every choice by index: `{"index", "message", "logprobs", "finish_reason"}` and what else the
    /// model said of it. A message has `role` and `content`, which is null when nothing was said.
    pub fn choices(&self) -> Vec<Value> {
        self.choices.iter().map(|(index, choice)| choice.value(*index)).collect()
    }

    /// A whole `chat.completion` object.
    pub fn completion(
        &self,
        id: &str,
        created: u64,
        model: &str,
        usage: Option<&Value>,
    ) -> Map<String, Value> {
        let mut choices = self.choices();
        for message in choices.iter_mut().filter_map(|choice| choice["message"].as_object_mut()) {
            message.entry("refusal").or_insert(Value::Null);
        }
        let mut completion = Map::from_iter([
            ("id".to_owned(), id.into()),
            ("object".to_owned(), "chat.completion".into()),
            ("created".to_owned(), created.into()),
            ("model".to_owned(), model.into()),
            ("choices".to_owned(), choices.into()),
        ]);
        if let Some(usage) = usage {
            completion.insert("usage".to_owned(), usage.clone());
        }
        add(&mut completion, &self.extra);
        completion
    }

    /// The last event that was taken: where to read on.
    pub fn last_event_id(&self) -> Option<EventId> {
        self.last
    }
}

impl Choice {
    fn merge(&mut self, piece: &Piece) {
        self.message.merge(&piece.delta);
        for (name, value) in &piece.extra {
            match value.as_object() {
                Some(more) if name == "logprobs" => {
                    let logprobs = self.logprobs.get_or_insert_default();
                    more.iter().for_each(|(name, value)| gather(logprobs, name, value));
                }
                _ => gather(&mut self.extra, name, value),
            }
        }
        if piece.finish_reason.is_some() {
            self.finish_reason.clone_from(&piece.finish_reason);
        }
    }

    fn value(&self, index: u32) -> Value {
        let mut message = Map::from_iter([
            ("role".to_owned(), "assistant".into()),
            ("content".to_owned(), Value::Null),
        ]);
        message.extend(self.message.value());
        let mut choice = Map::from_iter([
            ("index".to_owned(), index.into()),
            ("message".to_owned(), message.into()),
            ("logprobs".to_owned(), json!(self.logprobs)),
            ("finish_reason".to_owned(), json!(self.finish_reason)),
        ]);
        add(&mut choice, &self.extra);
        choice.into()
    }
}

impl Message {
    fn merge(&mut self, delta: &Map<String, Value>) {
        for (name, value) in delta {
            match Field::of(name, value) {
                Field::Nothing => {}
                Field::Once => {
                    self.fields.entry(name).or_insert_with(|| value.clone());
                }
                Field::Text(text) => self.append(name, text),
                Field::Object(inner) => self.objects.entry(name.clone()).or_default().merge(inner),
                Field::Calls(calls) => {
                    for call in calls.iter().filter_map(Value::as_object) {
                        self.calls.entry(self.known.place(call).0).or_default().merge(call);
                    }
                }
                Field::Other(value) => gather(&mut self.fields, name, value),
            }
        }
    }

    fn append(&mut self, name: &str, text: &str) {
        match self.fields.get_mut(name) {
            Some(Value::String(whole)) if repeats(name, whole, text) => {}
            Some(Value::String(whole)) => whole.push_str(text),
            Some(Value::Array(_)) if text.is_empty() => {}
            Some(Value::Array(whole)) => parts::extend(whole, &[parts::text(text)]),
            _ => {
                self.fields.insert(name.to_owned(), text.into());
            }
        }
    }

    fn value(&self) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        fields
            .extend(self.objects.iter().map(|(name, inner)| (name.clone(), inner.value().into())));
        if !self.calls.is_empty() {
            let calls: Vec<Value> = self.calls.values().map(|call| call.value().into()).collect();
            fields.insert("tool_calls".to_owned(), calls.into());
        }
        fields
    }
}

/// Adds what is not there yet.
fn add(fields: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        fields.entry(name).or_insert_with(|| value.clone());
    }
}

/// Keeps a field that is no known text: arrays grow, of anything else the last value stands. Text
/// becomes a part of a list, and is not replaced by anything else.
fn gather(fields: &mut Map<String, Value>, name: &str, value: &Value) {
    match (fields.get_mut(name), value) {
        (_, Value::Null) => {
            fields.entry(name).or_insert(Value::Null);
        }
        (Some(Value::Array(whole)), Value::Array(more)) if is_text(name) => {
            parts::extend(whole, more);
        }
        (Some(Value::Array(whole)), Value::Array(more)) => whole.extend_from_slice(more),
        (Some(Value::String(said)), Value::Array(more)) if is_text(name) => {
            let mut whole: Vec<Value> = Vec::new();
            whole.extend((!said.is_empty()).then(|| parts::text(said)));
            parts::extend(&mut whole, more);
            fields.insert(name.to_owned(), whole.into());
        }
        (Some(Value::String(_) | Value::Array(_)), _) if is_text(name) => {}
        _ => {
            fields.insert(name.to_owned(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Started;

    fn event(seq: u64, body: Body) -> Event {
        Event { id: EventId { fence: 9, seq }, body }
    }

    fn started(attempt: u32) -> Body {
        Body::Started(Started { attempt, worker: "w".to_owned() })
    }

    fn assembled(chunks: Value) -> Assembly {
        let chunks: Vec<Chunk> = serde_json::from_value(chunks).unwrap();
        let mut assembly = Assembly::default();
        let bodies = std::iter::once(started(1)).chain(chunks.into_iter().map(Body::Delta));
        (0..).zip(bodies).for_each(|(seq, body)| assembly.push(&event(seq, body)));
        assembly
    }

    #[expect(clippy::needless_pass_by_value, reason = "written where it is used")]
    fn pieces(pieces: Value) -> Assembly {
        assembled(json!([{ "choices": pieces }]))
    }

    #[test]
    fn a_new_attempt_discards_and_a_requeue_does_not() {
        let mut assembly = assembled(
            json!([{"choices": [{"delta": {"content": "a"}}], "extra": {"service_tier": "x"}}]),
        );
        assembly.push(&event(7, Body::Requeued(crate::event::Requeued { run: 2 })));
        assert_eq!(assembly.text(), "a");
        assembly.push(&event(8, started(2)));
        assert_eq!(assembly.text(), "");
        assert_eq!(assembly.last_event_id(), Some(EventId { fence: 9, seq: 8 }));
        assert!(assembly.choices().is_empty());
        assert!(!assembly.completion("i", 1, "m", None).contains_key("service_tier"));
    }

    #[test]
    fn a_streamed_answer_becomes_whole() {
        let call = |call: Value| json!({"index": 1, "delta": {"tool_calls": [call]}});
        let token = |text: &str| json!({"token": text, "logprob": -0.5});
        let assembly = pieces(json!([
            {"index": 1, "delta": {"role": "assistant", "content": null}},
            call(json!({"index": 1, "id": "b", "type": "function", "x": [1],
                "function": {"name": "g", "arguments": "{"}})),
            call(json!({"index": 0, "id": "a", "type": "function",
                "function": {"name": "f", "arguments": ""}})),
            call(json!({"index": 1, "function": {"name": null, "arguments": "}"}, "x": [2]})),
            call(json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": "[]"}})),
            {"index": 0, "delta": {"content": "", "reasoning": "h"}, "logprobs": {"content": [token("a")]}},
            {"index": 0, "delta": {"content": "caf\u{e9}", "reasoning": "m"}},
            {"index": 0, "delta": {"content": "!", "x_list": [1], "x_one": "a"},
                "logprobs": {"content": [token("b")], "refusal": null}},
            {"index": 0, "delta": {"x_list": [2], "x_one": "b"}, "finish_reason": "stop"},
            {"index": 1, "delta": {}, "finish_reason": "tool_calls", "x_filter": {"hate": false}},
        ]));
        let expected = json!([
            {"index": 0,
             "message": {"role": "assistant", "content": "caf\u{e9}!", "reasoning": "hm",
                "x_list": [1, 2], "x_one": "b"},
             "logprobs": {"content": [token("a"), token("b")], "refusal": null},
             "finish_reason": "stop"},
            {"index": 1,
             "message": {"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[]"}},
                {"id": "b", "type": "function", "x": [1, 2], "function": {"name": "g", "arguments": "{}"}},
             ]},
             "logprobs": null, "finish_reason": "tool_calls", "x_filter": {"hate": false}},
        ]);
        assert_eq!(json!(assembly.choices()), expected);
        assert_eq!(assembly.text(), "caf\u{e9}!");
    }

    #[test]
    fn an_answer_that_came_whole_stays_what_it_was() {
        let message = json!({"role": "assistant", "content": null, "refusal": "no", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "custom", "custom": {"name": "g", "input": "text"}},
        ], "function_call": {"name": "old", "arguments": "{}"}, "audio": {"data": "x"}});
        let piece = json!({"index": 0, "delta": message, "finish_reason": "tool_calls"});
        assert_eq!(pieces(json!([piece])).choices()[0]["message"], message);
    }

    /// A list was replaced by the text behind it, and one behind text was dropped.
    #[test]
    fn content_that_is_a_list_is_kept_beside_text() {
        let content = |contents: Value| {
            let contents = contents.as_array().unwrap().iter();
            let deltas: Vec<_> =
                contents.map(|content| json!({"delta": {"content": content}})).collect();
            let assembly = pieces(json!(deltas));
            let content = assembly.choices()[0]["message"]["content"].clone();
            (content, assembly.text().into_owned())
        };
        let think = |text: &str| json!({"type": "thinking", "thinking": text});
        let (kept, text) =
            content(json!(["", [think("h")], [think("m")], "a", "b", null, "", 7, {"x": 1}]));
        assert_eq!(kept, json!([think("hm"), {"type": "text", "text": "ab"}]));
        assert_eq!(text, "ab");
        let (kept, text) = content(json!(["a", [think("h")], "b", [1]]));
        let parts = |text: &str| json!({"type": "text", "text": text});
        assert_eq!(kept, json!([parts("a"), think("h"), parts("b"), 1]));
        assert_eq!(text, "ab");
        assert_eq!(content(json!(["a", 7, "b"])), (json!("ab"), "ab".to_owned()));
    }

    #[test]
    fn a_completion_is_whole() {
        let assembly = assembled(json!([
            {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}],
             "extra": {"system_fingerprint": "old", "id": "upstream's"}},
            {"choices": [], "extra": {"system_fingerprint": "fp"}},
        ]));
        let usage = json!({"total_tokens": 3});
        let expected = json!({"id": "i", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [{"index": 0,
                "message": {"role": "assistant", "content": "a", "refusal": null},
                "logprobs": null, "finish_reason": "stop"}],
            "usage": usage, "system_fingerprint": "fp"});
        assert_eq!(json!(assembly.completion("i", 7, "m", Some(&usage))), expected);
        assert!(!assembly.completion("i", 7, "m", None).contains_key("usage"));
    }
}
