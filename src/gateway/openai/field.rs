//! What the fields of a delta mean, for those who join them and for those who compare them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::event::TEXT_FIELDS;

/// Text that comes in fragments inside a call of a function or a custom tool.
const CALL_FIELDS: [&str; 3] = ["name", "arguments", "input"];

/// One field of a delta, of a tool call or of a call's function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field<'a> {
    /// It says nothing.
    Nothing,
    /// It is said once; when it is said again, the first stands.
    Once,
    /// A fragment of text.
    Text(&'a str),
    /// An object whose own fields come in fragments.
    Object(&'a Map<String, Value>),
    /// Fragments of tool calls.
    Calls(&'a [Value]),
    /// Anything else.
    Other(&'a Value),
}

impl<'a> Field<'a> {
    pub(super) fn of(name: &str, value: &'a Value) -> Self {
        match (name, value) {
            (_, Value::Null) | ("index", _) => Self::Nothing,
            ("role" | "id" | "type", Value::String(text)) if text.is_empty() => Self::Nothing,
            ("role" | "id" | "type", Value::String(_)) => Self::Once,
            ("function" | "custom" | "function_call", Value::Object(fields)) => {
                Self::Object(fields)
            }
            ("tool_calls", Value::Array(calls)) => Self::Calls(calls),
            (_, Value::String(text)) if is_text(name) => Self::Text(text),
            _ => Self::Other(value),
        }
    }
}

/// Whether strings of that name are fragments of one text.
pub(super) fn is_text(name: &str) -> bool {
    TEXT_FIELDS.contains(&name) || CALL_FIELDS.contains(&name)
}

/// Whether `text` only says again what `whole` is: some endpoints send a function's whole name with
/// every fragment of its arguments.
pub(super) fn repeats(name: &str, whole: &str, text: &str) -> bool {
    name == "name" && whole == text
}

/// Which tool call a fragment belongs to, within one attempt.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots {
    by_id: BTreeMap<String, u32>,
    next: u32,
    last: u32,
}

impl Slots {
    /// The fragment's own index. Calls of a whole message, and of some endpoints, have none: then
    /// an ID that was seen before, or a new call where one begins, or else the last call.
    pub(super) fn of(&mut self, call: &Map<String, Value>) -> u32 {
        let index = call.get("index").and_then(Value::as_u64).and_then(|i| u32::try_from(i).ok());
        let id = call.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let known = id.and_then(|id| self.by_id.get(id).copied());
        let begins = id.is_some() || is_named(call);
        let slot = index.or(known).unwrap_or(if begins { self.next } else { self.last });
        if let Some(id) = id {
            self.by_id.insert(id.to_owned(), slot);
        }
        self.next = self.next.max(slot.saturating_add(1));
        self.last = slot;
        slot
    }
}

fn is_named(call: &Map<String, Value>) -> bool {
    ["function", "custom"].into_iter().any(|kind| {
        let name = call.get(kind).and_then(|inner| inner.get("name"));
        name.and_then(Value::as_str).is_some_and(|name| !name.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_without_an_index_are_told_apart() {
        let mut slots = Slots::default();
        for (call, slot) in [
            (json!({"id": "a", "function": {"name": "f"}}), 0),
            (json!({"id": "b", "function": {"name": "f"}}), 1),
            (json!({"function": {"arguments": "{"}}), 1),
            (json!({"id": "a", "function": {"arguments": "{"}}), 0),
            (json!({"custom": {"name": "g"}}), 2),
            (json!({"index": 7, "id": "h"}), 7),
            (json!({"id": "i"}), 8),
        ] {
            assert_eq!(slots.of(call.as_object().unwrap()), slot, "{call}");
        }
    }
}
