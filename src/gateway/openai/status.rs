//! A job that failed, as an HTTP status and an error that `OpenAI`'s clients understand.

use std::time::Duration;

use crate::error::{Code, Failure};

/// How a failed job is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status.
    pub http: u16,
    /// The error's `type`.
    pub kind: &'static str,
    /// The error's `code`: that of the failure.
    pub code: &'static str,
    /// One line for a person.
    pub message: String,
    /// After which time another try makes sense, for `retry-after`.
    pub retry_after: Option<Duration>,
    /// What `x-should-retry` says. Clients retry 409, 429 and 5xx by themselves, but a job has had
    /// its attempts already: only waiting helps, and only against a limit.
    pub should_retry: bool,
}

/// How long to wait when the upstream does not tell.
const WAIT: Duration = Duration::from_secs(1);

impl From<&Failure> for Status {
    fn from(failure: &Failure) -> Self {
        let (http, kind) = match failure.code {
            Code::InvalidRequest => (
                failure.status.filter(|status| (400..500).contains(status)).unwrap_or(400),
                "invalid_request_error",
            ),
            Code::InvalidJob => (400, "invalid_request_error"),
            Code::Cancelled => (409, "invalid_request_error"),
            Code::RateLimited => (429, "rate_limit_error"),
            Code::Timeout | Code::Expired => (504, "server_error"),
            Code::UpstreamAuth
            | Code::UpstreamError
            | Code::UpstreamConnection
            | Code::Truncated
            | Code::UpstreamProtocol
            | Code::Poison
            | Code::WorkerLost
            | Code::Unknown => (502, "server_error"),
        };
        let limited = failure.code == Code::RateLimited;
        // What an upstream says of a key may show part of it, and the key is not the caller's.
        let message = match failure.code {
            Code::UpstreamAuth => "the model endpoint refuses this server's key".to_owned(),
            _ => failure.message.clone(),
        };
        Self {
            http,
            kind,
            code: failure.code.as_str(),
            message,
            retry_after: limited.then(|| failure.retry_after().unwrap_or(WAIT).max(WAIT)),
            should_retry: limited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, upstream: Option<u16>) -> Status {
        Status::from(&Failure { status: upstream, ..Failure::new(code, "why") })
    }

    #[test]
    fn every_failure_has_its_status() {
        let expected = [
            (Code::InvalidJob, 400, "invalid_request_error"),
            (Code::InvalidRequest, 400, "invalid_request_error"),
            (Code::UpstreamAuth, 502, "server_error"),
            (Code::RateLimited, 429, "rate_limit_error"),
            (Code::UpstreamError, 502, "server_error"),
            (Code::UpstreamConnection, 502, "server_error"),
            (Code::Timeout, 504, "server_error"),
            (Code::Truncated, 502, "server_error"),
            (Code::UpstreamProtocol, 502, "server_error"),
            (Code::Poison, 502, "server_error"),
            (Code::Expired, 504, "server_error"),
            (Code::Cancelled, 409, "invalid_request_error"),
            (Code::WorkerLost, 502, "server_error"),
            (Code::Unknown, 502, "server_error"),
        ];
        assert_eq!(expected.len(), Code::all().count());
        for (code, http, kind) in expected {
            let status = status(code, None);
            assert_eq!((status.http, status.kind), (http, kind), "{code}");
            assert_eq!(status.code, code.as_str());
            assert_eq!(status.should_retry, code == Code::RateLimited, "{code}");
            assert_eq!(status.retry_after.is_some(), code == Code::RateLimited, "{code}");
        }
    }

    #[test]
    fn a_refused_request_keeps_the_status_of_the_upstream() {
        for (upstream, http) in [(404, 404), (413, 413), (422, 422), (302, 400), (501, 400)] {
            assert_eq!(status(Code::InvalidRequest, Some(upstream)).http, http);
        }
        assert_eq!(status(Code::UpstreamError, Some(503)).http, 502);
        assert_eq!(status(Code::InvalidRequest, None).message, "why");
    }

    #[test]
    fn what_is_said_of_the_servers_key_stays_here() {
        assert!(!status(Code::UpstreamAuth, Some(401)).message.contains("why"));
    }

    #[test]
    fn a_limit_tells_how_long_to_wait() {
        let after = |ms| {
            let failure = Failure::new(Code::RateLimited, "slow down");
            Status::from(&Failure { retry_after_ms: ms, ..failure }).retry_after
        };
        assert_eq!(after(Some(2500)), Some(Duration::from_millis(2500)));
        assert_eq!(after(Some(0)), Some(Duration::from_secs(1)));
        assert_eq!(after(None), Some(Duration::from_secs(1)));
    }
}
