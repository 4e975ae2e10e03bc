//! Secrets, kept out of what is shown.

use serde_json::Value;

use super::Config;
use crate::mask::{self, MASK};

/// Keys whose whole value is a secret.
const SECRETS: [&str; 4] =
    ["upstream.api_key", "simulator.api_key", "gateway.secret", "gateway.second_secret"];
/// Keys whose value is an address, which may hold secrets.
const ADDRESSES: [&str; 2] = ["redis.url", "upstream.base_url"];

/// The value of a key, without its secret.
pub(super) fn masked(key: &str, value: &str) -> String {
    match key {
        _ if SECRETS.contains(&key) && !value.is_empty() => MASK.to_owned(),
        _ if ADDRESSES.contains(&key) => mask::url(value),
        _ => value.to_owned(),
    }
}

/// A decoder's message, unless it may repeat a secret.
pub(super) fn without_value(key: &str, message: &str) -> String {
    if SECRETS.contains(&key) || ADDRESSES.contains(&key) {
        "text".to_owned()
    } else {
        message.to_owned()
    }
}

/// The configuration as TOML, without secrets. A key that is not set is left out.
pub fn printed(config: &Config) -> String {
    let mut tree = serde_json::to_value(config).unwrap_or_default();
    hide(&mut tree, "");
    toml::to_string(&tree).unwrap_or_default()
}

fn hide(tree: &mut Value, above: &str) {
    let Value::Object(fields) = tree else { return };
    fields.retain(|_, value| !value.is_null());
    for (name, value) in fields {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            Value::String(text) => *text = masked(&key, text),
            Value::Object(_) => hide(value, &key),
            _ => {}
        }
    }
}
