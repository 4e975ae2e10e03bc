//! The file of API keys: what it looks like, and what a key looks like.
//!
//! A key is `ms_ID_SECRET`, the secret 32 random bytes. The file holds its HMAC-SHA256 under the gateway's
//! secret. As a key is random, a fast hash is as good as a slow one; as it is keyed, the file alone is worth
//! nothing to whoever guesses.

use std::{collections::HashMap, path::Path};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{Caller, Right, Signer};
use crate::job::{Tenant, Timestamp};

/// One key of the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct Entry {
    id: String,
    tenant: Tenant,
    rights: Vec<Right>,
    hash: String,
    #[serde(default)]
    expires_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    keys: Vec<Entry>,
}

/// The keys by their IDs.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Table(HashMap<String, Entry>);

impl Table {
    /// Reads the file's text; the error says what was met.
    pub(in crate::gateway) fn parse(text: &str) -> Result<Self, String> {
        let reader = toml::Deserializer::parse(text).map_err(|error| short(&error))?;
        let file: File = serde_path_to_error::deserialize(reader).map_err(|error| {
            let place = error.path().to_string();
            format!("{place}: {}", short(error.inner()))
        })?;
        let mut keys = HashMap::new();
        for entry in file.keys {
            let id = entry.id.clone();
            if !named(&id) {
                return Err(format!("key `{id}`: an ID has 1 to 64 of a-z, 0-9 and -"));
            }
            if BASE64_URL_SAFE_NO_PAD.decode(&entry.hash).map_or(0, |hash| hash.len()) != 32 {
                return Err(format!("key `{id}`: its hash is not one of `millstream keys create`"));
            }
            if keys.insert(id.clone(), entry).is_some() {
                return Err(format!("key `{id}` stands there twice"));
            }
        }
        Ok(Self(keys))
    }

    /// The entry of an ID.
    pub(super) fn get(&self, id: &str) -> Option<&Entry> {
        self.0.get(id)
    }

    /// The entry of a key that was presented. An unknown ID takes as long as a wrong secret.
    pub(in crate::gateway) fn find(&self, key: &str, signer: &Signer) -> Option<&Entry> {
        let id = key.strip_prefix("ms_").and_then(|rest| rest.split_once('_')).map(|(id, _)| id);
        let entry = id.and_then(|id| self.0.get(id));
        let hash = entry.map(|entry| entry.hash.as_str()).unwrap_or_default();
        signer.verifies(&statement(key), hash).then_some(entry).flatten()
    }
}

impl Entry {
    /// Whether the hash of this key, which it is, was made under the gateway's second secret.
    pub(super) fn is_under_second(&self, key: &str, signer: &Signer) -> bool {
        !signer.signs(&statement(key), &self.hash)
    }

    pub(super) fn caller(&self) -> Caller {
        Caller {
            tenant: self.tenant.clone(),
            key: Some(self.id.clone()),
            rights: self.rights.clone(),
            expires_at: self.expires_at,
            hash: self.hash.clone(),
        }
    }
}

fn named(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The first line of what the parser says.
fn short(error: &toml::de::Error) -> String {
    error.message().lines().next().unwrap_or_default().to_owned()
}

/// What is signed of a key: a browser token can never be one.
fn statement(key: &str) -> String {
    format!("key:{key}")
}

/// Checks the text of a file of keys, as a gateway does that reads it.
///
/// # Errors
/// The first fault, in words.
pub fn check(text: &str) -> Result<(), String> {
    Table::parse(text).map(drop)
}

/// A warning where other users of the machine may read or write the file of keys. One who writes it can add
/// a key of his own.
pub fn exposed(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        let metadata = std::fs::metadata(path).ok()?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
        let may = match (mode & 0o022 != 0, mode & 0o044 != 0) {
            (false, false) => return None,
            (true, true) => "read and write",
            (true, false) => "write",
            (false, true) => "read",
        };
        let path = path.display();
        Some(format!("gateway.keys, {path}: other users may {may} it; chmod 600 {path}"))
    }
    #[cfg(not(unix))]
    None
}

/// A new key, and the lines of the file that let it in.
///
/// # Errors
/// An ID that is none, or no secret, in words.
pub fn generate(
    secret: &str,
    id: &str,
    tenant: &Tenant,
    rights: &[Right],
    expires_at: Option<Timestamp>,
) -> Result<(String, String), String> {
    if secret.is_empty() {
        return Err("gateway.secret is not set".to_owned());
    }
    if !named(id) {
        return Err(format!("`{id}` is no key ID; it has 1 to 64 of a-z, 0-9 and -"));
    }
    let [a, b] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes);
    let random = BASE64_URL_SAFE_NO_PAD.encode([a, b].concat());
    let key = format!("ms_{id}_{random}");
    let hash = Signer::new(secret).sign(&statement(&key));
    let rights: Vec<String> =
        rights.iter().map(|right| format!("\"{right:?}\"").to_lowercase()).collect();
    let expiry = expires_at.map(|at| format!("expires_at = \"{at}\"\n")).unwrap_or_default();
    let lines = format!(
        "[[keys]]\nid = \"{id}\"\ntenant = \"{tenant}\"\nrights = [{}]\nhash = \"{hash}\"\n{expiry}",
        rights.join(", ")
    );
    Ok((key, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_key_is_found_by_its_hash_and_no_other() {
        let tenant: Tenant = "acme".parse().unwrap();
        let (key, lines) =
            generate(SECRET, "web-1", &tenant, &[Right::Read], Some(Timestamp(1_800_000_000_000)))
                .unwrap();
        assert!(!lines.contains(&key[9..]));
        let table = Table::parse(&lines).unwrap();
        let caller = table.find(&key, &Signer::new(SECRET)).unwrap().caller();
        assert_eq!((caller.tenant, caller.key.as_deref()), (tenant, Some("web-1")));
        assert_eq!(caller.rights, [Right::Read]);
        assert_eq!(caller.expires_at, Some(Timestamp(1_800_000_000_000)));
        let mut wrong = key.clone();
        wrong.pop();
        for stranger in [wrong.as_str(), "ms_web-1_", "ms_other_x", "web-1", ""] {
            assert!(table.find(stranger, &Signer::new(SECRET)).is_none(), "{stranger}");
        }
        assert!(table.find(&key, &Signer::new("another secret of enough length")).is_none());
    }

    #[test]
    fn a_wrong_file_says_what_is_wrong() {
        let hash = "A".repeat(43);
        let key = |id: &str, more: &str| {
            format!(
                "[[keys]]\nid = \"{id}\"\ntenant = \"t\"\nrights = [\"read\"]\nhash = \"{hash}\"\n{more}"
            )
        };
        for (text, word) in [
            ("x".to_owned(), "key with no value"),
            (key("a", "colour = 1"), "colour"),
            (key("A", ""), "a-z"),
            (key("a", "") + &key("a", ""), "twice"),
            (key("a", "").replace("read", "fly"), "fly"),
            (key("a", "").replace(&hash, "short"), "hash"),
            (key("a", "expires_at = \"soon\""), "soon"),
        ] {
            let message = Table::parse(&text).unwrap_err();
            assert!(message.contains(word), "{message} should contain {word}");
        }
    }
}
