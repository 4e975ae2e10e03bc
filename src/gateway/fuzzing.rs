//! What reads the bytes of others, each with what must hold whatever they are: for `fuzz/`, which tries
//! bytes without end, and for a test of those that are kept there.

use serde_json::Value;

use super::{
    auth::{Caller, Right, Signer, Token, keys::Table},
    openai::{assemble::Assembly, chunk::Writer, splice::Splice},
    ws::frame,
};
use crate::{
    event::{Body, Chunk, Codec, Done, Event, EventId, Frame, Requeued, Started, text_of},
    job::{Job, JobId, Tenant, Timestamp},
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A job that is taken survives its own encoding.
pub fn job(bytes: &[u8]) {
    let Ok(job) = Job::parse_strict(bytes) else { return };
    let again = serde_json::to_vec(&job).map(|bytes| Job::parse_strict(&bytes));
    assert!(
        matches!(again, Ok(Ok(again)) if again == job && again.request.fingerprint() == job.request.fingerprint())
    );
    assert_eq!(Job::parse(bytes).as_ref(), Ok(&job));
    if job.idempotency_key.is_some() {
        assert_eq!(job.assign_id(), job.assign_id());
    }
}

/// An event that can be read can be written, and is the same then.
pub fn event(bytes: &[u8]) {
    let Ok(event) = Event::decode_message(bytes) else { return };
    for codec in [Codec::Json, Codec::MessagePack] {
        let Ok(frame) = Frame::new(event.id.seq, &event.body, codec) else {
            assert!(matches!(event.body, Body::Unknown { .. }));
            continue;
        };
        let again = Event::decode_message(&frame.message(event.id.fence));
        let again = again.as_ref().ok();
        assert_eq!(
            again.map(|again| (again.id, again.body.kind())),
            Some((event.id, event.body.kind()))
        );
        // As text a fraction may lose its last digit.
        if codec == Codec::MessagePack && matches!(event.body, Body::Delta(_)) {
            assert_eq!(again, Some(&event));
        }
    }
}

/// An event's ID is digits, and one that is shown is read as the same.
pub fn event_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(id) = text.parse::<EventId>() else { return };
    assert!(text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'));
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(serde_json::from_value::<EventId>(serde_json::json!(id)).ok(), Some(id));
}

/// Every frame is a request, or refused in words.
pub fn frame(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let refusals = match frame::read(text) {
        Ok((_, request)) => [
            request.payload().map(|payload| job(payload.as_bytes())).err(),
            request.job().err(),
            request.after().err(),
        ],
        Err(fault) => {
            assert!(serde_json::to_string(&fault.0).is_ok());
            [Some(fault.1), None, None]
        }
    };
    for refusal in refusals.into_iter().flatten() {
        assert!(refusal.status.is_client_error() && !refusal.error.message.is_empty());
    }
}

/// No file lets a stranger in, no text is the key but the key, and no token is another tenant's.
pub fn secrets(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let signer = Signer::new(SECRET);
    if let Ok(table) = Table::parse(text) {
        assert!(table.find("ms_a_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &signer).is_none());
    }
    let (known, file) = KEY;
    let table = Table::parse(file).unwrap_or_default();
    assert_eq!(table.find(text, &signer).is_some(), text == known);
    let (job, now) = (JobId::from_key(&Tenant::default(), "job"), Timestamp(1000));
    let nobody = Caller::new(Tenant::default(), Right::ALL);
    let made = |token: Token<'_>| signer.has_made(&token, &nobody, job, now);
    assert!(!Token::read(text).is_some_and(made));
}

/// A key, and the file that lets it in.
const KEY: (&str, &str) = (
    "ms_fuzz_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
    r#"keys = [{ id = "fuzz", tenant = "t", rights = ["read"], hash = "HXZWK8Xclj1OxKqtqVp4As3hmCxcyFsdTdWqCXC0jxA" }]"#,
);

/// What clients join out of the chunks is the answer that the job shows.
pub fn answer(bytes: &[u8]) {
    let (mut splice, mut assembly) = (Splice::default(), Assembly::default());
    let mut writer = Writer::new("chatcmpl-1".to_owned(), 1, "m".to_owned(), true);
    let (mut text, mut over) = (String::new(), false);
    for (seq, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let body = match line {
            b"started" => Body::Started(Started { attempt: 1, worker: String::new() }),
            b"requeued" => Body::Requeued(Requeued { run: 2 }),
            b"done" => Body::Done(Done::default()),
            _ => match serde_json::from_slice::<Chunk>(line) {
                Ok(chunk) => Body::Delta(chunk),
                Err(_) => continue,
            },
        };
        let event = Event { id: EventId { fence: 1, seq: seq as u64 }, body };
        assembly.push(&event);
        let Ok(fresh) = splice.push(&event.body) else { return };
        for chunk in writer.write(fresh) {
            text.push_str(content(&chunk).as_deref().unwrap_or_default());
        }
        over = matches!(event.body, Body::Done(_));
        if over {
            break;
        }
    }
    let completion = Value::Object(assembly.completion("chatcmpl-1", 1, "m", None));
    assert!(completion["choices"].is_array());
    for chunk in writer.end(Some(&Value::Null)).iter().filter(|chunk| *chunk != "[DONE]") {
        assert!(content(chunk).is_none());
    }
    if over {
        assert_eq!(text, assembly.text());
    }
}

/// The first choice's text in a chunk.
fn content(chunk: &str) -> Option<String> {
    let chunk: Value = serde_json::from_str(chunk).unwrap_or_default();
    let choices = chunk["choices"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(chunk["object"] == "chat.completion.chunk" && choices.len() <= 1);
    let choice = choices.first().filter(|choice| choice["index"] == 0)?;
    choice["delta"].get("content").map(|content| text_of(content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_starts_from_holds() {
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 6] = [
            ("answer", answer),
            ("event", event),
            ("event_id", event_id),
            ("frame", frame),
            ("job", job),
            ("secrets", secrets),
        ];
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for (name, target) in targets {
            let files: Vec<_> = std::fs::read_dir(folder.join(name)).unwrap().collect();
            assert!(files.len() > 2, "{name}");
            for file in files {
                target(&std::fs::read(file.unwrap().path()).unwrap());
            }
        }
    }
}
