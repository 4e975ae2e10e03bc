//! What went wrong at an endpoint: what of it is the caller's to know, and what the operator's.
//!
//! A request that is refused for its own sake keeps the endpoint's words, code and parameter. Words about keys,
//! accounts, addresses and connections are not the caller's: such a failure says its class and status, and keeps
//! the rest as [`Failure::detail`], for the log and the dead letter. Other errors keep their words where nothing
//! in them looks like a place or a secret.

use std::{error::Error, io, net::IpAddr, time::Duration};

use async_openai::error::{ApiError, OpenAIError};
use serde_json::Value;

use crate::error::{Code, Failure};

/// What is said instead of words that are the operator's.
fn class(code: Code) -> &'static str {
    match code {
        Code::UpstreamAuth => "the model's endpoint refuses this server's key or account",
        Code::RateLimited => "the model's endpoint has had too many requests",
        Code::InsufficientQuota => {
            "the model's endpoint says that the account has no quota or credit left"
        }
        Code::InvalidRequest => "the model's endpoint refuses the request",
        Code::UpstreamConnection => {
            "the model's endpoint cannot be reached, or the connection broke"
        }
        Code::UpstreamProtocol => "the model's endpoint does not answer as such endpoints do",
        _ => "the model's endpoint failed",
    }
}

/// A failure of which the caller is told the class.
pub(super) fn hidden(code: Code, words: &str, detail: impl Into<String>) -> Failure {
    Failure { detail: Some(detail.into()), ..Failure::new(code, words) }
}

/// Longest code or parameter, in bytes: what is longer is no name.
const NAME: usize = 128;

/// What an error object says.
#[derive(Debug, Default)]
struct Said {
    message: Option<String>,
    kind: Option<String>,
    reason: Option<String>,
    param: Option<String>,
}

impl Said {
    /// Of an error as it stands under `error`, or of a whole body that is one.
    fn read(value: &Value) -> Self {
        // Some endpoints put their one error into a list.
        let value = value.as_array().and_then(|values| values.first()).unwrap_or(value);
        let inner = value.get("error").filter(|error| !error.is_null()).unwrap_or(value);
        let text = |name: &str| inner.get(name).and_then(Value::as_str).map(str::to_owned);
        let words = |name: &str| match inner.get(name)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let own = || inner.as_str().map(str::to_owned);
        let message = words("message").or_else(own).or_else(|| words("detail"));
        let name = |field: &str| text(field).filter(|name| (1..=NAME).contains(&name.len()));
        Self { message, kind: name("type"), reason: name("code"), param: name("param") }
    }

    /// Whether the operator's key or account is refused, under whatever status.
    fn is_of_the_key(&self) -> bool {
        const KEY: [&str; 4] =
            ["authentication_error", "permission_error", "invalid_api_key", "account_deactivated"];
        self.is_named(&KEY)
    }

    /// Whether the account is empty, under whatever status.
    fn is_of_the_quota(&self) -> bool {
        const QUOTA: [&str; 5] = [
            "insufficient_quota",
            "exceeded_current_quota_error",
            "billing_hard_limit_reached",
            "billing_not_active",
            "insufficient_balance",
        ];
        self.is_named(&QUOTA)
    }

    fn is_named(&self, names: &[&str]) -> bool {
        let own = [self.kind.as_deref(), self.reason.as_deref()];
        own.into_iter().flatten().any(|name| names.contains(&name))
    }

    /// The failure that this means; `whole` is all that came.
    fn failure(self, status: Option<u16>, code: Code, head: &str, whole: &str) -> Failure {
        let code = if self.is_of_the_key() {
            Code::UpstreamAuth
        } else if self.is_of_the_quota() {
            Code::InsufficientQuota
        } else {
            code
        };
        let passes = match (code, status) {
            (Code::UpstreamAuth | Code::RateLimited | Code::InsufficientQuota, _) => false,
            // These are about the request. Other statuses may come from whatever stands in between.
            (Code::InvalidRequest, None | Some(400 | 413 | 422)) => true,
            _ => self.message.as_deref().is_some_and(|message| !names_places(message)),
        };
        let Some(message) = self.message.filter(|_| passes) else {
            let words = format!("{head}{}", class(code));
            return hidden(code, &words, whole);
        };
        let failure = Failure::new(code, format!("{head}{message}"));
        if code == Code::InvalidRequest {
            return Failure { reason: self.reason, kind: self.kind, param: self.param, ..failure };
        }
        failure
    }
}

