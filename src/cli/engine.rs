//! A worker inside the process, and the simulator where no model is configured.

use std::{net::SocketAddr, time::Duration};

use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Error, parts};
use crate::{
    broker::Shared,
    config::Config,
    listener::Listener,
    simulator::{self, Simulator},
    upstream::openai,
    worker::{Stopped, Worker},
};

/// How much longer than its drain a worker may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running worker, with the simulator that answers it where there is one.
#[derive(Debug)]
pub(super) struct Engine {
    stop: CancellationToken,
    /// `None` once it has ended.
    worker: Option<JoinHandle<Stopped>>,
    patience: Duration,
    simulator: Option<(String, JoinHandle<simulator::Stats>)>,
    stop_simulator: CancellationToken,
}

impl Engine {
    /// Starts a worker on `broker` as the configuration describes it. It shares the subscriber
    /// connection of `listener`.
    pub(super) async fn start(
        config: &Config,
        broker: Shared,
        listener: &Listener,
    ) -> Result<Self, Error> {
        let stop_simulator = CancellationToken::new();
        let mut config = config.clone();
        let mut simulator = None;
        if !config.has_upstream() {
            let options = simulator::Options {
                listen: SocketAddr::from(([127, 0, 0, 1], 0)),
                api_key: None,
                ..config.simulator.clone()
            };
            let bound = Simulator::bind(options).await?;
            let url = bound.base_url();
            config.upstream = openai::Options { base_url: url.clone(), ..config.upstream };
            simulator = Some((url, tokio::spawn(bound.run(stop_simulator.clone()))));
        }
        let stop = CancellationToken::new();
        let patience = config.worker.drain + PATIENCE;
        let upstream = parts::upstream(&config)?;
        let worker = Worker::new(broker, listener.hub(), upstream, parts::named(config.worker));
        let worker = tokio::spawn(worker.run(stop.clone()));
        Ok(Self { stop, worker: Some(worker), patience, simulator, stop_simulator })
    }

    /// The simulator's address, where it answers.
    pub(super) fn simulated(&self) -> Option<&str> {
        self.simulator.as_ref().map(|(url, _)| url.as_str())
    }

    /// Ends when the worker ends, which before [`Engine::stop`] it does only in distress.
    pub(super) async fn failed(&mut self) -> Option<Stopped> {
        let stopped = match &mut self.worker {
            Some(worker) => worker.await.ok(),
            None => None,
        };
        self.worker = None;
        stopped
    }

    /// Drains the worker, then ends the simulator. `None` when the worker did not stop in time.
    pub(super) async fn stop(mut self) -> Option<Stopped> {
        self.stop.cancel();
        let mut stopped = None;
        if let Some(mut worker) = self.worker.take() {
            stopped = timeout(self.patience, &mut worker).await.ok().and_then(Result::ok);
            worker.abort();
        }
        self.stop_simulator.cancel();
        if let Some((_, simulator)) = self.simulator {
            let _ = simulator.await;
        }
        stopped
    }
}
