//! Request bodies: JSON of somebody who may send it, within a size, a time and a share of the memory.
//!
//! Nothing of a body is read before it is known who sends it and that it may be read: a client that waits for
//! `100 Continue` is not told to send what is refused.

use std::{ops::Deref, sync::Arc};

use axum::{
    body::{Bytes, HttpBody},
    extract::{FromRequest, FromRequestParts as _, Request},
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use http_body_util::BodyExt;

use super::{
    app::App,
    auth::{Caller, Known, Right},
    bodies::Room,
    error::Refusal,
};

/// A body of JSON that has arrived whole. It is not parsed.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Bytes,
    room: Room,
}

impl Body {
    /// Its room alone, for as long as what was read out of it is there.
    pub(super) fn into_room(self) -> Room {
        self.room
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body, and who sends it: somebody who may enqueue.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) caller: Arc<Caller>,
    pub(super) body: Body,
}

impl FromRequest<Arc<App>> for Sent {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        let Known(caller) = Known::from_request_parts(&mut parts, app).await?;
        caller.needs(Right::Enqueue)?;
        is_json(&parts.headers)?;
        let limits = &app.options.limits;
        let max = limits.max_body;
        let declared = body.size_hint().exact();
        if declared.is_some_and(|bytes| bytes > max as u64) {
            return Err(too_large(max));
        }
        let mut room = app.bodies.room(&caller.tenant);
        let declared = declared.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default();
        let arrived =
            tokio::time::timeout(limits.read_timeout, arrive(body, declared, max, &mut room));
        let bytes = arrived.await.unwrap_or_else(|_| {
            let seconds = limits.read_timeout.as_secs_f64();
            let text = format!("the body did not arrive within {seconds} s");
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "slow_body", text))
        })?;
        Ok(Self { caller, body: Body { bytes, room } })
    }
}

/// Refuses what is said to be something else than plain JSON.
fn is_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    if essence != "application/json" && !essence.ends_with("+json") {
        let text = format!("content type `{kind}`; allowed: application/json");
        return Err(Refusal::new(status, "not_json", text));
    }
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = codings.filter(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if let Some(coding) = codings.next() {
        let coding = String::from_utf8_lossy(coding.as_bytes());
        let text = format!("content encoding `{coding}`; allowed: none, send the body as it is");
        // RFC 9110, section 15.5.16: it says what would be taken.
        return Err(Refusal::new(status, "encoded_body", text)
            .with(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
    }
    Ok(())
}

fn too_large(max: usize) -> Refusal {
    let text = format!(
        "the body has more than {max} bytes, the most that are allowed (gateway.limits.max_body)"
    );
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text)
}

/// Reads a body. Memory of the declared length is only set apart; the system gives it as it is filled.
async fn arrive(
    mut body: axum::body::Body,
    declared: usize,
    max: usize,
    room: &mut Room,
) -> Result<Bytes, Refusal> {
    let mut bytes = Vec::with_capacity(declared);
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Refusal::bad("broken_body", format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > max {
            return Err(too_large(max));
        }
        room.take(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}
