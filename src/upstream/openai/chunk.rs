//! One chunk of a stream, or one whole answer, as JSON.
//!
//! Endpoints agree on little, so nothing is judged that is not used: a field of another type than the protocol's is
//! read as far as it means something, and passed over or passed on where it does not.

use serde_json::{Map, Value};

use super::fault;
use crate::{
    error::{Code, Failure},
    event::Piece,
    upstream::Part,
};

/// The objects of a value: itself, or those of a list, as some endpoints wrap them.
pub(super) fn parts(value: Value) -> Vec<Result<Part, Failure>> {
    match value {
        Value::Object(fields) => vec![part(fields)],
        Value::Array(values) => values.into_iter().flat_map(parts).collect(),
        _ => Vec::new(),
    }
}

fn part(fields: Map<String, Value>) -> Result<Part, Failure> {
    if let Some(failure) = failure(&fields) {
        return Err(failure);
    }
    let mut part = Part::default();
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("id", value) => part.id = text(&value),
            ("model", value) => part.model = text(&value),
            ("choices", Value::Array(choices)) => {
                let choices = choices.into_iter().enumerate();
                let pieces = choices.filter_map(|(place, choice)| piece(place, choice));
                part.pieces = pieces.collect();
            }
            ("object" | "created" | "choices" | "error", _) | (_, Value::Null) => {}
            ("usage", usage) => part.usage = Some(usage),
            (_, value) => {
                part.extra.insert(name, value);
            }
        }
    }
    if part.usage.is_none() {
        // Beside the choices of one endpoint, and within those of another.
        let beside = part.extra.get("x_groq").and_then(|own| own.get("usage"));
        let within = part.pieces.iter().find_map(|piece| piece.extra.get("usage"));
        part.usage = beside.or(within).filter(|usage| usage.is_object()).cloned();
    }
    if let Some(reason) = part.pieces.iter().find_map(aborted) {
        let words = format!("the model's endpoint ended the answer with finish_reason `{reason}`");
        return Err(Failure::new(Code::UpstreamError, words));
    }
    Ok(part)
}

/// The failure that an object tells instead of an answer.
fn failure(fields: &Map<String, Value>) -> Option<Failure> {
    let told = |value: &&Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    if let Some(error) = fields.get("error").filter(told) {
        return Some(fault::of_object(error));
    }
    let choices = fields.get("choices").and_then(Value::as_array);
    if let Some(error) =
        choices.into_iter().flatten().find_map(|choice| choice.get("error").filter(told))
    {
        return Some(fault::of_object(error));
    }
    let is_error = fields.get("object").is_some_and(|object| object == "error");
    // A framework's own words in place of the endpoint's.
    let is_detail =
        choices.is_none() && fields.contains_key("detail") && !fields.contains_key("id");
    (is_error || is_detail).then(|| fault::of_object(&Value::Object(fields.clone())))
}

/// The reason of a choice that ended because its endpoint failed.
fn aborted(piece: &Piece) -> Option<&str> {
    piece.finish_reason.as_deref().filter(|reason| matches!(*reason, "error" | "abort"))
}

/// What a choice says; `None` where it is no object. One without an index is the one of its place.
fn piece(place: usize, choice: Value) -> Option<Piece> {
    let Value::Object(fields) = choice else { return None };
    let mut piece = Piece { index: u32::try_from(place).unwrap_or_default(), ..Piece::default() };
    let (mut message, mut plain) = (None, None);
    let mut has_delta = false;
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("index", value) => piece.index = index(&value).unwrap_or(piece.index),
            ("delta", Value::Object(delta)) => (piece.delta, has_delta) = (delta, true),
            ("message", Value::Object(whole)) => message = Some(whole),
            ("text", Value::String(text)) => plain = Some(text),
            ("finish_reason", value) => piece.finish_reason = text(&value),
            ("delta" | "message", _) | (_, Value::Null) => {}
            (_, value) => {
                piece.extra.insert(name, value);
            }
        }
    }
    if !has_delta {
        // A whole answer has a message; one of the older protocol has a text.
        let text = plain.map(|text| Map::from_iter([("content".to_owned(), text.into())]));
        piece.delta = message.or(text).unwrap_or_default();
    }
    Some(piece)
}

/// A name: text, or a number that stands for one. Empty text says nothing.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A place: a whole number, however it is written.
fn index(value: &Value) -> Option<u32> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }?;
    let whole = number.is_finite() && number >= 0.0 && number <= f64::from(u32::MAX);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    whole.then_some(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Part {
        parts(value).remove(0).unwrap()
    }

    #[test]
    fn a_field_of_another_type_is_read_as_far_as_it_means_something() {
        let read = read(
            json!({"id": 17, "model": null, "created": "now", "object": 3, "x": [1], "y": null,
            "choices": [
                {"index": "1", "delta": {"content": 5}, "finish_reason": "", "logprobs": null, "z": 1},
                {"index": 1.0, "delta": null, "text": "old", "finish_reason": null},
                {"message": {"content": "m"}, "delta": {}, "finish_reason": "stop"},
                7,
            ]}),
        );
        let piece = |index, delta: Value, reason: Option<&str>, extra: Value| Piece {
            index,
            delta: delta.as_object().unwrap().clone(),
            finish_reason: reason.map(str::to_owned),
            extra: extra.as_object().unwrap().clone(),
        };
        let expected = Part {
            id: Some("17".to_owned()),
            extra: json!({"x": [1]}).as_object().unwrap().clone(),
            pieces: vec![
                piece(1, json!({"content": 5}), None, json!({"z": 1})),
                piece(1, json!({"content": "old"}), None, json!({})),
                piece(2, json!({}), Some("stop"), json!({})),
            ],
            ..Part::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn usage_is_found_where_endpoints_put_it() {
        let usage = json!({"total_tokens": 3});
        for chunk in [
            json!({"choices": [], "usage": usage}),
            json!({"choices": [], "x_groq": {"id": "r", "usage": usage}}),
            json!({"choices": [{"index": 0, "delta": {}, "usage": usage}]}),
        ] {
            assert_eq!(read(chunk).usage.as_ref(), Some(&usage));
        }
        assert_eq!(read(json!({"choices": [], "usage": null})).usage, None);
    }

    /// An error that came with status 200 was no error, and its words were lost.
    #[test]
    fn an_error_is_found_where_endpoints_put_it() {
        for (chunk, code, words) in [
            (
                json!({"error": {"message": "too long", "code": 400}}),
                Code::InvalidRequest,
                "too long",
            ),
            (
                json!([{"error": {"message": "m", "status": "UNAVAILABLE", "code": 503}}]),
                Code::UpstreamError,
                "m",
            ),
            (json!({"error": "model is not loaded"}), Code::UpstreamError, "model is not loaded"),
            (
                json!({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}),
                Code::InvalidRequest,
                "bad",
            ),
            (json!({"detail": "no such thing"}), Code::UpstreamError, "no such thing"),
            (
                json!({"id": "x", "choices": [{"index": 0, "error": {"message": "busy", "code": 502}}]}),
                Code::UpstreamError,
                "busy",
            ),
            (
                json!({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}),
                Code::UpstreamError,
                "finish_reason `error`",
            ),
        ] {
            let failure = parts(chunk.clone()).remove(0).unwrap_err();
            assert_eq!(failure.code, code, "{chunk}");
            assert!(failure.message.contains(words), "{failure}");
        }
        for chunk in
            [json!({"error": null}), json!({"error": {}, "choices": []}), json!({"error": ""})]
        {
            assert!(parts(chunk).remove(0).is_ok());
        }
    }
}
