//! The bounded values that a job's options are made of.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Invalid;

/// One priority of a queue.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Lane {
    /// Read most often.
    High,
    /// The default.
    #[default]
    Normal,
    /// Read least often, but never starved.
    Low,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// `high`, `normal` or `low`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// Its place in [`Lane::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A lane of an unknown name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown lane `{0}`; allowed: high, normal, low")]
pub struct LaneError(String);

impl FromStr for Lane {
    type Err = LaneError;

    fn from_str(text: &str) -> Result<Self, LaneError> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.as_str() == text)
            .ok_or_else(|| LaneError(text.to_owned()))
    }
}

impl TryFrom<String> for Lane {
    type Error = LaneError;

    fn try_from(text: String) -> Result<Self, LaneError> {
        text.parse()
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a job that fails becomes a dead letter, which an operator can put back.
///
/// One that was lost with its workers, or that cannot be read, always does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Letter {
    /// However it failed.
    #[default]
    Always,
    /// Where another try may help: not where the request itself is at fault, or its time was over.
    Retryable,
    /// Not at all: somebody waits, is told of the failure, and asks again.
    Never,
}

/// A name that cannot stand in a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{met}` is not a name; allowed: 1 to 64 of letters, digits and _ . - @")]
pub struct NameError {
    what: &'static str,
    met: String,
}

fn checked(what: &'static str, text: &str) -> Result<String, NameError> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-@".contains(&b));
    if fits { Ok(text.to_owned()) } else { Err(NameError { what, met: text.to_owned() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Default for $type {
            fn default() -> Self {
                Self("default".to_owned())
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                checked($what, text).map(Self)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a queue: 1 to 64 of letters, digits and `_ . - @`. `default` unless given.
    QueueName,
    "queue"
);
name!(
    /// Who owns a job: 1 to 64 of letters, digits and `_ . - @`. `default` unless given.
    Tenant,
    "tenant"
);

/// Milliseconds since the Unix epoch. Read from such a number or from RFC 3339 text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The last one that RFC 3339 can write at any offset: two hours before the end of the 30th of
    /// December 9999.
    pub const MAX: Self = Self(253_402_207_200_000);

    /// This machine's clock.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This time, later by `delay`.
    #[must_use]
    pub fn after(self, delay: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl FromStr for Timestamp {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(ms) = text.parse() {
            return Ok(Self(ms));
        }
        let time: jiff::Timestamp = text.parse().map_err(|_| {
            Invalid::new(format!(
                "`{text}` is not a time; allowed: RFC 3339 such as 2026-11-21T08:00:00Z, or \
                 milliseconds since the epoch"
            ))
        })?;
        u64::try_from(time.as_millisecond())
            .map(Self)
            .map_err(|_| Invalid::new(format!("`{text}` lies before 1970")))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0).ok().map(jiff::Timestamp::from_millisecond);
        match time {
            Some(Ok(time)) => time.fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(ms) => Ok(Self(ms)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Free labels of a job: at most 16, names up to 64 bytes, values up to 256.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.0.len() > 16 {
            return Err(Invalid::new(format!("{} labels; allowed: at most 16", self.0.len())));
        }
        for (name, value) in &self.0 {
            if name.is_empty() || name.len() > 64 || value.len() > 256 {
                return Err(Invalid::new(format!(
                    "label `{name}` is too long or empty; allowed: names of 1 to 64 bytes, \
                     values of up to 256"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_in_both_forms() {
        assert_eq!("1763640000123".parse::<Timestamp>().unwrap(), Timestamp(1_763_640_000_123));
        let time: Timestamp = "2025-11-20T12:00:00.123Z".parse().unwrap();
        assert_eq!(time, Timestamp(1_763_640_000_123));
        assert_eq!(time.to_string(), "2025-11-20T12:00:00.123Z");
        assert!("tomorrow".parse::<Timestamp>().is_err());
    }

    #[test]
    fn a_name_that_could_break_a_hash_tag_is_refused() {
        for bad in ["", "a}b", "a:b", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<QueueName>().is_err(), "{bad}");
        }
        assert_eq!("chat-v2.eu".parse::<QueueName>().unwrap().as_str(), "chat-v2.eu");
    }

    #[test]
    fn labels_are_bounded() {
        let many: BTreeMap<_, _> = (0..17).map(|i| (i.to_string(), String::new())).collect();
        assert!(Labels(many).check().is_err());
        assert!(Labels([("k".to_owned(), "v".repeat(257))].into()).check().is_err());
        assert!(Labels([("k".to_owned(), "v".repeat(256))].into()).check().is_ok());
    }
}
