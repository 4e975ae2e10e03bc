//! Values of a record that stay short. Redis keeps a hash in little space as long as no value has more
//! than 64 bytes (`hash-max-listpack-value`); one that is longer makes the whole record a table of nearly
//! twice the size.

use std::{borrow::Cow, collections::HashMap};

use serde_json::{Map, Value};

/// Most bytes of a value in a small hash.
const MOST: usize = 64;

/// Most parts of a value. One that is longer still stays whole: it is the most of its record anyway.
const PARTS: usize = 16;

/// A field and its value.
pub type Field = (Cow<'static, str>, String);

/// Names of a usage object that are told by a letter in the record.
const LETTERS: [(&str, &str); 13] = [
    ("prompt_tokens", "p"),
    ("completion_tokens", "c"),
    ("total_tokens", "t"),
    ("prompt_tokens_details", "P"),
    ("completion_tokens_details", "C"),
    ("cached_tokens", "k"),
    ("audio_tokens", "a"),
    ("reasoning_tokens", "r"),
    ("accepted_prediction_tokens", "y"),
    ("rejected_prediction_tokens", "n"),
    ("text_tokens", "x"),
    ("prompt_cache_hit_tokens", "h"),
    ("prompt_cache_miss_tokens", "m"),
];

/// Adds a field: as `NAME` where its value is short, in parts `NAME.0`, `NAME.1`, … where it is not.
pub fn put(fields: &mut Vec<Field>, name: &'static str, value: String) {
    if value.len() <= MOST {
        return fields.push((name.into(), value));
    }
    let mut parts = Vec::new();
    let mut rest = value.as_str();
    while !rest.is_empty() && parts.len() < PARTS {
        let (part, more) = rest.split_at(rest.floor_char_boundary(MOST));
        parts.push((format!("{name}.{}", parts.len()).into(), part.to_owned()));
        rest = more;
    }
    if rest.is_empty() {
        fields.append(&mut parts);
    } else {
        fields.push((name.into(), value));
    }
}

/// A field's value, however it is kept.
pub fn get(fields: &HashMap<String, String>, name: &str) -> Option<String> {
    if let Some(value) = fields.get(name) {
        return Some(value.clone());
    }
    let parts = (0..PARTS).map_while(|part| fields.get(&format!("{name}.{part}")));
    let value: String = parts.map(String::as_str).collect();
    (!value.is_empty()).then_some(value)
}

/// Adds a model's own count, which is JSON: as `used` with letters for the usual names, or as it is where
/// it bears such a letter itself.
pub fn put_usage(fields: &mut Vec<Field>, usage: &str) {
    match serde_json::from_str(usage).ok().and_then(|usage| renamed(usage, shorter)) {
        Some(short) => put(fields, "used", short.to_string()),
        None => put(fields, "usage", usage.to_owned()),
    }
}

/// A model's own count, however it is kept.
pub fn get_usage(fields: &HashMap<String, String>) -> Option<Value> {
    let read = |name| serde_json::from_str(&get(fields, name)?).ok();
    read("used").and_then(|usage| renamed(usage, longer)).or_else(|| read("usage"))
}

fn shorter(name: String) -> Option<String> {
    let letter = LETTERS.iter().find(|(long, _)| *long == name).map(|(_, letter)| *letter);
    let is_taken = LETTERS.iter().any(|(_, letter)| *letter == name);
    if is_taken { None } else { Some(letter.map_or(name, str::to_owned)) }
}

#[expect(clippy::unnecessary_wraps, reason = "the other way may fail")]
fn longer(name: String) -> Option<String> {
    let long = LETTERS.iter().find(|(_, letter)| *letter == name).map(|(long, _)| *long);
    Some(long.map_or(name, str::to_owned))
}

/// A value with other names in all its objects; `None` where one of them has no other name.
fn renamed(value: Value, name: fn(String) -> Option<String>) -> Option<Value> {
    let Value::Object(map) = value else { return Some(value) };
    let field = |(key, value)| Some((name(key)?, renamed(value, name)?));
    map.into_iter().map(field).collect::<Option<Map<_, _>>>().map(Value::Object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(fields: Vec<Field>) -> HashMap<String, String> {
        fields.into_iter().map(|(name, value)| (name.into_owned(), value)).collect()
    }

    #[test]
    fn no_ordinary_value_is_longer_than_a_small_hash_takes() {
        for value in ["short".to_owned(), "x".repeat(65), "\u{1f600}".repeat(200)] {
            let mut fields = Vec::new();
            put(&mut fields, "labels", value.clone());
            assert!(fields.iter().all(|(_, part)| part.len() <= MOST), "{fields:?}");
            assert_eq!(get(&kept(fields), "labels"), Some(value));
        }
        // The exception: it would take more parts than it is worth.
        let long = "x".repeat(2_000);
        let mut fields = Vec::new();
        put(&mut fields, "labels", long.clone());
        assert_eq!((fields.len(), get(&kept(fields), "labels")), (1, Some(long)));
        assert_eq!(get(&HashMap::new(), "labels"), None);
    }

    #[test]
    fn a_count_comes_back_as_the_model_wrote_it() {
        let details =
            json!({"reasoning_tokens": 1024, "audio_tokens": 0, "of_its_own": [1, {"p": 2}]});
        for usage in [
            json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
            json!({"total_tokens": 14_393, "completion_tokens_details": details, "cost": 0.25}),
            json!({"p": 1, "prompt_tokens": 2}),
            json!({"prompt_tokens_details": null}),
            json!([1, 2]),
        ] {
            let mut fields = Vec::new();
            put_usage(&mut fields, &usage.to_string());
            assert_eq!(get_usage(&kept(fields)), Some(usage));
        }
        let old = kept(vec![("usage".into(), r#"{"prompt_tokens":1}"#.to_owned())]);
        assert_eq!(get_usage(&old), Some(json!({"prompt_tokens": 1})));
        assert_eq!(get_usage(&HashMap::new()), None);
    }
}
