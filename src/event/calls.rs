//! Which tool call of a message a fragment belongs to.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The tool calls of one choice within one attempt.
///
/// Endpoints differ in what they tell of a fragment. Its index decides, but for a call that begins under an index
/// which another has: one with another ID and a name, or with a name where the other's arguments are whole.
/// Without an index it is an ID that was seen before, or a new call where one begins, or else the last call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    /// Places by the index that the endpoint gives them; the last call of an index has it.
    by_index: BTreeMap<u32, u32>,
    by_id: BTreeMap<String, u32>,
    by_place: BTreeMap<u32, Call>,
    next: u32,
    last: u32,
}

#[derive(Debug, Clone, Default)]
struct Call {
    id: Option<String>,
    /// As the endpoint gives it.
    index: Option<u32>,
    arguments: Depth,
}

impl Calls {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }

    /// The place of a fragment's call among the message's calls, and whether the call begins with it.
    pub(crate) fn place(&mut self, call: &Map<String, Value>) -> (u32, bool) {
        let index = call.get("index").and_then(Value::as_u64).and_then(|i| u32::try_from(i).ok());
        let id = call.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
        let named = name_of(call).is_some();
        let known = id.and_then(|id| self.by_id.get(id).copied());
        let place = match index {
            Some(index) => match self.by_index.get(&index).copied() {
                Some(place) if !self.begins_at(place, call, id, named) => {
                    self.of_id(known, index).unwrap_or(place)
                }
                None if named || known.is_none() => self.free(index),
                _ => known.unwrap_or(self.next),
            },
            None => known.unwrap_or(if id.is_some() || named { self.next } else { self.last }),
        };
        if let Some(index) = index {
            self.by_index.insert(index, place);
        }
        if let Some(id) = id {
            self.by_id.insert(id.to_owned(), place);
        }
        self.next = self.next.max(place.saturating_add(1));
        self.last = place;
        let begins = !self.by_place.contains_key(&place);
        let entry = self.by_place.entry(place).or_default();
        entry.index = entry.index.or(index);
        if entry.id.is_none() {
            entry.id = id.map(str::to_owned);
        }
        entry.arguments.take(arguments_of(call));
        (place, begins)
    }

    /// The call of an ID, where it came under this index.
    fn of_id(&self, known: Option<u32>, index: u32) -> Option<u32> {
        known.filter(|place| self.by_place.get(place).is_some_and(|call| call.index == Some(index)))
    }

    /// An index as a place, where no other call has it.
    fn free(&self, index: u32) -> u32 {
        if self.by_place.contains_key(&index) { self.next } else { index }
    }

    /// Whether a fragment begins a call under an index that another call has.
    fn begins_at(
        &self,
        place: u32,
        call: &Map<String, Value>,
        id: Option<&str>,
        named: bool,
    ) -> bool {
        let Some(there) = self.by_place.get(&place).filter(|_| named) else { return false };
        match (there.id.as_deref(), id) {
            (Some(its), Some(id)) => its != id,
            _ => there.arguments.whole && arguments_of(call).trim_start().starts_with('{'),
        }
    }
}

/// The name of the function or tool that a fragment calls.
pub(crate) fn name_of(call: &Map<String, Value>) -> Option<&str> {
    let inner = ["function", "custom"].into_iter().filter_map(|kind| call.get(kind)?.get("name"));
    inner.filter_map(Value::as_str).find(|name| !name.is_empty())
}

fn arguments_of(call: &Map<String, Value>) -> &str {
    let arguments = call.get("function").and_then(|function| function.get("arguments"));
    arguments.and_then(Value::as_str).unwrap_or_default()
}

/// How deep in an object a text of JSON has come that is told in fragments.
#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    open: u32,
    in_string: bool,
    escaped: bool,
    /// The object that it began with is closed.
    whole: bool,
}

impl Depth {
    fn take(&mut self, text: &str) {
        for byte in text.bytes() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.open += 1;
                    self.whole = false;
                }
                b'}' | b']' => {
                    self.open = self.open.saturating_sub(1);
                    self.whole = self.open == 0;
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn places(calls: &[Value]) -> Vec<u32> {
        let mut known = Calls::default();
        calls.iter().map(|call| known.place(call.as_object().unwrap()).0).collect()
    }

    #[test]
    fn calls_without_an_index_are_told_apart() {
        let calls = [
            json!({"id": "a", "function": {"name": "f"}}),
            json!({"id": "b", "function": {"name": "f"}}),
            json!({"function": {"arguments": "{"}}),
            json!({"id": "a", "function": {"arguments": "{"}}),
            json!({"custom": {"name": "g"}}),
            json!({"index": 7, "id": "h"}),
            json!({"id": "i"}),
        ];
        assert_eq!(places(&calls), [0, 1, 1, 0, 2, 7, 8]);
    }

    /// Two calls of one index became one, with two objects for arguments.
    #[test]
    fn calls_of_one_index_are_told_apart() {
        let call = |id: Value, name: &str, arguments: &str| json!({"index": 0, "id": id, "function": {"name": name, "arguments": arguments}});
        // Whole calls, with IDs and without.
        for ids in
            [[json!("call_1"), json!("call_2")], [json!(""), json!("")], [Value::Null, Value::Null]]
        {
            let [first, second] = ids;
            let calls = [call(first, "f", "{\"a\":\"}\"}"), call(second, "f", "{\"a\":2}")];
            assert_eq!(places(&calls), [0, 1]);
        }
        // One call whose fragments name it again, with the same ID, and with another each.
        let again = [
            call(json!("x"), "f", ""),
            call(json!("x"), "f", "{\"a\":"),
            call(json!("x"), "f", "{}}"),
        ];
        assert_eq!(places(&again), [0, 0, 0]);
        let unnamed = [call(json!("x"), "f", "{"), call(json!("y"), "", "}")];
        assert_eq!(places(&unnamed), [0, 0]);
        // Fragments behind the second are the second's, but for those that name the first.
        let rest = [
            call(json!("x"), "f", ""),
            call(json!("y"), "g", ""),
            json!({"index": 0, "function": {"arguments": "{}"}}),
            call(json!("x"), "", "{}"),
            json!({"index": 1, "id": "z", "function": {"name": "h"}}),
        ];
        assert_eq!(places(&rest), [0, 1, 1, 0, 2]);
    }
}
