//! Generates an attempt's answer: reads the upstream and appends what it says, both at once, so
//! that a slow or absent broker never stops the model, up to the bound of the buffer.

use std::{pin::Pin, time::Duration};

use futures_util::StreamExt;
use tokio::time::Instant;

use super::{
    Context,
    batch::{Batch, Summary},
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
    pub(super) summary: Summary,
    /// What was gathered and not yet appended.
    pub(super) chunk: Option<Chunk>,
    pub(super) ttft: Option<Duration>,
    pub(super) took: Duration,
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
    batch: Batch,
    summary: Summary,
    began: Instant,
    ttft: Option<Duration>,
    heard: Instant,
}

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
            pen: Pen::Idle(Box::new(publisher)),
            batch: Batch::new(options.flush_interval, options.flush_bytes, model),
            summary: Summary::default(),
            began: now,
            ttft: None,
            heard: now,
        }
    }

    pub(super) async fn run(mut self) -> Result<(Ended, Box<Publisher<'a>>), Over> {
        let end = match self.generate().await? {
            End::Whole if !self.summary.finished => End::Failed(Failure::new(
                Code::Truncated,
                "the answer ended without a finish reason; the connection was probably cut",
            )),
            end => end,
        };
        let publisher = self.rest().await?;
        let ended = Ended {
            end,
            summary: self.summary,
            chunk: self.batch.take(),
            ttft: self.ttft,
            took: self.began.elapsed(),
        };
        Ok((ended, publisher))
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

    /// The deadline that comes first, and what passing it means. Only the total time counts for a
    /// job that does not stream, as it answers all at once, and while there is no room to read.
    fn deadline(&self, room: bool) -> (Instant, &'static str, Duration) {
        let options = &self.context.options;
        let total = options.total_timeout;
        let total = self.job.deadline().map_or(total, |own| own.min(total));
        let (silence, limit) = if self.ttft.is_some() {
            ("no more of the answer came", options.idle_timeout)
        } else {
            ("no first token came", options.first_token_timeout)
        };
        let (end, next) = (self.began + total, self.heard + limit);
        if end <= next || !self.job.stream || !room {
            (end, "the answer was not whole", total)
        } else {
            (next, silence, limit)
        }
    }

    fn late(what: &str, limit: Duration) -> Failure {
        let text = format!("{what} within {} s", limit.as_secs_f64());
        Failure::new(Code::Timeout, text)
    }

    /// Calls the upstream and reads it to its end. The outer error ends the attempt without a word.
    async fn generate(&mut self) -> Result<End, Over> {
        let (at, what, limit) = self.deadline(true);
        let call = self.context.upstream.answer(&self.job.request, self.job.stream);
        let call = tokio::time::timeout_at(at, call);
        tokio::pin!(call);
        let mut parts = loop {
            tokio::select! {
                result = &mut call => match result {
                    Ok(Ok(parts)) => break parts,
                    Ok(Err(failure)) => return Ok(End::Failed(failure)),
                    Err(_) => return Ok(End::Failed(Self::late(what, limit))),
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
        }
        let (at, what, limit) = self.deadline(room);
        let due = self.batch.due().filter(|_| self.job.stream && matches!(self.pen, Pen::Idle(_)));
        let mut part = None;
        tokio::select! {
            biased;
            end = ended(self.context, self.stop) => return end.map(Some),
            result = written(&mut self.pen) => result?,
            () = self.stop.look.notified() => self.look(),
            () = tokio::time::sleep_until(due.unwrap_or(at)), if due.is_some() => self.flush(),
            next = parts.next(), if room => part = Some(next),
            () = tokio::time::sleep_until(at) => return Ok(Some(End::Failed(Self::late(what, limit)))),
        }
        match part {
            None => Ok(None),
            Some(None) => Ok(Some(End::Whole)),
            Some(Some(Err(failure))) => Ok(Some(End::Failed(failure))),
            Some(Some(Ok(part))) => {
                self.hear(part);
                Ok(None)
            }
        }
    }

    fn hear(&mut self, mut part: Part) {
        self.heard = Instant::now();
        self.summary.note(&part);
        if self.summary.spoke && self.ttft.is_none() {
            self.ttft = Some(self.began.elapsed());
        }
        self.batch.push(&mut part);
    }

    /// Starts to append what has gathered.
    fn flush(&mut self) {
        let Some(mut publisher) = self.take_pen() else { return };
        let Some(chunk) = self.batch.take() else {
            self.pen = Pen::Idle(publisher);
            return;
        };
        self.pen = Pen::Busy(Box::pin(async move {
            let result = publisher.append(&Body::Delta(chunk)).await;
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
