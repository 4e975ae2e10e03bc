//! Random answers in random pieces, over attempts that end anywhere.

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    event::{Event, EventId},
    gateway::openai::{
        assemble::Assembly,
        chunk::{DONE, Writer},
    },
};

/// What one choice says: texts by field, then calls by name and arguments.
#[derive(Debug, Clone)]
struct Said {
    texts: Vec<(&'static str, String)>,
    calls: Vec<(String, String)>,
    logprobs: bool,
    finish: &'static str,
}

type Answer = Vec<Said>;

/// A text of an answer: the choice, and which of its texts and then of its calls' arguments.
type Place = (usize, usize);

fn text() -> impl Strategy<Value = String> {
    "[ab \u{e9}\u{e8}\u{65e5}\u{1f980}\"\\\\]{0,12}"
}

fn said() -> impl Strategy<Value = Said> {
    let calls = prop::collection::vec(("[fg]{1,3}", text()), 0..3);
    let finish = prop::sample::select(vec!["stop", "length", "tool_calls"]);
    (text(), text(), text(), calls, any::<bool>(), finish).prop_map(
        |(reasoning, content, refusal, calls, logprobs, finish)| {
            let texts =
                [("reasoning_content", reasoning), ("content", content), ("refusal", refusal)];
            Said { texts: texts.to_vec(), calls, logprobs, finish }
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    prop::collection::vec(said(), 1..4)
}

/// Small and deterministic: where to cut.
struct Cuts(u64);

impl Cuts {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

fn parts(text: &str, cuts: &mut Cuts) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text.chars().peekable();
    while rest.peek().is_some() {
        parts.push(rest.by_ref().take(1 + cuts.below(4)).collect());
    }
    parts
}

/// The deltas of one choice, each of a few characters.
fn deltas(said: &Said, attempt: usize, cuts: &mut Cuts) -> Vec<Value> {
    let mut pieces = Vec::new();
    for (field, text) in &said.texts {
        for part in parts(text, cuts) {
            let mut piece = json!({"delta": {*field: part}});
            if said.logprobs && *field != "reasoning_content" {
                let token = |c: char| json!({"token": c.to_string(), "logprob": -0.5});
                piece["logprobs"] = json!({*field: part.chars().map(token).collect::<Vec<_>>()});
            }
            pieces.push(piece);
        }
    }
    for (index, (name, arguments)) in said.calls.iter().enumerate() {
        let id = format!("call_{attempt}_{index}");
        let function = json!({"name": name, "arguments": ""});
        let call = json!({"index": index, "id": id, "type": "function", "function": function});
        pieces.push(json!({"delta": {"tool_calls": [call]}}));
        for part in parts(arguments, cuts) {
            let call = json!({"index": index, "function": {"arguments": part}});
            pieces.push(json!({"delta": {"tool_calls": [call]}}));
        }
    }
    pieces.push(json!({"delta": {"x_vendor": [1, 2]}}));
    for piece in &mut pieces {
        if cuts.below(4) == 0 {
            piece["delta"]["role"] = json!("assistant");
        }
    }
    if cuts.below(2) == 0 {
        pieces.push(json!({"delta": {}}));
    }
    pieces.last_mut().unwrap()["finish_reason"] = json!(said.finish);
    pieces
}

/// One attempt at an answer: its choices interleaved, its deltas joined into chunks.
fn attempt(answer: &Answer, number: usize, seed: u64) -> Vec<Body> {
    let mut cuts = Cuts(seed | 1);
    let deltas = answer.iter().map(|said| deltas(said, number, &mut cuts).into_iter().peekable());
    let mut choices: Vec<_> = deltas.enumerate().collect();
    let mut bodies = vec![Body::Started(Started {
        attempt: u32::try_from(number).unwrap(),
        worker: "w".into(),
    })];
    let mut chunk = Chunk::default();
    while !choices.is_empty() {
        let at = cuts.below(choices.len());
        let (index, deltas) = &mut choices[at];
        let mut piece = deltas.next().unwrap();
        piece["index"] = json!(index);
        chunk.push(serde_json::from_value(piece).unwrap());
        if deltas.peek().is_none() {
            drop(choices.remove(at));
        }
        if cuts.below(3) == 0 || choices.is_empty() {
            bodies.push(Body::Delta(std::mem::take(&mut chunk)));
        }
    }
    bodies
}

/// An attempt that ended somewhere.
fn crashed(answer: &Answer, number: usize, seed: u64, end: Index) -> Vec<Body> {
    let mut bodies = attempt(answer, number, seed);
    bodies.truncate(1 + end.index(bodies.len()));
    bodies
}

fn done() -> Body {
    Body::Done(Done::default())
}

/// A client that joins what it is sent: strings grow, lists join by index.
#[derive(Default)]
struct Client {
    choices: Vec<Value>,
    ended: bool,
}

impl Client {
    fn read(&mut self, data: &str) {
        assert!(!self.ended);
        if data == DONE {
            self.ended = true;
            return;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        let [piece] = chunk["choices"].as_array().unwrap().as_slice() else { panic!("{chunk}") };
        let index = usize::try_from(piece["index"].as_u64().unwrap()).unwrap();
        if index == self.choices.len() {
            self.choices.push(json!({"message": {"content": null}, "logprobs": null}));
        }
        // A choice that is mentioned before one below it is out of range.
        let choice = &mut self.choices[index];
        join("message", &mut choice["message"], &piece["delta"]);
        join("logprobs", &mut choice["logprobs"], piece.get("logprobs").unwrap_or(&Value::Null));
        if !piece["finish_reason"].is_null() {
            assert!(choice.get("finish_reason").is_none(), "two finishes: {choice}");
            choice["finish_reason"] = piece["finish_reason"].clone();
        }
    }

    fn text(&self, (choice, at): Place) -> &str {
        let path = match at {
            0 => "/message/reasoning_content".to_owned(),
            1 => "/message/content".to_owned(),
            2 => "/message/refusal".to_owned(),
            call => format!("/message/tool_calls/{}/function/arguments", call - 3),
        };
        let choice = self.choices.get(choice);
        choice.and_then(|choice| choice.pointer(&path)?.as_str()).unwrap_or_default()
    }
}

fn join(name: &str, whole: &mut Value, more: &Value) {
    match (whole, more) {
        (_, Value::Null) => {}
        (Value::String(whole), Value::String(more)) if name != "type" => whole.push_str(more),
        (Value::Object(whole), Value::Object(more)) => {
            for (name, more) in more {
                join(name, whole.entry(name).or_insert(Value::Null), more);
            }
        }
        (Value::Array(whole), Value::Array(more)) => {
            for item in more {
                match item["index"].as_u64().map(|index| usize::try_from(index).unwrap()) {
                    Some(index) if index < whole.len() => join("", &mut whole[index], item),
                    _ => whole.push(item.clone()),
                }
            }
        }
        (whole, more) => *whole = more.clone(),
    }
}

/// Everything between a job's log and a client.
struct Way {
    splice: Splice,
    writer: Writer,
    client: Client,
    assembly: Assembly,
}

impl Way {
    fn new() -> Self {
        let writer = Writer::new("c".to_owned(), 1, "m".to_owned(), false);
        let (splice, client, assembly) = Default::default();
        Self { splice, writer, client, assembly }
    }

    fn go(&mut self, bodies: Vec<Body>) -> Result<(), Diverged> {
        for body in bodies {
            let ends = body.is_terminal();
            let sent = self.splice.push(&body);
            self.assembly.push(&Event { id: EventId::START, body });
            let mut chunks = self.writer.write(sent?);
            if ends {
                chunks.extend(self.writer.end(None));
            }
            for data in chunks {
                self.client.read(&data);
            }
        }
        Ok(())
    }

    /// What the client has, and what the log says.
    fn ends(&self) -> (Value, Value) {
        (plain(self.client.choices.clone()), plain(self.assembly.choices()))
    }
}

/// Without indices, and with the IDs of calls checked and taken out: these may differ.
fn plain(mut choices: Vec<Value>) -> Value {
    for choice in &mut choices {
        choice.as_object_mut().unwrap().remove("index");
        let Some(calls) = choice["message"].get_mut("tool_calls") else { continue };
        for (at, call) in calls.as_array_mut().unwrap().iter_mut().enumerate() {
            let call = call.as_object_mut().unwrap();
            call.remove("index");
            let id = call.remove("id").unwrap();
            let parts: Vec<&str> = id.as_str().unwrap().split('_').collect();
            assert_eq!((parts.len(), parts[2]), (3, at.to_string().as_str()), "{id}");
        }
    }
    choices.iter_mut().for_each(Value::sort_all_objects);
    json!(choices)
}

/// Every character of an answer, by its place and its number there.
fn characters(answer: &Answer) -> Vec<(Place, usize)> {
    let mut all = Vec::new();
    for (choice, said) in answer.iter().enumerate() {
        let texts = said.texts.iter().map(|(_, text)| text);
        let texts = texts.chain(said.calls.iter().map(|(_, arguments)| arguments));
        for (at, text) in texts.enumerate() {
            all.extend((0..text.chars().count()).map(|character| ((choice, at), character)));
        }
    }
    all
}

/// The answer with one character changed, or with its text ending before it.
fn changed(answer: &Answer, (choice, place): Place, at: usize, early: bool) -> Answer {
    let mut changed = answer.clone();
    let said = &mut changed[choice];
    let text = match place.checked_sub(said.texts.len()) {
        None => &mut said.texts[place].1,
        Some(call) => &mut said.calls[call].1,
    };
    let mut characters: Vec<char> = text.chars().collect();
    if early {
        characters.truncate(at);
    } else {
        characters[at] = '#';
    }
    *text = characters.into_iter().collect();
    changed
}

const NAMES: [&str; 16] = [
    "role",
    "content",
    "reasoning",
    "tool_calls",
    "function",
    "custom",
    "function_call",
    "id",
    "type",
    "index",
    "name",
    "arguments",
    "logprobs",
    "token",
    "bytes",
    "x",
];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3_u64).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[a\u{e9}\u{1f980}]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            any_fields(inner).prop_map(Value::from),
        ]
    })
}

