//! The choices of an attempt: a delta is freed of what its choice has said before, and tool calls get what clients
//! tell them apart by.
//!
//! Endpoints repeat the role, the finish reason, a filter's results or a function's name with every token. Told
//! once, deltas of text are nothing but text, and are joined.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::event::{Calls, Piece, name_of};

/// What the choices have said.
#[derive(Debug, Default)]
pub(super) struct Choices(BTreeMap<u32, Choice>);

#[derive(Debug, Default)]
struct Choice {
    role: Option<Value>,
    finish_reason: Option<String>,
    /// The last value of each field beside the delta.
    extra: Map<String, Value>,
    calls: Calls,
    /// Names of the calls' functions by place.
    names: BTreeMap<u32, String>,
}

impl Choices {
    /// Makes a piece say what is new.
    pub(super) fn tidy(&mut self, piece: &mut Piece) {
        let choice = self.0.entry(piece.index).or_default();
        if let Some(role) = piece.delta.get("role") {
            if choice.role.as_ref() == Some(role) {
                piece.delta.shift_remove("role");
            } else if !role.is_null() {
                choice.role = Some(role.clone());
            }
        }
        piece.extra.retain(|name, value| choice.is_new(name, value));
        if piece.finish_reason.as_ref().is_some_and(String::is_empty) {
            piece.finish_reason = None;
        }
        match &piece.finish_reason {
            Some(reason) if choice.finish_reason.as_ref() == Some(reason) => {
                piece.finish_reason = None;
            }
            Some(reason) => choice.finish_reason = Some(reason.clone()),
            None => {}
        }
        if let Some(Value::Array(calls)) = piece.delta.get_mut("tool_calls") {
            calls.iter_mut().filter_map(Value::as_object_mut).for_each(|call| choice.call(call));
        }
    }

    /// How many have a finish reason.
    pub(super) fn finished(&self) -> usize {
        self.0.values().filter(|choice| choice.finish_reason.is_some()).count()
    }

    /// Whether there are any, and each has a finish reason.
    pub(super) fn all_finished(&self) -> bool {
        !self.0.is_empty() && self.finished() == self.0.len()
    }

    /// Why the first choice ended.
    pub(super) fn finish_reason(&self) -> Option<&String> {
        self.0.values().find_map(|choice| choice.finish_reason.as_ref())
    }

    /// Whether nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ends of choices whose endpoint calls the answer whole and tells no reason: clients wait for one.
    pub(super) fn close(&mut self) -> Vec<Piece> {
        let open = self.0.iter_mut().filter(|(_, choice)| choice.finish_reason.is_none());
        let closed = open.map(|(index, choice)| {
            let reason = if choice.calls.is_empty() { "stop" } else { "tool_calls" };
            choice.finish_reason = Some(reason.to_owned());
            Piece { index: *index, finish_reason: Some(reason.to_owned()), ..Piece::default() }
        });
        closed.collect()
    }
}

impl Choice {
    /// Whether a field beside the delta says something that it has not said. Lists grow, so each is new.
    fn is_new(&mut self, name: &str, value: &Value) -> bool {
        let grows = name == "logprobs" || value.is_array();
        if value.is_null() || grows {
            return grows;
        }
        if self.extra.get(name) == Some(value) {
            return false;
        }
        self.extra.insert(name.to_owned(), value.clone());
        true
    }

    /// Gives a fragment the index of its call, and the call an ID and a type. What is told again is dropped.
    fn call(&mut self, call: &mut Map<String, Value>) {
        as_text(call);
        let (place, begins) = self.calls.place(call);
        if begins {
            if !call.get("id").is_some_and(|id| id.as_str() != Some("") && !id.is_null()) {
                let id = format!("call_{}", Uuid::new_v4().simple());
                call.insert("id".to_owned(), id.into());
            }
            if call.contains_key("function") && !call.get("type").is_some_and(Value::is_string) {
                call.insert("type".to_owned(), "function".into());
            }
            self.names.extend(name_of(call).map(|name| (place, name.to_owned())));
        } else {
            for name in ["id", "type"] {
                call.shift_remove(name);
            }
            let known = self.names.get(&place);
            if let Some(Value::Object(function)) = call.get_mut("function") {
                let again = |name: &Value| match name.as_str() {
                    Some(name) => name.is_empty() || known.is_some_and(|known| known == name),
                    None => name.is_null(),
                };
                if function.get("name").is_some_and(again) {
                    function.shift_remove("name");
                }
            }
        }
        call.shift_remove("index");
        call.shift_insert(0, "index".to_owned(), place.into());
    }
}

