//! Whether anything is to be waited for: the record beside the log, and the reader's cursor.

use tokio::time::Instant;

use super::{
    super::{
        Error, Listen,
        doubt::{self, Doubt, Verdict, Word},
    },
    Follow, Phase,
};
use crate::{
    broker::{self, Record},
    event::{Event, EventId},
};

/// A cursor above the log's last event.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Claim {
    doubt: Option<Doubt>,
    /// The live event that is the reason to look.
    heard: Option<Word>,
}

impl Claim {
    /// Notes a live event at the cursor or below it.
    pub(super) fn hear(&mut self, event: &Event) {
        let word = Word { id: event.id, ends: event.body.is_terminal() };
        if word.ends {
            self.heard = Some(word);
        } else {
            self.heard.get_or_insert(word);
        }
    }
}

/// A job that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Open,
    Over,
}

impl Follow {
    pub(super) fn note(&mut self, record: Option<&Record>) {
        if let Some(record) = record {
            self.missing = None;
            self.known = Some(if record.state.is_terminal() { Known::Over } else { Known::Open });
        }
    }

    /// Whatever the reader has seen, the broker may have forgotten.
    pub(super) fn doubt(&mut self) {
        if self.read_to != EventId::START {
            self.cursor.get_or_insert_default();
        }
    }

    /// Reads a page of the log, or finds out why there is none.
    pub(super) async fn look(&mut self) -> Result<(), Error> {
        let Listen { job, forgotten_after, .. } = self.listen;
        let taken = self.room().await;
        let opened = self.listen.broker.open(job, self.read_to, self.window()).await?;
        self.note(opened.record.as_ref());
        if !opened.page.events.is_empty() {
            self.missing = None;
            let more = self.take(opened.page, Some(taken));
            self.settle(more);
            return Ok(());
        }
        match (opened.record, self.known) {
            (Some(_), Some(Known::Over)) => return self.finish().await,
            (None, Some(Known::Over)) => return Err(Error::Expired(job)),
            (None, Some(Known::Open)) => {
                let since = *self.missing.get_or_insert_with(Instant::now);
                if since.elapsed() >= forgotten_after {
                    return Err(Error::Forgotten(job));
                }
            }
            // One that is expected has no record before it begins.
            (Some(_), _) | (None, None) => {}
        }
        self.settle(false);
        if self.phase == Phase::Fallback && self.cursor.is_some() {
            self.judge().await?;
        }
        Ok(())
    }

    /// The job is over, and the log has nothing behind the cursor: whether the reader may have missed the end,
    /// because the log is gone.
    pub(super) async fn lacks_its_end(&self) -> broker::Result<bool> {
        if self.read_to == EventId::START {
            return Ok(true);
        }
        Ok(self.listen.broker.last(self.listen.job).await?.is_none())
    }

    /// The job is over, and the log has nothing behind the cursor: its end, where the log still has it,
    /// lies at the cursor or below. Where the broker has forgotten the attempt that the reader saw, it is
    /// given the one that has ended the job.
    async fn finish(&mut self) -> Result<(), Error> {
        let job = self.listen.job;
        if let Some(last) = self.listen.broker.last(job).await? {
            if last.fence < self.read_to.fence {
                self.go_back(doubt::attempt_of(last));
                return Ok(());
            }
            let events = self.listen.broker.read(job, last.before(), 1).await?;
            if let Some(end) = events.into_iter().find(|event| event.body.is_terminal()) {
                self.ready = Some(end);
                self.phase = Phase::Live;
                return Ok(());
            }
        }
        Err(Error::Expired(job))
    }

    /// Whether the log holds the reader's cursor; where it never did, the reader goes on from what has come
    /// since.
    pub(super) async fn judge(&mut self) -> broker::Result<()> {
        let Some(Claim { doubt, heard }) = self.cursor else {
            self.settle(true);
            return Ok(());
        };
        let last = self.listen.broker.last(self.listen.job).await?;
        match doubt::judge(self.read_to, doubt, last, heard) {
            Verdict::True => {
                self.cursor = None;
                self.settle(true);
            }
            Verdict::False(from) => {
                self.go_back(from);
            }
            Verdict::Open(doubt) => {
                self.cursor = Some(Claim { doubt: Some(doubt), heard: None });
                self.settle(false);
            }
        }
        Ok(())
    }

    /// The cursor is no event's: reads from there.
    fn go_back(&mut self, to: EventId) {
        self.cursor = None;
        self.read_to = to;
        self.phase = Phase::Replay;
    }

    /// Waits longer and longer between reads, until data or the connection comes back.
    pub(super) async fn poll(&mut self) -> Result<(), Error> {
        let mut delay = self.backoff.next_delay();
        if let Some(since) = self.missing {
            delay = delay.min(self.listen.forgotten_after.saturating_sub(since.elapsed()));
        }
        let Some(subscription) = &mut self.subscription else { return Ok(()) };
        tokio::select! {
            () = tokio::time::sleep(delay) => {
                // Only a read had failed, perhaps, and messages arrive all the same.
                let look = self.look().await;
                self.tried(look)?;
                if !self.queue.is_empty() || self.ready.is_some() {
                    self.backoff.reset();
                }
            }
            _ = subscription.next_link() => {
                self.backoff.reset();
                self.settle(false);
            }
        }
        Ok(())
    }
}
