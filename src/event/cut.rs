//! Large chunks in several events: a reader of events holds one at a time, whatever its size.

use serde_json::{Map, Value, json};

use super::chunk::{Chunk, Piece, TEXT_FIELDS, value_weight};

impl Chunk {
    /// The same in chunks of about `most` bytes. Text, arguments of tool calls and log probabilities are cut between
    /// characters or values; what is of another kind stays whole, whatever its size.
    pub(crate) fn cut(self, most: usize) -> Vec<Self> {
        if self.weight() <= most {
            return vec![self];
        }
        let mut chunks = Vec::new();
        let mut chunk = Self { extra: self.extra, choices: Vec::new() };
        let mut weight = chunk.weight();
        for piece in self.choices.into_iter().flat_map(|piece| piece.cut(most)) {
            let more = piece.weight();
            if weight + more > most && !chunk.is_empty() {
                chunks.push(std::mem::take(&mut chunk));
                weight = 0;
            }
            weight += more;
            chunk.choices.push(piece);
        }
        chunks.push(chunk);
        chunks
    }
}

impl Piece {
    fn cut(self, most: usize) -> Vec<Self> {
        if self.weight() <= most {
            return vec![self];
        }
        let Self { index, delta, finish_reason, extra } = self;
        let of = |delta: Map<String, Value>| Self { index, delta, ..Self::default() };
        // What is small comes first: the role stands there.
        let mut pieces = vec![of(Map::new())];
        for (name, value) in delta {
            match value {
                Value::String(text)
                    if TEXT_FIELDS.contains(&name.as_str()) && text.len() > most =>
                {
                    let cut = fragments(&text, most);
                    pieces
                        .extend(cut.map(|text| of(Map::from_iter([(name.clone(), text.into())]))));
                }
                Value::Array(calls) if name == "tool_calls" => {
                    let calls = calls.into_iter().flat_map(|call| cut_call(call, most));
                    pieces.extend(
                        calls.map(|call| of(Map::from_iter([(name.clone(), json!([call]))]))),
                    );
                }
                value => {
                    pieces[0].delta.insert(name, value);
                }
            }
        }
        let mut rest = Map::new();
        for (name, value) in extra {
            match value {
                Value::Object(lists) if name == "logprobs" => {
                    let lists =
                        lists.into_iter().flat_map(|(list, value)| cut_list(list, value, most));
                    pieces.extend(lists.map(|list| Self {
                        extra: Map::from_iter([(name.clone(), list.into())]),
                        ..of(Map::new())
                    }));
                }
                value => {
                    rest.insert(name, value);
                }
            }
        }
        if pieces[0].delta.is_empty() && pieces.len() > 1 {
            pieces.remove(0);
        }
        if let Some(last) = pieces.last_mut() {
            last.finish_reason = finish_reason;
            last.extra.extend(rest);
        }
        pieces
    }
}

/// A text in fragments of at most so many bytes, and of at least one character.
fn fragments(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?.len_utf8();
        let (fragment, others) = rest.split_at(rest.floor_char_boundary(most).max(first));
        rest = others;
        Some(fragment)
    })
}

/// A call of a function with the beginning of its arguments, and the rest of them.
fn cut_call(mut call: Value, most: usize) -> Vec<Value> {
    let index = call.get("index").cloned();
    let (Some(index), Some(Value::String(arguments))) =
        (index, call.pointer_mut("/function/arguments"))
    else {
        return vec![call];
    };
    let whole = std::mem::take(arguments);
    let mut cut = fragments(&whole, most);
    cut.next().unwrap_or_default().clone_into(arguments);
    let rest = cut.map(|arguments| json!({"index": index, "function": {"arguments": arguments}}));
    let rest: Vec<Value> = rest.collect();
    std::iter::once(call).chain(rest).collect()
}

/// A list of values in lists of about so many bytes, each under the same name.
fn cut_list(name: String, value: Value, most: usize) -> Vec<Map<String, Value>> {
    let Value::Array(values) = value else { return vec![Map::from_iter([(name, value)])] };
    let mut lists: Vec<Vec<Value>> = vec![Vec::new()];
    let mut weight = 0;
    for value in values {
        let more = value_weight(&value);
        if weight + more > most && weight > 0 {
            lists.push(Vec::new());
            weight = 0;
        }
        weight += more;
        if let Some(list) = lists.last_mut() {
            list.push(value);
        }
    }
    lists.into_iter().map(|list| Map::from_iter([(name.clone(), list.into())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A whole answer was one event, which each of its readers held whole.
    #[test]
    fn a_large_chunk_is_cut_and_says_the_same() {
        let long = |unit: &str| unit.repeat(500);
        let token = json!({"token": "a", "logprob": -0.5, "bytes": [97]});
        let piece = json!({"index": 1, "delta": {"role": "assistant", "content": long("é"), "reasoning": long("xy"),
            "x": [1], "tool_calls": [
                {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": long("1")}},
                {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
            "finish_reason": "stop", "logprobs": {"content": vec![token; 100], "refusal": null}, "y": 1});
        let chunk: Chunk =
            serde_json::from_value(json!({"choices": [piece], "extra": {"z": 1}})).unwrap();
        assert_eq!(chunk.clone().cut(usize::MAX), std::slice::from_ref(&chunk));
        let chunks = chunk.cut(200);
        assert!(
            chunks.len() > 10 && chunks.iter().all(|chunk| chunk.weight() <= 400),
            "{chunks:?}"
        );
        assert!(chunks[0].extra.contains_key("z") && chunks[1].extra.is_empty());
        let pieces: Vec<&Piece> = chunks.iter().flat_map(|chunk| &chunk.choices).collect();
        let text = |at: &str| -> String {
            let texts = pieces.iter().map(|piece| serde_json::to_value(piece).unwrap());
            texts.filter_map(|piece| Some(piece.pointer(at)?.as_str()?.to_owned())).collect()
        };
        assert_eq!((text("/delta/content"), text("/delta/reasoning")), (long("é"), long("xy")));
        assert_eq!(text("/delta/tool_calls/0/function/arguments"), format!("{}{{}}", long("1")));
        assert_eq!(
            (text("/delta/role"), text("/delta/tool_calls/0/id")),
            ("assistant".to_owned(), "ab".to_owned())
        );
        let tokens =
            pieces.iter().filter_map(|piece| piece.extra.get("logprobs")?["content"].as_array());
        assert_eq!(tokens.map(Vec::len).sum::<usize>(), 100);
        let (last, others) = pieces.split_last().unwrap();
        assert_eq!(
            (last.finish_reason.as_deref(), last.extra.get("y")),
            (Some("stop"), Some(&json!(1)))
        );
        assert!(others.iter().all(|piece| piece.finish_reason.is_none() && piece.index == 1));
        assert_eq!(pieces[0].delta["x"], json!([1]));
    }
}