/// An error status with its body.
pub(super) fn of_status(
    status: u16,
    reason: &str,
    body: &[u8],
    after: Option<Duration>,
) -> Failure {
    let code = Code::from_status(status);
    let head = format!("{status} {reason}: ");
    let said = serde_json::from_slice::<Value>(body).map(|value| Said::read(&value));
    let text: String = String::from_utf8_lossy(body).trim().chars().take(1000).collect();
    let whole = format!("{head}{text}");
    let failure = said.unwrap_or_default().failure(Some(status), code, &head, &whole);
    failure.at(status, after)
}

/// Types and codes of errors that are about the request.
const REQUEST: [&str; 9] = [
    "invalid_request_error",
    "invalid_request",
    "BadRequestError",
    "context_length_exceeded",
    "exceed_context_size_error",
    "content_filter",
    "content_policy_violation",
    "invalid_prompt",
    "model_not_found",
];

/// An error object in mid-stream. A code that is an HTTP status decides; otherwise it may pass.
pub(super) fn of_object(error: &Value) -> Failure {
    let said = Said::read(error);
    let whole = error.to_string();
    let status = error.get("code").or_else(|| error.get("status"));
    let status = status
        .and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()))
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code));
    if let Some(status) = status {
        return said.failure(Some(status), Code::from_status(status), "", &whole).at(status, None);
    }
    let code = if said.is_named(&REQUEST) {
        Code::InvalidRequest
    } else if said.is_named(&["rate_limit_error", "rate_limit_exceeded", "RateLimitError"]) {
        Code::RateLimited
    } else {
        Code::UpstreamError
    };
    said.failure(None, code, "", &whole)
}

