//! Request bodies: JSON, within a size and a time.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::{app::App, error::Refusal};

/// A JSON body that has arrived whole. It is not parsed.
pub(super) struct Json(pub(super) Bytes);

impl FromRequest<Arc<App>> for Json {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Refusal> {
        let limits = &app.options.limits;
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence != "application/json" && !essence.ends_with("+json") {
            let text = format!("content type `{kind}`; allowed: application/json");
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", text));
        }
        let max = limits.max_body;
        let body = Limited::new(request.into_body(), max).collect();
        match tokio::time::timeout(limits.read_timeout, body).await {
            Ok(Ok(body)) => Ok(Self(body.to_bytes())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let text = format!(
                    "the body has more than {max} bytes, the most that are allowed (gateway.limits.max_body)"
                );
                Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text))
            }
            Ok(Err(error)) => {
                Err(Refusal::bad("broken_body", format!("the body broke off: {error}")))
            }
            Err(_) => {
                let text = format!(
                    "the body did not arrive within {} s",
                    limits.read_timeout.as_secs_f64()
                );
                let refusal = Refusal::new(StatusCode::REQUEST_TIMEOUT, "slow_body", text);
                Err(refusal)
            }
        }
    }
}
