//! Appending to logs, and reading them.

use async_trait::async_trait;
use redis::Value;

use super::{Redis, claim::described, codec, inspect::record, millis, pubsub, settle::written};
use crate::{
    broker::{Attempt, Entry, Error, Feed, Log, Opened, Page, Result, Sink, Window, Written},
    event::{EventId, Frame, Stored},
    job::{JobId, Tenant},
};

/// The entries of a log, as many as the window shows.
fn page(value: Value, window: Window) -> Result<Page> {
    let stored = codec::entries(value)?.into_iter().map(|(id, fields)| {
        let id = id.parse().map_err(|e| Error::Protocol(format!("log: {e}")))?;
        let (kind, payload) = fields.unwrap_or_default().into_iter().next().unwrap_or_default();
        Ok(Stored::new(id, &String::from_utf8_lossy(&kind), payload))
    });
    Ok(Page::of(stored.collect::<Result<_>>()?, window))
}

impl Redis {
    fn range(&self, job: JobId, after: EventId, most: usize) -> redis::Cmd {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.log(job)).arg(behind(after)).arg("+").arg("COUNT").arg(most);
        command
    }

    /// Reads a tenant's job: its record, and the events from `start` on.
    pub(super) async fn owned(
        &self,
        tenant: &Tenant,
        job: JobId,
        start: &str,
        window: Window,
    ) -> Result<Option<Opened>> {
        let mut call = self.scripts.owned.key(self.keys.job(job));
        call.key(self.keys.log(job)).arg(tenant.as_str()).arg(start).arg(window.events);
        let reply = codec::array(self.pool.script(&call).await?, "owned")?;
        let Ok([about, events]) = <[Value; 2]>::try_from(reply) else { return Ok(None) };
        Ok(Some(Opened { record: record(job, about)?, page: page(events, window)? }))
    }
}

/// The first ID behind an event, as `XRANGE` is told it.
fn behind(event: EventId) -> String {
    match event {
        EventId::START => "-".to_owned(),
        // Nothing is behind the last ID that there can be; the server calls that an error.
        EventId::END => event.to_string(),
        event => format!("({event}"),
    }
}

#[async_trait]
impl Log for Redis {
    fn session(&self) -> u64 {
        self.pool.session()
    }

    async fn append(&self, attempt: &Attempt, frames: &[Frame]) -> Result<Written> {
        let (log, channel) = (self.keys.log(attempt.job), self.keys.events(attempt.job));
        let mut pipe = redis::pipe();
        for frame in frames {
            let id = EventId { fence: attempt.fence, seq: frame.seq }.to_string();
            pipe.cmd("XADD").arg(&log).arg("NOMKSTREAM").arg(id).arg(frame.kind).arg(&frame.bytes);
            pipe.cmd("PUBLISH").arg(&channel).arg(frame.message(attempt.fence));
        }
        // A PUBLISH that is refused (an ACL) costs readers the fast path, not the event.
        let Some(replies) = self.pool.pipeline_once_within(attempt.session, &mut pipe).await?
        else {
            return Ok(Written::Behind);
        };
        for reply in replies.into_iter().step_by(2) {
            match reply {
                Ok(Value::Nil) => return Ok(Written::Missing),
                Ok(_) => {}
                Err(error) if error.to_string().contains("equal or smaller") => {
                    return Ok(Written::Behind);
                }
                Err(error) => return Err(self.pool.connector().classify(error)),
            }
        }
        Ok(Written::Yes)
    }

    async fn last(&self, job: JobId) -> Result<Option<EventId>> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(self.keys.log(job)).arg("+").arg("-").arg("COUNT").arg(1);
        let entries = codec::entries(self.pool.command(&command).await?)?;
        let parse = |id: &str| id.parse().map_err(|e| Error::Protocol(format!("log: {e}")));
        entries.first().map(|(id, _)| parse(id)).transpose()
    }

    async fn heal(&self, attempt: &Attempt, entry: &Entry, frames: &[Frame]) -> Result<Written> {
        let mut call = self.scripts.heal.prepare_invoke();
        call.key(self.keys.job(attempt.job))
            .key(self.keys.log(attempt.job))
            .key(self.keys.events(attempt.job))
            .arg(attempt.fence)
            .arg(attempt.number)
            .arg(attempt.failures)
            .arg(attempt.worker.as_str())
            .arg(millis(self.options.job_ttl))
            .arg(attempt.run);
        let about = described(entry, entry.fingerprint().as_deref());
        call.arg(about.len() * 2);
        for (field, value) in about {
            call.arg(&*field).arg(value);
        }
        for frame in frames {
            call.arg(frame.seq).arg(frame.kind).arg(&frame.bytes);
        }
        written(self.pool.script(&call).await?, "heal")
    }

    async fn page(&self, job: JobId, after: EventId, window: Window) -> Result<Page> {
        page(self.pool.command(&self.range(job, after, window.events)).await?, window)
    }

    async fn open(&self, job: JobId, after: EventId, window: Window) -> Result<Opened> {
        let mut pipe = redis::pipe();
        pipe.cmd("HGETALL").arg(self.keys.job(job));
        pipe.add_command(self.range(job, after, window.events));
        let mut replies = self
            .pool
            .pipeline(&mut pipe)
            .await?
            .into_iter()
            .map(|reply| reply.map_err(|e| self.pool.connector().classify(e)));
        let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
        Ok(Opened { record: record(job, next()?)?, page: page(next()?, window)? })
    }

    async fn open_for(
        &self,
        tenant: &Tenant,
        job: JobId,
        after: EventId,
        window: Window,
    ) -> Result<Option<Opened>> {
        self.owned(tenant, job, &behind(after), window).await
    }

    async fn feed(&self, sink: Sink) -> Result<Box<dyn Feed>> {
        pubsub::open(self, sink).await
    }
}
