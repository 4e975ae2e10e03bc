//! `chat.completion.chunk` objects, as they stand on the wire.
//!
//! Clients join the choices of a stream's first chunk by their place in its array, and many read
//! only the first of an array: so a chunk carries one piece of one choice. They also expect choices
//! to be mentioned first in the order of their indices.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::event::{Chunk, Piece};

/// What ends a stream, in place of a chunk.
pub const DONE: &str = "[DONE]";

/// Fields beside the choices that stand on every chunk: clients keep what the last one says.
const LASTING: [&str; 2] = ["system_fingerprint", "service_tier"];

/// Fields of a chunk that are not the model's to set.
const OWN: [&str; 7] = ["id", "object", "created", "model", "choices", "usage", "error"];

/// Most choices of an answer; what calls itself a later one is none that others come before.
const CHOICES: u32 = 128;

/// Writes the chunks of one stream.
#[derive(Debug, Clone)]
pub struct Writer {
    id: String,
    created: u64,
    /// The model that was asked for, until it names itself.
    model: String,
    named: bool,
    include_usage: bool,
    /// Choices that have been mentioned.
    opened: BTreeSet<u32>,
    lasting: Map<String, Value>,
    /// Fields that go out with the next chunk.
    waiting: Map<String, Value>,
}

impl Writer {
    /// A stream of one job; `created` is in seconds.
    pub fn new(id: String, created: u64, model: String, include_usage: bool) -> Self {
        let (opened, lasting, waiting) = Default::default();
        Self { id, created, model, named: false, include_usage, opened, lasting, waiting }
    }

    /// The chunks that tell this, each the data of one event.
    pub fn write(&mut self, chunk: Chunk) -> Vec<String> {
        for (name, value) in chunk.extra {
            if let Some(model) = value.as_str().filter(|_| name == "model" && !self.named) {
                // Another attempt may be answered by another model: a stream has one name.
                model.clone_into(&mut self.model);
                self.named = true;
            } else if LASTING.contains(&name.as_str()) {
                self.lasting.insert(name, value);
            } else if !OWN.contains(&name.as_str()) {
                self.waiting.insert(name, value);
            }
        }
        let mut chunks = Vec::with_capacity(chunk.choices.len());
        for mut piece in chunk.choices {
            self.open_before(piece.index, &mut chunks);
            self.give_role(&mut piece);
            if !piece.delta.is_empty() || !piece.extra.is_empty() || piece.finish_reason.is_some() {
                chunks.push(self.piece(piece));
            }
        }
        chunks
    }

    /// What ends a whole answer: its usage, where it was asked for and is known, and [`DONE`].
    pub fn end(&mut self, usage: Option<&Value>) -> Vec<String> {
        let mut chunks = Vec::new();
        if let Some(usage) = usage.filter(|_| self.include_usage) {
            chunks.push(self.chunk(Vec::new(), usage.clone()));
        } else if !self.waiting.is_empty() {
            chunks.push(self.piece(Piece::default()));
        }
        chunks.push(DONE.to_owned());
        chunks
    }

    fn open_before(&mut self, index: u32, chunks: &mut Vec<String>) {
        if index >= CHOICES || self.opened.contains(&index) {
            return;
        }
        for index in 0..index {
            if !self.opened.contains(&index) {
                let mut piece = Piece { index, ..Piece::default() };
                self.give_role(&mut piece);
                chunks.push(self.piece(piece));
            }
        }
    }

    /// The first delta of a choice, and no other, says who speaks: clients join what is repeated.
    fn give_role(&mut self, piece: &mut Piece) {
        let role = piece.delta.shift_remove("role");
        if self.opened.insert(piece.index) {
            let role = role.unwrap_or_else(|| "assistant".into());
            piece.delta.shift_insert(0, "role".to_owned(), role);
        }
    }

    fn piece(&mut self, piece: Piece) -> String {
        let mut choice = Map::from_iter([
            ("index".to_owned(), piece.index.into()),
            ("delta".to_owned(), piece.delta.into()),
        ]);
        choice.extend(piece.extra);
        choice.insert("finish_reason".to_owned(), json!(piece.finish_reason));
        self.chunk(vec![choice.into()], Value::Null)
    }

