//! Replies of the server, taken apart.

use redis::{FromRedisValue, Value};

use crate::broker::{Error, Result};

/// Fields of a stream entry, in order.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A stream entry: its ID, and its fields unless it was deleted while pending.
pub type RawEntry = (String, Option<Fields>);

/// Reads a value, naming what was expected when it is something else.
pub fn read<T: FromRedisValue>(value: Value, what: &str) -> Result<T> {
    T::from_redis_value(value).map_err(|e| Error::Protocol(format!("{what}: {e}")))
}

/// The elements of an array reply; none for nil.
pub fn array(value: Value, what: &str) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Nil => Ok(Vec::new()),
        other => Err(Error::Protocol(format!("{what}: expected an array, met {other:?}"))),
    }
}

/// Neighbours of a flat array, as pairs.
fn pairs(items: Vec<Value>) -> impl Iterator<Item = (Value, Value)> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || Some((items.next()?, items.next()?)))
}

/// A flat array of fields and values.
pub fn fields(value: Value) -> Result<Fields> {
    pairs(array(value, "fields")?)
        .map(|(field, value)| Ok((read(field, "field")?, read(value, "value")?)))
        .collect()
}

/// A flat array of names and values, such as an element of `XINFO`.
pub fn named(value: Value) -> Result<Vec<(String, Value)>> {
    pairs(array(value, "names")?).map(|(name, value)| Ok((read(name, "name")?, value))).collect()
}

/// Bytes as a parked job holds them in a field of its own: what would end the field is `%` and two digits.
pub fn escape(bytes: &[u8], into: &mut Vec<u8>) {
    for &byte in bytes {
        if byte.is_ascii_graphic() && !b"%,=".contains(&byte) {
            into.push(byte);
        } else {
            into.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

/// Fields in one value: netstrings, name and value in turn.
pub fn pack(fields: &Fields) -> Vec<u8> {
    let mut packed = Vec::new();
    for part in fields.iter().flat_map(|(name, value)| [name, value]) {
        packed.extend_from_slice(format!("{}:", part.len()).as_bytes());
        packed.extend_from_slice(part);
        packed.push(b',');
    }
    packed
}

/// What [`pack`] has packed; what cannot be read ends it.
pub fn unpack(mut packed: &[u8]) -> Fields {
    let mut next = || {
        let colon = packed.iter().position(|byte| *byte == b':')?;
        let length: usize = std::str::from_utf8(&packed[..colon]).ok()?.parse().ok()?;
        let part = packed.get(colon + 1..colon + 1 + length)?.to_vec();
        packed = packed.get(colon + 2 + length..)?;
        Some(part)
    };
    std::iter::from_fn(|| Some((next()?, next()?))).collect()
}

/// The entries of one stream.
pub fn entries(value: Value) -> Result<Vec<RawEntry>> {
    array(value, "entries")?
        .into_iter()
        .map(|entry| {
            let mut parts = array(entry, "entry")?.into_iter();
            let id = read(parts.next().unwrap_or(Value::Nil), "entry ID")?;
            let fields = match parts.next() {
                None | Some(Value::Nil) => None,
                Some(value) => Some(fields(value)?),
            };
            Ok((id, fields))
        })
        .collect()
}

/// The reply of `XREADGROUP`: entries by stream key.
pub fn streams(value: Value) -> Result<Vec<(String, Vec<RawEntry>)>> {
    array(value, "streams")?
        .into_iter()
        .map(|stream| {
            let mut parts = array(stream, "stream")?.into_iter();
            let key = read(parts.next().unwrap_or(Value::Nil), "stream key")?;
            Ok((key, entries(parts.next().unwrap_or(Value::Nil))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn packed_fields_come_back() {
        let fields = vec![(b"a:,".to_vec(), b"\xff".to_vec()), (Vec::new(), b"x".to_vec())];
        assert_eq!(unpack(&pack(&fields)), fields);
        assert!(unpack(b"9:x,").is_empty());
    }

    #[test]
    fn a_deleted_entry_has_no_fields() {
        let reply = Value::Array(vec![Value::Array(vec![
            text("lane"),
            Value::Array(vec![
                Value::Array(vec![text("1-0"), Value::Array(vec![text("job"), text("{}")])]),
                Value::Array(vec![text("2-0"), Value::Nil]),
            ]),
        ])]);
        let streams = streams(reply).unwrap();
        let fields = vec![(b"job".to_vec(), b"{}".to_vec())];
        assert_eq!(streams[0].1, [("1-0".to_owned(), Some(fields)), ("2-0".to_owned(), None)]);
        assert!(super::streams(Value::Nil).unwrap().is_empty());
        assert!(super::streams(Value::Int(1)).is_err());
    }
}
