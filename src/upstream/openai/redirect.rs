//! Redirects of an endpoint: within its own origin, and no further.
//!
//! A redirect that led elsewhere would send the prompt, or the key, to whoever the endpoint names, and show the
//! caller what stands at an address that only this machine reaches.

use reqwest::{StatusCode, Url, header};

/// Most redirects of one call.
pub(super) const MOST: usize = 3;

/// Where a response sends its request on to, with the same method and body. An error names the place, for the
/// operator.
pub(super) fn target(
    from: &Url,
    status: StatusCode,
    headers: &header::HeaderMap,
) -> Result<Url, String> {
    let status = status.as_u16();
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(location) = location else { return Err(format!("{status} without a place to go to")) };
    let to = from
        .join(location)
        .map_err(|_| format!("{status} to `{location}`, which is no address"))?;
    if !matches!(status, 301 | 302 | 307 | 308) {
        return Err(format!("{status} to {to}; followed are 301, 302, 307 and 308"));
    }
    if !stays(from, &to) {
        return Err(format!("{status} to {to}, which is not the origin of upstream.base_url"));
    }
    Ok(to)
}

/// Whether an address is of the same origin, or of the same with TLS.
fn stays(from: &Url, to: &Url) -> bool {
    if from.host_str() != to.host_str() || !to.username().is_empty() || to.password().is_some() {
        return false;
    }
    let (was, is) = (from.port_or_known_default(), to.port_or_known_default());
    match (from.scheme(), to.scheme()) {
        (old, new) if old == new => was == is,
        ("http", "https") => was == is || (was, is) == (Some(80), Some(443)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever an endpoint pointed was called, an address of this machine among it.
    #[test]
    fn a_redirect_stays_within_the_origin() {
        let to = |from: &str, status: u16, location: &str| {
            let mut headers = header::HeaderMap::new();
            headers.insert(header::LOCATION, location.parse().unwrap());
            let status = StatusCode::from_u16(status).unwrap();
            target(&from.parse().unwrap(), status, &headers).map(String::from)
        };
        for (from, location, met) in [
            ("http://h/v1/x", "/v2/x", "http://h/v2/x"),
            ("http://h/v1/x", "https://h/v1/x", "https://h/v1/x"),
            ("http://h:80/v1/x", "https://h:443/y", "https://h/y"),
            ("https://h:8443/v1/x", "https://h:8443/y", "https://h:8443/y"),
        ] {
            for status in [301, 302, 307, 308] {
                assert_eq!(to(from, status, location).as_deref(), Ok(met));
            }
            assert!(to(from, 303, location).is_err());
        }
        for (from, location) in [
            ("https://h/v1/x", "http://h/v1/x"),
            ("https://h/v1/x", "https://other/v1/x"),
            ("https://h/v1/x", "//other/v1/x"),
            ("http://h:8000/v1/x", "http://h:8001/v1/x"),
            ("http://h:8000/v1/x", "https://h/v1/x"),
            ("http://h/v1/x", "http://169.254.169.254/latest"),
            ("http://h/v1/x", "file:///etc/passwd"),
            ("http://h/v1/x", "http://user:secret@h/v1/x"),
        ] {
            let why = to(from, 307, location).unwrap_err();
            assert!(why.contains("307 to "), "{why}");
        }
        let none =
            target(&"http://h/".parse().unwrap(), StatusCode::FOUND, &header::HeaderMap::new());
        assert!(none.unwrap_err().contains("without a place"));
    }
}
