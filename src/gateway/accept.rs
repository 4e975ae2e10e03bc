//! What a client wants of a route that answers in two ways: RFC 9110, section 12.5.1.

use axum::http::{HeaderMap, header};

/// How much a media type is wanted, in thousandths, and how closely the header names it; `None` where it does not.
type Wanted = Option<(u8, u16)>;

/// Whether JSON is wanted rather than an event stream. Where both are wanted alike it is not: the stream is what
/// the route is for.
pub(super) fn prefers_json(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<&str> = values.flat_map(|value| value.split(',')).collect();
    let of = |kind, subtype| {
        ranges.iter().filter_map(|range| wanted(range, kind, subtype)).max_by_key(|(near, _)| *near)
    };
    let (json, stream): (Wanted, Wanted) = (of("application", "json"), of("text", "event-stream"));
    let weight = |wanted: Wanted| wanted.map_or(0, |(_, weight)| weight);
    weight(json) > weight(stream) || stream.is_some_and(|(near, weight)| near == 2 && weight == 0)
}

/// What one range says of a media type.
fn wanted(range: &str, kind: &str, subtype: &str) -> Wanted {
    let mut parts = range.split(';').map(str::trim);
    let (met, sub) = parts.next()?.split_once('/')?;
    let near = match (met.trim(), sub.trim()) {
        ("*", "*") => 0,
        (met, "*") if met.eq_ignore_ascii_case(kind) => 1,
        (met, sub) if met.eq_ignore_ascii_case(kind) && sub.eq_ignore_ascii_case(subtype) => 2,
        _ => return None,
    };
    let quality = parts.filter_map(|part| part.split_once('=')).find_map(|(name, value)| {
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000")]
    Some((near, (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_wanted_form_is_given_and_the_stream_where_both_are() {
        for (accept, json) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["text/html"], false),
            (&["application/json"], true),
            (&["Application/JSON"], true),
            (&["application/json; charset=utf-8"], true),
            (&["application/*"], true),
            // As axios asks.
            (&["application/json, text/plain, */*"], false),
            (&["application/json, text/event-stream"], false),
            (&["text/event-stream", "application/json"], false),
            (&["application/json, text/event-stream;q=0"], true),
            (&["application/json, text/event-stream; Q=0.000"], true),
            (&["text/event-stream;q=0"], true),
            (&["text/event-stream;q=0, */*"], true),
            (&["text/*;q=0, application/json"], true),
            (&["application/json;q=0, text/event-stream"], false),
            (&["application/json;q=0"], false),
            (&["application/json;q=0.4, text/event-stream;q=0.5"], false),
            (&["application/json;q=0.5, text/event-stream;q=0.4"], true),
            (&["application/json, */*;q=0.8"], true),
            (&["application/json;q=x"], true),
            (&["json", ";;", "q=1"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            assert_eq!(prefers_json(&headers), json, "{accept:?}");
        }
    }
}