/// Arguments are text by the protocol; an object becomes its text.
fn as_text(call: &mut Map<String, Value>) {
    let arguments = call.get_mut("function").and_then(|function| function.get_mut("arguments"));
    if let Some(arguments) = arguments.filter(|arguments| arguments.is_object()) {
        *arguments = arguments.to_string().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tidied(choices: &mut Choices, piece: Value) -> Value {
        let mut piece: Piece = serde_json::from_value(piece).unwrap();
        choices.tidy(&mut piece);
        serde_json::to_value(&piece).unwrap()
    }

    /// Every token carried the role and a filter's results, and none was joined with the next.
    #[test]
    fn what_is_told_again_is_dropped() {
        let mut choices = Choices::default();
        let filter = json!({"hate": {"filtered": false}});
        let piece = |reason: Value| {
            json!({"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": reason,
                "content_filter_results": filter, "logprobs": null, "token_ids": [1]})
        };
        let mut told = || tidied(&mut choices, piece("".into()));
        assert_eq!(
            told(),
            json!({"index": 0, "delta": {"role": "assistant", "content": "a"},
            "content_filter_results": filter, "token_ids": [1], "logprobs": null})
        );
        assert_eq!(
            told(),
            json!({"index": 0, "delta": {"content": "a"}, "token_ids": [1], "logprobs": null})
        );
        assert_eq!(choices.finished(), 0);
        for (reason, told) in
            [("stop", json!("stop")), ("stop", Value::Null), ("length", json!("length"))]
        {
            let piece = tidied(&mut choices, piece(reason.into()));
            assert_eq!(piece.get("finish_reason").unwrap_or(&Value::Null), &told);
        }
        assert!(choices.all_finished());
    }

    #[test]
    fn a_call_gets_what_it_lacks_and_is_named_once() {
        let mut choices = Choices::default();
        let mut told = |call: Value| {
            let piece = tidied(&mut choices, json!({"delta": {"tool_calls": [call]}}));
            piece["delta"]["tool_calls"][0].clone()
        };
        let first = told(json!({"id": "", "function": {"name": "f", "arguments": {"a": 1}}}));
        assert!(first["id"].as_str().unwrap().starts_with("call_"));
        assert_eq!(first["function"]["arguments"], "{\"a\":1}");
        assert_eq!((&first["index"], &first["type"]), (&json!(0), &json!("function")));
        let begun = json!({"index": 0, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}});
        let second = told(begun);
        assert_eq!((&second["index"], &second["id"]), (&json!(1), &json!("b")));
        let again = json!({"index": 0, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}});
        assert_eq!(told(again), json!({"index": 1, "function": {"arguments": "{"}}));
    }

    #[test]
    fn an_answer_that_is_whole_gets_a_reason() {
        let mut choices = Choices::default();
        tidied(&mut choices, json!({"index": 0, "delta": {"content": "a"}}));
        tidied(
            &mut choices,
            json!({"index": 1, "delta": {"tool_calls": [{"function": {"name": "f"}}]}}),
        );
        tidied(&mut choices, json!({"index": 2, "delta": {}, "finish_reason": "length"}));
        let reasons: Vec<_> =
            choices.close().into_iter().map(|piece| (piece.index, piece.finish_reason)).collect();
        assert_eq!(reasons, [(0, Some("stop".to_owned())), (1, Some("tool_calls".to_owned()))]);
        assert!(choices.close().is_empty() && choices.all_finished());
    }
}
