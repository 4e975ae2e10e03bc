//! The parts that a process is made of, built from the configuration.

use std::sync::Arc;

use super::{Error, Exit};
use crate::{
    broker::{Partition, Shared, memory::Memory, redis::Redis},
    config::Config,
    job::QueueName,
    upstream::{Upstream, openai::OpenAi},
    worker,
};

/// A broker in use.
#[derive(Debug)]
pub(super) struct Broker {
    /// Its ports.
    pub(super) shared: Shared,
    redis: Option<Redis>,
}

impl Broker {
    /// The broker that is configured. Nothing falls back from Redis to the embedded one.
    pub(super) async fn open(config: &Config) -> Result<Self, crate::broker::Error> {
        if config.is_embedded() {
            let shared = Arc::new(Memory::new(config.embedded.clone()));
            return Ok(Self { shared, redis: None });
        }
        let broker = Self::unconnected(config)?;
        broker.check().await?;
        Ok(broker)
    }

    /// Redis, which may not be there yet.
    pub(super) fn unconnected(config: &Config) -> Result<Self, crate::broker::Error> {
        let redis = Redis::unconnected(config.redis.clone())?;
        Ok(Self { shared: Arc::new(redis.clone()), redis: Some(redis) })
    }

    /// Checks that it is there, and can be used.
    pub(super) async fn check(&self) -> Result<(), crate::broker::Error> {
        match &self.redis {
            Some(redis) => redis.check().await,
            None => Ok(()),
        }
    }

    /// Redis, for a command that makes no sense on an embedded broker; checked to be one that
    /// this binary may use.
    pub(super) async fn open_shared(config: &Config) -> Result<(Self, Redis), Error> {
        needs_redis(config)?;
        let redis = Redis::connect(config.redis.clone()).await?;
        redis.check_schema(&[]).await?;
        Ok((Self { shared: Arc::new(redis.clone()), redis: Some(redis.clone()) }, redis))
    }

    /// Sees to it that the queues have what they need.
    pub(super) async fn prepare(&self, queues: &[QueueName]) -> Result<(), crate::broker::Error> {
        match &self.redis {
            Some(redis) => redis.ensure_schema(&partitions(queues)).await,
            None => Ok(()),
        }
    }
}

/// Refuses a configuration without Redis.
pub(super) fn needs_redis(config: &Config) -> Result<(), Error> {
    if config.is_embedded() {
        return Err(Error::new(
            Exit::Configuration,
            "no Redis is configured, and the embedded broker lives inside one process",
            "set REDIS_URL, such as redis://127.0.0.1:6379 (or redis.url, or --redis-url)",
        ));
    }
    Ok(())
}

/// The partitions of queues.
pub(super) fn partitions(queues: &[QueueName]) -> Vec<Partition> {
    queues.iter().cloned().map(Partition::first).collect()
}

/// The model's endpoint.
pub(super) fn upstream(config: &Config) -> Result<Arc<dyn Upstream>, Error> {
    Ok(Arc::new(OpenAi::new(&config.upstream)?))
}

/// A worker's options with the host's name, unless they have one.
pub(super) fn named(options: worker::Options) -> worker::Options {
    if !options.name.is_empty() {
        return options;
    }
    let host = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default();
    worker::Options { name: host.trim().to_owned(), ..options }
}
