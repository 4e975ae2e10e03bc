//! Writes an attempt's events under its fence: one append in flight, and a frame once made never
//! changes.
//!
//! After an error it is not known whether a frame was written, and after a new connection it is not
//! known whether the broker still has what it acknowledged. The log's last ID tells: under the own
//! fence, what is missing is appended; under a higher one, the attempt is over; behind what was
//! acknowledged, or gone, the log is rebuilt from the frames that are kept.

use std::collections::VecDeque;

use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Attempt, Entry, Error, Outcome, Shared, Written},
    event::{Body, Codec, Frame, Started},
    retry::Backoff,
};

/// Why nothing more can be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Over {
    /// A higher fence rules.
    #[error("fenced")]
    Fenced,
    /// The broker has forgotten more of the answer than is kept: the job is to start again.
    #[error("the log lost more than is kept")]
    Lost,
    /// The job is to be cancelled: nothing else may end it.
    #[error("cancelled")]
    Cancelled,
    /// The worker gives up: it must stop.
    #[error("abandoned")]
    Abandoned,
    /// An event cannot be encoded.
    #[error("{0}")]
    Unspeakable(String),
}

/// The events of one attempt.
pub(super) struct Publisher<'a> {
    broker: Shared,
    /// What the attempt runs: all that there is to know of a job whose record is forgotten.
    entry: &'a Entry,
    attempt: Attempt,
    codec: Codec,
    /// Frames from `kept_from` on, the last of them perhaps not acknowledged.
    frames: VecDeque<Frame>,
    bytes: usize,
    most_bytes: usize,
    next_seq: u64,
    /// Frames below this sequence are in the log.
    acknowledged: u64,
    /// The answer is at its end: a chunk that the broker refuses goes with the last event.
    last: CancellationToken,
    abandon: CancellationToken,
}

impl<'a> Publisher<'a> {
    /// A publisher for an attempt whose `started` event the broker has written.
    pub(super) fn new(
        broker: Shared,
        entry: &'a Entry,
        attempt: Attempt,
        codec: Codec,
        most_bytes: usize,
        abandon: CancellationToken,
    ) -> std::result::Result<Self, Over> {
        let started =
            Body::Started(Started { attempt: attempt.number, worker: attempt.worker.to_string() });
        let mut publisher = Self {
            broker,
            entry,
            attempt,
            codec,
            frames: VecDeque::new(),
            bytes: 0,
            most_bytes,
            next_seq: 0,
            acknowledged: 1,
            last: CancellationToken::new(),
            abandon,
        };
        publisher.keep(&started)?;
        Ok(publisher)
    }

    /// Cancelling it says that nothing more comes but the last event. A full server refuses chunks, and
    /// takes them with that: a chunk that it refuses then is kept for the end, and not tried again.
    pub(super) fn last(&self) -> CancellationToken {
        self.last.clone()
    }

    /// The broker's session under which the log was last seen whole.
    pub(super) fn session(&self) -> u64 {
        self.attempt.session
    }

