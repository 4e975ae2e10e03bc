//! The listener: follows a job's events, live or replayed, for any number of readers.
//!
//! One subscriber connection serves the process, one subscription serves a job however many
//! readers it has. A reader subscribes, replays the log from its cursor, and then follows the live
//! messages; whenever these may have a gap it reads the log again from its cursor. The log is the
//! truth: what a reader sees is exactly what the log holds, in order, once.

mod doubt;
mod follow;
mod hub;
mod live;
mod room;
mod text;

use std::time::Duration;

use futures_util::Stream;
pub use hub::{Heard, Hub, Link, Subscription};
pub use room::Room;
use serde::{Deserialize, Serialize};
pub use text::{Answer, Text};

use crate::{
    broker::{self, Record, Shared},
    event::{Event, EventId},
    job::{JobId, Tenant},
};

/// How a listener behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How often the subscriber connection is asked whether it lives.
    #[serde(with = "humantime_serde")]
    pub ping: Duration,
    /// Most bytes that wait for one reader, read from the log or heard live: a slow one is given the rest
    /// from the log. One event that is larger passes alone.
    pub buffer_bytes: usize,
    /// Most events read from the log at once.
    pub page: usize,
    /// How long a reader waits for the next event, unless it says otherwise.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long a job's record may be missing before its readers are told that the job is forgotten. A
    /// worker that runs the job writes the record again together with its next words.
    #[serde(with = "humantime_serde")]
    pub forgotten_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(30),
            buffer_bytes: 32 * 1024,
            page: 512,
            idle_timeout: Duration::from_secs(120),
            forgotten_after: Duration::from_secs(30),
        }
    }
}

/// Why a reader's stream broke off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such job, or it has expired.
    #[error("no job {0}: it never existed, or its record has expired")]
    NotFound(JobId),
    /// The job's record was there, and is gone before the job has come to an end: the broker has lost or
    /// evicted it, or has come back without it. A reader looks for the record whenever it connects again
    /// and whenever the log has nothing more for it; it waits `forgotten_after` for a worker that
    /// still runs the job and writes it again. Every way of reading ends with this error
    /// ([`Listen::events`], [`Listen::text`], [`Listen::answer`]).
    #[error(
        "job {0} is forgotten: its record is gone before the job has ended, and no worker has written \
         it again; enqueue the job once more"
    )]
    Forgotten(JobId),
    /// The job has ended, and its events are gone before this reader has read them all, as far as can be told.
    #[error("the events of job {0} have expired before they were read to the end")]
    Expired(JobId),
    /// No event came for that long.
    #[error("no event for {}; the job goes on, listen again to follow it", secs(*.0))]
    Idle(Duration),
    /// The time allowed for the whole stream is over.
    #[error("not over after {}; the job goes on, listen again to follow it", secs(*.0))]
    Timeout(Duration),
    /// The broker refused, or could not be reached at the start.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

fn secs(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

impl Error {
    /// A name that does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "job_not_found",
            Self::Forgotten(_) => "job_forgotten",
            Self::Expired(_) => "events_expired",
            Self::Idle(_) => "listen_idle",
            Self::Timeout(_) => "listen_timeout",
            Self::Broker(error) => error.code(),
        }
    }
}

/// Follows jobs. Clones share the subscriber connection.
#[derive(Debug, Clone)]
pub struct Listener {
    broker: Shared,
    hub: Hub,
    options: Options,
}

impl Listener {
    /// A listener on `broker`. The connection is opened by the first reader. Must be called within
    /// a tokio runtime.
    pub fn new(broker: Shared, options: Options) -> Self {
        let hub = Hub::new(broker.clone(), options.ping, options.buffer_bytes);
        Self { broker, hub, options }
    }

    /// The process's one subscriber connection, for a worker beside this listener.
    pub fn hub(&self) -> Hub {
        self.hub.clone()
    }

    /// Room for what waits for one reader. Whoever follows many jobs for one reader gives them all the same
    /// ([`Listen::within`]).
    pub fn room(&self) -> Room {
        Room::new(self.options.buffer_bytes)
    }

