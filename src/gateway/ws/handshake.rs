//! What a WebSocket's handshake must be, and whose pages may make one.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, ws::WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::super::{app::App, bodies::Meter, error::Refusal, host};

/// The one version there is: RFC 6455, section 4.4.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// An upgrade, its refusal in words, and what counts its bytes where the gateway's own server serves it.
pub(in crate::gateway) struct Upgrade(pub(super) WebSocketUpgrade, pub(super) Option<Meter>);

impl FromRequestParts<Arc<App>> for Upgrade {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        check(&parts.headers)?;
        let meter = parts.extensions.get::<Meter>().cloned();
        match WebSocketUpgrade::from_request_parts(parts, app).await {
            Ok(upgrade) => Ok(Self(upgrade, meter)),
            Err(error) => {
                let text = format!("{}; this route is for WebSockets", error.body_text());
                Err(Refusal::new(error.status(), "not_a_websocket", text))
            }
        }
    }
}

/// Refuses a handshake of another version, or without a key of 16 bytes. Whether it is a handshake at all is left
/// to others.
fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let upgrade = headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    if !upgrade.is_some_and(|name| name.eq_ignore_ascii_case(b"websocket")) {
        return Ok(());
    }
    let only = |name| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    if only(header::SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        let text = "Sec-WebSocket-Version is missing or not allowed; allowed: 13";
        let refusal = Refusal::new(StatusCode::UPGRADE_REQUIRED, "not_a_websocket", text);
        return Err(refusal
            .at("Sec-WebSocket-Version")
            .with(header::SEC_WEBSOCKET_VERSION, VERSION)
            .with(header::UPGRADE, HeaderValue::from_static("websocket"))
            .with(header::CONNECTION, HeaderValue::from_static("upgrade")));
    }
    let key = only(header::SEC_WEBSOCKET_KEY).and_then(|key| STANDARD.decode(key.as_bytes()).ok());
    if key.is_none_or(|key| key.len() != 16) {
        let text = "Sec-WebSocket-Key is not 16 bytes in base64; this route is for WebSockets";
        return Err(Refusal::bad("not_a_websocket", text).at("Sec-WebSocket-Key"));
    }
    Ok(())
}

/// Browsers let every page open sockets to everywhere: one of another origin is refused. `scheme` is that of the
/// connection, where it is known.
pub(super) fn same_site(
    allowed: &[String],
    headers: &HeaderMap,
    scheme: Option<&str>,
) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let text = origin.to_str().unwrap_or_default();
    let forwarded = forwarded_scheme(headers);
    let scheme = forwarded.as_deref().or(scheme);
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_own(text, named, scheme) || allowed.iter().any(|one| one == "*" || one == text) {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(origin.as_bytes());
    let text = format!(
        "pages of {shown} may not open sockets here; gateway.cors_origins lists who may, and a proxy that takes \
         HTTPS says so by X-Forwarded-Proto"
    );
    Err(Refusal::new(StatusCode::FORBIDDEN, "origin_not_allowed", text))
}

/// Whether an origin is the host that was asked, by the scheme by which it was asked. All names of this machine
/// are one host.
fn is_own(origin: &str, named: &str, scheme: Option<&str>) -> bool {
    let Some((met, site)) = origin.split_once("://") else { return false };
    let default = match met {
        "http" => "80",
        "https" => "443",
        _ => return false,
    };
    let (name, port) = host::parts(site);
    let (own, own_port) = host::parts(named);
    scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case(met))
        && port.unwrap_or(default) == own_port.unwrap_or(default)
        && !own.is_empty()
        && (name.eq_ignore_ascii_case(own) || host::is_local(name) && host::is_local(own))
}

/// The scheme by which a proxy was asked, where it says so.
fn forwarded_scheme(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let Some(schemes) = text("x-forwarded-proto") {
        return schemes.split(',').next().map(|scheme| scheme.trim().to_owned());
    }
    let first = text("forwarded")?.split(',').next()?;
    let pairs = first.split(';').filter_map(|pair| pair.split_once('='));
    let mut schemes = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("proto"));
    schemes.next().map(|(_, scheme)| scheme.trim().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (origin, host, scheme, own) in [
            ("http://a.example", "a.example", Some("http"), true),
            ("http://A.example:80", "a.example", Some("http"), true),
            ("http://a.example:81", "a.example:81", Some("http"), true),
            ("https://a.example", "a.example", Some("https"), true),
            ("https://a.example", "a.example:443", None, true),
            // All names of this machine are one site, of one port.
            ("http://localhost:8080", "127.0.0.1:8080", Some("http"), true),
            ("http://127.0.0.1:8080", "localhost:8080", Some("http"), true),
            ("http://[::1]:8080", "app.localhost:8080", Some("http"), true),
            ("http://localhost:8081", "127.0.0.1:8080", Some("http"), false),
            ("https://localhost:8080", "127.0.0.1:8080", Some("http"), false),
            ("http://a.example", "127.0.0.1", Some("http"), false),
            ("https://a.example", "a.example", Some("http"), false),
            ("http://a.example", "a.example", Some("https"), false),
            ("ftp://a.example", "a.example", None, false),
            ("http://a.example", "b.example", None, false),
            ("http://a.example:80", "a.example:81", None, false),
            ("http://", "", None, false),
            ("null", "null", None, false),
        ] {
            assert_eq!(is_own(origin, host, scheme), own, "{origin} {host} {scheme:?}");
        }
    }

    #[test]
    fn a_proxy_says_how_it_was_asked() {
        for (name, value, scheme) in [
            ("x-forwarded-proto", "https", Some("https")),
            ("x-forwarded-proto", "https, http", Some("https")),
            ("forwarded", "for=10.0.0.1;Proto=\"https\", proto=http", Some("https")),
            ("forwarded", "for=10.0.0.1", None),
            ("x-other", "https", None),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(forwarded_scheme(&headers).as_deref(), scheme, "{name}: {value}");
        }
    }
}
