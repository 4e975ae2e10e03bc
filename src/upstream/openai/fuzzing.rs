//! What reads the bytes of endpoints, with what must hold whatever they are: for `fuzz/`, which tries bytes without
//! end, and for a test of those that are kept there.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::answer;
use crate::{error::Failure, upstream::Part};

/// Most bytes of an event: no body here is larger.
const MOST: usize = 64 * 1024 * 1024;

/// A body is read to its end, and says the same wherever the network cuts it. The first byte chooses its type, and
/// whether its length is announced.
pub fn body(bytes: &[u8]) {
    let Some((choice, body)) = bytes.split_first() else { return };
    let kinds = ["text/event-stream", "application/json", "text/plain; charset=utf-8", ""];
    let kind = kinds[usize::from(choice % 4)];
    let sized = choice & 0x40 == 0;
    let whole = read(kind, sized, vec![body]);
    let failures = whole.iter().filter(|part| part.is_err()).count();
    assert!(failures == 0 || failures == 1 && whole.last().is_some_and(Result::is_err));
    for size in [1, 2, 3, 7, 100] {
        assert_eq!(
            read(kind, sized, body.chunks(size).collect()),
            whole,
            "cut after every {size} bytes"
        );
    }
}

/// The parts of a body that say something.
fn read(kind: &str, sized: bool, pieces: Vec<&[u8]>) -> Vec<Result<Part, Failure>> {
    let length =
        if sized { Some(pieces.iter().map(|piece| piece.len()).sum::<usize>()) } else { None };
    let pieces: Vec<_> = pieces
        .into_iter()
        .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        .collect();
    let mut response = http::Response::builder();
    if !kind.is_empty() {
        response = response.header("content-type", kind);
    }
    if let Some(length) = length {
        response = response.header("content-length", length);
    }
    let Ok(response) = response.body(reqwest::Body::wrap_stream(stream::iter(pieces))) else {
        return Vec::new();
    };
    let parts = answer::parts(response.into(), MOST).collect::<Vec<_>>().now_or_never();
    let parts = parts.unwrap_or_default().into_iter();
    parts.filter(|part| part.as_ref().map_or(true, |part| *part != Part::default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_starts_from_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/body");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert!(files.len() > 4);
        for file in files {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            body(&bytes);
            // Each says something, in the form that it is written in.
            assert!(!read("", false, vec![&bytes[1..]]).is_empty());
        }
    }
}
