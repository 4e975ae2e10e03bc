//! What the fields of a delta mean, for those who join them and for those who compare them.

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
