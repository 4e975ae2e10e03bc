//! Subscriptions to live messages.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, atomic::Ordering},
};

use async_trait::async_trait;

use super::Inner;
use crate::broker::{Feed, Result, Signal, Sink, Topic, WorkerId};

/// Who hears which topic. A topic nobody hears is not kept.
#[derive(Default)]
pub(super) struct Topics(HashMap<Topic, Vec<(u64, Sink)>>);

impl Topics {
    /// Hands a message to every subscriber of a topic, in the order of subscription; how many.
    pub(super) fn publish(&self, topic: &Topic, message: &[u8]) -> u64 {
        let members = self.0.get(topic).map(Vec::as_slice).unwrap_or_default();
        for (_, sink) in members {
            sink(Signal::Message(topic.clone(), message.to_vec()));
        }
        members.len() as u64
    }

    /// How many subscribers a topic has.
    pub(super) fn count(&self, topic: &Topic) -> u32 {
        u32::try_from(self.0.get(topic).map_or(0, Vec::len)).unwrap_or(u32::MAX)
    }

    /// The workers that hear what they are told.
    pub(super) fn workers(&self) -> HashSet<WorkerId> {
        let worker = |topic: &Topic| match topic {
            Topic::Worker(id) => Some(id.clone()),
            Topic::Job(_) | Topic::Wake(_) => None,
        };
        self.0.keys().filter_map(worker).collect()
    }

    fn join(&mut self, topic: &Topic, id: u64, sink: &Sink) {
        let members = self.0.entry(topic.clone()).or_default();
        if members.iter().all(|(member, _)| *member != id) {
            members.push((id, sink.clone()));
        }
    }

    fn leave(&mut self, topic: &Topic, id: u64) {
        if let Some(members) = self.0.get_mut(topic) {
            members.retain(|(member, _)| *member != id);
            if members.is_empty() {
                self.0.remove(topic);
            }
        }
    }

    fn leave_all(&mut self, id: u64) {
        self.0.retain(|_, members| {
            members.retain(|(member, _)| *member != id);
            !members.is_empty()
        });
    }
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One feed. Its subscriptions end with it.
pub(super) struct Subscriber {
    inner: Arc<Inner>,
    id: u64,
    sink: Sink,
}

impl Subscriber {
    pub(super) fn new(inner: Arc<Inner>, sink: Sink) -> Self {
        let id = inner.feeds.fetch_add(1, Ordering::Relaxed);
        Self { inner, id, sink }
    }
}

#[async_trait]
impl Feed for Subscriber {
    async fn subscribe(&self, topic: &Topic) -> Result<()> {
        self.inner.lock().topics.join(topic, self.id, &self.sink);
        Ok(())
    }

    async fn unsubscribe(&self, topic: &Topic) -> Result<()> {
        self.inner.lock().topics.leave(topic, self.id);
        Ok(())
    }

    /// Always answers: there is no connection to lose.
    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.inner.lock().topics.leave_all(self.id);
    }
}
