//! A worker that can be killed in this process: everything of it lives on a runtime of its own, and
//! ends with that at once, its connections included.

use std::sync::Arc;

use millstream::{
    broker::redis::{Options, Redis},
    listener::{self, Listener},
    upstream::openai::{self, OpenAi},
    worker::{self, Worker},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::dying::{Dying, Fate};

pub struct Victim {
    pub fate: Arc<Fate>,
    /// Cancelling it makes the worker give back what it holds, as a second SIGTERM does.
    pub hurry: CancellationToken,
    /// Cancelled when it has left by itself.
    pub ended: CancellationToken,
    thread: JoinHandle<()>,
}

impl Victim {
    /// Starts a worker with this fate, on connections of its own.
    pub fn start(url: &str, base_url: &str, options: worker::Options, fate: Arc<Fate>) -> Self {
        let url = url.to_owned();
        let base_url = base_url.to_owned();
        let (hurry, ended) = (CancellationToken::new(), CancellationToken::new());
        let own = (fate.clone(), hurry.clone(), ended.clone());
        let thread = tokio::task::spawn_blocking(move || {
            let (fate, hurried, left) = own;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let options_redis = Options { url, ..Options::default() };
                let broker = Arc::new(Redis::connect(options_redis).await.unwrap());
                let broker = Dying::around(broker, fate.clone());
                let options_up = openai::Options { base_url, ..openai::Options::default() };
                let upstream = Arc::new(OpenAi::new(&options_up).unwrap());
                let hub = Listener::new(broker.clone(), listener::Options::default()).hub();
                let worker = Worker::new(broker, hub, upstream, options);
                let give_back = worker.hurry();
                tokio::select! {
                    biased;
                    () = fate.dead.cancelled() => {}
                    () = async {
                        hurried.cancelled().await;
                        give_back.cancel();
                        std::future::pending::<()>().await;
                    } => {}
                    _ = worker.run(CancellationToken::new()) => left.cancel(),
                }
            });
        });
        Self { fate, hurry, ended, thread }
    }

    /// Kills it where it stands, if it lives; what it had open is closed when this returns.
    pub async fn kill(mut self) {
        self.fate.dead.cancel();
        (&mut self.thread).await.unwrap();
    }
}

impl Drop for Victim {
    /// Its thread must not outlive a test that failed.
    fn drop(&mut self) {
        self.fate.dead.cancel();
    }
}
