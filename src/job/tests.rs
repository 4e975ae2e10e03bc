//! What is read as a job, and what is refused.

use super::*;

const REQUEST: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

#[test]
fn three_shapes_give_the_same_request() {
    let bare = Job::parse(REQUEST.as_bytes()).unwrap();
    let envelope =
        Job::parse(format!(r#"{{"request":{REQUEST},"lane":"high","custom_id":"a"}}"#).as_bytes())
            .unwrap();
    let batch = Job::parse(
        format!(
            r#"{{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{REQUEST}}}"#
        )
        .as_bytes(),
    )
    .unwrap();
    assert_eq!(bare.request, envelope.request);
    assert_eq!(bare.request, batch.request);
    assert_eq!(envelope.lane, Lane::High);
    assert_eq!(batch.custom_id.as_deref(), Some("a"));
}

#[test]
fn an_envelope_survives_its_own_encoding() {
    let mut job = Job::parse(REQUEST.as_bytes()).unwrap();
    job.labels = serde_json::from_str(r#"{"user":"u1"}"#).unwrap();
    job.not_before = Some(Timestamp(5));
    job.stream = false;
    job.dead_letter = Letter::Retryable;
    let bytes = serde_json::to_vec(&job).unwrap();
    assert_eq!(Job::parse(&bytes).unwrap(), job);
}

#[test]
fn strict_names_the_unknown_field_and_lenient_passes_over_it() {
    let line = format!(r#"{{"request":{REQUEST},"lame":"high"}}"#);
    let message = Job::parse_strict(line.as_bytes()).unwrap_err().to_string();
    assert!(message.contains("`lame`") && message.contains("lane"), "{message}");
    assert!(Job::parse(line.as_bytes()).is_ok());
}

/// A batch line with a misspelt field, or of another method, was taken as if it had said nothing.
#[test]
fn a_batch_line_is_read_as_strictly_as_an_envelope() {
    let line = |more: &str| format!(r#"{{"body":{REQUEST},{more}}}"#);
    for (more, words) in [
        (r#""costum_id":"a""#, ["`costum_id`", "custom_id"]),
        (r#""lane":"high""#, ["`lane`", "custom_id"]),
        (r#""method":"GET""#, ["`GET`", "POST"]),
    ] {
        let message = Job::parse_strict(line(more).as_bytes()).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    assert!(Job::parse(line(r#""lane":"high""#).as_bytes()).is_ok());
    assert!(Job::parse_strict(line(r#""method":"POST""#).as_bytes()).is_ok());
}

/// Guards against options of a flat line that go to the model, which ignores or refuses them.
#[test]
fn an_option_beside_messages_is_refused_and_not_sent_to_the_model() {
    for option in FIELDS.into_iter().filter(|name| is_option(name)) {
        let line = REQUEST.replacen('{', &format!(r#"{{"{option}":"x","#), 1);
        let message = Job::parse_strict(line.as_bytes()).unwrap_err().to_string();
        assert!(message.starts_with(&format!("`{option}` is an option")), "{message}");
    }
    let streaming = REQUEST.replacen('{', r#"{"stream":true,"metadata":{"lane":"x"},"#, 1);
    assert!(Job::parse_strict(streaming.as_bytes()).is_ok());
}

#[test]
fn each_fault_is_named() {
    for (line, word) in [
        (&b"{"[..], "not JSON"),
        (b"{\"model\":\"m\",\"messages\":[]}", "messages"),
        (b"{\"messages\":[{}]}", "model"),
        (b"[1]", "not a job"),
        (b"\"\xff\"", "UTF-8"),
        (br#"{"request":{"model":"m","messages":[{}]},"lane":"fast"}"#, "high, normal, low"),
        (br#"{"request":{"model":"m","messages":[{}]},"max_attempts":0}"#, "1 to 100"),
        (br#"{"request":{"model":"m","messages":[{}]},"dead_letter":"no"}"#, "never"),
        (br#"{"request":{"model":"m","messages":[{}]},"tenant":"a b"}"#, "tenant"),
        (br#"{"body":{"model":"m","messages":[{}]},"url":"/v1/embeddings"}"#, "embeddings"),
    ] {
        let message = Job::parse(line).unwrap_err().to_string();
        assert!(message.contains(word), "{message} should contain {word}");
    }
}
