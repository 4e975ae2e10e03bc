//! The chat request, passed through as it came.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::Invalid;

/// Longest name of a model, in bytes.
const LONGEST_MODEL: usize = 256;

/// An `OpenAI` chat request: the top-level fields in their order, each with its own bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChatRequest(IndexMap<String, Box<RawValue>>);

impl PartialEq for ChatRequest {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(a, b)| a.0 == b.0 && a.1.get() == b.1.get())
    }
}

impl ChatRequest {
    /// A request of a model and one user message.
    pub fn ask(model: &str, question: &str) -> Self {
        let mut request = Self(IndexMap::new());
        request.set("model", &model);
        request.set("messages", &[serde_json::json!({"role": "user", "content": question})]);
        request
    }

    /// An empty request, to be filled with [`ChatRequest::set`]; [`ChatRequest::check`] tells what
    /// is missing.
    pub fn empty() -> Self {
        Self(IndexMap::new())
    }

    /// The model's name, empty when there is none.
    pub fn model(&self) -> String {
        self.get("model").unwrap_or_default()
    }

    /// The model's name as records keep it: no longer than a door lets in.
    pub fn model_name(&self) -> String {
        let mut name = self.model();
        let end = (0..=LONGEST_MODEL.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
        name.truncate(end.unwrap_or_default());
        name
    }

    /// One field, where it is there and of that type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.0.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok())
    }

    /// The JSON text of one field, where it is there.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|raw| raw.get())
    }

    /// Sets one field, leaving the others as they came.
    pub fn set<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        if let Ok(raw) = serde_json::value::to_raw_value(value) {
            self.0.insert(name.to_owned(), raw);
        }
    }

    /// Removes one field.
    pub fn remove(&mut self, name: &str) {
        self.0.shift_remove(name);
    }

    /// Sets one field to JSON text that is kept to the byte.
    pub fn set_raw(&mut self, name: &str, json: &str) -> Result<(), Invalid> {
        let raw = RawValue::from_string(json.to_owned())
            .map_err(|e| Invalid::new(format!("`{name}` is not JSON: {e}")))?;
        self.0.insert(name.to_owned(), raw);
        Ok(())
    }

    /// Requires a model name, of at most 256 bytes, and at least one message. Everything else is the
    /// model's to judge.
    pub fn check(&self) -> Result<(), Invalid> {
        let length = self.model().len();
        // The name is kept apart from the request, and shown in lists.
        if length > LONGEST_MODEL {
            return Err(Invalid::new(format!(
                "`model` has {length} bytes; allowed: 1 to {LONGEST_MODEL} bytes"
            )));
        }
        self.require()
    }

    /// Requires that without which no model can be asked.
    pub(super) fn require(&self) -> Result<(), Invalid> {
        if self.model().is_empty() {
            return Err(Invalid::new(
                "the request has no `model`; it needs the name of a model, as text",
            ));
        }
        match self.get::<Vec<serde::de::IgnoredAny>>("messages") {
            Some(messages) if !messages.is_empty() => Ok(()),
            _ => Err(Invalid::new(
                "the request has no `messages`; it needs an array of at least one message",
            )),
        }
    }

    /// SHA-256, in hexadecimal, of the request with sorted keys and without white space: two
    /// requests that mean the same have the same fingerprint. One that no JSON value can hold, such as
    /// one with a number beyond all bounds, is taken to the byte.
    pub fn fingerprint(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        let canonical = match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(mut value) => {
                value.sort_all_objects();
                value.to_string()
            }
            Err(_) => text,
        };
        let digest = Sha256::digest(canonical.as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_exact_numbers_survive() {
        let text = r#"{"model":"m","z":0.10000000000000000001,"messages":[{}],"a":{"b": 1}}"#;
        let request: ChatRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
    }

    /// PROTOCOL.md tells producers in other languages how.
    #[test]
    fn a_fingerprint_writes_values_in_one_way() {
        let request: ChatRequest = serde_json::from_str(
            r#"{"x":[0.00001,1e-7,1E16,1.0,0.50,12345678901234567890,"ü\u00fc\u001F\/"],
                "model":"m","messages":[{"role":"user","content":"x"}]}"#,
        )
        .unwrap();
        let canonical = r#"{"messages":[{"content":"x","role":"user"}],"model":"m","x":[0.00001,1e-7,1e+16,1.0,0.5,12345678901234567890,"üü\u001f/"]}"#;
        let digest: Vec<String> =
            Sha256::digest(canonical.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(request.fingerprint(), digest.concat());
    }

    #[test]
    fn a_fingerprint_ignores_order_and_white_space() {
        let a: ChatRequest =
            serde_json::from_str(r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#)
                .unwrap();
        let b: ChatRequest =
            serde_json::from_str(r#"{"messages":[{"content": "x","role":"user"}], "model":"m"}"#)
                .unwrap();
        assert_eq!(a.fingerprint(), b.fingerprint());
        assert_ne!(a.fingerprint(), ChatRequest::ask("m", "y").fingerprint());
    }

    /// A number too large, half a character and nesting too deep are good enough for the model to judge.
    #[test]
    fn requests_that_no_value_can_hold_are_told_apart() {
        let deep = |text: &str| format!("{}{text}{}", "[".repeat(200), "]".repeat(200));
        let of = |messages: &str| {
            let text = format!(r#"{{"model":"m","messages":[{messages}]}}"#);
            serde_json::from_str::<ChatRequest>(&text).unwrap().fingerprint()
        };
        let odd = ["1e400", "1e500", r#""\ud800""#, r#""\udc00""#, &deep("1"), &deep("2")];
        let prints: std::collections::BTreeSet<String> = odd.iter().map(|text| of(text)).collect();
        assert_eq!(prints.len(), odd.len());
    }
}
