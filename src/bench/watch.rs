//! A job as its reader sees it.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};

use super::Error;
use crate::{
    event::{Body, Event},
    job::JobId,
    listener::{self, Listen},
};

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Failed,
    Cancelled,
}

/// What a reader of a job has seen.
pub(super) struct Watch {
    id: JobId,
    events: Pin<Box<dyn Stream<Item = Result<Event, listener::Error>> + Send>>,
    /// The worker of the current attempt.
    pub(super) worker: String,
    /// Which attempt it is, from 1.
    pub(super) attempt: u32,
    /// Deltas of the current attempt.
    pub(super) deltas: u32,
    /// Its text.
    pub(super) text: String,
    /// How the job ended, once it has.
    pub(super) end: Option<End>,
}

impl Watch {
    pub(super) fn new(id: JobId, listen: Listen) -> Self {
        let (worker, text) = (String::new(), String::new());
        Self { id, events: listen.events().boxed(), worker, attempt: 0, deltas: 0, text, end: None }
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> Result<(), Error> {
        let Some(event) = self.events.next().await else {
            return Err(Error::Job { id: self.id, what: "has no end in its log".to_owned() });
        };
        match event?.body {
            Body::Started(started) => {
                (self.worker, self.attempt) = (started.worker, started.attempt);
                self.deltas = 0;
                self.text.clear();
            }
            Body::Delta(chunk) => {
                self.deltas += 1;
                self.text.push_str(&chunk.text());
            }
            Body::Done(_) => self.end = Some(End::Done),
            Body::Cancelled(_) => self.end = Some(End::Cancelled),
            body if body.is_terminal() => self.end = Some(End::Failed),
            _ => {}
        }
        Ok(())
    }

    /// Reads on until it is enough.
    pub(super) async fn until(&mut self, enough: impl Fn(&Self) -> bool) -> Result<(), Error> {
        while !enough(self) {
            self.next().await?;
        }
        Ok(())
    }
}
