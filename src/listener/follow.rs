//! One reader's way through a job's log: replay, then live, and back to the log whenever the live
//! messages may have a gap.
//!
//! A log that has nothing more is not enough to wait for live messages: on a new connection, and wherever
//! a read comes back empty, the reader looks at the record too. One that is over, or gone, sends nothing.

mod look;

use std::{collections::VecDeque, time::Duration};

use futures_util::{FutureExt as _, Stream, stream};
use look::{Claim, Known};
use tokio::time::Instant;

use super::{
    Error, Listen,
    hub::{Heard, Link, Subscription},
    room::Taken,
};
use crate::{
    broker::{Page, Record, Topic, Window},
    event::{Event, EventId, Stored},
    retry::Backoff,
};

/// Events that are asked for of a log of which nothing is known yet: a page is cut where its bytes have no
/// room, and what is behind the cut was read in vain.
const FIRST_PAGE: usize = 32;

/// Where the reader gets its next events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was read yet.
    Open,
    /// From the log, until a page is not full.
    Replay,
    /// From the record and the log: whether anything is to be waited for.
    Look,
    /// From the log's last event: whether the reader's cursor is one of its IDs.
    Judge,
    /// From live messages.
    Live,
    /// From the log with backoff, because nothing arrives live.
    Fallback,
}

#[derive(Debug)]
pub(super) struct Follow {
    listen: Listen,
    subscription: Option<Subscription>,
    phase: Phase,
    /// Events read and not handed out, as they lie in the log.
    queue: VecDeque<Stored>,
    /// The room that they take.
    taken: Option<Taken>,
    /// How many events a page of this log may have, as far as is known.
    count: usize,
    /// A live event not handed out.
    ready: Option<Event>,
    /// The last event that was read.
    read_to: EventId,
    /// The connection on which nothing was missed since the last replay.
    synced: u64,
    /// The event behind which the log had a gap at the last read.
    gap: Option<EventId>,
    /// The cursor, as long as the log does not hold it.
    cursor: Option<Claim>,
    /// Where the job stood at the last look; `None` until its record or an event was seen.
    known: Option<Known>,
    /// Since when its record is missing.
    missing: Option<Instant>,
    backoff: Backoff,
    /// The job was over at the first look, and its log gone.
    is_expired: bool,
    /// The last event handed out ended a run.
    over: bool,
    ended: bool,
    began: Instant,
    last: Instant,
}