/// What the client's error means.
pub(super) fn of_client(error: OpenAIError) -> Failure {
    match error {
        OpenAIError::Boxed(inner) => match inner.downcast::<Failure>() {
            Ok(failure) => *failure,
            Err(other) => of_connection(other.as_ref()),
        },
        OpenAIError::ApiError(api) => {
            let ApiError { message, r#type: kind, param, code: reason, .. } = api.api_error;
            let (status, whole) = (api.status_code.as_u16(), message.clone());
            let said = Said { message: Some(message), kind, reason, param };
            said.failure(Some(status), Code::from_status(status), "", &whole).at(status, None)
        }
        OpenAIError::JSONDeserialize(error, content) => {
            match serde_json::from_str::<Value>(&content) {
                Ok(value) if value.get("error").is_some_and(|e| !e.is_null()) => {
                    of_object(&value["error"])
                }
                _ => {
                    let words = format!("the model's endpoint sent what is not JSON: {error}");
                    Failure::new(Code::UpstreamProtocol, words)
                }
            }
        }
        OpenAIError::InvalidArgument(text) => Failure::new(Code::InvalidRequest, text),
        other => of_connection(&other),
    }
}

/// More than is taken at once.
pub(super) fn too_large(most: usize) -> Failure {
    let words = format!(
        "the model's endpoint sent more than {most} bytes at once (upstream.max_answer_bytes)"
    );
    Failure::new(Code::AnswerTooLarge, words)
}

/// A body that ended before it was over.
pub(super) fn of_broken(error: &reqwest::Error) -> Failure {
    hidden(
        Code::UpstreamConnection,
        "the connection to the model's endpoint broke in the middle of the answer",
        chain(error),
    )
}

/// A call that came to nothing.
pub(super) fn of_connection(error: &(dyn Error + 'static)) -> Failure {
    let http = error.downcast_ref::<reqwest::Error>();
    let kind =
        causes(error).find_map(|cause| cause.downcast_ref::<io::Error>().map(io::Error::kind));
    let whole = chain(error);
    let about = |word: &str| whole.to_ascii_lowercase().contains(word);
    let words = if about("dns") || about("resolve") {
        "the model's endpoint cannot be reached: its name is not found"
    } else if about("certificate") || about("tls") || about("handshake") {
        "the model's endpoint cannot be reached: there is no TLS connection that can be trusted"
    } else if kind == Some(io::ErrorKind::ConnectionRefused) {
        "the model's endpoint cannot be reached: it refuses the connection"
    } else if http.is_some_and(reqwest::Error::is_timeout) {
        "the model's endpoint cannot be reached within upstream.connect_timeout"
    } else if http.is_some_and(reqwest::Error::is_connect) {
        "the model's endpoint cannot be reached"
    } else {
        "the connection to the model's endpoint broke before its answer was whole"
    };
    hidden(Code::UpstreamConnection, words, whole)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

/// Whether a text may tell of a place, a path or a secret. In doubt it does.
fn names_places(text: &str) -> bool {
    let breaks = |c: char| c.is_whitespace() || "\"'`()<>{},;=".contains(c);
    text.contains("://") || text.split(breaks).any(|word| is_place(word) || is_secret(word))
}

fn is_place(word: &str) -> bool {
    let word = word.trim_start_matches('[').trim_end_matches([']', '.', ':', '!', '?']);
    let host = match word.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => word,
    };
    let host = host.trim_end_matches(']');
    let labels: Vec<&str> = host.split('.').collect();
    let is_label = |label: &&str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let last = labels.last().copied().unwrap_or_default();
    let is_domain = labels.len() > 1
        && labels.iter().all(is_label)
        && last.len() > 1
        && last.bytes().all(|b| b.is_ascii_alphabetic());
    let has_port = host.len() < word.len() && host.bytes().any(|b| b.is_ascii_alphabetic());
    let is_path = (word.starts_with('/') && word.len() > 1) || word.contains(":\\");
    let is_address = [host, word].iter().any(|text| text.parse::<IpAddr>().is_ok());
    is_domain || has_port || is_path || is_address || host == "localhost"
}

fn is_secret(word: &str) -> bool {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-_.*+/".contains(&b);
    let long = word.len() >= 20
        && word.bytes().all(is_token)
        && word.bytes().any(|b| b.is_ascii_digit() || b == b'*');
    let marked = ["sk-", "org-", "proj_", "key-"].iter().any(|mark| word.starts_with(mark));
    long || marked || word.contains("***") || word.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(status: u16, body: &Value) -> Failure {
        of_status(status, "Reason", body.to_string().as_bytes(), None)
    }

    #[test]
    fn an_error_object_is_told_by_status_type_or_code() {
        let code = |error: Value| of_object(&error).code;
        assert_eq!(code(json!({"message": "m", "code": 429})), Code::RateLimited);
        assert_eq!(code(json!({"message": "m", "code": "503"})), Code::UpstreamError);
        assert_eq!(code(json!({"type": "invalid_request_error"})), Code::InvalidRequest);
        assert_eq!(code(json!({"type": "authentication_error"})), Code::UpstreamAuth);
        assert_eq!(code(json!({"message": "boom"})), Code::UpstreamError);
        assert_eq!(code(json!({"code": "context_length_exceeded"})), Code::InvalidRequest);
        let empty =
            json!({"error": {"message": "no credit on org-7", "code": "insufficient_quota"}});
        for met in [402, 429] {
            let failure = status(met, &empty);
            assert_eq!((failure.code, failure.status), (Code::InsufficientQuota, Some(met)));
            assert!(
                !failure.code.is_transient() && !failure.message.contains("org-7"),
                "{failure}"
            );
        }
        assert_eq!(status(402, &json!({"message": "pay"})).code, Code::InsufficientQuota);
    }

    /// What an endpoint said of the operator's key, account and addresses reached whoever had sent the job.
    #[test]
    fn what_concerns_the_operator_is_kept_from_the_caller() {
        let secret =
            "Incorrect API key provided: sk-abc***xyz of org-77 at http://10.0.0.7:8000/v1";
        let body = json!({"error": {"message": secret, "code": "invalid_api_key", "param": "p"}});
        for code in [401, 403, 429, 500, 503] {
            let failure = status(code, &body);
            assert_eq!(failure.status, Some(code));
            assert!(failure.message.starts_with(&format!("{code} Reason: the model's endpoint ")));
            let shown = serde_json::to_string(&failure).unwrap();
            assert!(
                !["sk-", "org-", "10.0.0.7"].iter().any(|part| shown.contains(part)),
                "{shown}"
            );
            assert!(failure.detail.is_some_and(|detail| detail.contains(secret)));
        }
        let page =
            of_status(404, "Not Found", b"<address>Apache at llm.internal Port 80</address>", None);
        assert_eq!(page.message, "404 Not Found: the model's endpoint refuses the request");
        let broken = of_object(&json!({"message": "upstream 10.1.2.3:8000 is gone"}));
        assert_eq!(broken.message, "the model's endpoint failed");
    }

    /// Code and parameter of a refused request were lost.
    #[test]
    fn what_concerns_the_request_passes_as_it_came() {
        let message =
            "This model's maximum context length is 8192 tokens, see https://example.com/limits";
        let body = json!({"error": {"message": message, "type": "invalid_request_error",
            "param": "messages", "code": "context_length_exceeded"}});
        for code in [400, 413, 422] {
            let failure = status(code, &body);
            assert_eq!(failure.message, format!("{code} Reason: {message}"));
            assert_eq!(failure.reason.as_deref(), Some("context_length_exceeded"));
            assert_eq!(failure.kind.as_deref(), Some("invalid_request_error"));
            assert_eq!((failure.param.as_deref(), failure.detail), (Some("messages"), None));
        }
        let filtered = json!({"message": "filtered", "code": "content_filter", "type": "invalid_request_error"});
        assert_eq!(of_object(&filtered).reason.as_deref(), Some("content_filter"));
        // What stands between is the operator's, and so is the key, under whatever status.
        for (met, message) in [
            (404, json!({"message": "no route at gw-3.internal:9000"})),
            (405, json!({"message": "see http://vllm.internal:8000/v1"})),
            (407, json!({"message": "proxy squid-7 wants a password"})),
            (400, json!({"message": "key sk-OPER****6789", "code": "invalid_api_key"})),
        ] {
            let failure = status(met, &json!({"error": message}));
            for secret in ["internal", "squid", "sk-"] {
                assert!(!failure.message.contains(secret), "{met}: {}", failure.message);
            }
        }
        let unknown = json!({"error": {"message": "The model `m` does not exist"}});
        assert!(status(404, &unknown).message.ends_with("`m` does not exist"));
        // Words that name no place are of use to whoever waits.
        let busy = json!({"error": {"message": "The model is overloaded, try again in 3.5 s"}});
        let failure = status(503, &busy);
        assert!(failure.message.ends_with("overloaded, try again in 3.5 s"), "{}", failure.message);
    }

    #[test]
    fn places_and_secrets_are_told_from_words() {
        for text in [
            "see http://h/x",
            "dial tcp 10.0.0.1:80",
            "[::1]:8000 refused",
            "[fe80::7] is gone",
            "::1:",
            "lookup llm.corp.internal:",
            "no such file /etc/keys",
            "at vllm-0:8000",
            "localhost",
            "key sk-1",
            "request req_0123456789abcdef0123",
            "ops@corp",
            r"C:\keys",
        ] {
            assert!(names_places(text), "{text}");
        }
        for text in [
            "the server is busy",
            "gpt-4.1 and 3.5 s, e.g. now",
            "a/b",
            "wait: 10",
            "out of memory!",
        ] {
            assert!(!names_places(text), "{text}");
        }
    }

    #[test]
    fn a_refused_connection_is_told_in_words() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(of_connection(&refused).message.ends_with("it refuses the connection"));
    }
}
