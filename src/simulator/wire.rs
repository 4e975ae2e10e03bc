//! The shapes of the Chat Completions protocol that the simulator writes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

/// What `system_fingerprint` says.
pub(super) const FINGERPRINT: &str = "fp_simulator";

/// The last frame of a stream.
pub(super) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

#[derive(Serialize)]
pub(super) struct Chunk<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) system_fingerprint: &'static str,
    pub(super) choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) x_vendor: Option<Vendor>,
}

#[derive(Serialize)]
pub(super) struct Choice<'a> {
    pub(super) index: u32,
    pub(super) delta: Delta<'a>,
    pub(super) logprobs: (),
    pub(super) finish_reason: Option<&'static str>,
}

/// What one chunk adds to a message. `()` is written as `null`.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Delta<'a> {
    Opening { role: &'static str, content: &'static str },
    ToolOpening { role: &'static str, content: (), tool_calls: [ToolCall<'a>; 1] },
    Reasoning { reasoning_content: &'static str },
    Text { content: &'a str },
    Arguments { tool_calls: [ToolCall<'a>; 1] },
    End {},
}

#[derive(Serialize)]
pub(super) struct ToolCall<'a> {
    /// Its place among the message's calls; only chunks have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    pub(super) function: Function<'a>,
}

#[derive(Serialize)]
pub(super) struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    pub(super) arguments: &'a str,
}

/// The `usage` of a chunk: `null` on every chunk but the last when the client asked for usage.
#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
pub(super) enum Usage {
    Pending,
    Counted {
        prompt_tokens: u64,
        completion_tokens: u64,
        total_tokens: u64,
        prompt_tokens_details: PromptDetails,
        completion_tokens_details: CompletionDetails,
    },
}

/// What of the prompt was counted apart, as real models tell it.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct PromptDetails {
    cached_tokens: u64,
    audio_tokens: u64,
}

/// What of the answer was counted apart, as real models tell it.
#[derive(Clone, Copy, Default, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names of the protocol")]
pub(super) struct CompletionDetails {
    reasoning_tokens: u64,
    audio_tokens: u64,
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

impl Usage {
    pub(super) fn counted(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self::Counted {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails::default(),
            completion_tokens_details: CompletionDetails::default(),
        }
    }
}

/// A field outside the protocol, as some vendors add to every chunk.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Vendor {
    pub(super) kept: bool,
}

/// One whole SSE frame with the value as its data.
pub(super) fn frame(value: &impl Serialize) -> Bytes {
    let mut frame = Vec::with_capacity(320);
    frame.extend_from_slice(b"data: ");
    if let Err(error) = serde_json::to_writer(&mut frame, value) {
        // No shape above can fail to serialise; a client would see the broken frame.
        tracing::error!(%error, "a chunk could not be serialised");
    }
    frame.extend_from_slice(b"\n\n");
    Bytes::from(frame)
}

/// A response with an error object.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<HeaderValue>,
    message: String,
    param: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, retry_after: None, message: message.into(), param: None }
    }

    /// A 400 that names the field at fault.
    pub(super) fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// The error object, also what `error:N` sends in the middle of a stream.
    pub(super) fn body(&self) -> serde_json::Value {
        let (kind, code) = match self.status.as_u16() {
            401 => ("invalid_request_error", Some("invalid_api_key")),
            404 => ("invalid_request_error", Some("not_found")),
            429 => ("rate_limit_error", Some("rate_limit_exceeded")),
            400..=499 => ("invalid_request_error", None),
            _ => ("server_error", Some("server_error")),
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = self.body();
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().extend(self.retry_after.map(|value| (header::RETRY_AFTER, value)));
        response
    }
}