    /// Prepares to follow a job from its first event.
    pub fn listen(&self, job: JobId) -> Listen {
        Listen {
            broker: self.broker.clone(),
            hub: self.hub.clone(),
            job,
            after: EventId::START,
            page: self.options.page.max(1),
            room: self.room(),
            idle_timeout: Some(self.options.idle_timeout),
            timeout: None,
            forgotten_after: self.options.forgotten_after,
            expected: false,
            tenant: None,
        }
    }
}

/// A reader about to begin.
#[derive(Debug, Clone)]
pub struct Listen {
    broker: Shared,
    hub: Hub,
    job: JobId,
    after: EventId,
    page: usize,
    room: Room,
    idle_timeout: Option<Duration>,
    timeout: Option<Duration>,
    forgotten_after: Duration,
    expected: bool,
    tenant: Option<Tenant>,
}

impl Listen {
    /// Starts after this event, the last one that the reader saw.
    #[must_use]
    pub fn after(self, event: EventId) -> Self {
        Self { after: event, ..self }
    }

    /// Keeps what waits for the reader in this room, which it shares with other jobs that the reader follows:
    /// all of them must be polled, as each waits until there is room.
    #[must_use]
    pub fn within(self, room: Room) -> Self {
        Self { room, ..self }
    }

    /// Breaks off when no event comes for this long; `None` waits for ever.
    #[must_use]
    pub fn idle_timeout(self, limit: impl Into<Option<Duration>>) -> Self {
        Self { idle_timeout: limit.into(), ..self }
    }

    /// Breaks off after this long, whatever comes.
    #[must_use]
    pub fn timeout(self, limit: impl Into<Option<Duration>>) -> Self {
        Self { timeout: limit.into(), ..self }
    }

    /// Waits for a job that has no record yet instead of answering [`Error::NotFound`]: one that
    /// was added by a plain `XADD` has none until it begins.
    #[must_use]
    pub fn expected(self) -> Self {
        Self { expected: true, ..self }
    }

    /// Answers [`Error::NotFound`] where the job is not this tenant's, or where that cannot be told:
    /// somebody else's job does not exist.
    #[must_use]
    pub fn owned_by(self, tenant: Tenant) -> Self {
        Self { tenant: Some(tenant), ..self }
    }

    /// Subscribes and reads the first page of the log, in the one round trip that every reader needs,
    /// so that a web handler knows what to answer before it begins to.
    pub async fn open(self) -> Result<Following, Error> {
        let mut follow = follow::Follow::new(self);
        let record = follow.open().await?;
        Ok(Following { follow, record })
    }

    /// The job's events. The stream ends after the terminal event; it is empty when `after` is at
    /// or above that one. Where the job is over and its log is gone, nobody can tell what the reader has
    /// missed: the stream is [`Error::Expired`].
    pub fn events(self) -> impl Stream<Item = Result<Event, Error>> + Send + Unpin {
        follow::Follow::new(self).into_stream()
    }

    /// The answer's text, with explicit resets where an attempt starts over.
    pub fn text(self) -> impl Stream<Item = Result<Text, Error>> + Send + Unpin {
        text::of_events(self.events())
    }

    /// Waits for the end: the whole text of the last attempt, and how it ended.
    pub async fn answer(self) -> Result<Answer, Error> {
        let job = self.job;
        text::whole(job, self.events()).await
    }
}

/// A reader that has begun.
#[derive(Debug)]
pub struct Following {
    follow: follow::Follow,
    record: Option<Record>,
}

impl Following {
    /// Where the job stood just before its log was read; `None` when its record has expired, or for
    /// a job that is [expected](Listen::expected).
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether nothing is left to read: the job was over, and the cursor at or above its end.
    pub fn is_over(&self) -> bool {
        self.follow.is_over()
    }

    /// Whether the job was over, and its log is gone: the reader may have missed the end, and the events are
    /// nothing but [`Error::Expired`].
    pub fn is_expired(&self) -> bool {
        self.follow.is_expired()
    }

    /// The events, as from [`Listen::events`].
    pub fn events(self) -> impl Stream<Item = Result<Event, Error>> + Send + Unpin {
        self.follow.into_stream()
    }
}
