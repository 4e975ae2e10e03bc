//! Where a scenario runs: Redis under a prefix of its own, a simulator, and workers in this
//! process.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Error, Machine, server::Server};
use crate::{
    broker::{Depth, Partition, Shared, redis::Redis},
    config::Config,
    job::{ChatRequest, Job, QueueName},
    listener::Listener,
    producer::Producer,
    simulator::{self, Meter, Simulator},
    upstream::openai::{self, OpenAi},
    worker::{self, Worker},
};

/// Longest wait for what should happen at once.
const SOON: Duration = Duration::from_secs(20);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// A corner of a Redis for one scenario. It must be closed: without that its keys stay.
#[derive(Debug)]
pub struct Lab {
    config: Config,
    redis: Redis,
    broker: Shared,
    partition: Partition,
    meter: Meter,
    stop: CancellationToken,
    tasks: TaskTracker,
    server: Option<Server>,
}

impl Lab {
    /// Opens a lab on the Redis that is configured, under a new prefix, or on a private server
    /// where none is. What runs in it is configured as `config` says, but for the model, which is
    /// a simulator, and the queue.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let mut config = config.clone();
        let server = if config.is_embedded() { Some(Server::start().await?) } else { None };
        if let Some(server) = &server {
            config.redis.url = server.url();
        }
        let number = uuid::Uuid::new_v4().simple().to_string();
        config.redis.prefix = format!("ms-bench-{}", &number[..12]);
        config.worker.queues = vec![QueueName::default()];
        let simulator = Simulator::bind(simulator::Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            ttft: Duration::ZERO,
            rate: 0.0,
            ..simulator::Options::default()
        })
        .await?;
        let (base_url, meter) = (simulator.base_url(), simulator.meter());
        config.upstream =
            openai::Options { base_url, api_key: String::new(), ..config.upstream.clone() };
        let redis = Redis::connect(config.redis.clone()).await?;
        let partition = Partition::first(QueueName::default());
        redis.migrate(std::slice::from_ref(&partition)).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(simulator.run(stop.clone()));
        let broker = Arc::new(redis.clone());
        Ok(Self { config, redis, broker, partition, meter, stop, tasks, server })
    }

    /// Ends what runs in this process and removes every key of the lab.
    pub async fn close(self) -> Result<(), Error> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // A private server goes with all that it holds. On another one, what killed processes had
        // sent may still have been executed while the keys were removed.
        while self.server.is_none() && self.redis.erase().await? > 0 {}
        Ok(())
    }

    /// Whether the server is the lab's own.
    pub fn is_private(&self) -> bool {
        self.server.is_some()
    }

    /// What every key of the lab begins with.
    pub fn prefix(&self) -> &str {
        &self.config.redis.prefix
    }

    /// What it runs on.
    pub(super) async fn machine(&self) -> Result<Machine, Error> {
        Ok(Machine::here(self.redis.server().await?))
    }

    /// Changes the configuration of what is started from now on.
    pub(super) fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
    }

    /// The server.
    pub(super) fn redis(&self) -> &Redis {
        &self.redis
    }

    /// The configuration of what runs in the lab.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The broker.
    pub(super) fn broker(&self) -> &Shared {
        &self.broker
    }

    /// What the simulator counts.
    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// A producer for the lab's queue.
    pub(super) fn producer(&self) -> Producer {
        Producer::new(self.broker.clone(), self.config.producer.clone())
    }

    /// A listener.
    pub(super) fn listener(&self) -> Listener {
        Listener::new(self.broker.clone(), self.config.listener.clone())
    }

    /// A job for the simulator, which `directives` tell how to answer.
    pub(super) fn job(directives: &str, question: &str) -> Job {
        Job::new(ChatRequest::ask(&format!("simulator?{directives}"), question))
    }

    /// Starts a worker in this process, on connections of its own. It works until the lab closes.
    pub(super) async fn employ(&self, name: &str) -> Result<(), Error> {
        let redis = Redis::connect(self.config.redis.clone()).await?;
        let broker: Shared = Arc::new(redis);
        let hub = Listener::new(broker.clone(), self.config.listener.clone()).hub();
        let upstream = Arc::new(OpenAi::new(&self.config.upstream)?);
        // What is unfinished when the lab closes goes with it.
        let options = worker::Options {
            name: name.to_owned(),
            drain: Duration::ZERO,
            ..self.config.worker.clone()
        };
        let worker = Worker::new(broker, hub, upstream, options);
        self.tasks.spawn(worker.run(self.stop.clone()));
        Ok(())
    }

    /// Waits until so many workers have read the queue; `check` may say why that will not be.
    pub(super) async fn wait_for_workers(
        &self,
        count: usize,
        mut check: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + SOON;
        while self.broker.workers(&self.partition).await?.len() < count {
            check()?;
            if Instant::now() > deadline {
                return Err(Error::Stalled { what: "the workers did not read", waited: SOON });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until no job is left in the queue.
    pub(super) async fn wait_until_empty(&self) -> Result<(), Error> {
        let deadline = Instant::now() + SOON;
        loop {
            let Depth { lanes, parked, .. } = self.broker.depth(&self.partition).await?;
            if parked == 0 && lanes.iter().all(|lane| lane.waiting + lane.pending == 0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Stalled { what: "jobs were left in the queue", waited: SOON });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