fn any_fields(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    let field = (prop::sample::select(&NAMES), value).prop_map(|(k, v)| (k.to_owned(), v));
    prop::collection::vec(field, 0..4).prop_map(Map::from_iter)
}

fn any_body() -> impl Strategy<Value = Body> {
    let fields = || any_fields(any_value());
    let piece = (0..3_u32, fields(), fields(), prop::option::of("[st]")).prop_map(
        |(index, delta, extra, finish_reason)| Piece { index, delta, finish_reason, extra },
    );
    let chunk = (prop::collection::vec(piece, 0..4), fields())
        .prop_map(|(choices, extra)| Body::Delta(Chunk { choices, extra }));
    prop_oneof![6 => chunk, 1 => Just(started(1)), 1 => Just(done())]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn attempts_that_repeat_themselves_are_one_stream(
        answer in answer(),
        lives in prop::collection::vec(any::<(u64, Index)>(), 0..4),
        last in any::<u64>(),
    ) {
        let mut way = Way::new();
        let whole = lives.len() + 1;
        for (number, (seed, end)) in (1..).zip(lives) {
            prop_assert_eq!(way.go(crashed(&answer, number, seed, end)), Ok(()));
        }
        prop_assert_eq!(way.go(attempt(&answer, whole, last)), Ok(()));
        prop_assert_eq!(way.go(vec![done()]), Ok(()));
        let (client, log) = way.ends();
        prop_assert_eq!(client, log);
        prop_assert!(way.client.ended);
    }

    #[test]
    fn another_answer_diverges_where_it_was_sent_and_nowhere_else(
        answer in answer(),
        first in any::<(u64, Index)>(),
        second in any::<u64>(),
        which in any::<Index>(),
        early in any::<bool>(),
    ) {
        let characters = characters(&answer);
        prop_assume!(!characters.is_empty());
        let (place, at) = characters[which.index(characters.len())];
        let mut way = Way::new();
        way.go(crashed(&answer, 1, first.0, first.1)).unwrap();
        let sent = way.client.text(place).to_owned();
        let mut bodies = attempt(&changed(&answer, place, at, early), 2, second);
        bodies.push(done());
        let outcome = way.go(bodies);
        if sent.chars().count() > at {
            let choice = u32::try_from(place.0).unwrap();
            prop_assert_eq!(outcome, Err(Diverged { choice }));
            prop_assert_eq!(way.client.text(place), sent);
            prop_assert!(!way.client.ended);
        } else {
            prop_assert_eq!(outcome, Ok(()));
            let (client, log) = way.ends();
            prop_assert_eq!(client, log);
        }
    }

    #[test]
    fn no_delta_is_too_strange(bodies in prop::collection::vec(any_body(), 0..12)) {
        let (mut splice, mut assembly) = (Splice::default(), Assembly::default());
        let mut writer = Writer::new("c".to_owned(), 1, "m".to_owned(), true);
        for body in bodies {
            if let Ok(sent) = splice.push(&body) {
                for data in writer.write(sent) {
                    let chunk: Value = serde_json::from_str(&data).unwrap();
                    prop_assert_eq!(chunk["choices"].as_array().map(Vec::len), Some(1));
                }
            }
            assembly.push(&Event { id: EventId::START, body });
            let completion = assembly.completion("c", 1, "m", None);
            prop_assert_eq!(&completion["object"], "chat.completion");
        }
    }
}
