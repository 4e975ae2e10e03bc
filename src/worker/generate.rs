//! Generates an attempt's answer: reads the upstream and appends what it says, both at once, so
//! that a slow or absent broker never stops the model, up to the bound of the buffer.

use std::{pin::Pin, time::Duration};

use futures_util::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    batch::{Batch, Summary},
    choices::Choices,
    hands::Stop,
    publish::{Over, Publisher},
};
use crate::{
    error::{Code, Failure},
    event::{Body, Chunk},
    job::Job,
    upstream::{Part, Parts},
};

/// How an attempt ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The answer is whole.
    Whole,
    Failed(Failure),
    /// The job was cancelled.
    Cancelled,
}

/// What an attempt came to.
pub(super) struct Ended {
    pub(super) end: End,
    /// Why the first choice ended.
    pub(super) finish_reason: Option<String>,
    pub(super) summary: Summary,
    /// What was gathered and not yet appended.
    pub(super) chunk: Option<Chunk>,
    pub(super) ttft: Option<Duration>,
    pub(super) took: Duration,
}

/// About how many bytes an event may have.
const EVENT: usize = 64 * 1024;

/// The time by which the upstream is to say something.
struct Deadline {
    at: Instant,
    /// What did not happen by then.
    passed: &'static str,
    length: Duration,
    /// The limit's name.
    name: &'static str,
}

impl Deadline {
    fn missed(&self) -> Failure {
        let Self { passed, length, name, .. } = self;
        Failure::new(Code::Timeout, format!("{passed} within {} s ({name})", length.as_secs_f64()))
    }
}

