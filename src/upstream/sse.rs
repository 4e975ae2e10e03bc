//! Server-sent events out of an answer's bytes, by the parsing rules of the HTML standard (9.2.6), in one pass.
//!
//! Endpoints bend the format, and their answers are read all the same: an event that the end of the body cuts off
//! is handed out, a line that is JSON without a field's name is kept, and a field named `error` is an event of that name. Bytes that
//! are not UTF-8 become U+FFFD, as the standard says, and hold nothing up.

use std::collections::VecDeque;

/// What a body says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// An event: its name, empty for a plain one, and its data, the lines joined by line feeds.
    Event {
        /// The event's name.
        name: String,
        /// The data.
        data: String,
        /// The body ended before the event did.
        cut: bool,
    },
    /// Lines that begin as JSON does, without a field's name.
    Bare(String),
}

/// One event is larger than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Takes a body in pieces, cut anywhere. It looks at each byte once, and keeps no more than one event.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The line that has begun.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed behind it ends no line.
    returned: bool,
    /// No line has ended yet: the first may begin with a byte order mark.
    first: bool,
    name: String,
    /// The data so far, where the event has any.
    data: Option<String>,
    /// Lines of JSON without a field's name.
    bare: String,
    /// Most bytes of an event.
    most: usize,
    items: VecDeque<Item>,
}

impl Decoder {
    /// A decoder of events of at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self {
            line: Vec::new(),
            returned: false,
            first: true,
            name: String::new(),
            data: None,
            bare: String::new(),
            most,
            items: VecDeque::new(),
        }
    }

    /// The next item that is whole.
    pub(super) fn next(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// Takes the body's next bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), TooLarge> {
        if self.returned && !bytes.is_empty() {
            self.returned = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            if self.line.is_empty() {
                self.take(&bytes[..end]);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&bytes[..end]);
                self.take(&line);
                // The buffer goes on: a long line is not collected by growing it anew.
                line.clear();
                self.line = line;
            }
            let ended = bytes[end];
            bytes = &bytes[end + 1..];
            if ended == b'\r' {
                match bytes.first() {
                    Some(b'\n') => bytes = &bytes[1..],
                    Some(_) => {}
                    None => self.returned = true,
                }
            }
        }
        self.line.extend_from_slice(bytes);
        let held = self.line.len() + self.data.as_ref().map_or(0, String::len) + self.bare.len();
        if held > self.most { Err(TooLarge) } else { Ok(()) }
    }

    /// The body is over: an event that was not ended is handed out.
    pub(super) fn end(&mut self) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.take(&line);
        }
        self.dispatch(true);
    }

    /// Takes a line without its end.
    fn take(&mut self, line: &[u8]) {
        let line = if std::mem::take(&mut self.first) {
            line.strip_prefix(BOM).unwrap_or(line)
        } else {
            line
        };
        if line.is_empty() {
            return self.dispatch(false);
        }
        if line[0] == b':' {
            return;
        }
        let line = String::from_utf8_lossy(line);
        if line.trim_start().starts_with(['{', '[']) || self.is_bare(&line) {
            return self.take_bare(&line);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => value.clone_into(&mut self.name),
            "error" => {
                let (name, data) = (field.to_owned(), value.to_owned());
                self.items.push_back(Item::Event { name, data, cut: false });
            }
            _ => {}
        }
    }

    /// Whether a line goes on with the lines of JSON before it.
    fn is_bare(&self, line: &str) -> bool {
        !self.bare.is_empty() && !line.starts_with("data:") && !line.starts_with("event:")
    }

    /// A line of JSON ends an event by itself where it is whole, and else is one of several.
    fn take_bare(&mut self, line: &str) {
        if self.bare.is_empty() && serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok() {
            return self.items.push_back(Item::Bare(line.to_owned()));
        }
        self.bare.push_str(line);
        self.bare.push('\n');
    }

    fn dispatch(&mut self, cut: bool) {
        let name = std::mem::take(&mut self.name);
        if let Some(data) = self.data.take() {
            self.items.push_back(Item::Event { name, data, cut });
        }
        if !self.bare.is_empty() {
            self.items.push_back(Item::Bare(std::mem::take(&mut self.bare)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(pieces: &[&[u8]]) -> Vec<Item> {
        let mut decoder = Decoder::new(usize::MAX);
        for piece in pieces {
            decoder.push(piece).unwrap();
        }
        decoder.end();
        std::iter::from_fn(|| decoder.next()).collect()
    }

    fn event(name: &str, data: &str, cut: bool) -> Item {
        Item::Event { name: name.to_owned(), data: data.to_owned(), cut }
    }

    const BODY: &[u8] = "\u{feff}: hello\r\n\r\ndata: a\rdata:  b\r\r\nid: 7\nretry: 1\nevent: ping\ndata\n\n\
        data:caf\u{e9}\u{1f600}\n\nerror: {\"code\":500}\n\n{\"x\":1}\n{\n \"y\":2\n}\n\nevent: end\n\ndata: last"
        .as_bytes();

    #[test]
    fn a_body_is_read_by_the_rules() {
        let bare = |text: &str| Item::Bare(text.to_owned());
        let expected = [
            event("", "a\n b", false),
            event("ping", "", false),
            event("", "caf\u{e9}\u{1f600}", false),
            event("error", "{\"code\":500}", false),
            bare("{\"x\":1}"),
            bare("{\n \"y\":2\n}\n"),
            event("", "last", true),
        ];
        assert_eq!(items(&[BODY]), expected);
    }

    /// A piece of the network may end anywhere: between CR and LF, in a character, in the byte order mark.
    #[test]
    fn a_cut_changes_nothing_wherever_it_is() {
        let whole = items(&[BODY]);
        for at in 0..=BODY.len() {
            let (head, tail) = BODY.split_at(at);
            assert_eq!(items(&[head, tail]), whole, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = BODY.chunks(1).collect();
        assert_eq!(items(&bytes), whole);
    }

    /// One bad byte held up all the text behind it.
    #[test]
    fn a_byte_that_is_no_text_is_replaced() {
        assert_eq!(items(&[b"data: a\xFFb\n\ndata: c\n\n"])[0], event("", "a\u{fffd}b", false));
    }

    #[test]
    fn an_event_has_a_limit_and_a_body_has_none() {
        let mut decoder = Decoder::new(10);
        for _ in 0..10 {
            decoder.push(b"data: 1\n\n").unwrap();
        }
        assert_eq!(decoder.push(b"data: 12345"), Err(TooLarge));
    }
}
