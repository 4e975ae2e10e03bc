//! Refusals: every error of the gateway, in the shape that `OpenAI`'s clients read.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::audit::Refused;
use crate::{broker, job::Invalid, listener, producer};

/// Names the job that an answer is about.
pub(super) const JOB_HEADER: HeaderName = HeaderName::from_static("x-millstream-job");

/// Tells `OpenAI`'s clients whether to send the same request again.
pub(super) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// How long a client waits for a broker that cannot be reached.
const AWAY: Duration = Duration::from_secs(2);

/// How long for one that is full, which an operator has to mend.
const FULL: Duration = Duration::from_secs(10);

/// Most bytes of a refusal's message: a client's own value, or a library's words about it, may be as large as its
/// request.
const LONGEST: usize = 1024;

/// Most bytes of a client's own value in a message.
const VALUE: usize = 128;

/// A client's value as a message repeats it: one that is long, without its middle.
pub(super) fn brief(value: &str) -> Cow<'_, str> {
    shortened(value, VALUE)
}

fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let head = text.floor_char_boundary(most * 2 / 3);
    let tail = text.ceil_char_boundary(text.len() - most / 4);
    format!("{} \u{2026} {}", &text[..head], &text[tail..]).into()
}

/// A message that is short enough to wait for a client that does not read.
fn bounded(message: String) -> String {
    match shortened(&message, LONGEST) {
        Cow::Borrowed(_) => message,
        Cow::Owned(short) => short,
    }
}

/// Why a request is refused. The body is `{"error": {"message", "type", "param", "code"}}`, with `retry_after`
/// where another try makes sense.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: ErrorObject,
    pub(super) should_retry: Option<bool>,
    /// Headers that belong to it.
    pub(super) headers: Option<Box<HeaderMap>>,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorObject,
}

/// What went wrong, as `OpenAI`'s clients read it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Error, example = json!({
    "message": "limit is 0; allowed: 1 to 100", "type": "invalid_request_error", "param": "limit",
    "code": "invalid_parameter"
}))]
pub(super) struct ErrorObject {
    /// What was met, what is allowed, what to do.
    pub(super) message: String,
    /// The kind: `invalid_request_error`, `authentication_error`, `permission_error`,
    /// `rate_limit_error`, `insufficient_quota` or `server_error`, or the upstream's own where it refuses the request.
    #[serde(rename = "type")]
    pub(super) kind: Cow<'static, str>,
    /// The field or parameter at fault, where it is one.
    #[schema(required)]
    pub(super) param: Option<String>,
    /// A name that does not change.
    pub(super) code: Cow<'static, str>,
    /// After how many seconds another try makes sense, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) retry_after: Option<u32>,
}

/// The kind of error that a status means.
pub(super) fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

