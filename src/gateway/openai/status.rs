//! A job that failed, as an HTTP status and an error that `OpenAI`'s clients understand.

use std::{borrow::Cow, time::Duration};

use crate::{error::Code, event::Failed};

/// How a failed job is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status.
    pub http: u16,
    /// The error's `type`.
    pub kind: Cow<'static, str>,
    /// The error's `code`: the upstream's own where it refuses the request, else that of the failure.
    pub code: Cow<'static, str>,
    /// The field of the request that the upstream finds at fault.
    pub param: Option<String>,
    /// One line for a person.
    pub message: String,
    /// After which time another try makes sense, for `retry-after`.
    pub retry_after: Option<Duration>,
    /// What `x-should-retry` says. Clients retry 409, 429 and 5xx by themselves, and each of their tries is a
    /// job with all its attempts: so only where the queue has not tried again, and waiting helps.
    pub should_retry: bool,
}

/// How long to wait when the upstream does not tell.
const WAIT: Duration = Duration::from_secs(1);

impl From<&Failed> for Status {
    fn from(failed: &Failed) -> Self {
        let (failure, attempts) = (&failed.error, failed.attempts);
        let (http, kind) = match failure.code {
            Code::InvalidRequest => (
                failure.status.filter(|status| (400..500).contains(status)).unwrap_or(400),
                "invalid_request_error",
            ),
            Code::InvalidJob => (400, "invalid_request_error"),
            Code::Cancelled => (409, "invalid_request_error"),
            Code::RateLimited => (429, "rate_limit_error"),
            Code::InsufficientQuota => (429, "insufficient_quota"),
            Code::Timeout | Code::Expired => (504, "server_error"),
            Code::UpstreamAuth
            | Code::UpstreamRedirect
            | Code::AnswerTooLarge
            | Code::UpstreamError
            | Code::UpstreamConnection
            | Code::Truncated
            | Code::UpstreamProtocol
            | Code::Poison
            | Code::WorkerLost
            | Code::Unknown => (502, "server_error"),
        };
        let limited = failure.code == Code::RateLimited;
        // A worker of an older version keeps what an upstream says of the key, which is not the caller's.
        let message = match failure.code {
            Code::UpstreamAuth => "the model endpoint refuses this server's key".to_owned(),
            _ => failure.message.clone(),
        };
        let message = if failure.code.is_transient() && attempts > 1 {
            format!(
                "{message} (tried {attempts} times: let the client not repeat it, see Retries in docs/HTTP.md)"
            )
        } else {
            message
        };
        Self {
            http,
            kind: failure.kind.clone().map_or(kind.into(), Cow::Owned),
            code: match &failure.reason {
                Some(reason) => reason.clone().into(),
                None => failure.code.as_str().into(),
            },
            param: failure.param.clone(),
            message,
            retry_after: limited.then(|| failure.retry_after().unwrap_or(WAIT).max(WAIT)),
            should_retry: limited && attempts < 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Failure, job::Labels};

    fn failed(error: Failure, attempts: u32) -> Failed {
        Failed { error, attempts, custom_id: None, labels: Labels::default() }
    }

    fn status(code: Code, upstream: Option<u16>) -> Status {
        Status::from(&failed(Failure { status: upstream, ..Failure::new(code, "why") }, 1))
    }

    /// Clients that retry by themselves made 15 to 30 calls of one, and nothing told them not to.
    #[test]
    fn what_the_queue_has_tried_again_is_not_for_the_client_to_repeat() {
        for code in [Code::RateLimited, Code::UpstreamError, Code::Timeout] {
            let status = Status::from(&failed(Failure::new(code, "why"), 5));
            assert!(!status.should_retry, "{code}");
            assert!(status.message.starts_with("why (tried 5 times"), "{}", status.message);
        }
        assert_eq!(
            Status::from(&failed(Failure::new(Code::InvalidRequest, "why"), 2)).message,
            "why"
        );
    }

    #[test]
    fn every_failure_has_its_status() {
        let expected = [
            (Code::InvalidJob, 400, "invalid_request_error"),
            (Code::InvalidRequest, 400, "invalid_request_error"),
            (Code::UpstreamAuth, 502, "server_error"),
            (Code::InsufficientQuota, 429, "insufficient_quota"),
            (Code::UpstreamRedirect, 502, "server_error"),
            (Code::AnswerTooLarge, 502, "server_error"),
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
            assert_eq!((status.http, &*status.kind), (http, kind), "{code}");
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

    /// A client could not tell a context that is too long from any other refusal.
    #[test]
    fn a_refused_request_keeps_the_code_and_the_field_of_the_upstream() {
        let (reason, param) =
            (Some("context_length_exceeded".to_owned()), Some("messages".to_owned()));
        let failure = Failure { reason, param, ..Failure::new(Code::InvalidRequest, "too long") };
        let status = Status::from(&failed(failure, 1));
        assert_eq!(
            (&*status.code, status.param.as_deref()),
            ("context_length_exceeded", Some("messages"))
        );
    }

    #[test]
    fn what_is_said_of_the_servers_key_stays_here() {
        assert!(!status(Code::UpstreamAuth, Some(401)).message.contains("why"));
    }

    #[test]
    fn a_limit_tells_how_long_to_wait() {
        let after = |ms| {
            let failure = Failure::new(Code::RateLimited, "slow down");
            Status::from(&failed(Failure { retry_after_ms: ms, ..failure }, 1)).retry_after
        };
        assert_eq!(after(Some(2500)), Some(Duration::from_millis(2500)));
        assert_eq!(after(Some(0)), Some(Duration::from_secs(1)));
        assert_eq!(after(None), Some(Duration::from_secs(1)));
    }
}
