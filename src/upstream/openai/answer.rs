//! The body of an answer, as parts.
//!
//! The first byte tells the form: JSON, whatever was asked for and whatever the header says, or an event stream.
//! Every piece of the body becomes at least one part, were it an empty one: bytes are a sign of life.

use std::{collections::VecDeque, pin::Pin};

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use reqwest::{Response, header};

use super::{chunk, fault};
use crate::{
    error::{Code, Failure},
    upstream::{
        Part, Parts, json,
        sse::{Decoder, Item, TooLarge},
    },
};

/// What ends a stream.
const DONE: &str = "[DONE]";

type Pieces = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// The parts of a response's body. Neither a whole body of JSON nor one event may have more than `most` bytes.
pub(super) fn parts(response: Response, most: usize) -> Parts {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // What the HTTP client unpacks has lost this header.
    let coding = response.headers().get(header::CONTENT_ENCODING);
    let coding =
        coding.and_then(|coding| coding.to_str().ok()).filter(|coding| *coding != "identity");
    let packed = coding.map(|coding| {
        let words = format!(
            "the model's endpoint compresses its answer as `{coding}`, which nobody asked for"
        );
        Failure::new(Code::UpstreamProtocol, words)
    });
    let reader = Reader {
        kind: kind.unwrap_or_default().to_ascii_lowercase(),
        // The HTTP client takes a body for broken that is shorter.
        sized: response.headers().contains_key(header::CONTENT_LENGTH),
        body: Some(Box::pin(response.bytes_stream())),
        form: Form::Unknown,
        most,
        heard: false,
        parts: VecDeque::new(),
    };
    if let Some(failure) = packed {
        return Box::pin(stream::iter([Err(failure)]));
    }
    Box::pin(stream::unfold(reader, async |mut reader| {
        let part = reader.next().await?;
        if part.is_err() {
            reader.stop();
        }
        Some((part, reader))
    }))
}

/// How a body is written.
#[derive(Debug)]
enum Form {
    /// Nothing but blanks has come.
    Unknown,
    Json(Vec<u8>),
    Events(Box<Decoder>),
}

struct Reader {
    /// The content type as it was declared.
    kind: String,
    /// The body's length was declared.
    sized: bool,
    /// The rest of the body; `None` when it is over.
    body: Option<Pieces>,
    form: Form,
    most: usize,
    /// An event came.
    heard: bool,
    /// Parts that are read and not handed out.
    parts: VecDeque<Result<Part, Failure>>,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Part, Failure>> {
        if let Some(part) = self.parts.pop_front() {
            return Some(part);
        }
        let piece = self.body.as_mut()?.next().await;
        match piece {
            Some(Ok(bytes)) => self.take(&bytes),
            Some(Err(error)) => self.parts.push_back(Err(fault::of_broken(&error))),
            None => self.end(),
        }
        // A piece that tells nothing is a sign of life; an end that tells nothing is none.
        let silent = self.body.is_some().then(|| Ok(Part::default()));
        self.parts.pop_front().or(silent)
    }

    /// Nothing more is read.
    fn stop(&mut self) {
        self.body = None;
        self.parts.clear();
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if matches!(self.form, Form::Unknown) {
            let begun = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
            let Some(begun) = begun else { return };
            match bytes[begun] {
                b'{' | b'[' if !self.kind.starts_with("text/event-stream") => {
                    self.form = Form::Json(Vec::new());
                }
                b'<' => return self.fail(self.unreadable()),
                _ => self.form = Form::Events(Box::new(Decoder::new(self.most))),
            }
            bytes = &bytes[begun..];
        }
        let fits = match &mut self.form {
            Form::Json(whole) => {
                whole.extend_from_slice(bytes);
                whole.len() <= self.most
            }
            Form::Events(decoder) => !matches!(decoder.push(bytes), Err(TooLarge)),
            Form::Unknown => true,
        };
        self.take_events();
        if !fits {
            self.fail(fault::too_large(self.most));
        }
    }

    /// The end of the body, which nothing has announced.
    fn end(&mut self) {
        self.body = None;
        match &mut self.form {
            Form::Unknown => {}
            Form::Json(whole) => {
                let text = String::from_utf8_lossy(whole).into_owned();
                self.form = Form::Unknown;
                self.take_json(&text);
                self.parts.push_back(Ok(Part { done: true, ..Part::default() }));
            }
            Form::Events(decoder) => {
                decoder.end();
                self.take_events();
                if !self.heard && !self.kind.starts_with("text/event-stream") {
                    self.fail(self.unreadable());
                } else if self.sized {
                    self.parts.push_back(Ok(Part { done: true, ..Part::default() }));
                }
            }
        }
    }

    fn take_events(&mut self) {
        loop {
            let Form::Events(decoder) = &mut self.form else { return };
            let Some(item) = decoder.next() else { return };
            self.heard = true;
            match item {
                Item::Bare(text) => self.take_json(&text),
                Item::Event { name, data, cut } => self.take_event(&name, data.trim(), cut),
            }
        }
    }

    fn take_event(&mut self, name: &str, data: &str, cut: bool) {
        match (name, data) {
            (_, "" | "null") | ("ping" | "heartbeat" | "keepalive" | "keep-alive", _) => {}
            (_, DONE) => self.done(),
            ("error", _) => {
                let value = json::read(data).ok().and_then(|values| values.into_iter().next());
                let error = value.unwrap_or_else(|| data.into());
                let inner = error.get("error").unwrap_or(&error);
                self.parts.push_back(Err(fault::of_object(inner)));
            }
            _ => match json::read(data) {
                Ok(values) => self.parts.extend(values.into_iter().flat_map(chunk::parts)),
                // The end of the body is the end of it.
                Err(_) if cut => {}
                Err(_) if data.ends_with(DONE) => {
                    // Events that no blank line parts.
                    let lines: Vec<&str> = data.lines().collect();
                    for line in lines {
                        self.take_event(name, line.trim(), cut);
                    }
                }
                Err(error) => {
                    let words = format!("a chunk of the answer cannot be read: {error}");
                    self.parts.push_back(Err(Failure::new(Code::UpstreamProtocol, words)));
                }
            },
        }
    }

    fn take_json(&mut self, text: &str) {
        match json::read(text) {
            Ok(values) => self.parts.extend(values.into_iter().flat_map(chunk::parts)),
            Err(error) if error.is_eof() => {
                let words = "the answer ended in the middle; the connection was probably cut";
                self.parts.push_back(Err(Failure::new(Code::Truncated, words)));
            }
            Err(error) => {
                let words = format!("the model's endpoint sent what is not JSON: {error}");
                self.parts.push_back(Err(Failure::new(Code::UpstreamProtocol, words)));
            }
        }
    }

    /// The endpoint says that this is all. The end of the body is read with it where it is there, so that the
    /// connection can be used again.
    fn done(&mut self) {
        if let Some(mut body) = self.body.take() {
            let _ = body.next().now_or_never();
        }
        self.form = Form::Unknown;
        self.parts.push_back(Ok(Part { done: true, ..Part::default() }));
    }

    fn fail(&mut self, failure: Failure) {
        self.parts.push_back(Err(failure));
    }

    fn unreadable(&self) -> Failure {
        let kind = if self.kind.is_empty() { "an unknown content type" } else { &self.kind };
        let words = format!(
            "the model's endpoint answers with a page ({kind}), not with an answer: check upstream.base_url, which \
             ends with the version, such as …/v1"
        );
        Failure::new(Code::UpstreamProtocol, words)
    }
}
