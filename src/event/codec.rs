//! Frames: events as bytes.
//!
//! In the log an event is one field, named by the kind, whose value is the payload. Live, it is
//! `fence-seq kind payload`, with single spaces. A `delta` payload is JSON or `MessagePack`; all
//! others are JSON. The first byte tells which: a JSON object opens with `{` (0x7b), which in
//! `MessagePack` is a number and never a map.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Body, Event, EventId};

/// How chunks are written. Readers recognise either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Readable in any tool.
    #[default]
    Json,
    /// About a fifth smaller.
    MessagePack,
}

/// Bytes that are no event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A live message without ID, kind and payload.
    #[error("live message is not `FENCE-SEQ KIND PAYLOAD`")]
    Shape,
    /// A payload that its kind does not allow.
    #[error("payload of `{kind}` cannot be read")]
    Payload {
        /// The event's name.
        kind: String,
        /// What the decoder met.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An event ready to be written: everything but the fence. Once sent it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The second half of its ID.
    pub seq: u64,
    /// The event's name in the log.
    pub kind: &'static str,
    /// The payload.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Encodes an event's body. [`Body::Unknown`] is never written.
    pub fn new(seq: u64, body: &Body, codec: Codec) -> Result<Self, DecodeError> {
        let (kind, bytes) = match body {
            Body::Started(data) => ("started", json("started", data)?),
            Body::Delta(chunk) => ("delta", encode_chunk(chunk, codec)?),
            Body::Retrying(data) => ("retrying", json("retrying", data)?),
            Body::Done(data) => ("done", json("done", data)?),
            Body::Failed(data) => ("failed", json("failed", data)?),
            Body::Cancelled(data) => ("cancelled", json("cancelled", data)?),
            Body::Requeued(data) => ("requeued", json("requeued", data)?),
            Body::Unknown { .. } => return Err(DecodeError::Shape),
        };
        Ok(Self { seq, kind, bytes })
    }

    /// The live message of this frame under `fence`.
    pub fn message(&self, fence: u64) -> Vec<u8> {
        let mut message = format!("{fence}-{} {} ", self.seq, self.kind).into_bytes();
        message.extend_from_slice(&self.bytes);
        message
    }
}

/// An event as it lies in the log: its payload is read when it is handed out. As values it would take
/// many times its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub id: EventId,
    /// The event's name in the log.
    pub kind: Cow<'static, str>,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Stored {
    /// What it takes beside its payload: roughly.
    const BESIDE: usize = 96;

    /// An event of that kind. The names that this version knows are not kept once for each event.
    pub fn new(id: EventId, kind: &str, payload: Vec<u8>) -> Self {
        let known = KINDS.into_iter().find(|known| *known == kind);
        let kind = known.map_or_else(|| Cow::Owned(kind.to_owned()), Cow::Borrowed);
        Self { id, kind, payload }
    }

    /// The bytes that it takes, roughly.
    pub fn weight(&self) -> usize {
        self.payload.len() + Self::BESIDE
    }

    /// The event.
    pub fn read(&self) -> Result<Event, DecodeError> {
        Event::decode(self.id, &self.kind, &self.payload)
    }

    /// The event. One that cannot be read is given as unknown, so that one broken writer cannot stop a
    /// reader.
    pub fn decode(&self) -> Event {
        let unknown =
            |_| Event { id: self.id, body: Body::Unknown { kind: self.kind.to_string() } };
        self.read().unwrap_or_else(unknown)
    }
}

/// The kinds that this version knows.
const KINDS: [&str; 7] =
    ["started", "delta", "retrying", "done", "failed", "cancelled", "requeued"];

fn encode_chunk(chunk: &super::Chunk, codec: Codec) -> Result<Vec<u8>, DecodeError> {
    match codec {
        Codec::Json => json("delta", chunk),
        Codec::MessagePack => rmp_serde::to_vec_named(chunk)
            .map_err(|e| DecodeError::Payload { kind: "delta".to_owned(), source: e.into() }),
    }
}

fn json<T: Serialize>(kind: &str, data: &T) -> Result<Vec<u8>, DecodeError> {
    serde_json::to_vec(data)
        .map_err(|e| DecodeError::Payload { kind: kind.to_owned(), source: e.into() })
}

fn read<T: DeserializeOwned>(kind: &str, bytes: &[u8]) -> Result<T, DecodeError> {
    let result = if bytes.first() == Some(&b'{') {
        serde_json::from_slice(bytes).map_err(Into::into)
    } else {
        rmp_serde::from_slice(bytes).map_err(Into::into)
    };
    result.map_err(|source| DecodeError::Payload { kind: kind.to_owned(), source })
}

impl Event {
    /// Reads an event of the log.
    pub fn decode(id: EventId, kind: &str, bytes: &[u8]) -> Result<Self, DecodeError> {
        let body = match kind {
            "started" => Body::Started(read(kind, bytes)?),
            "delta" => Body::Delta(read(kind, bytes)?),
            "retrying" => Body::Retrying(read(kind, bytes)?),
            "done" => Body::Done(read(kind, bytes)?),
            "failed" => Body::Failed(read(kind, bytes)?),
            "cancelled" => Body::Cancelled(read(kind, bytes)?),
            "requeued" => Body::Requeued(read(kind, bytes)?),
            other => Body::Unknown { kind: other.to_owned() },
        };
        Ok(Self { id, body })
    }

    /// Reads a live message.
    pub fn decode_message(message: &[u8]) -> Result<Self, DecodeError> {
        let mut parts = message.splitn(3, |byte| *byte == b' ');
        let mut text =
            || parts.next().and_then(|p| std::str::from_utf8(p).ok()).ok_or(DecodeError::Shape);
        let id: EventId = text()?.parse().map_err(|_| DecodeError::Shape)?;
        let kind = text()?.to_owned();
        Self::decode(id, &kind, parts.next().ok_or(DecodeError::Shape)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Chunk, Started};
    use super::*;
    use serde_json::json;

    fn chunk() -> Chunk {
        serde_json::from_value(json!({"choices": [
            {"index": 0, "delta": {"content": "caf\u{e9}\n"}, "logprobs": {"content": [-0.5]}},
            {"index": 1, "delta": {"tool_calls": [{"index": 0}]}, "finish_reason": "stop"}],
            "extra": {"system_fingerprint": "fp"}}))
        .unwrap()
    }

    #[test]
    fn both_codecs_give_back_what_went_in() {
        for codec in [Codec::Json, Codec::MessagePack] {
            let body = Body::Delta(chunk());
            let frame = Frame::new(3, &body, codec).unwrap();
            let event = Event::decode_message(&frame.message(7)).unwrap();
            assert_eq!(event, Event { id: EventId { fence: 7, seq: 3 }, body });
        }
    }

    #[test]
    fn an_unknown_kind_is_kept_and_a_broken_payload_is_named() {
        let id = EventId::START;
        let event = Event::decode(id, "applauded", b"{}").unwrap();
        assert_eq!(event.body.kind(), "applauded");
        let error = Event::decode(id, "done", b"{").unwrap_err();
        assert!(error.to_string().contains("`done`"));
        assert!(std::error::Error::source(&error).is_some());
        assert!(Event::decode_message(b"1-2 started").is_err());
    }

    #[test]
    fn started_is_json_whatever_the_codec() {
        let body = Body::Started(Started { attempt: 1, worker: "w".to_owned() });
        let frame = Frame::new(0, &body, Codec::MessagePack).unwrap();
        assert_eq!(frame.bytes, br#"{"attempt":1,"worker":"w"}"#);
    }
}