    fn chunk(&mut self, choices: Vec<Value>, usage: Value) -> String {
        let mut chunk = Map::from_iter([
            ("id".to_owned(), self.id.as_str().into()),
            ("object".to_owned(), "chat.completion.chunk".into()),
            ("created".to_owned(), self.created.into()),
            ("model".to_owned(), self.model.as_str().into()),
        ]);
        chunk.extend(self.lasting.clone());
        chunk.append(&mut self.waiting);
        chunk.insert("choices".to_owned(), choices.into());
        if self.include_usage {
            chunk.insert("usage".to_owned(), usage);
        }
        Value::Object(chunk).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(include_usage: bool) -> Writer {
        Writer::new("chatcmpl-1".to_owned(), 7, "m".to_owned(), include_usage)
    }

    fn written(writer: &mut Writer, chunk: Value) -> Vec<Value> {
        let chunks = writer.write(serde_json::from_value(chunk).unwrap());
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }

    #[test]
    fn the_first_delta_of_a_choice_has_the_role_and_no_other() {
        let mut writer = writer(false);
        let chunks = written(
            &mut writer,
            json!({"choices": [
                {"index": 0, "delta": {"content": "a"}},
                {"index": 0, "delta": {"role": "assistant", "content": "b"}, "finish_reason": "stop"},
                {"index": 0, "delta": {"role": "assistant"}},
            ]}),
        );
        let expected = json!([
            {"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": null},
            {"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"},
        ]);
        let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
        assert_eq!(json!(choices), expected);
        let head = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7,
            "model": "m", "choices": [expected[0]]});
        assert_eq!(chunks[0], head);
        assert_eq!(writer.end(Some(&json!({"total_tokens": 1}))), [DONE]);
    }

    #[test]
    fn a_chunk_has_one_piece_and_choices_come_in_order() {
        let mut writer = writer(false);
        let chunk = json!({"choices": [
            {"index": 2, "delta": {"content": "c"}, "logprobs": {"content": []}},
            {"index": 0, "delta": {"role": "assistant", "content": "a"}},
            {"index": 1, "delta": {"content": "b"}},
        ]});
        let chunks = written(&mut writer, chunk);
        let told: Vec<(u64, &Value)> = chunks
            .iter()
            .map(|chunk| {
                assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
                let choice = &chunk["choices"][0];
                (choice["index"].as_u64().unwrap(), &choice["delta"])
            })
            .collect();
        assert_eq!(
            json!(told),
            json!([
                [0, {"role": "assistant"}],
                [1, {"role": "assistant"}],
                [2, {"role": "assistant", "content": "c"}],
                [0, {"content": "a"}],
                [1, {"content": "b"}],
            ])
        );
        assert!(chunks[0]["choices"][0].get("logprobs").is_none());
        assert_eq!(chunks[2]["choices"][0]["logprobs"], json!({"content": []}));
        let far = json!({"choices": [{"index": u32::MAX, "delta": {"content": "x"}}]});
        assert_eq!(written(&mut writer, far).len(), 1);
    }

    /// A stream named the model that was asked for, the whole answer the one that answered.
    #[test]
    fn a_stream_has_the_name_that_the_model_gives_itself() {
        let mut writer = writer(false);
        let piece = json!({"index": 0, "delta": {"content": "a"}});
        for (told, named) in
            [(json!({"model": "m-1"}), "m-1"), (json!({}), "m-1"), (json!({"model": "m-2"}), "m-1")]
        {
            let chunks = written(&mut writer, json!({"choices": [piece], "extra": told}));
            assert_eq!(chunks[0]["model"], named);
        }
    }

    #[test]
    fn usage_comes_last_and_alone() {
        let mut writer = writer(true);
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": "a"}}]});
        assert_eq!(written(&mut writer, chunk)[0].get("usage"), Some(&Value::Null));
        let usage = json!({"total_tokens": 3});
        let [last, done] = writer.end(Some(&usage)).try_into().unwrap();
        let last: Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &usage));
        assert_eq!(done, DONE);
        assert_eq!(writer.end(None), [DONE]);
    }

    #[test]
    fn fields_beside_the_choices_go_with_a_chunk_and_some_with_every_one() {
        let mut writer = writer(false);
        let extra = json!({"system_fingerprint": "fp", "citations": [1], "id": "x", "error": {}});
        assert!(written(&mut writer, json!({"choices": [], "extra": extra})).is_empty());
        let piece = json!({"index": 0, "delta": {"content": "a"}});
        let chunks = written(&mut writer, json!({"choices": [piece, piece]}));
        assert_eq!(chunks[0]["citations"], json!([1]));
        assert_eq!(chunks[0]["id"], "chatcmpl-1");
        assert!(chunks[0].get("error").is_none() && chunks[1].get("citations").is_none());
        assert!(chunks.iter().all(|chunk| chunk["system_fingerprint"] == "fp"));
        let late = json!({"choices": [], "extra": {"citations": [2]}});
        assert!(written(&mut writer, late).is_empty());
        let ending = writer.end(None);
        let last: Value = serde_json::from_str(&ending[0]).unwrap();
        assert_eq!((&last["citations"], &ending[1][..]), (&json!([2]), DONE));
        assert_eq!(last["choices"][0], json!({"index": 0, "delta": {}, "finish_reason": null}));
    }
}