/// An append on its way; it gives the publisher back.
type Appending<'a> =
    Pin<Box<dyn Future<Output = (Box<Publisher<'a>>, Result<(), Over>)> + Send + 'a>>;

/// The publisher, at hand or busy with the one append in flight.
enum Pen<'a> {
    Idle(Box<Publisher<'a>>),
    Busy(Appending<'a>),
    Gone,
}

/// Reads the upstream and appends what it says, both at once.
pub(super) struct Generation<'a> {
    context: &'a Context,
    job: &'a Job,
    stop: &'a Stop,
    pen: Pen<'a>,
    /// Tells the publisher that the answer is at its end.
    last: CancellationToken,
    batch: Batch,
    choices: Choices,
    /// How many choices the caller asked for.
    wanted: usize,
    summary: Summary,
    began: Instant,
    ttft: Option<Duration>,
    heard: Instant,
    /// Every choice that was asked for has a finish reason, and nothing else has come since.
    complete: Option<Instant>,
}

/// How long the endpoint may take, once it has said why the answer ends, to tell its usage and to close.
const GRACE: Duration = Duration::from_secs(3);

impl<'a> Generation<'a> {
    pub(super) fn new(
        context: &'a Context,
        job: &'a Job,
        stop: &'a Stop,
        publisher: Publisher<'a>,
    ) -> Self {
        let now = Instant::now();
        let options = &context.options;
        let model = job.request.model();
        Self {
            context,
            job,
            stop,
            last: publisher.last(),
            pen: Pen::Idle(Box::new(publisher)),
            batch: Batch::new(options.flush_interval, options.flush_bytes, model),
            choices: Choices::default(),
            wanted: job.request.get::<usize>("n").unwrap_or(1).max(1),
            summary: Summary::default(),
            began: now,
            ttft: None,
            heard: now,
            complete: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<(Ended, Box<Publisher<'a>>), Over> {
        let end = match self.generate().await? {
            // What goes wrong behind the end of an answer takes nothing from it.
            End::Whole | End::Failed(_) if self.complete.is_some() => End::Whole,
            End::Whole => self.whole(),
            end => end,
        };
        self.last.cancel();
        let mut publisher = self.rest().await?;
        // A large answer goes out in several events: whoever reads it holds one at a time.
        let mut chunks = self.batch.take().map_or_else(Vec::new, |chunk| chunk.cut(EVENT));
        let last = chunks.pop();
        for chunk in chunks {
            publisher.append(&Body::Delta(chunk)).await?;
        }
        let ended = Ended {
            end,
            finish_reason: self.choices.finish_reason().cloned(),
            summary: self.summary,
            chunk: last,
            ttft: self.ttft,
            took: self.began.elapsed(),
        };
        Ok((ended, publisher))
    }

    /// What the end of the upstream's words is: each choice has a reason, or the endpoint calls the answer whole,
    /// and has said something.
    fn whole(&mut self) -> End {
        if !self.choices.all_finished() {
            if !self.summary.done || self.choices.is_empty() {
                let words = if self.choices.is_empty() {
                    "the answer ended before it began: there is no choice in it"
                } else {
                    "the answer ended without a finish reason; the connection was probably cut"
                };
                return End::Failed(Failure::new(Code::Truncated, words));
            }
            let mut ends = Part { pieces: self.choices.close(), ..Part::default() };
            self.batch.push(&mut ends);
        }
        End::Whole
    }

    /// Waits for the append in flight.
    async fn rest(&mut self) -> Result<Box<Publisher<'a>>, Over> {
        match std::mem::replace(&mut self.pen, Pen::Gone) {
            Pen::Idle(publisher) => Ok(publisher),
            Pen::Busy(append) => {
                let (publisher, result) = append.await;
                result.map(|()| publisher)
            }
            Pen::Gone => Err(Over::Abandoned),
        }
    }

    /// The deadline that comes first. Only the total time counts for a job that does not stream, as it answers
    /// all at once, and while there is no room to read.
    fn deadline(&self, room: bool) -> Deadline {
        let options = &self.context.options;
        let total = options.total_timeout;
        let (total, name) = match self.job.deadline() {
            Some(own) if own < total => (own, "the job's deadline_ms"),
            _ => (total, "worker.total_timeout"),
        };
        if let Some(complete) = self.complete.filter(|_| room) {
            let (passed, name) = ("the answer was not closed", "after its finish reason");
            return Deadline { at: complete + GRACE, passed, length: GRACE, name };
        }
        let (passed, length, own) = if self.ttft.is_some() {
            ("no more of the answer came", options.idle_timeout, "worker.idle_timeout")
        } else {
            ("no first token came", options.first_token_timeout, "worker.first_token_timeout")
        };
        let (end, next) = (self.began + total, self.heard + length);
        if end <= next || !self.job.stream || !room {
            let passed = "the answer was not whole";
            return Deadline { at: end, passed, length: total, name };
        }
        Deadline { at: next, passed, length, name: own }
    }

    /// Calls the upstream and reads it to its end. The outer error ends the attempt without a word.
    async fn generate(&mut self) -> Result<End, Over> {
        let deadline = self.deadline(true);
        let call = self.context.upstream.answer(&self.job.request, self.job.stream);
        let call = tokio::time::timeout_at(deadline.at, call);
        tokio::pin!(call);
        let mut parts = loop {
            tokio::select! {
                result = &mut call => match result {
                    Ok(Ok(parts)) => break parts,
                    Ok(Err(failure)) => return Ok(End::Failed(failure)),
                    Err(_) => return Ok(End::Failed(deadline.missed())),
                },
                end = ended(self.context, self.stop) => return end,
                result = written(&mut self.pen) => result?,
                () = self.stop.look.notified() => self.look(),
            }
        };
        loop {
            if let Some(end) = self.turn(&mut parts).await? {
                return Ok(end);
            }
        }
    }

    /// One step: a part, a flush, the end of an append or a deadline.
    async fn turn(&mut self, parts: &mut Parts) -> Result<Option<End>, Over> {
        // Beyond the bound the upstream waits: what it has said is not thrown away, and its silence
        // is not its own. A whole answer comes at once and goes at once.
        let room = !self.job.stream || self.batch.weight() < self.context.options.buffer_bytes;
        if !room {
            self.heard = Instant::now();
            self.complete = self.complete.map(|_| self.heard);
        }
        let deadline = self.deadline(room);
        let due = self.batch.due().filter(|_| self.job.stream && matches!(self.pen, Pen::Idle(_)));
        let mut part = None;
        tokio::select! {
            biased;
            end = ended(self.context, self.stop) => return end.map(Some),
            result = written(&mut self.pen) => result?,
            () = self.stop.look.notified() => self.look(),
            () = tokio::time::sleep_until(due.unwrap_or(deadline.at)), if due.is_some() => self.flush(),
            next = parts.next(), if room => part = Some(next),
            () = tokio::time::sleep_until(deadline.at) => return Ok(Some(End::Failed(deadline.missed()))),
        }
        match part {
            None => Ok(None),
            Some(None) => Ok(Some(End::Whole)),
            Some(Some(Err(failure))) => Ok(Some(End::Failed(failure))),
            Some(Some(Ok(part))) => {
                let done = part.done;
                self.hear(part);
                Ok(done.then_some(End::Whole))
            }
        }
    }

    fn hear(&mut self, mut part: Part) {
        self.heard = Instant::now();
        part.pieces.iter_mut().for_each(|piece| self.choices.tidy(piece));
        self.summary.note(&part);
        if self.summary.spoke && self.ttft.is_none() {
            self.ttft = Some(self.began.elapsed());
        }
        let says = !part.pieces.is_empty();
        self.batch.push(&mut part);
        let complete = self.choices.all_finished() && self.choices.finished() >= self.wanted;
        if !complete {
            self.complete = None;
        } else if says || self.complete.is_none() {
            self.complete = Some(self.heard);
        }
    }

    /// Starts to append what has gathered.
    fn flush(&mut self) {
        let Some(mut publisher) = self.take_pen() else { return };
        let Some(chunk) = self.batch.take() else {
            self.pen = Pen::Idle(publisher);
            return;
        };
        self.pen = Pen::Busy(Box::pin(async move {
            let mut result = Ok(());
            for chunk in chunk.cut(EVENT) {
                result = publisher.append(&Body::Delta(chunk)).await;
                if result.is_err() {
                    break;
                }
            }
            (publisher, result)
        }));
    }

    /// Starts to see whether the broker still knows of the attempt; an append in flight sees to it itself.
    fn look(&mut self) {
        let Some(mut publisher) = self.take_pen() else { return };
        self.pen = Pen::Busy(Box::pin(async move {
            let result = publisher.look().await;
            (publisher, result)
        }));
    }

    /// The publisher, where nothing is in flight.
    fn take_pen(&mut self) -> Option<Box<Publisher<'a>>> {
        match std::mem::replace(&mut self.pen, Pen::Gone) {
            Pen::Idle(publisher) => Some(publisher),
            other => {
                self.pen = other;
                None
            }
        }
    }
}

/// What ends an attempt from outside: a cancel, another's fence, or the end of the worker.
async fn ended(context: &Context, stop: &Stop) -> Result<End, Over> {
    tokio::select! {
        biased;
        () = stop.fenced.cancelled() => Err(Over::Fenced),
        () = stop.cancel.cancelled() => Ok(End::Cancelled),
        () = context.abandon.cancelled() => Err(Over::Abandoned),
    }
}

/// The end of the append in flight; pending for ever when there is none.
async fn written(pen: &mut Pen<'_>) -> Result<(), Over> {
    let Pen::Busy(append) = pen else { return std::future::pending().await };
    let (publisher, result) = append.await;
    *pen = Pen::Idle(publisher);
    result
}