impl Follow {
    pub(super) fn new(listen: Listen) -> Self {
        let now = Instant::now();
        Self {
            read_to: listen.after,
            listen,
            subscription: None,
            phase: Phase::Open,
            queue: VecDeque::new(),
            taken: None,
            count: FIRST_PAGE,
            ready: None,
            synced: 0,
            gap: None,
            cursor: None,
            known: None,
            missing: None,
            backoff: Backoff::reading(),
            is_expired: false,
            over: false,
            ended: false,
            began: now,
            last: now,
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> + Send + Unpin {
        Box::pin(stream::unfold(self, async |mut follow| {
            let item = follow.next().await?;
            Some((item, follow))
        }))
    }

    async fn next(&mut self) -> Option<Result<Event, Error>> {
        // A reader that was away is not the job's silence.
        self.last = Instant::now();
        loop {
            if let Some(event) = self.pop() {
                self.over = event.body.is_terminal();
                return Some(Ok(event));
            }
            // The page may have ended just there, with a new run of the job behind it.
            if std::mem::take(&mut self.is_expired) {
                self.ended = true;
                return Some(Err(Error::Expired(self.listen.job)));
            }
            if self.ended || (self.over && self.phase != Phase::Replay) {
                return None;
            }
            let (deadline, error) = self.deadline();
            let step = async {
                match deadline {
                    Some(at) => match tokio::time::timeout_at(at, self.step()).await {
                        Ok(result) => result,
                        Err(_) => Err(error),
                    },
                    None => self.step().await,
                }
            };
            if let Err(error) = step.await {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    /// The next event that is there. What was read from the log comes before what was heard.
    fn pop(&mut self) -> Option<Event> {
        let Some(stored) = self.queue.pop_front() else { return self.ready.take() };
        if self.queue.is_empty() {
            // A reader that waits for minutes does not keep the space of a whole page.
            self.queue = VecDeque::new();
            self.taken = None;
        }
        Some(stored.read().unwrap_or_else(|error| {
            tracing::warn!(job = %self.listen.job, id = %stored.id, %error, "event passed over");
            stored.decode()
        }))
    }

    /// The nearer of the two limits, and what passing it means.
    fn deadline(&self) -> (Option<Instant>, Error) {
        let limit =
            |from: Instant, limit: Option<Duration>| limit.and_then(|d| from.checked_add(d));
        let idle = limit(self.last, self.listen.idle_timeout);
        let whole = limit(self.began, self.listen.timeout);
        match (idle, whole) {
            (_, Some(at)) if idle.is_none_or(|idle| at <= idle) => {
                (Some(at), Error::Timeout(self.listen.timeout.unwrap_or_default()))
            }
            _ => (idle, Error::Idle(self.listen.idle_timeout.unwrap_or_default())),
        }
    }

    async fn step(&mut self) -> Result<(), Error> {
        match self.phase {
            Phase::Open => self.open().await.map(|_| ()),
            Phase::Replay => {
                let read = self.read().await;
                self.tried(read)
            }
            Phase::Look => {
                let look = self.look().await;
                self.tried(look)
            }
            Phase::Judge => {
                let judged = self.judge().await;
                self.tried(judged.map_err(Error::from))
            }
            Phase::Live => {
                self.hear().await;
                Ok(())
            }
            Phase::Fallback => self.poll().await,
        }
    }

    /// Goes on by the backoff where the broker cannot be reached.
    fn tried(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Broker(error)) if error.is_transient() => {
                tracing::debug!(%error, "log not read; trying again");
                // Whether the record is there is asked anew: its writer has to come back, too.
                self.missing = None;
                self.doubt();
                self.phase = Phase::Fallback;
                Ok(())
            }
            result => result,
        }
    }

    /// Subscribes first and reads then, so that nothing falls between the two.
    pub(super) async fn open(&mut self) -> Result<Option<Record>, Error> {
        let topic = Topic::Job(self.listen.job);
        let subscription = self.listen.hub.subscribe_within(topic, self.listen.room.clone());
        let subscription = self.subscription.insert(subscription);
        if let Link::Live(number) = subscription.link().await {
            self.synced = number;
        }
        let job = self.listen.job;
        // Who waits here may be the one that makes room: without it, nothing of the log is kept.
        let taken = self.listen.room.try_take();
        let window = if taken.is_some() { self.window() } else { Window::of(1) };
        let Listen { broker, tenant, .. } = &self.listen;
        let opened = match tenant {
            None => broker.open(job, self.read_to, window).await?,
            Some(tenant) => {
                let opened = broker.open_for(tenant, job, self.read_to, window).await?;
                opened.filter(|opened| opened.record.is_some()).ok_or(Error::NotFound(job))?
            }
        };
        let is_empty = opened.page.events.is_empty();
        if opened.record.is_none() && is_empty && !self.listen.expected {
            return Err(Error::NotFound(job));
        }
        self.note(opened.record.as_ref());
        if is_empty {
            if self.known == Some(Known::Over) {
                self.is_expired = self.lacks_its_end().await?;
                self.ended = !self.is_expired;
            }
            self.doubt();
        }
        match taken {
            None if !is_empty => self.settle(true),
            taken => {
                let more = self.take(opened.page, taken);
                self.settle(more);
            }
        }
        Ok(opened.record)
    }

    /// Whether no event will come any more.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.queue.is_empty() && self.ready.is_none()
    }

    /// Whether nothing will come because the log is gone.
    pub(super) fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// Reads a page of the log.
    async fn read(&mut self) -> Result<(), Error> {
        let taken = self.room().await;
        let page = self.listen.broker.page(self.listen.job, self.read_to, self.window()).await?;
        if page.events.is_empty() {
            self.phase = Phase::Look;
        } else {
            let more = self.take(page, Some(taken));
            self.settle(more);
        }
        Ok(())
    }

    /// Room for a page. What was heard meanwhile stands in the log too, and makes room for it.
    async fn room(&mut self) -> Taken {
        let take = self.listen.room.take();
        tokio::pin!(take);
        // The reader stands in line first: what it hears from then on finds no room, and cannot keep it waiting.
        let taken = take.as_mut().now_or_never();
        if let Some(subscription) = &mut self.subscription {
            subscription.skip();
        }
        match taken {
            Some(taken) => taken,
            None => take.await,
        }
    }

    /// As much of the log as there is room for.
    fn window(&self) -> Window {
        Window { events: self.count.min(self.listen.page), bytes: self.listen.room.page() }
    }

    /// Queues a page of the log; whether to read on. A page with a gap is read a second time, in
    /// case its writer is about to close it; a gap that is still there is passed over.
    fn take(&mut self, page: Page, taken: Option<Taken>) -> bool {
        let weight = page.weight();
        let Page { events, more } = page;
        let mut before = self.read_to;
        let mut gap = None;
        for event in &events {
            if event.id.fence == before.fence && !before.precedes(event.id) {
                gap = Some(before);
                break;
            }
            before = event.id;
        }
        if gap.is_some() && self.gap != gap {
            self.gap = gap;
            return true;
        }
        if let Some(after) = gap {
            tracing::warn!(job = %self.listen.job, %after, "gap in the log passed over");
        }
        if let Some(last) = events.last() {
            self.count = (self.listen.room.page() * events.len() / weight.max(1)).max(1);
            self.taken = taken;
            self.taken.iter_mut().for_each(|taken| taken.shrink(weight));
            self.read_to = last.id;
            self.cursor = None;
            self.known.get_or_insert(Known::Open);
        }
        self.queue.extend(events);
        more
    }

    fn settle(&mut self, more: bool) {
        self.phase = match self.link() {
            _ if more => Phase::Replay,
            _ if self.missing.is_some() => Phase::Fallback,
            Link::Live(number) if number == self.synced => Phase::Live,
            Link::Live(number) => {
                self.synced = number;
                self.doubt();
                Phase::Look
            }
            Link::Pending | Link::Down => Phase::Fallback,
        };
    }

    fn link(&self) -> Link {
        self.subscription.as_ref().map_or(Link::Down, Subscription::current)
    }

    /// Takes the next live message, or goes back to the log.
    async fn hear(&mut self) {
        let Some(subscription) = &mut self.subscription else { return };
        match subscription.next().await {
            Heard::Lagged => self.phase = Phase::Replay,
            Heard::Link(_) => self.settle(false),
            Heard::Message(bytes) => match Event::decode_message(&bytes) {
                Ok(event) => self.accept(event),
                Err(_) => self.phase = Phase::Replay,
            },
        }
    }

    fn accept(&mut self, event: Event) {
        // Subscribed before the log was found empty: a first event has nothing before it.
        let first = self.read_to == EventId::START && event.id.seq == 0;
        if event.id <= self.read_to {
            // Read from the log already, unless the log does not reach up to the cursor.
            if let Some(claim) = &mut self.cursor {
                claim.hear(&event);
                self.phase = Phase::Judge;
            }
        } else if first || self.read_to.precedes(event.id) {
            self.read_to = event.id;
            self.cursor = None;
            self.known = Some(Known::Open);
            self.ready = Some(event);
        } else {
            self.phase = Phase::Replay;
        }
    }
}