    /// Makes the next frame.
    fn keep(&mut self, body: &Body) -> std::result::Result<(), Over> {
        let frame = Frame::new(self.next_seq, body, self.codec)
            .map_err(|error| Over::Unspeakable(error.to_string()))?;
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

    /// Sees whether the broker still has what it acknowledged, where it may have forgotten something.
    pub(super) async fn look(&mut self) -> std::result::Result<(), Over> {
        if self.attempt.session == self.broker.session() { Ok(()) } else { self.verify().await }
    }

    /// Appends one event. Returns when it is in the log, or kept for the last event, which is about to come.
    pub(super) async fn append(&mut self, body: &Body) -> std::result::Result<(), Over> {
        self.keep(body)?;
        let mut backoff = Backoff::connecting();
        while self.acknowledged < self.next_seq {
            let frames = self.from(self.acknowledged);
            match self.broker.append(&self.attempt, &frames).await {
                Ok(Written::Yes) => self.acknowledged = self.next_seq,
                Ok(_) => self.verify().await?,
                Err(error) => {
                    let last = self.last.clone();
                    tokio::select! {
                        paused = self.pause(&mut backoff, &error) => paused?,
                        () = last.cancelled() => {}
                    }
                    // The server may have taken it, and lost its reply.
                    self.verify().await?;
                    if last.is_cancelled() {
                        return Ok(());
                    }
                }
            }
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
        let first = self.acknowledged;
        if let Some(chunk) = chunk {
            self.keep(&chunk)?;
        }
        self.keep(last)?;
        let frames = self.from(first);
        let mut backoff = Backoff::connecting();
        let mut refusals = 0;
        loop {
            let session = self.attempt.session;
            match self.broker.conclude(&self.attempt, &frames, outcome).await {
                Ok(Written::Yes) => return Ok(()),
                // A log that was just seen whole, and is refused again and again, is another's.
                Ok(_) if refusals == 3 => return Err(Over::Fenced),
                Ok(Written::Cancelled) => {
                    // It was not written, so it may change: the chunk stays, the end does not.
                    if let Some(last) = self.frames.pop_back() {
                        self.next_seq -= 1;
                        self.bytes -= last.bytes.len();
                    }
                    return Err(Over::Cancelled);
                }
                Ok(Written::Fenced) => self.contest(first).await?,
                Ok(Written::Behind | Written::Missing) => self.verify().await?,
                Err(error) => {
                    self.pause(&mut backoff, &error).await?;
                    continue;
                }
            }
            // On a new connection nothing was sent, and nothing refused.
            refusals += u32::from(session == self.attempt.session);
        }
    }

    /// Finds out what is in the log, and writes again what is missing of what was acknowledged.
    async fn verify(&mut self) -> std::result::Result<(), Over> {
        let mut backoff = Backoff::connecting();
        loop {
            // Taken before the reading: what is forgotten in between counts as a later session.
            let session = self.broker.session();
            match self.broker.last(self.attempt.job).await {
                Ok(Some(id)) if id.fence > self.attempt.fence => return Err(Over::Fenced),
                Ok(Some(id))
                    if id.fence == self.attempt.fence && id.seq + 1 >= self.acknowledged =>
                {
                    if id.seq >= self.next_seq {
                        return Err(Over::Fenced);
                    }
                    self.acknowledged = id.seq + 1;
                    self.attempt.session = session;
                    return Ok(());
                }
                Ok(_) => {
                    self.heal(self.acknowledged).await?;
                    self.attempt.session = session;
                    return Ok(());
                }
                Err(error) => self.pause(&mut backoff, &error).await?,
            }
        }
    }

    /// The record knows another fence: a higher one, or none where the broker has forgotten this.
    async fn contest(&self, end: u64) -> std::result::Result<(), Over> {
        let mut backoff = Backoff::connecting();
        loop {
            match self.broker.last(self.attempt.job).await {
                Ok(Some(id)) if id.fence > self.attempt.fence => return Err(Over::Fenced),
                Ok(_) => return self.heal(end).await,
                Err(error) => self.pause(&mut backoff, &error).await?,
            }
        }
    }

    /// Writes again the kept frames below `end`, and the record with them.
    async fn heal(&self, end: u64) -> std::result::Result<(), Over> {
        if self.frames.front().is_none_or(|frame| frame.seq > 0) {
            return Err(Over::Lost);
        }
        let frames: Vec<Frame> =
            self.frames.iter().filter(|frame| frame.seq < end).cloned().collect();
        let mut backoff = Backoff::connecting();
        loop {
            match self.broker.heal(&self.attempt, self.entry, &frames).await {
                Ok(Written::Yes) => {
                    tracing::warn!(job = %self.attempt.job, "log rebuilt from memory");
                    return Ok(());
                }
                Ok(_) => return Err(Over::Fenced),
                Err(error) => self.pause(&mut backoff, &error).await?,
            }
        }
    }

    /// Waits before another try. Whatever the error, the answer is kept: a broker that refuses for
    /// good needs an operator's hand, and the answer is paid for.
    async fn pause(&self, backoff: &mut Backoff, error: &Error) -> std::result::Result<(), Over> {
        let job = self.attempt.job;
        if error.is_transient() {
            tracing::warn!(%job, %error, "events kept until the broker is back");
        } else {
            tracing::error!(%job, %error, "events kept until the broker takes them");
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => Ok(()),
            () = self.abandon.cancelled() => Err(Over::Abandoned),
        }
    }
}
