//! Chunks: token deltas, batched so that an answer costs a write per flush and not per token.
//!
//! Deltas that carry nothing but text are joined; anything else (a tool call's start, log
//! probabilities, a vendor's field, a finish reason) stays a piece of its own, so that a reader
//! can rebuild every upstream delta that means something.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Text fields of a delta that may be joined.
pub(crate) const TEXT_FIELDS: [&str; 7] = [
    "content",
    "reasoning_content",
    "reasoning",
    "reasoning_text",
    "thinking",
    "thought",
    "refusal",
];

/// A batch of token deltas: the payload of one `delta` event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// What the choices said, in order.
    pub choices: Vec<Piece>,
    /// Fields of the upstream's chunks beside the choices, such as `system_fingerprint`; each is
    /// here when it first comes and when it changes. `model` is here where the model names itself
    /// otherwise than the request did.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

/// What one choice said next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// The choice, from 0.
    #[serde(default)]
    pub index: u32,
    /// The delta as the model sent it, its text joined with its neighbours'.
    #[serde(default)]
    pub delta: Map<String, Value>,
    /// Why the model stopped, on the choice's last piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// Everything else that came with it, such as `logprobs`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Piece {
    /// Whether it tells anything beyond the speaker's role.
    pub fn speaks(&self) -> bool {
        self.finish_reason.is_some()
            || self.delta.iter().any(|(name, value)| {
                name != "role" && !value.is_null() && value.as_str() != Some("")
            })
    }

    /// Roughly how many bytes it takes on the wire.
    pub(super) fn weight(&self) -> usize {
        32 + fields_weight(&self.delta) + fields_weight(&self.extra)
    }

    /// Whether it holds fragments of text and nothing else.
    fn is_text(&self) -> bool {
        let is_text = |(name, value): (&String, &Value)| {
            value.is_string() && TEXT_FIELDS.contains(&name.as_str())
        };
        self.finish_reason.is_none()
            && self.extra.is_empty()
            && !self.delta.is_empty()
            && self.delta.iter().all(is_text)
    }

    /// The tool call's index and argument text of a delta that holds nothing else.
    fn lone_arguments(&self) -> Option<(&Value, &str)> {
        if self.delta.len() != 1 || self.finish_reason.is_some() || !self.extra.is_empty() {
            return None;
        }
        let [call] = self.delta.get("tool_calls")?.as_array()?.as_slice() else { return None };
        let call = call.as_object()?;
        let function = call.get("function")?.as_object()?;
        let plain = call.keys().all(|key| key == "index" || key == "function");
        (plain && function.len() == 1)
            .then(|| Some((call.get("index")?, function.get("arguments")?.as_str()?)))
            .flatten()
    }

    /// Joins `next` onto this piece where nothing is lost by it.
    fn join(&mut self, next: &Self) -> bool {
        if self.index != next.index {
            return false;
        }
        let is_same = self.delta.len() == next.delta.len()
            && next.delta.keys().all(|name| self.delta.contains_key(name));
        if is_same && next.is_text() && self.is_text() {
            for (name, more) in &next.delta {
                if let (Some(Value::String(have)), Value::String(more)) =
                    (self.delta.get_mut(name), more)
                {
                    have.push_str(more);
                }
            }
            return true;
        }
        if let Some((index, more)) = next.lone_arguments()
            && self.lone_arguments().is_some_and(|(mine, _)| mine == index)
            && let Some(Value::String(have)) =
                self.delta["tool_calls"].pointer_mut("/0/function/arguments")
        {
            have.push_str(more);
            return true;
        }
        false
    }
}

impl Chunk {
    /// Adds a piece, joined with the last one where nothing is lost by it. An empty delta without
    /// a finish reason says nothing and is dropped, and so is a field that is null or empty text. The first delta of a choice, which names the
    /// speaker, keeps what it says to be null: some clients read from it which fields there are.
    pub fn push(&mut self, mut piece: Piece) {
        piece.extra.retain(|_, value| !value.is_null());
        if !piece.delta.contains_key("role") {
            let is_text = |name: &String| TEXT_FIELDS.contains(&name.as_str());
            piece.delta.retain(|name, value| {
                !(value.is_null() || value.as_str() == Some("") && is_text(name))
            });
        }
        let silent = piece.delta.values().all(|v| v.is_null() || v.as_str() == Some(""));
        if silent && piece.finish_reason.is_none() && piece.extra.is_empty() {
            return;
        }
        if !self.choices.last_mut().is_some_and(|last| last.join(&piece)) {
            self.choices.push(piece);
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty() && self.extra.is_empty()
    }

    /// The text of the first choice in this chunk; of content that is a list, that of its text parts.
    pub fn text(&self) -> String {
        self.choices
            .iter()
            .filter(|piece| piece.index == 0)
            .filter_map(|piece| piece.delta.get("content").map(text_of))
            .collect()
    }

    /// Roughly how many bytes it takes on the wire, counted while it grows.
    pub fn weight(&self) -> usize {
        self.choices.iter().map(Piece::weight).sum::<usize>() + fields_weight(&self.extra)
    }
}

fn fields_weight(fields: &Map<String, Value>) -> usize {
    fields.iter().map(|(name, value)| name.len() + value_weight(value)).sum()
}

/// The text of a message's content: the content itself, or the text parts of a list.
pub(crate) fn text_of(content: &Value) -> Cow<'_, str> {
    match content {
        Value::String(text) => Cow::Borrowed(text),
        Value::Array(parts) => {
            let texts = parts.iter().filter(|part| part["type"] == "text");
            Cow::Owned(texts.filter_map(|part| part["text"].as_str()).collect())
        }
        _ => Cow::Borrowed(""),
    }
}

