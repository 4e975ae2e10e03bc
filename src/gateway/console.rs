//! The console page at `/`: files that are part of the binary.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{app::App, error::Refusal, params::Named};

/// Nothing is loaded from anywhere else, nothing runs that is not one of these files.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, content type and content.
const FILES: [(&str, &str, &str); 11] = [
    ("console.css", CSS, include_str!("../../web/console.css")),
    ("console.js", SCRIPT, include_str!("../../web/console.js")),
    ("conversation.js", SCRIPT, include_str!("../../web/conversation.js")),
    ("gateway.js", SCRIPT, include_str!("../../web/gateway.js")),
    ("index.html", HTML, include_str!("../../web/index.html")),
    ("panel.js", SCRIPT, include_str!("../../web/panel.js")),
    ("store.js", SCRIPT, include_str!("../../web/store.js")),
    ("stream.js", SCRIPT, include_str!("../../web/stream.js")),
    ("theme.js", SCRIPT, include_str!("../../web/theme.js")),
    ("turn.js", SCRIPT, include_str!("../../web/turn.js")),
    ("words.js", SCRIPT, include_str!("../../web/words.js")),
];

fn file(wanted: &str) -> Response {
    let Some((_, kind, content)) = FILES.into_iter().find(|(name, _, _)| *name == wanted) else {
        let text = format!("the console has no file `{wanted}`");
        return Refusal::new(StatusCode::NOT_FOUND, "not_found", text).into_response();
    };
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, content).into_response()
}

pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(async || file("index.html")))
        .route("/console/{name}", get(async |Named(name): Named| file(&name)))
}
