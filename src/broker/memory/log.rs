//! The jobs' logs: appending under a fence, healing, reading.

use async_trait::async_trait;

use super::{Memory, feed::Subscriber, run::Run, state::State};
use crate::{
    broker::{Attempt, Entry, Feed, Log, Opened, Page, Result, Sink, Topic, Window, Written},
    event::{EventId, Frame, Stored},
    job::{JobId, Tenant, Timestamp},
    state::State as JobState,
};

impl State {
    /// Appends and publishes, where every ID is above the one before: the rule of a Redis stream.
    pub(super) fn append(&mut self, job: JobId, fence: u64, frames: &[Frame]) -> Written {
        let Some(mut top) = self.runs.get(&job).and_then(Run::top) else { return Written::Missing };
        for frame in frames {
            let id = EventId { fence, seq: frame.seq };
            if id <= top {
                return Written::Behind;
            }
            top = id;
        }
        self.write(job, fence, frames);
        Written::Yes
    }

    pub(super) fn write(&mut self, job: JobId, fence: u64, frames: &[Frame]) {
        let Some(run) = self.runs.get_mut(&job) else { return };
        let log = run.log.get_or_insert_default();
        let topic = Topic::Job(job);
        for frame in frames {
            self.kept_bytes += frame.bytes.len();
            log.push((EventId { fence, seq: frame.seq }, frame.clone()));
            self.topics.publish(&topic, &frame.message(fence));
        }
        // A running attempt is never refused: what is over makes room for it.
        self.make_room(0);
    }

    pub(super) fn last(&self, job: JobId) -> Option<EventId> {
        self.runs.get(&job)?.top()
    }

    /// Whether a job is there, and this tenant's.
    pub(super) fn is_of(&self, job: JobId, tenant: &Tenant) -> bool {
        self.runs.get(&job).is_some_and(|run| run.record.is_of(tenant))
    }

    pub(super) fn page(&self, job: JobId, after: EventId, window: Window) -> Page {
        let log = self.runs.get(&job).and_then(|run| run.log.as_deref()).unwrap_or_default();
        let from = log.partition_point(|(id, _)| *id <= after);
        let mut bytes = 0;
        let mut events = Vec::new();
        // One more than fits tells that there is more.
        for (id, frame) in log[from..].iter().take(window.events) {
            let stored = Stored::new(*id, frame.kind, frame.bytes.clone());
            bytes += stored.weight();
            events.push(stored);
            if bytes > window.bytes && events.len() > 1 {
                break;
            }
        }
        Page::of(events, window)
    }

    pub(super) fn heal(
        &mut self,
        attempt: &Attempt,
        entry: &Entry,
        frames: &[Frame],
        now: Timestamp,
    ) -> Written {
        let run = self.runs.get(&attempt.job);
        let known = run.map_or(0, |run| run.record.fence);
        let top = run.and_then(Run::top);
        let ruled = known > attempt.fence || top.is_some_and(|top| top.fence > attempt.fence);
        let state = run.map(|run| run.record.state);
        let left = known == attempt.fence && state.is_some_and(|state| state != JobState::Running);
        // A run that has come to an end under a fence that is remembered has no other.
        let over = state.is_some_and(JobState::is_terminal);
        if ruled || left || over {
            return Written::Fenced;
        }
        if run.is_none() {
            self.keep(Run::of_entry(entry));
        }
        if known < attempt.fence
            && let Some(run) = self.runs.get_mut(&attempt.job)
        {
            run.restore(attempt, now);
        }
        let missing = frames
            .iter()
            .filter(|frame| top < Some(EventId { fence: attempt.fence, seq: frame.seq }))
            .cloned()
            .collect::<Vec<_>>();
        self.write(attempt.job, attempt.fence, &missing);
        Written::Yes
    }
}

#[async_trait]
impl Log for Memory {
    fn session(&self) -> u64 {
        // It forgets nothing while it lives.
        0
    }

    async fn append(&self, attempt: &Attempt, frames: &[Frame]) -> Result<Written> {
        Ok(self.inner.lock().append(attempt.job, attempt.fence, frames))
    }

    async fn last(&self, job: JobId) -> Result<Option<EventId>> {
        Ok(self.inner.lock().last(job))
    }

    async fn heal(&self, attempt: &Attempt, entry: &Entry, frames: &[Frame]) -> Result<Written> {
        Ok(self.inner.lock().heal(attempt, entry, frames, Timestamp::now()))
    }

    async fn page(&self, job: JobId, after: EventId, window: Window) -> Result<Page> {
        Ok(self.inner.lock().page(job, after, window))
    }

    async fn open(&self, job: JobId, after: EventId, window: Window) -> Result<Opened> {
        let state = self.inner.lock();
        let record = state.record(job, Timestamp::now());
        Ok(Opened { record, page: state.page(job, after, window) })
    }

    async fn open_for(
        &self,
        tenant: &Tenant,
        job: JobId,
        after: EventId,
        window: Window,
    ) -> Result<Option<Opened>> {
        let state = self.inner.lock();
        if !state.is_of(job, tenant) {
            return Ok(None);
        }
        let record = state.record(job, Timestamp::now());
        Ok(Some(Opened { record, page: state.page(job, after, window) }))
    }

    async fn feed(&self, sink: Sink) -> Result<Box<dyn Feed>> {
        Ok(Box::new(Subscriber::new(self.inner.clone(), sink)))
    }
}