pub(super) fn value_weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 16,
        Value::Array(items) => items.iter().map(value_weight).sum::<usize>() + 16,
        Value::Object(fields) => fields.iter().map(|(k, v)| k.len() + value_weight(v)).sum(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn piece(value: Value) -> Piece {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn text_is_joined_per_choice() {
        let mut chunk = Chunk::default();
        for (index, text) in [(0, "a"), (0, "b"), (1, "x"), (0, "c")] {
            chunk.push(piece(json!({"index": index, "delta": {"content": text}})));
        }
        assert_eq!(chunk.choices.len(), 3);
        assert_eq!(chunk.text(), "abc");
    }

    /// A null beside the text kept each token apart: a log of 29 KB instead of 2.
    #[test]
    fn null_and_empty_text_beside_a_text_say_nothing() {
        for field in TEXT_FIELDS {
            let mut chunk = Chunk::default();
            for text in ["a", "b", "c"] {
                let mut delta = json!({"content": null, "refusal": "", "reasoning": null});
                delta[field] = text.into();
                chunk.push(piece(json!({"index": 0, "delta": delta})));
            }
            assert_eq!(
                serde_json::to_value(&chunk.choices).unwrap(),
                json!([{"index": 0, "delta": {field: "abc"}}])
            );
        }
        // Two texts side by side are joined each with its own; where one ends, another piece begins.
        let mut chunk = Chunk::default();
        for (thought, text) in [("a", "x"), ("b", "y"), ("", "z")] {
            chunk
                .push(piece(json!({"index": 0, "delta": {"reasoning": thought, "content": text}})));
        }
        let expected = json!([{"index": 0, "delta": {"reasoning": "ab", "content": "xy"}},
            {"index": 0, "delta": {"content": "z"}}]);
        assert_eq!(serde_json::to_value(&chunk.choices).unwrap(), expected);
    }

    #[test]
    fn what_is_not_only_text_stays_whole() {
        let mut chunk = Chunk::default();
        chunk.push(piece(json!({"index": 0, "delta": {"role": "assistant", "content": "a"}})));
        chunk.push(piece(json!({"index": 0, "delta": {"content": "b"}, "logprobs": {"c": []}})));
        chunk.push(piece(json!({"index": 0, "delta": {"content": "c"}})));
        chunk.push(piece(json!({"index": 0, "delta": {"x_vendor": [1]}})));
        chunk.push(piece(json!({"index": 0, "delta": {}, "finish_reason": "stop"})));
        assert_eq!(chunk.choices.len(), 5);
        assert_eq!(chunk.text(), "abc");
        assert_eq!(chunk.choices[1].extra["logprobs"], json!({"c": []}));
    }

    #[test]
    fn fragments_of_one_tool_call_are_joined() {
        let mut chunk = Chunk::default();
        let call = |v: Value| piece(json!({"index": 0, "delta": {"tool_calls": [v]}}));
        chunk.push(call(json!({"index": 0, "id": "c", "type": "function",
            "function": {"name": "f", "arguments": ""}})));
        chunk.push(call(json!({"index": 0, "function": {"arguments": "{\"a\""}})));
        chunk.push(call(json!({"index": 0, "function": {"arguments": ":1}"}})));
        chunk.push(call(json!({"index": 1, "function": {"arguments": "{}"}})));
        assert_eq!(chunk.choices.len(), 3);
        let joined = &chunk.choices[1].delta["tool_calls"][0]["function"]["arguments"];
        assert_eq!(joined, "{\"a\":1}");
    }

    /// Text parts of a list were no text to whoever prints an answer.
    #[test]
    fn the_text_of_a_list_is_that_of_its_text_parts() {
        let mut chunk = Chunk::default();
        let think = json!({"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]});
        chunk.push(piece(json!({"delta": {"content": [think, {"type": "text", "text": "a"}]}})));
        chunk.push(piece(json!({"delta": {"content": "b"}})));
        assert_eq!(chunk.text(), "ab");
    }

    /// The first delta lost the fields that it said to be null.
    #[test]
    fn a_first_delta_keeps_every_field() {
        let mut chunk = Chunk::default();
        let first = json!({"role": "assistant", "content": null, "refusal": null});
        chunk.push(piece(json!({"index": 0, "delta": first})));
        chunk.push(piece(json!({"index": 0, "delta": {"content": "a", "refusal": null}})));
        assert_eq!(serde_json::to_value(&chunk.choices[0].delta).unwrap(), first);
        assert_eq!(serde_json::to_value(&chunk.choices[1].delta).unwrap(), json!({"content": "a"}));
    }

    #[test]
    fn an_empty_delta_says_nothing() {
        let mut chunk = Chunk::default();
        chunk.push(piece(json!({"index": 0, "delta": {}, "logprobs": null})));
        assert!(chunk.is_empty());
    }
}
