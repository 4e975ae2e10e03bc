//! What a broker refuses, and why.

use std::time::Duration;

use super::Trouble;
use crate::job::JobId;

/// The result of a broker's port.
pub type Result<T> = std::result::Result<T, Error>;

/// A broker's error. The message says what was met and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be reached, does not answer, or is not ready. Passes with time.
    #[error("broker unavailable: {message}")]
    Unavailable {
        /// What was tried and what happened.
        message: String,
        /// The client's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// It is there, and cannot be used. Nothing was done.
    #[error("{message}; {}", kind.remedy())]
    Trouble {
        /// Why.
        kind: Trouble,
        /// What was met.
        message: String,
        /// The client's own error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Its address cannot be read.
    #[error("{0}")]
    Address(String),
    /// Its version lacks what Millstream needs.
    #[error("the broker is {met}; Redis 7.0 or newer is needed (or Valkey 7.2 or newer)")]
    TooOld {
        /// The name and version it reported.
        met: String,
    },
    /// Its schema and this binary do not fit.
    #[error("{0}")]
    Schema(String),
    /// A bound is reached: nothing was added.
    #[error("queue full: {message}; try again in {}", humantime(*.retry_after))]
    Full {
        /// Which bound, and how much there is.
        message: String,
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// The idempotency key belongs to another request: nothing was added.
    #[error(
        "idempotency key already used for a different request, job {id}; use another key or send \
         the same request"
    )]
    Conflict {
        /// The job that holds the key.
        id: JobId,
    },
    /// It answered what it should not.
    #[error("unexpected answer of the broker: {0}")]
    Protocol(String),
}

fn humantime(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

impl Error {
    /// A name that does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "broker_unavailable",
            Self::Trouble { kind, .. } => kind.code(),
            Self::Address(_) => "broker_address",
            Self::TooOld { .. } => "broker_too_old",
            Self::Schema(_) => "schema",
            Self::Full { .. } => "queue_full",
            Self::Conflict { .. } => "idempotency_conflict",
            Self::Protocol(_) => "broker_protocol",
        }
    }

    /// Whether the same call may succeed later without anyone acting.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Full { .. } => true,
            Self::Trouble { kind, .. } => kind.passes(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_kept() {
        let source = std::io::Error::other("refused");
        let error =
            Error::Unavailable { message: "connect".to_owned(), source: Some(source.into()) };
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "refused");
        assert!(error.is_transient());
        let trouble = |kind| Error::Trouble { kind, message: "met".to_owned(), source: None };
        assert!(
            !trouble(Trouble::Login).is_transient() && trouble(Trouble::Loading).is_transient()
        );
        assert_eq!(trouble(Trouble::Loading).code(), "broker_loading");
        let text = trouble(Trouble::Loading).to_string();
        assert_eq!(text, "met; wait until it has read its data");
    }
}