impl Refusal {
    /// A refusal of a status, a stable code and a message for people.
    pub(super) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        let (message, code) = (bounded(message.into()), code.into());
        let error = ErrorObject {
            message,
            kind: kind(status).into(),
            param: None,
            code,
            retry_after: None,
        };
        Self { status, error, should_retry: None, headers: None }
    }

    /// 400: the request cannot be understood.
    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400: a parameter of that name is at fault.
    pub(super) fn param(name: &str, message: impl Into<String>) -> Self {
        Self::bad("invalid_parameter", message).at(name)
    }

    /// 404: there is no such job, or it is somebody else's, which is the same.
    pub(super) fn no_job(id: impl std::fmt::Display) -> Self {
        let text = format!("no job {id}: it never existed, is not yours, or has expired");
        Self::new(StatusCode::NOT_FOUND, "job_not_found", text)
    }

    /// 503: the broker is away, and was asked nothing.
    pub(super) fn away() -> Self {
        let text = "the broker cannot be reached; nothing was changed, try again soon";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "broker_unavailable", text).after(AWAY)
    }

    /// 503: the broker has no room for another byte. What it has refused, it has not done.
    fn out_of_memory() -> Self {
        let text = "the broker is out of memory: nothing was added; try again later, and tell whoever runs it";
        let code = broker::Trouble::OutOfMemory.code();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, text).after(FULL)
    }

    /// 503: the broker was asked, and did not do it, or did it without saying so.
    fn in_doubt() -> Self {
        let text = "the broker did not answer as it should; if this was to change something, it may have \
                    been done: repeat it with the same Idempotency-Key, which makes no second job";
        Self {
            error: ErrorObject { message: text.to_owned(), ..Self::away().error },
            ..Self::away()
        }
    }

    /// The same, in other words.
    pub(super) fn reading(mut self, message: String) -> Self {
        self.error.message = bounded(message);
        self
    }

    /// The same, with the field or parameter at fault.
    pub(super) fn at(mut self, param: impl Into<String>) -> Self {
        self.error.param = Some(brief(&param.into()).into_owned());
        self
    }

    /// The same, worth another try after that long.
    pub(super) fn after(mut self, wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        self.error.retry_after = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        self
    }

    /// The same, with a header of its own.
    pub(super) fn with(mut self, name: impl Into<HeaderName>, value: HeaderValue) -> Self {
        self.headers.get_or_insert_default().insert(name.into(), value);
        self
    }

    /// The error object as JSON, for whoever answers outside of the router.
    pub(super) fn body(&self) -> String {
        let body = ErrorBody { error: self.error.clone() };
        serde_json::to_string(&body).unwrap_or_default()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let wait = self.error.retry_after;
        let refused = Refused(self.error.code.to_string());
        let mut response = (self.status, Json(ErrorBody { error: self.error })).into_response();
        response.extensions_mut().insert(refused);
        let headers = response.headers_mut();
        headers.extend(self.headers.map(|headers| *headers).unwrap_or_default());
        if let Some(seconds) = wait {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(retry) = self.should_retry {
            let text = if retry { "true" } else { "false" };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(text));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Invalid> for Refusal {
    fn from(error: Invalid) -> Self {
        Self::bad("invalid_job", error.to_string())
    }
}

impl From<producer::Error> for Refusal {
    fn from(error: producer::Error) -> Self {
        let status = match &error {
            producer::Error::Broker(_) => {
                let producer::Error::Broker(error) = error else { return Self::in_doubt() };
                return error.into();
            }
            producer::Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<broker::Error> for Refusal {
    fn from(error: broker::Error) -> Self {
        let (code, message) = (error.code(), error.to_string());
        match error {
            broker::Error::Full { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, code, message).after(retry_after)
            }
            broker::Error::Conflict { .. } => {
                let refusal = Self::new(StatusCode::CONFLICT, code, message);
                Self { should_retry: Some(false), ..refusal }.at("Idempotency-Key")
            }
            other => {
                // What the broker says may name hosts and users: that is for the log.
                tracing::warn!(error = %other, "broker call failed");
                match other {
                    broker::Error::Trouble { kind: broker::Trouble::OutOfMemory, .. } => {
                        Self::out_of_memory()
                    }
                    _ => Self::in_doubt(),
                }
            }
        }
    }
}

impl From<listener::Error> for Refusal {
    fn from(error: listener::Error) -> Self {
        match error {
            listener::Error::NotFound(id) => Self::no_job(id),
            listener::Error::Broker(error) => error.into(),
            listener::Error::Forgotten(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.code(), error.to_string())
            }
            listener::Error::Expired(_) => {
                Self::new(StatusCode::GONE, error.code(), error.to_string())
            }
            other => Self::new(StatusCode::GATEWAY_TIMEOUT, other.code(), other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal said the client's own value again, however large, and waited for a client that did not read it.
    #[test]
    fn a_refusal_is_short_whatever_it_is_about() {
        let long = "\u{fc}".repeat(1 << 20);
        let text = format!("lane is `{long}`; allowed: high, normal, low");
        for refusal in [
            Refusal::bad("invalid_job", text.clone()),
            Refusal::param(&long, text.clone()),
            Refusal::bad("invalid_job", "").reading(text),
        ] {
            let message = &refusal.error.message;
            assert!(
                message.starts_with("lane is `\u{fc}\u{fc}") && message.len() < 1100,
                "{message}"
            );
            assert!(message.ends_with("`; allowed: high, normal, low"), "{message}");
            assert!(refusal.body().len() < 1500);
        }
        let message = Refusal::no_job(brief(&long)).error.message;
        assert!(message.len() < 300 && message.ends_with("has expired"), "{message}");
    }
}
