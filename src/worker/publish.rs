//! Writes an attempt's events under its fence: one append in flight, and a frame once made never
//! changes.
//!
//! After an error it is not known whether a frame was written. The log's last ID tells: under the
//! own fence, what is missing is appended; under a higher one, the attempt is over; behind what was
//! acknowledged, or gone, the log is rebuilt from the frames that are kept.

use std::collections::VecDeque;

use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Attempt, Error, Outcome, Result, Shared, Written},
    event::{Body, Codec, Frame, Started},
    retry::Backoff,
};

/// Why nothing more can be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Over {
    /// A higher fence rules, or what the broker has forgotten is no longer kept.
    #[error("fenced")]
    Fenced,
    /// The worker gives up: it must stop.
    #[error("abandoned")]
    Abandoned,
    /// An event could not be encoded, or the broker refuses it for good.
    #[error("{0}")]
    Refused(String),
}

/// The events of one attempt.
pub(super) struct Publisher {
    broker: Shared,
    attempt: Attempt,
    codec: Codec,
    /// Frames from `kept_from` on, the last of them perhaps not acknowledged.
    frames: VecDeque<Frame>,
    bytes: usize,
    most_bytes: usize,
    next_seq: u64,
    /// Frames below this sequence are in the log.
    acknowledged: u64,
    abandon: CancellationToken,
}

impl Publisher {
    /// A publisher for an attempt whose `started` event the broker has written.
    pub(super) fn new(
        broker: Shared,
        attempt: Attempt,
        codec: Codec,
        most_bytes: usize,
        abandon: CancellationToken,
    ) -> std::result::Result<Self, Over> {
        let started =
            Body::Started(Started { attempt: attempt.number, worker: attempt.worker.to_string() });
        let mut publisher = Self {
            broker,
            attempt,
            codec,
            frames: VecDeque::new(),
            bytes: 0,
            most_bytes,
            next_seq: 0,
            acknowledged: 1,
            abandon,
        };
        publisher.keep(&started)?;
        Ok(publisher)
    }

    /// Makes the next frame.
    fn keep(&mut self, body: &Body) -> std::result::Result<(), Over> {
        let frame = Frame::new(self.next_seq, body, self.codec)
            .map_err(|error| Over::Refused(error.to_string()))?;
        self.next_seq += 1;
        self.bytes += frame.bytes.len();
        self.frames.push_back(frame);
        Ok(())
    }

    /// Forgets the oldest acknowledged frames beyond the bound.
    fn forget(&mut self) {
        while self.bytes > self.most_bytes
            && self.frames.front().is_some_and(|frame| frame.seq < self.acknowledged)
        {
            if let Some(frame) = self.frames.pop_front() {
                self.bytes -= frame.bytes.len();
            }
        }
    }

    fn from(&self, seq: u64) -> Vec<Frame> {
        self.frames.iter().filter(|frame| frame.seq >= seq).cloned().collect()
    }

    /// Appends one event. Returns when it is in the log.
    pub(super) async fn append(&mut self, body: &Body) -> std::result::Result<(), Over> {
        self.keep(body)?;
        let first = self.broker.append(&self.attempt, &self.from(self.acknowledged)).await;
        if first.as_ref().is_ok_and(|written| *written == Written::Yes) {
            self.acknowledged = self.next_seq;
        } else {
            self.synchronise(first).await?;
        }
        self.forget();
        Ok(())
    }

    /// Ends the attempt: `chunk`, if there is one, and the last event.
    pub(super) async fn conclude(
        &mut self,
        chunk: Option<Body>,
        last: &Body,
        outcome: &Outcome,
    ) -> std::result::Result<(), Over> {
        if let Some(chunk) = chunk {
            self.keep(&chunk)?;
        }
        self.keep(last)?;
        let frames = self.from(self.acknowledged);
        let mut backoff = Backoff::connecting();
        let mut healed = false;
        loop {
            match self.broker.conclude(&self.attempt, &frames, outcome).await {
                Ok(Written::Yes) => return Ok(()),
                Ok(_) if healed => return Err(Over::Fenced),
                // Fenced, or the broker has forgotten something: healing tells, as it is refused
                // under a higher fence.
                Ok(_) => {
                    healed = true;
                    self.heal(self.acknowledged).await?;
                }
                Err(error) if error.is_transient() => self.pause(&mut backoff, &error).await?,
                Err(error) => return Err(Over::Refused(error.to_string())),
            }
        }
    }

    /// Finds out what is in the log, and appends what is missing.
    async fn synchronise(&mut self, mut met: Result<Written>) -> std::result::Result<(), Over> {
        let mut backoff = Backoff::connecting();
        loop {
            if let Err(error) = &met {
                if !error.is_transient() {
                    return Err(Over::Refused(error.to_string()));
                }
                self.pause(&mut backoff, error).await?;
            }
            met = self.catch_up().await;
            match met {
                Ok(Written::Yes) => {
                    self.acknowledged = self.next_seq;
                    return Ok(());
                }
                Ok(Written::Fenced) => return Err(Over::Fenced),
                _ => {}
            }
        }
    }

    async fn catch_up(&self) -> Result<Written> {
        let last = self.broker.last(self.attempt.job).await?;
        match last {
            Some(id) if id.fence > self.attempt.fence => Ok(Written::Fenced),
            Some(id) if id.fence == self.attempt.fence && id.seq + 1 >= self.acknowledged => {
                let missing = self.from(id.seq + 1);
                if missing.is_empty() {
                    return Ok(Written::Yes);
                }
                self.broker.append(&self.attempt, &missing).await
            }
            _ => self.rebuild(self.next_seq).await,
        }
    }

    /// Writes again the kept frames below `end`.
    async fn rebuild(&self, end: u64) -> Result<Written> {
        if self.frames.front().is_some_and(|frame| frame.seq > 0) {
            tracing::warn!(job = %self.attempt.job, "log lost beyond what is kept");
            return Ok(Written::Fenced);
        }
        tracing::warn!(job = %self.attempt.job, "log rebuilt from memory");
        let frames: Vec<Frame> =
            self.frames.iter().filter(|frame| frame.seq < end).cloned().collect();
        self.broker.heal(&self.attempt, &frames).await
    }

    async fn heal(&self, end: u64) -> std::result::Result<(), Over> {
        let mut backoff = Backoff::connecting();
        loop {
            match self.rebuild(end).await {
                Ok(Written::Yes) => return Ok(()),
                Ok(_) => return Err(Over::Fenced),
                Err(error) if error.is_transient() => self.pause(&mut backoff, &error).await?,
                Err(error) => return Err(Over::Refused(error.to_string())),
            }
        }
    }

    async fn pause(&self, backoff: &mut Backoff, error: &Error) -> std::result::Result<(), Over> {
        tracing::warn!(job = %self.attempt.job, %error, "events kept until the broker is back");
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => Ok(()),
            () = self.abandon.cancelled() => Err(Over::Abandoned),
        }
    }
}
