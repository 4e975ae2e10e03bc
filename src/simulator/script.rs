//! A streamed answer: first as a script of steps, computed as they are needed, then as the body
//! that performs them.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, REASONING};
use super::fault::Kind;
use super::tally::Open;
use super::wire::{
    Choice, Chunk, DONE, Delta, FINGERPRINT, Function, Refusal, ToolCall, Usage, frame,
};

/// The longest fragment of a tool call's arguments, in characters.
const FRAGMENT: usize = 4;

/// One step of a streamed answer.
#[derive(Debug)]
enum Step {
    /// Wait until this long after the request's arrival.
    Wait(Duration),
    Send(Bytes),
    /// Keep the connection open and say nothing.
    Hold,
    /// Break the connection.
    Break,
}

/// The steps of one answer.
#[derive(Debug)]
pub(super) struct Script {
    answer: Answer,
    /// The steps already known.
    steps: VecDeque<Step>,
    /// The next token.
    next: u32,
    /// Where the fault comes, while it is still to come.
    fault: Option<(u32, Kind)>,
    opened: bool,
    over: bool,
}

impl Script {
    pub(super) fn new(answer: Answer) -> Self {
        let fault =
            answer.fault.and_then(|fault| Some((fault.after()?.min(answer.tokens), fault.kind)));
        Self { answer, steps: VecDeque::new(), next: 0, fault, opened: false, over: false }
    }

    /// The next step, or `None` at the end. Stops at the fault unless the answer goes on behind it.
    fn step(&mut self) -> Option<Step> {
        while self.steps.is_empty() && !self.over {
            self.plan();
        }
        self.steps.pop_front()
    }

    /// Whether the last step has been taken.
    fn ended(&self) -> bool {
        self.over && self.steps.is_empty()
    }

    fn plan(&mut self) {
        if let Some((at, kind)) = self.fault.take_if(|(at, _)| *at == self.next) {
            return self.fail(at, kind);
        }
        if !self.opened {
            self.opened = true;
            return self.open();
        }
        let last = self.fault.map_or(self.answer.tokens, |(at, _)| at);
        let until = self.next.saturating_add(self.answer.burst).min(last);
        if self.next < until { self.say(until) } else { self.close() }
    }

    /// The role and, when asked for, the reasoning. They arrive with the first token.
    fn open(&mut self) {
        self.steps.push_back(Step::Wait(self.answer.due(0)));
        for index in 0..self.answer.choices {
            let id = self.answer.call_id(index);
            let delta = match &self.answer.tool {
                Some(name) => {
                    let function = Function { name: Some(name), arguments: "" };
                    let call = ToolCall {
                        index: Some(0),
                        id: Some(&id),
                        kind: Some("function"),
                        function,
                    };
                    Delta::ToolOpening { role: "assistant", content: (), tool_calls: [call] }
                }
                None => Delta::Opening { role: "assistant", content: "" },
            };
            let opening = self.chunk(index, delta, None);
            self.steps.push_back(opening);
        }
        let reasoning: &[&'static str] = if self.answer.extra { &REASONING } else { &[] };
        for reasoning_content in reasoning {
            for index in 0..self.answer.choices {
                let thought = self.chunk(index, Delta::Reasoning { reasoning_content }, None);
                self.steps.push_back(thought);
            }
        }
    }

    /// The tokens up to `until`, for every choice in turn.
    fn say(&mut self, until: u32) {
        let from = std::mem::replace(&mut self.next, until);
        self.steps.push_back(Step::Wait(self.answer.due(from)));
        for index in 0..self.answer.choices {
            if self.answer.tool.is_none() {
                let piece = self.answer.text(index).piece(from, until);
                let chunk = self.chunk(index, Delta::Text { content: &piece }, None);
                self.steps.push_back(chunk);
                continue;
            }
            let arguments = self.answer.arguments(index, from, until);
            for fragment in fragments(&arguments) {
                let chunk = self.chunk(index, continued(fragment), None);
                self.steps.push_back(chunk);
            }
        }
    }

    fn close(&mut self) {
        for index in 0..self.answer.choices {
            if self.answer.tool.is_some() && self.answer.tokens == 0 {
                let arguments = self.answer.arguments(index, 0, 0);
                let whole = self.chunk(index, continued(&arguments), None);
                self.steps.push_back(whole);
            }
            let end = self.chunk(index, Delta::End {}, Some(self.answer.finish()));
            self.steps.push_back(end);
        }
        if self.answer.include_usage {
            self.steps.push_back(self.send(&[], Some(self.answer.usage())));
        }
        self.steps.push_back(Step::Send(DONE));
        self.over = true;
    }

    fn fail(&mut self, at: u32, kind: Kind) {
        self.over = !matches!(kind, Kind::Malformed(_));
        if !matches!(kind, Kind::Silence(_)) {
            self.steps.push_back(Step::Wait(self.answer.due(at)));
        }
        match kind {
            Kind::Drop(_) => self.steps.push_back(Step::Break),
            Kind::Silence(_) => self.steps.push_back(Step::Hold),
            Kind::Error(_) => self.steps.push_back(Step::Send(frame(&told().body()))),
            Kind::Malformed(_) => {
                let broken =
                    format!("data: {{\"id\":\"{}\",\"choices\":[{{\"delta\":\n\n", self.answer.id);
                self.steps.push_back(Step::Send(Bytes::from(broken)));
            }
            Kind::Truncate(_) | Kind::Status(..) => {}
        }
    }

    fn chunk(&self, index: u32, delta: Delta<'_>, finish_reason: Option<&'static str>) -> Step {
        let pending = self.answer.include_usage.then_some(Usage::Pending);
        self.send(&[Choice { index, delta, logprobs: (), finish_reason }], pending)
    }

    fn send(&self, choices: &[Choice<'_>], usage: Option<Usage>) -> Step {
        Step::Send(frame(&Chunk {
            id: &self.answer.id,
            object: "chat.completion.chunk",
            created: self.answer.created,
            model: &self.answer.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
            x_vendor: self.answer.vendor(),
        }))
    }
}

/// The error that a request asked for.
pub(super) fn told() -> Refusal {
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the simulator fails here because it was told to",
    )
}

/// A few more characters of a tool call's arguments.
fn continued(arguments: &str) -> Delta<'_> {
    let function = Function { name: None, arguments };
    Delta::Arguments { tool_calls: [ToolCall { index: Some(0), id: None, kind: None, function }] }
}

