//! JSON as endpoints send it: where a text is none, what is known to go wrong is mended, and it is read again.
//!
//! Python's encoder writes `NaN` and `Infinity`, which JSON does not have, and a tokenizer that cuts a character in
//! two leaves half of a surrogate pair. Some servers leave control characters in a string as they are.

use std::fmt::Write as _;

use serde_json::Value;

/// The values of a text: one in the field, several where an endpoint sends them one behind the other.
pub(super) fn read(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    match all(text) {
        Ok(values) => Ok(values),
        Err(error) => match mended(text) {
            Some(mended) => all(&mended).map_err(|_| error),
            None => Err(error),
        },
    }
}

fn all(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    serde_json::Deserializer::from_str(text).into_iter().collect()
}

/// Names of numbers that are none, as encoders write them.
const NUMBERS: [&str; 5] = ["-Infinity", "Infinity", "-NaN", "NaN", "nan"];

/// The text with `null` for numbers that are none, U+FFFD for half characters, and control characters written as
/// JSON writes them; `None` where nothing of that is in it.
fn mended(text: &str) -> Option<String> {
    let mut mended = String::with_capacity(text.len() + 16);
    let mut changed = false;
    let mut rest = text;
    let mut in_string = false;
    while let Some(next) = rest.chars().next() {
        let mut taken = next.len_utf8();
        match next {
            '"' => in_string = !in_string,
            '\\' if in_string => {
                taken = escape(rest);
                if is_half(rest) {
                    mended.push_str("\\ufffd");
                    changed = true;
                    rest = &rest[taken..];
                    continue;
                }
            }
            control if in_string && (control as u32) < 0x20 => {
                let _ = write!(mended, "\\u{:04x}", control as u32);
                changed = true;
                rest = &rest[taken..];
                continue;
            }
            _ if !in_string => {
                if let Some(name) = NUMBERS.iter().find(|name| rest.starts_with(**name)) {
                    mended.push_str("null");
                    changed = true;
                    rest = &rest[name.len()..];
                    continue;
                }
            }
            _ => {}
        }
        mended.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    changed.then_some(mended)
}

/// The code unit of an escape `\uXXXX` at the beginning of a text.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

/// Whether a text begins with two escapes that are one character.
fn is_pair(text: &str) -> bool {
    let high = unit(text).is_some_and(|unit| (0xD800..0xDC00).contains(&unit));
    high && text.get(6..).and_then(unit).is_some_and(|unit| (0xDC00..0xE000).contains(&unit))
}

/// Whether a text begins with an escape that is half a character.
fn is_half(text: &str) -> bool {
    unit(text).is_some_and(|unit| (0xD800..0xE000).contains(&unit)) && !is_pair(text)
}

/// The length of the escape at the beginning of a text.
fn escape(text: &str) -> usize {
    if is_pair(text) {
        return 12;
    }
    if unit(text).is_some() {
        return 6;
    }
    1 + text[1..].chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_encoders_get_wrong_is_mended() {
        for (text, value) in [
            (
                r#"{"a":NaN,"b":[-Infinity,Infinity],"c":"NaN"}"#,
                json!({"a": null, "b": [null, null], "c": "NaN"}),
            ),
            (r#"{"a":"x\ud83d"}"#, json!({"a": "x\u{fffd}"})),
            (r#"{"a":"\ude00\ud83d\ude00\\ud83d"}"#, json!({"a": "\u{fffd}\u{1f600}\\ud83d"})),
            ("{\"a\":\"x\ty\u{1}\"}", json!({"a": "x\ty\u{1}"})),
        ] {
            assert_eq!(read(text).unwrap(), [value], "{text}");
        }
        assert_eq!(read("{\"a\":1}\n{\"b\":2}").unwrap(), [json!({"a": 1}), json!({"b": 2})]);
        for text in ["{", "{\"a\":", "<html>", "[DONE]", "{\"a\":\"\\", "{\"a\":\"\\u12"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
