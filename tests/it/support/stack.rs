//! A whole system in one test: a private Redis, a simulator, and workers, producers and listeners
//! in this process.

use std::sync::Arc;

use millstream::{
    broker::{
        Partition, Shared,
        redis::{Options, Redis},
    },
    job::{ChatRequest, Job, JobId},
    listener::{self, Listener},
    producer::{self, Producer},
    simulator::{self, Simulator},
    upstream::openai::{self, OpenAi},
    worker::{self, Stopped, Worker},
};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{redis::Server, subject::soon};

pub struct Stack {
    pub server: Server,
    pub broker: Shared,
    pub partition: Partition,
    pub base_url: String,
    _simulator: DropGuard,
}

/// A simulator without waits.
pub fn instant() -> simulator::Options {
    simulator::Options {
        listen: ([127, 0, 0, 1], 0).into(),
        ttft: std::time::Duration::ZERO,
        rate: 0.0,
        ..simulator::Options::default()
    }
}

/// A simulator of this many tokens per second.
pub fn paced(rate: f64) -> simulator::Options {
    simulator::Options { rate, ..instant() }
}

pub async fn simulate(options: simulator::Options) -> (String, DropGuard) {
    let simulator = Simulator::bind(options).await.unwrap();
    let base_url = simulator.base_url();
    let stop = CancellationToken::new();
    tokio::spawn(simulator.run(stop.clone()));
    (base_url, stop.drop_guard())
}

/// A broker with its schema, at a server's own address or as another user.
pub async fn connect(url: &str) -> Shared {
    let redis =
        Redis::connect(Options { url: url.to_owned(), ..Options::default() }).await.unwrap();
    redis.ensure_schema(&[Partition::first(Default::default())]).await.unwrap();
    Arc::new(redis)
}

impl Stack {
    pub async fn start(simulator: simulator::Options) -> Self {
        Self::on(Server::start().await, simulator).await
    }

    /// A stack on this server.
    pub async fn on(server: Server, simulator: simulator::Options) -> Self {
        let broker = connect(&server.url()).await;
        let (base_url, guard) = simulate(simulator).await;
        let partition = Partition::first(Default::default());
        Self { server, broker, partition, base_url, _simulator: guard }
    }

    pub fn producer(&self) -> Producer {
        Producer::new(self.broker.clone(), producer::Options::default())
    }

    pub fn listener(&self) -> Listener {
        Listener::new(self.broker.clone(), listener::Options::default())
    }

    /// Starts a worker; cancel the token to drain it.
    pub fn worker(&self, options: worker::Options) -> (CancellationToken, JoinHandle<Stopped>) {
        self.worker_on(self.broker.clone(), options)
    }

    /// Starts a worker on connections of its own, as in another process.
    pub fn worker_on(
        &self,
        broker: Shared,
        options: worker::Options,
    ) -> (CancellationToken, JoinHandle<Stopped>) {
        let options_up =
            openai::Options { base_url: self.base_url.clone(), ..openai::Options::default() };
        let upstream = Arc::new(OpenAi::new(&options_up).unwrap());
        let hub = Listener::new(broker.clone(), listener::Options::default()).hub();
        let worker = Worker::new(broker, hub, upstream, options);
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(worker.run(stop)))
    }

    /// Enqueues a question to the simulator.
    pub async fn ask(&self, model: &str, question: &str) -> JobId {
        let job = Job::new(ChatRequest::ask(model, question));
        self.producer().enqueue(job).await.unwrap().id
    }

    /// How often the server has run each command, since its statistics were reset.
    pub fn command_counts(&self) -> std::collections::BTreeMap<String, u64> {
        let info = self.server.command(&["INFO", "commandstats"]);
        info.lines()
            .filter_map(|line| {
                let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
                Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
            })
            .collect()
    }

    /// Waits until so many clients are blocked in a read.
    pub async fn blocked(&self, count: usize) {
        soon(async {
            loop {
                let clients = self.server.command(&["CLIENT", "LIST"]);
                if clients.lines().filter(|line| line.contains(" flags=b ")).count() == count {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub fn reset_counts(&self) {
        self.server.command(&["CONFIG", "RESETSTAT"]);
    }
}

/// What the simulator answers, told by the oracle outside the crate.
pub fn oracle(requests: &[String], more: &[&str]) -> Vec<String> {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle.py");
    let mut child = Command::new("python3")
        .arg(script)
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines = requests.join("\n");
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the simulator answers to one question.
pub fn expected(model: &str, question: &str) -> String {
    let request = serde_json::to_string(&ChatRequest::ask(model, question)).unwrap();
    oracle(&[request], &[]).remove(0)
}
