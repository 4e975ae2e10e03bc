use super::*;
use serde_json::json;

mod attempts;

use crate::event::{Done, Requeued, Started};

fn started(attempt: u32) -> Body {
    Body::Started(Started { attempt, worker: "w".to_owned() })
}

/// What is sent for pieces of one event.
#[expect(clippy::needless_pass_by_value, reason = "written where it is used")]
fn push(splice: &mut Splice, pieces: Value) -> Result<Value, Diverged> {
    let chunk = serde_json::from_value(json!({ "choices": pieces })).unwrap();
    splice.push(&Body::Delta(chunk)).map(|chunk| json!(chunk.choices))
}

fn again(splice: &mut Splice) {
    assert_eq!(splice.push(&started(2)), Ok(Chunk::default()));
}

fn say(splice: &mut Splice, text: &str) -> Result<Value, Diverged> {
    push(splice, json!([{"index": 0, "delta": {"content": text}}]))
}

fn said(text: &str) -> Value {
    json!([{"index": 0, "delta": {"content": text}}])
}

fn nothing() -> Value {
    json!([])
}

const DIVERGED: Result<Value, Diverged> = Err(Diverged { choice: 0 });

fn finish(splice: &mut Splice, reason: &str) -> Result<Value, Diverged> {
    push(splice, json!([{"index": 0, "delta": {}, "finish_reason": reason}]))
}

/// What the first delta said to be null was dropped, and some clients miss the field.
#[test]
fn nulls_of_the_first_delta_are_sent_once() {
    let mut splice = Splice::default();
    let first =
        json!([{"index": 0, "delta": {"role": "assistant", "content": null, "refusal": null}}]);
    assert_eq!(push(&mut splice, first.clone()), Ok(first.clone()));
    assert_eq!(push(&mut splice, first.clone()), Ok(nothing()));
    assert_eq!(say(&mut splice, "a"), Ok(said("a")));
    again(&mut splice);
    assert_eq!(push(&mut splice, first), Ok(nothing()));
    assert_eq!(say(&mut splice, "a"), Ok(nothing()));
}

#[test]
fn the_same_text_is_withheld_and_continued() {
    let mut splice = Splice::default();
    again(&mut splice);
    assert_eq!(say(&mut splice, "caf"), Ok(said("caf")));
    assert_eq!(say(&mut splice, "\u{e9} \u{1f980}"), Ok(said("\u{e9} \u{1f980}")));
    again(&mut splice);
    assert_eq!(say(&mut splice, "caf\u{e9}"), Ok(nothing()));
    assert_eq!(splice.push(&Body::Requeued(Requeued { run: 2 })), Ok(Chunk::default()));
    again(&mut splice);
    assert_eq!(say(&mut splice, "caf\u{e9} "), Ok(nothing()));
    assert_eq!(say(&mut splice, "\u{1f980}\u{1f980}"), Ok(said("\u{1f980}")));
    assert_eq!(say(&mut splice, "!"), Ok(said("!")));
    assert_eq!(splice.push(&Body::Done(Done::default())), Ok(Chunk::default()));
}

#[test]
fn another_text_diverges_even_within_a_character() {
    let mut splice = Splice::default();
    say(&mut splice, "a\u{e9}b").unwrap();
    again(&mut splice);
    // The same first byte.
    assert_eq!(say(&mut splice, "a\u{e8}"), DIVERGED);
}

#[test]
fn an_attempt_that_ends_early_diverges() {
    for done in [true, false] {
        let mut splice = Splice::default();
        push(&mut splice, json!([{"index": 3, "delta": {"content": "abc"}}])).unwrap();
        again(&mut splice);
        push(&mut splice, json!([{"index": 3, "delta": {"content": "ab"}}])).unwrap();
        let ended = if done {
            splice.push(&Body::Done(Done::default())).map(|_| Value::Null)
        } else {
            push(&mut splice, json!([{"index": 3, "delta": {}, "finish_reason": "stop"}]))
        };
        assert_eq!(ended, Err(Diverged { choice: 3 }));
    }
}

#[test]
fn nothing_follows_a_finish_that_was_sent() {
    let mut sent = Splice::default();
    say(&mut sent, "ab").unwrap();
    assert_ne!(finish(&mut sent, "stop"), Ok(nothing()));
    assert_eq!(finish(&mut sent, "stop"), Ok(nothing()));
    again(&mut sent);
    assert_eq!(say(&mut sent, "ab"), Ok(nothing()));

    let mut same = sent.clone();
    assert_eq!(finish(&mut same, "stop"), Ok(nothing()));
    assert_eq!(finish(&mut sent.clone(), "length"), DIVERGED);
    assert_eq!(say(&mut sent.clone(), "c"), DIVERGED);
    let call =
        json!([{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}}]);
    assert_eq!(push(&mut sent, call), DIVERGED);
}

