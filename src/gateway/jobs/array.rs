//! An array of jobs, read no further than allowed.

use std::fmt;

use serde::{
    Deserializer as _,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// The first `most` values of an array, and how many it has. The others are passed over: kept, small ones
/// would take many times the memory of their text.
pub(super) fn first(text: &[u8], most: usize) -> serde_json::Result<(Vec<&RawValue>, usize)> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let values = reader.deserialize_seq(First(most))?;
    reader.end()?;
    Ok(values)
}

struct First(usize);

impl<'de> Visitor<'de> for First {
    type Value = (Vec<&'de RawValue>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of jobs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        while first.len() < self.0 {
            let Some(value) = array.next_element()? else { break };
            first.push(value);
        }
        let mut count = first.len();
        while count >= self.0 && array.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((first, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_allowed_is_kept_and_all_are_counted() {
        for (text, kept, count) in [
            ("[]", &[][..], 0),
            (" [1] ", &["1"], 1),
            ("[1, {}]", &["1", "{}"], 2),
            ("[1,2,[[3]],4,\"5\"]", &["1", "2"], 5),
        ] {
            let (values, met) = first(text.as_bytes(), 2).unwrap();
            assert_eq!(
                (values.iter().map(|raw| raw.get()).collect::<Vec<_>>(), met),
                (kept.to_vec(), count)
            );
        }
        for bad in
            ["", "{}", "[1,]", "[1,2,3", "[1,2,x]", "[1] 2", "[1,2] 3", "[1,2,3]]", "[\"\u{1}\"]"]
        {
            assert!(first(bad.as_bytes(), 2).is_err(), "{bad}");
        }
    }
}
