//! Every key and channel, and nowhere else.
//!
//! `{…}` is a Cluster hash tag: one partition of a queue is one slot, one job is one slot, one
//! tenant is one slot, and nothing needs two slots at once.
//!
//! A channel belongs to the whole server, whatever the database. So the channels that two databases
//! would have in common bear the number of theirs where it is not 0. A worker's channel bears its ID, which no
//! other worker has.

use std::{collections::HashMap, sync::Mutex};

use crate::{
    broker::{Partition, Topic, WorkerId},
    job::{JobId, Lane, Tenant},
};

/// The one consumer group of every lane.
pub const GROUP: &str = "workers";

/// Builds keys under one prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
    /// What ends the channels of this database: nothing, or `@` and its number.
    database: String,
}

impl Keys {
    /// Keys that begin with `prefix` and a colon; `ms` by default.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), database: String::new() }
    }

    /// The same keys, with the channels of this database.
    #[must_use]
    pub fn in_database(self, number: i64) -> Self {
        let database = if number == 0 { String::new() } else { format!("@{number}") };
        Self { database, ..self }
    }

    fn partition(&self, partition: &Partition, rest: &str) -> String {
        format!("{}:{{q:{partition}}}:{rest}", self.prefix)
    }

    /// A lane's stream.
    pub fn lane(&self, partition: &Partition, lane: Lane) -> String {
        self.partition(partition, lane.as_str())
    }

    /// All lanes of a partition, in the order of [`Lane::ALL`].
    pub fn lanes(&self, partition: &Partition) -> [String; 3] {
        Lane::ALL.map(|lane| self.lane(partition, lane))
    }

    /// Parked jobs by due time.
    pub fn parked(&self, partition: &Partition) -> String {
        self.partition(partition, "parked")
    }

    /// The payloads of parked jobs.
    pub fn parked_jobs(&self, partition: &Partition) -> String {
        self.partition(partition, "parked:jobs")
    }

    /// Entries that came of parked jobs which cannot be read.
    pub fn unread(&self, partition: &Partition) -> String {
        self.partition(partition, "parked:unread")
    }

    /// Counters of a partition: what counts against the queue's limits, and what was lost.
    pub fn load(&self, partition: &Partition) -> String {
        self.partition(partition, "load")
    }

    /// How long the leases of a partition's workers last.
    pub fn leases(&self, partition: &Partition) -> String {
        self.partition(partition, "leases")
    }

    /// Dead letters.
    pub fn dead(&self, partition: &Partition) -> String {
        self.partition(partition, "dead")
    }

    /// The channel that wakes a partition's workers.
    pub fn wake(&self, partition: &Partition) -> String {
        self.partition(partition, &format!("wake{}", self.database))
    }

    /// A job's record.
    pub fn job(&self, id: JobId) -> String {
        format!("{}:{{job:{id}}}", self.prefix)
    }

    /// The channel of a job's events.
    pub fn events(&self, id: JobId) -> String {
        format!("{}{}", self.job(id), self.database)
    }

    /// A job's log.
    pub fn log(&self, id: JobId) -> String {
        format!("{}:{{job:{id}}}:log", self.prefix)
    }

    /// What the channels of workers begin with; a worker's ID follows.
    pub fn workers(&self) -> String {
        format!("{}:worker:", self.prefix)
    }

    /// A worker's channel.
    pub fn worker(&self, worker: &WorkerId) -> String {
        format!("{}{worker}", self.workers())
    }

    fn tenant(&self, tenant: &Tenant, rest: &str) -> String {
        format!("{}:{{t:{tenant}}}:{rest}", self.prefix)
    }

    /// A tenant's recent jobs by the time at which they were added.
    pub fn recent(&self, tenant: &Tenant) -> String {
        self.tenant(tenant, "jobs")
    }

    /// When a tenant's bucket of requests is full.
    pub fn rate(&self, tenant: &Tenant) -> String {
        self.tenant(tenant, "rate")
    }

    /// The applied migrations.
    pub fn schema(&self) -> String {
        format!("{}:schema", self.prefix)
    }

    /// Held while migrations are applied.
    pub fn schema_lock(&self) -> String {
        format!("{}:schema:lock", self.prefix)
    }

    /// A pattern that every key under this prefix matches, and no other.
    pub fn all(&self) -> String {
        format!("{}:*", self.prefix)
    }

    /// A topic's channel.
    pub fn channel(&self, topic: &Topic) -> String {
        match topic {
            Topic::Job(id) => self.events(*id),
            Topic::Wake(partition) => self.wake(partition),
            Topic::Worker(worker) => self.worker(worker),
        }
    }
}

/// The topics of subscribed channels: messages name the channel only.
#[derive(Debug, Default)]
pub struct Channels(Mutex<HashMap<String, Topic>>);

impl Channels {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Topic>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Remembers a channel's topic.
    pub fn insert(&self, channel: String, topic: Topic) {
        self.map().insert(channel, topic);
    }

    /// Forgets a channel.
    pub fn remove(&self, channel: &str) {
        self.map().remove(channel);
    }

    /// A channel's topic.
    pub fn topic(&self, channel: &str) -> Option<Topic> {
        self.map().get(channel).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::QueueName;

    #[test]
    fn keys_are_those_of_the_protocol() {
        let keys = Keys::new("ms");
        let partition = Partition::first(QueueName::default());
        assert_eq!(keys.lane(&partition, Lane::High), "ms:{q:default:0}:high");
        assert_eq!(keys.parked_jobs(&partition), "ms:{q:default:0}:parked:jobs");
        let id = "01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e".parse().unwrap();
        assert_eq!(keys.log(id), "ms:{job:01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e}:log");
        assert_eq!(keys.recent(&Tenant::default()), "ms:{t:default}:jobs");
        assert_eq!(keys.schema(), "ms:schema");
    }

    #[test]
    fn only_the_channels_of_database_0_bear_no_number() {
        let partition = Partition::first(QueueName::default());
        let id = "01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e".parse().unwrap();
        let first = Keys::new("ms").in_database(0);
        assert_eq!(first.wake(&partition), "ms:{q:default:0}:wake");
        assert_eq!(first.events(id), first.job(id));
        let other = Keys::new("ms").in_database(12);
        assert_eq!(other.wake(&partition), "ms:{q:default:0}:wake@12");
        assert_eq!(other.events(id), "ms:{job:01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e}@12");
        assert_eq!(other.job(id), first.job(id));
    }
}