#[test]
fn a_role_and_a_calls_id_are_sent_once() {
    let begin = |id: &str, name: &str| {
        json!([{"index": 0, "delta": {"role": "assistant", "content": "", "tool_calls": [
            {"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]}}])
    };
    let argue = |text: &str| json!([{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}]);
    let mut splice = Splice::default();
    assert_eq!(push(&mut splice, begin("a", "f")), Ok(begin("a", "f")));
    assert_eq!(push(&mut splice, argue("{\"x\"")), Ok(argue("{\"x\"")));
    again(&mut splice);
    assert_eq!(push(&mut splice, begin("b", "f")), Ok(nothing()));
    assert_eq!(push(&mut splice, argue("{\"x\":1")), Ok(argue(":1")));
    // Said again within the attempt.
    assert_eq!(push(&mut splice, begin("b", "f")), Ok(nothing()));
    assert_eq!(push(&mut splice, argue("}")), Ok(argue("}")));
    again(&mut splice);
    assert_eq!(push(&mut splice, begin("c", "g")), DIVERGED);
}

#[test]
fn a_call_that_does_not_come_again_diverges() {
    let mut splice = Splice::default();
    let call = json!({"id": "a", "function": {"name": "f", "arguments": "{}"}});
    push(&mut splice, json!([{"index": 0, "delta": {"tool_calls": [call]}}])).unwrap();
    again(&mut splice);
    assert_eq!(finish(&mut splice, "stop"), DIVERGED);
}

#[test]
fn calls_of_a_whole_message_get_their_index() {
    let call = |id: &str| json!({"id": id, "function": {"name": "f", "arguments": "{}"}});
    let mut splice = Splice::default();
    let whole = |a, b| json!([{"index": 0, "delta": {"tool_calls": [call(a), call(b)]}}]);
    let sent = push(&mut splice, whole("a", "b")).unwrap();
    let calls = sent[0]["delta"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.iter().map(|c| &c["index"]).collect::<Vec<_>>(), [&json!(0), &json!(1)]);
    again(&mut splice);
    assert_eq!(push(&mut splice, whole("c", "d")), Ok(nothing()));
}

#[test]
fn tokens_are_sent_with_their_text() {
    let tokens = |texts: &[&str]| -> Vec<Value> {
        texts
            .iter()
            .map(|text| json!({"token": text, "logprob": -1.0, "bytes": text.as_bytes()}))
            .collect()
    };
    let piece = |texts: &[&str]| {
        json!([{"index": 0, "delta": {"content": texts.concat()},
            "logprobs": {"content": tokens(texts), "refusal": null}}])
    };
    let mut sent = Splice::default();
    assert_eq!(push(&mut sent, piece(&["ab", "", "\u{e9}"])), Ok(piece(&["ab", "", "\u{e9}"])));
    again(&mut sent);
    let mut splice = sent.clone();
    assert_eq!(push(&mut splice, piece(&["ab"])), Ok(nothing()));
    assert_eq!(push(&mut splice, piece(&["", "\u{e9}", "c", ""])), Ok(piece(&["c", ""])));
    // The same text in other tokens: only what reaches beyond the cut.
    let mut splice = sent.clone();
    assert_eq!(push(&mut splice, piece(&["a", "b", "\u{e9}"])), Ok(nothing()));
    assert_eq!(push(&mut splice, piece(&["c"])), Ok(piece(&["c"])));
}

#[test]
fn unknown_fields_are_not_sent_twice() {
    let piece = |list: Value, one: &str| json!([{"index": 0, "delta": {"x_list": list, "x_one": one}, "x_beside": one}]);
    let mut splice = Splice::default();
    assert_eq!(push(&mut splice, piece(json!([1, 2]), "a")), Ok(piece(json!([1, 2]), "a")));
    again(&mut splice);
    let rest = json!([{"index": 0, "delta": {"x_list": [3]}}]);
    assert_eq!(push(&mut splice, piece(json!([1, 2, 3]), "z")), Ok(rest));
    assert_eq!(push(&mut splice, piece(json!([4]), "b")), Ok(piece(json!([4]), "b")));
}

#[test]
fn fields_beside_the_choices_are_sent_when_they_change() {
    let mut splice = Splice::default();
    let mut sent = |fingerprint: &str| {
        let extra = json!({"choices": [], "extra": {"system_fingerprint": fingerprint}});
        splice.push(&Body::Delta(serde_json::from_value(extra).unwrap())).unwrap().extra.len()
    };
    assert_eq!([sent("a"), sent("a"), sent("b")], [1, 0, 1]);
}

/// Of content that is a list, a new attempt's text was withheld by its number of parts, whatever it said.
#[test]
fn text_in_a_list_of_parts_is_compared_as_text() {
    let mut splice = Splice::default();
    let think = json!({"type": "thinking", "thinking": []});
    let text = |text: &str| json!({"type": "text", "text": text});
    let list = |parts: Value| json!([{"index": 0, "delta": {"content": parts}}]);
    let first = list(json!([think, text("Hel")]));
    assert_eq!(push(&mut splice, first.clone()), Ok(first));
    assert_eq!(say(&mut splice, "lo"), Ok(said("lo")));
    again(&mut splice);
    assert_eq!(say(&mut splice, "Hell"), Ok(nothing()));
    let more = list(json!([think, text("o!")]));
    assert_eq!(push(&mut splice, more), Ok(list(json!([text("!")]))));
    again(&mut splice);
    assert_eq!(push(&mut splice, list(json!([text("Hi")]))), DIVERGED);
}
