//! Job IDs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Invalid, Tenant};

/// Names a job for ever: a UUID of version 7 (new) or 5 (derived).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

/// The namespace of derived IDs, written in `docs/PROTOCOL.md` so that a producer in another
/// language derives the same ones.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f9b_1a52_0b5e_4c0e_9d5c_3a1f_0c7d_9e21);

impl JobId {
    /// A new ID (version 7: later IDs sort after earlier ones).
    #[expect(clippy::new_without_default, reason = "every call gives another ID")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The ID of the job with this idempotency key: version 5 of `key:TENANT:KEY`.
    pub fn from_key(tenant: &Tenant, key: &str) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("key:{tenant}:{key}").as_bytes()))
    }

    /// The ID of a job that was added without one: version 5 of `entry:STREAM KEY:ENTRY ID`,
    /// the same at every redelivery.
    pub fn from_entry(stream_key: &str, entry_id: &str) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("entry:{stream_key}:{entry_id}").as_bytes()))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Uuid::parse_str(text).map(Self).map_err(|_| {
            Invalid::new(format!(
                "`{text}` is not a job ID; a job ID is a UUID such as \
                 01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_fixed() {
        // PROTOCOL.md prints these two; a change breaks every producer in another language.
        assert_eq!(
            JobId::from_key(&Tenant::default(), "invoice-7").to_string(),
            "b08d34d8-ceba-5729-bdc9-d74dda2e7217"
        );
        assert_eq!(
            JobId::from_entry("ms:{q:default:0}:normal", "1763640000123-0").to_string(),
            "e4728aed-a9be-52e5-bb5b-1f824cb5f1d6"
        );
    }
}
