//! Failures of jobs: what ends an attempt, under stable codes, and which of them may pass.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Why an attempt, or a job, failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// The kind, under a name that does not change.
    pub code: Code,
    /// One line for a person.
    pub message: String,
    /// The upstream's HTTP status, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How long the upstream asked to wait, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The upstream's own name for it, where the request is at fault, such as `context_length_exceeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The upstream's own kind of error, where the request is at fault, such as `invalid_request_error`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The field of the request that the upstream finds at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// What the upstream said of the operator's keys, accounts and addresses. It goes to the log and to the dead
    /// letter, and stands in no event and no record.
    #[serde(skip)]
    pub detail: Option<String>,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The entry or its job cannot be read.
    InvalidJob,
    /// The upstream refuses the request itself (400, 404, 413, 422, …).
    InvalidRequest,
    /// The upstream refuses the key or the account (401, 403, 407).
    UpstreamAuth,
    /// The upstream has had too many requests (429).
    RateLimited,
    /// The account has no quota or credit left (402, or 429 with `insufficient_quota`): waiting a moment does not help.
    InsufficientQuota,
    /// The upstream redirects the request to another origin.
    UpstreamRedirect,
    /// The upstream sent more at once than is taken.
    AnswerTooLarge,
    /// The upstream failed (408, 409, 5xx, an error object in mid-stream).
    UpstreamError,
    /// The upstream cannot be reached, or the connection broke.
    UpstreamConnection,
    /// The upstream was silent or slow beyond a deadline.
    Timeout,
    /// The stream ended without a finish reason.
    Truncated,
    /// The upstream sent what cannot be read.
    UpstreamProtocol,
    /// The workers that ran it died, as often as a job may cost one.
    Poison,
    /// It had not begun when its time was over.
    Expired,
    /// Its owner does not want it any more.
    Cancelled,
    /// The worker that ran the attempt died or was cut off.
    WorkerLost,
    /// A code of a newer version.
    #[serde(other)]
    Unknown,
}

/// The one table of failures: name, and whether another attempt may succeed.
const CODES: [(Code, &str, bool); 17] = [
    (Code::InvalidJob, "invalid_job", false),
    (Code::InvalidRequest, "invalid_request", false),
    (Code::UpstreamAuth, "upstream_auth", false),
    (Code::RateLimited, "rate_limited", true),
    (Code::InsufficientQuota, "insufficient_quota", false),
    (Code::UpstreamRedirect, "upstream_redirect", false),
    (Code::AnswerTooLarge, "answer_too_large", false),
    (Code::UpstreamError, "upstream_error", true),
    (Code::UpstreamConnection, "upstream_connection", true),
    (Code::Timeout, "timeout", true),
    (Code::Truncated, "truncated", true),
    (Code::UpstreamProtocol, "upstream_protocol", true),
    (Code::Poison, "poison", false),
    (Code::Expired, "expired", false),
    (Code::Cancelled, "cancelled", false),
    (Code::WorkerLost, "worker_lost", true),
    (Code::Unknown, "unknown", false),
];

impl Code {
    fn row(self) -> (Self, &'static str, bool) {
        CODES.into_iter().find(|row| row.0 == self).unwrap_or((Self::Unknown, "unknown", false))
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        CODES.into_iter().map(|row| row.0)
    }

    /// The name, as it stands in events and on the command line.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// Whether another attempt may succeed.
    pub fn is_transient(self) -> bool {
        self.row().2
    }

    /// The kind of failure that an HTTP status means.
    pub fn from_status(status: u16) -> Self {
        match status {
            401 | 403 | 407 => Self::UpstreamAuth,
            402 => Self::InsufficientQuota,
            429 => Self::RateLimited,
            408 | 409 | 500.. => Self::UpstreamError,
            _ => Self::InvalidRequest,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Failure {
    /// A failure without a status. The message is cut at 2,000 bytes.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > 2000 {
            let end = (0..=2000).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
            message.push('…');
        }
        Self {
            code,
            message,
            status: None,
            retry_after_ms: None,
            reason: None,
            kind: None,
            param: None,
            detail: None,
        }
    }

    /// What an HTTP error status means.
    pub fn from_status(status: u16, message: impl Into<String>, after: Option<Duration>) -> Self {
        Self::new(Code::from_status(status), message).at(status, after)
    }

    /// The same, with the status under which the upstream told it, and how long it asked to wait.
    #[must_use]
    pub fn at(self, status: u16, after: Option<Duration>) -> Self {
        let retry_after_ms = after.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        Self { status: Some(status), retry_after_ms, ..self }
    }

    /// How long the upstream asked to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after_ms.map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_apart() {
        for (statuses, transient) in [
            (&[408, 409, 429, 500, 502, 503, 529][..], true),
            (&[400, 401, 402, 403, 404, 413, 422], false),
        ] {
            for status in statuses {
                assert_eq!(Code::from_status(*status).is_transient(), transient, "{status}");
            }
        }
    }

    #[test]
    fn names_are_those_of_serde_and_stand_once() {
        for (index, (code, name, _)) in CODES.iter().enumerate() {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{name}\""));
            assert_eq!(CODES.iter().position(|row| row.1 == *name), Some(index));
        }
        let newer: Code = serde_json::from_str("\"quantum\"").unwrap();
        assert_eq!(newer, Code::Unknown);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let failure = Failure::new(Code::Timeout, "é".repeat(3000));
        assert!(failure.message.len() <= 2004 && failure.message.ends_with('…'));
    }
}
