//! The console page at `/`: files that are part of the binary.

use std::sync::Arc;

use axum::{
    Router,
    extract::{OriginalUri, State},
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
const FILES: [(&str, &str, &str); 13] = [
    ("base.js", SCRIPT, include_str!("../../web/base.js")),
    ("console.css", CSS, include_str!("../../web/console.css")),
    ("console.js", SCRIPT, include_str!("../../web/console.js")),
    ("conversation.js", SCRIPT, include_str!("../../web/conversation.js")),
    ("gateway.js", SCRIPT, include_str!("../../web/gateway.js")),
    ("index.html", HTML, include_str!("../../web/index.html")),
    ("message.js", SCRIPT, include_str!("../../web/message.js")),
    ("panel.js", SCRIPT, include_str!("../../web/panel.js")),
    ("store.js", SCRIPT, include_str!("../../web/store.js")),
    ("stream.js", SCRIPT, include_str!("../../web/stream.js")),
    ("theme.js", SCRIPT, include_str!("../../web/theme.js")),
    ("turn.js", SCRIPT, include_str!("../../web/turn.js")),
    ("words.js", SCRIPT, include_str!("../../web/words.js")),
];

/// The page. Its files are named by where they are seen from: a proxy or an application may have put the gateway
/// below a path, and a browser that came without the slash behind that path looks one folder higher.
async fn index(State(app): State<Arc<App>>, OriginalUri(uri): OriginalUri) -> Response {
    let public = &app.options.public_url;
    let folder = if public.is_empty() {
        uri.path().rsplit('/').next().unwrap_or_default().to_owned()
    } else {
        // From the root of the site, as its address says.
        let path = public.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
        format!("/{}", path.map_or("", |(_, path)| path).trim_matches('/'))
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~%/".contains(c);
    let folder = folder.trim_end_matches('/');
    let from_root = if public.is_empty() { "" } else { "/" };
    match folder {
        "" => page(from_root),
        folder if folder.chars().all(plain) => page(&format!("{folder}/")),
        _ => page(""),
    }
}

/// The page, its files found below `folder`.
fn page(folder: &str) -> Response {
    let mut response = file("index.html");
    if !folder.is_empty() {
        let (_, _, html) =
            FILES.into_iter().find(|(name, ..)| *name == "index.html").unwrap_or_default();
        let html = html.replace("\"console/", &format!("\"{folder}console/"));
        *response.body_mut() = html.into();
    }
    response
}

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
        .route("/", get(index))
        .route("/console/{name}", get(async |Named(name): Named| file(&name)))
}
