//! Which host a request names: RFC 9112, section 3.2.
//!
//! Without API keys a gateway trusts whoever is on its machine, and what tells a program of this machine from a
//! page that has pointed its own name at it is the host that the request names. So nothing is left open.

use axum::{
    extract::Request,
    http::{HeaderValue, Version, header, uri::Authority},
};

use super::error::Refusal;

/// Makes the header Host say which host is meant, or refuses a request that does not say so.
pub(super) fn settle(request: &mut Request) -> Result<(), Refusal> {
    let refused = |text: &str| Err(Refusal::bad("bad_host", text).at("Host"));
    let mut lines = request.headers().get_all(header::HOST).iter();
    let (first, second) = (lines.next(), lines.next());
    if second.is_some() {
        return refused("Host stands in the request more than once; allowed: once");
    }
    if let Some(line) = first
        && !line.is_empty()
        && line.to_str().ok().and_then(|host| host.parse::<Authority>().ok()).is_none()
    {
        return refused("Host is no host; allowed: a name or an address, with a port or without");
    }
    if first.is_none() && request.version() == Version::HTTP_11 {
        return refused("Host is missing; HTTP/1.1 asks for it");
    }
    // A target that names a host overrules the header; HTTP/2 has no other way to name it.
    let named =
        request.uri().authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    if let Some(Ok(host)) = named {
        request.headers_mut().insert(header::HOST, host);
    }
    Ok(())
}

/// Name and port of a host.
pub(super) fn parts(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether a host is this machine, by whichever of its names.
pub(super) fn is_local(host: &str) -> bool {
    let (name, _) = parts(host);
    let name = name.to_ascii_lowercase();
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
    address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        || name == "localhost"
        || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_many_names_and_others_have_none_of_them() {
        for local in [
            "localhost",
            "LOCALHOST:1",
            "a.localhost:80",
            "127.0.0.1",
            "127.1.2.3:9",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(is_local(local), "{local}");
        }
        for other in [
            "",
            "example",
            "localhost.example",
            "127.0.0.1.example",
            "10.0.0.1",
            "[::2]",
            "x@127.0.0.1",
            "127.0.0.1:80@example",
            "xlocalhost",
        ] {
            assert!(!is_local(other), "{other}");
        }
    }
}
