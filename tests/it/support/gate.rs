//! A gateway in this process, with a worker and a simulator behind it, on the embedded broker.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use millstream::{
    broker::{
        Shared,
        memory::{self, Memory},
    },
    event::Event,
    gateway::{Gateway, Limits, Options, Right, Stopped, generate_key},
    job::{JobId, Tenant, Timestamp},
    listener::{self, Listener},
    upstream::openai::{self, OpenAi},
    worker::{self, Worker},
};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    stack::{paced, simulate},
    subject::soon,
};

const SECRET: &str = "a secret of the tests, of 32 bytes and more";

/// Topics that a gateway follows for itself: by it hears that the broker is away.
const OWN: u64 = 1;

pub struct Gate {
    pub addr: SocketAddr,
    pub broker: Shared,
    options: Options,
    run: JoinHandle<Stopped>,
    stop: CancellationToken,
    admin: Option<String>,
    /// Whoever asks for metrics: each time on a new connection, which ends with the answer.
    asker: reqwest::Client,
    _worker: DropGuard,
    _simulator: DropGuard,
    keys: Option<Keys>,
}

/// A file of keys, for as long as it is used.
pub struct Keys {
    path: PathBuf,
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Keys {
    /// Keys of these tenants with these rights, and the one of whoever reads the metrics.
    pub fn write(wanted: &[(&str, &[Right], Option<Timestamp>)]) -> (Self, Vec<String>, String) {
        let name = format!("millstream-keys-{}.toml", uuid());
        let path = std::env::temp_dir().join(name);
        let (mut file, mut keys) = (String::new(), Vec::new());
        let admin: (&str, &[Right], Option<Timestamp>) = ("admin", &[Right::Admin], None);
        for (number, (tenant, rights, expiry)) in wanted.iter().chain([&admin]).enumerate() {
            let tenant: Tenant = tenant.parse().unwrap();
            let id = format!("k{number}");
            let (key, lines) = generate_key(SECRET, &id, &tenant, rights, *expiry).unwrap();
            file.push_str(&lines);
            keys.push(key);
        }
        std::fs::write(&path, file).unwrap();
        let admin = keys.pop().unwrap();
        (Self { path }, keys, admin)
    }
}

fn uuid() -> String {
    JobId::new().to_string()
}

/// An embedded broker with room for everything.
fn roomy() -> Shared {
    let options = memory::Options { max_bytes: 1 << 30, ..memory::Options::default() };
    Arc::new(Memory::new(options))
}

/// Options whose times are short.
pub fn brisk() -> Options {
    Options {
        listen: ([127, 0, 0, 1], 0).into(),
        heartbeat: Duration::from_millis(200),
        notice: Duration::ZERO,
        drain: Duration::from_secs(5),
        ..Options::default()
    }
}

/// The same, with these limits.
pub fn limited(limits: Limits) -> Options {
    Options { limits, ..brisk() }
}

impl Gate {
    pub async fn start(options: Options) -> Self {
        Self::on(roomy(), options, None).await
    }

    /// One on a broker of its own choice.
    pub async fn before(broker: Shared, options: Options) -> Self {
        Self::on(broker, options, None).await
    }

    /// A gateway that asks for keys; those of `wanted`, in order.
    pub async fn locked(
        options: Options,
        wanted: &[(&str, &[Right], Option<Timestamp>)],
    ) -> (Self, Vec<String>) {
        let (keys, made, admin) = Keys::write(wanted);
        let options = Options { keys: keys.path.clone(), secret: SECRET.to_owned(), ..options };
        (Self::on(roomy(), options, Some((keys, admin))).await, made)
    }

    async fn on(broker: Shared, options: Options, keys: Option<(Keys, String)>) -> Self {
        let (base_url, simulator) = simulate(paced(0.0)).await;
        let upstream = OpenAi::new(&openai::Options { base_url, ..openai::Options::default() });
        let worker = worker::Options {
            concurrency: 64,
            flush_interval: Duration::from_millis(5),
            flush_bytes: 1024,
            ..worker::Options::default()
        };
        let hub = Listener::new(broker.clone(), listener::Options::default()).hub();
        let worker = Worker::new(broker.clone(), hub, Arc::new(upstream.unwrap()), worker);
        let stop = CancellationToken::new();
        tokio::spawn(worker.run(stop.clone()));
        let (keys, admin) = keys.unzip();
        let (addr, run, closing) = serve(&broker, options.clone());
        let gate = Self {
            addr,
            broker,
            options,
            run,
            stop: closing,
            admin,
            asker: reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap(),
            _worker: stop.drop_guard(),
            _simulator: simulator,
            keys,
        };
        gate.is_clean().await;
        gate
    }

    /// Closes the gateway, and starts another one on the same broker.
    pub async fn replace(&mut self) -> Stopped {
        let (addr, run, stop) = serve(&self.broker, self.options.clone());
        self.addr = addr;
        std::mem::replace(&mut self.stop, stop).cancel();
        soon(std::mem::replace(&mut self.run, run)).await.unwrap()
    }

    /// The gateway has ended, orderly.
    pub async fn close(self) -> Stopped {
        self.stop.cancel();
        let stopped = soon(self.run).await.unwrap();
        drop(self.keys);
        stopped
    }

    /// The log, as whoever comes later reads it.
    pub async fn log(&self, job: JobId) -> Vec<Event> {
        let listener = Listener::new(self.broker.clone(), listener::Options::default());
        soon(listener.listen(job).events().map(Result::unwrap).collect()).await
    }

    /// What the gateway counts.
    pub async fn metrics(&self) -> String {
        let mut request = self.asker.get(format!("http://{}/metrics", self.addr));
        if let Some(key) = &self.admin {
            request = request.bearer_auth(key);
        }
        soon(request.send()).await.unwrap().text().await.unwrap()
    }

    pub async fn metric(&self, name: &str) -> u64 {
        let (text, name) = (self.metrics().await, format!("millstream_gateway_{name} "));
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until that is counted.
    pub async fn until(&self, name: &str, count: u64) {
        let mut met = u64::MAX;
        let wait = async {
            while met != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
                met = self.metric(name).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{name} is {met} and not {count}: {}", self.metrics().await);
    }

    /// Topics that are followed for clients.
    pub async fn topics(&self) -> u64 {
        self.metric("topics_open").await - OWN
    }

    /// Waits until nobody is connected but whoever asks, nothing is followed, and no fault was met: what
    /// clients have left behind.
    pub async fn is_clean(&self) {
        for (name, count) in [("sockets_open", 0), ("streams_open", 0), ("topics_open", OWN)] {
            self.until(name, count).await;
        }
        self.until("connections_open", 1).await;
        assert_eq!(self.metric("panics_total").await, 0);
    }
}

fn serve(
    broker: &Shared,
    options: Options,
) -> (SocketAddr, JoinHandle<Stopped>, CancellationToken) {
    let listener = Listener::new(
        broker.clone(),
        // Small, so that slow readers fall behind.
        listener::Options { buffer_bytes: 1024, page: 64, ..listener::Options::default() },
    );
    let gateway = Gateway::new(broker.clone(), listener, Default::default(), options).unwrap();
    let bound = gateway.bind().unwrap();
    let (addr, stop) = (bound.addr(), CancellationToken::new());
    (addr, tokio::spawn(bound.run(stop.clone())), stop)
}