/// Cuts a text into fragments of at most [`FRAGMENT`] characters.
fn fragments(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest.char_indices().nth(FRAGMENT).map_or(rest.len(), |(end, _)| end);
        let (fragment, others) = rest.split_at(end);
        rest = others;
        (!fragment.is_empty()).then_some(fragment)
    })
}

/// What performs a script: the clock, the counts, and the two ways in which a simulator stops.
pub(super) struct Stage {
    /// The request's arrival.
    pub(super) start: Instant,
    pub(super) open: Open,
    /// No new requests; whatever would stay silent for ever ends.
    pub(super) shutdown: CancellationToken,
    /// The time for unfinished answers is over.
    pub(super) halt: CancellationToken,
}

impl Stage {
    /// Waits until `offset` after the request's arrival.
    ///
    /// # Errors
    ///
    /// When the simulator halts before; the connection is to be broken.
    pub(super) async fn wait(&self, offset: Duration) -> io::Result<()> {
        let due = self.start + offset;
        if due <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            () = self.halt.cancelled() => Err(broken()),
            () = sleep_until(due) => Ok(()),
        }
    }
}

/// What makes hyper break the connection instead of ending the body.
fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the simulator breaks this connection")
}

/// The body that performs the script.
pub(super) fn perform(script: Script, stage: Stage) -> Body {
    let faulted = script.fault.is_some();
    Body::from_stream(stream::unfold(Some((script, stage)), move |state| async move {
        let (mut script, mut stage) = state?;
        match next(&mut script, &mut stage, faulted).await? {
            Ok(bytes) => Some((Ok(bytes), Some((script, stage)))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

async fn next(script: &mut Script, stage: &mut Stage, faulted: bool) -> Option<io::Result<Bytes>> {
    loop {
        let step = script.step();
        // Counted before the last bytes leave: whoever has read them finds the answer in the
        // statistics.
        if script.ended() && !matches!(step, Some(Step::Hold | Step::Wait(_))) {
            stage.open.end(faulted);
        }
        match step? {
            Step::Wait(offset) => {
                if let Err(error) = stage.wait(offset).await {
                    return Some(Err(error));
                }
            }
            Step::Send(bytes) => return Some(Ok(bytes)),
            Step::Hold => {
                stage.shutdown.cancelled().await;
                return Some(Err(broken()));
            }
            Step::Break => {
                // hyper flushes what was sent before only when the body has nothing ready.
                tokio::task::yield_now().await;
                return Some(Err(broken()));
            }
        }
    }
}

/// The body of an answer that does not stream, cut in the middle: by a break of the connection, or
/// as if it were whole.
pub(super) fn cut_short(answer: &Answer, breaks: bool) -> Body {
    let mut whole = answer.completion().to_string().into_bytes();
    whole.truncate(whole.len() / 2);
    if !breaks {
        return Body::from(whole);
    }
    let pieces = stream::unfold(Some(whole), |half| async {
        let half = half?;
        if half.is_empty() {
            tokio::task::yield_now().await;
            return Some((Err(broken()), None));
        }
        Some((Ok(Bytes::from(half)), Some(Vec::new())))
    });
    Body::from_stream(pieces)
}

/// A body that is not JSON.
pub(super) fn malformed(answer: &Answer) -> Body {
    Body::from(json!({"id": answer.id}).to_string().replace('}', ",\"choices\":[{"))
}
