//! Addresses, with their secrets left out: for logs, messages and what is printed.

/// What stands for a secret.
pub const MASK: &str = "***";

/// Parameters of a query that are no secrets.
const OPEN: [&str; 3] = ["db", "protocol", "api-version"];

/// A URL without the secrets that it holds: the password, or a user that stands alone, every parameter but
/// a few that are known, and the fragment. It need not be a URL that can be read, and where it is not
/// certain what belongs to a secret (a password with a `?` that should have been encoded), only the scheme
/// is left.
pub fn url(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    let query = rest.find(['?', '#']).unwrap_or(rest.len());
    // The last @ ends the userinfo, which may hold others that should have been encoded.
    let (user, place) = match rest.rfind('@') {
        Some(at) if at > query => return format!("{scheme}{MASK}"),
        Some(at) => (userinfo(&rest[..at]), &rest[at + 1..]),
        None => (String::new(), rest),
    };
    let end = place.find(['?', '#']).unwrap_or(place.len());
    let (place, behind) = place.split_at(end);
    format!("{scheme}{user}{place}{}", parameters(behind))
}

/// The name of a user, where it is not the secret itself.
fn userinfo(text: &str) -> String {
    match text.split_once(':') {
        Some((name, password)) if !password.is_empty() => format!("{name}:{MASK}@"),
        _ => format!("{MASK}@"),
    }
}

/// Query and fragment, with their marks.
fn parameters(text: &str) -> String {
    let (query, fragment) = text.split_once('#').map_or((text, None), |(q, f)| (q, Some(f)));
    let hidden = |part: &str| match part.split_once('=') {
        Some((name, _)) if OPEN.contains(&name) => part.to_owned(),
        Some((name, _)) => format!("{name}={MASK}"),
        None if part.is_empty() => String::new(),
        None => MASK.to_owned(),
    };
    let mut shown = String::new();
    if let Some(query) = query.strip_prefix('?') {
        shown = format!("?{}", query.split('&').map(hidden).collect::<Vec<_>>().join("&"));
    }
    match fragment {
        Some("insecure") => shown + "#insecure",
        Some(_) => format!("{shown}#{MASK}"),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_secret_is_shown() {
        for (text, shown) in [
            ("redis://h:1/2", "redis://h:1/2"),
            ("redis://user:pw@h:1", "redis://user:***@h:1"),
            ("redis://:pw@h", "redis://:***@h"),
            ("redis://secret@h", "redis://***@h"),
            ("https://sk-key:@h/v1", "https://***@h/v1"),
            ("redis://:pa?ss@h", "redis://***"),
            ("redis://:pa#ss@h", "redis://***"),
            ("redis://u:p@ss@h/1", "redis://u:***@h/1"),
            ("redis://h?Password=pw", "redis://h?Password=***"),
            ("unix:///r.sock?db=1&pass=pw", "unix:///r.sock?db=1&pass=***"),
            ("https://h/v1?api-version=7&k=v;w&bare", "https://h/v1?api-version=7&k=***&***"),
            ("rediss://h#insecure", "rediss://h#insecure"),
            ("rediss://h#x", "rediss://h#***"),
            ("localhost:6379", "localhost:6379"),
            ("u:pw@h", "u:***@h"),
            ("", ""),
        ] {
            assert_eq!(url(text), shown, "{text}");
        }
    }

    proptest! {
        /// Guards against each of the places in which a secret was shown: whatever it is made of.
        #[test]
        fn a_secret_is_never_shown(
            before in "[!-~]{0,6}", secret in "[g-z0-9]{6,12}", after in "[!-~]{0,6}",
            scheme in "(redis|rediss|https|valkey)", place in 0..5,
        ) {
            let whole = format!("{before}{secret}{after}");
            let text = match place {
                0 => format!("{scheme}://user:{whole}@host:1/2"),
                1 => format!("{scheme}://:{whole}@host"),
                2 => format!("{scheme}://{}@host/v1", whole.replace(':', "")),
                3 => format!("{scheme}://host/v1?Token={whole}"),
                _ => format!("{scheme}://host/?{whole}"),
            };
            // A parameter has a name before its secret, and the secret may be one of those that are known.
            prop_assume!(place != 4 || !before.contains(['&', '=', '#']) && !after.contains('='));
            prop_assume!(place != 3 || !whole.contains(['&', '#']));
            prop_assert!(!url(&text).contains(&secret), "{} of {text}", url(&text));
        }

        #[test]
        fn whatever_it_is_given_it_ends_and_masks_once(text in "\\PC{0,40}") {
            let shown = url(&text);
            prop_assert_eq!(url(&shown), shown);
        }
    }
}
