//! Content that is a list of parts, as models send it that show what they think.
//!
//! Such a model streams `[{"type": "thinking", …}]` and then text, or lists to the end. An answer keeps all of
//! it: where both come, the text becomes parts of the list. A part that a stream has cut is joined again.

use serde_json::{Value, json};

/// A part that is text.
pub(super) fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// The text of a part that is text, whatever else it tells.
pub(super) fn text_in(part: &Value) -> Option<&str> {
    part["text"].as_str().filter(|_| part["type"] == "text")
}

/// Adds a fragment of a list. Its first part is joined with the last one there, where nothing is lost by it.
pub(super) fn extend(parts: &mut Vec<Value>, more: &[Value]) {
    let Some((first, rest)) = more.split_first() else { return };
    if !parts.last_mut().is_some_and(|last| join(last, first)) {
        parts.push(first.clone());
    }
    parts.extend_from_slice(rest);
}

fn join(last: &mut Value, next: &Value) -> bool {
    let Some(kind) = plain(next).filter(|kind| plain(last) == Some(kind)) else { return false };
    match (&mut last[kind], &next[kind]) {
        (Value::String(whole), Value::String(more)) => whole.push_str(more),
        (Value::Array(whole), Value::Array(more)) => extend(whole, more),
        _ => return false,
    }
    true
}

/// The type of a part that has nothing beside it but the field of that name.
fn plain(part: &Value) -> Option<&str> {
    let fields = part.as_object().filter(|fields| fields.len() == 2)?;
    fields.get("type")?.as_str().filter(|kind| fields.contains_key(*kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_part_is_joined_and_others_stay_apart() {
        let think =
            |text: &str| json!({"type": "thinking", "thinking": [{"type": "text", "text": text}]});
        let mut parts = Vec::new();
        for more in [
            json!([think("a")]),
            json!([think("b")]),
            json!([{"type": "thinking", "thinking": [], "closed": true}]),
            json!([]),
            json!([text("x"), text("y")]),
            json!([text("z")]),
            json!([1]),
            json!([{"type": "image", "url": "u"}]),
        ] {
            extend(&mut parts, more.as_array().unwrap());
        }
        let expected = json!([think("ab"), {"type": "thinking", "thinking": [], "closed": true},
            text("x"), text("yz"), 1, {"type": "image", "url": "u"}]);
        assert_eq!(Value::Array(parts), expected);
        assert_eq!((text_in(&text("x")), text_in(&think("x"))), (Some("x"), None));
    }
}
