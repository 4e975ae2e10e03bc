//! The Redis server under test: its own process, port and folder, and an append-only file that it
//! writes before it answers.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::Instant,
};

use crate::{
    history::Span,
    random::Random,
    support::{now, signal},
};

/// Longest time for the server to read its file and answer.
const READY: Duration = Duration::from_secs(60);

/// A redis-server that can be killed and comes back with what it acknowledged.
pub struct Server {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    pub async fn start(folder: PathBuf, seed: u64) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let port = free_port(seed);
        let mut server = Self { process: spawn(port, &folder), port, folder };
        server.ready().await;
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it with SIGKILL, and starts it again after this time.
    pub async fn kill(&mut self, away: Duration) {
        self.process.kill().await.unwrap();
        self.again(away).await;
    }

    /// Kills it and takes from its file what it wrote in this time before, as a machine that loses
    /// power does with `appendfsync everysec`; starts it again after the other time. The span that it
    /// has forgotten.
    pub async fn forget(&mut self, forgotten: Duration, away: Duration) -> Span {
        let from = now();
        let kept = self.written();
        tokio::time::sleep(forgotten).await;
        self.process.kill().await.unwrap();
        let until = now();
        // A file that Redis has rewritten meanwhile has nothing to take from: it forgets nothing.
        let span = match kept {
            Some((path, length)) if self.written().is_some_and(|(now, _)| now == path) => {
                std::fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
                Span { from, until }
            }
            _ => Span { from: until, until },
        };
        self.again(away).await;
        span
    }

    /// The file that Redis appends to, and its length. None while Redis rewrites its files.
    fn written(&self) -> Option<(PathBuf, u64)> {
        let folder = self.folder.join("appendonlydir");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap());
        let name = |file: &std::fs::DirEntry| file.file_name().to_string_lossy().into_owned();
        let mut appended = files.filter(|file| name(file).ends_with(".incr.aof"));
        let file = appended.next().filter(|_| appended.next().is_none())?;
        Some((file.path(), file.metadata().unwrap().len()))
    }

    /// Has it shut down in order, and starts it again after this time.
    pub async fn shutdown(&mut self, away: Duration) {
        signal(&self.process, "TERM");
        self.process.wait().await.unwrap();
        self.again(away).await;
    }

    async fn again(&mut self, away: Duration) {
        tokio::time::sleep(away).await;
        self.process = spawn(self.port, &self.folder);
        self.ready().await;
    }

    /// A connection of the test's own, past every proxy.
    pub async fn connection(&self) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(30)));
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    async fn ready(&mut self) {
        let deadline = Instant::now() + READY;
        while !self.answers().await {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            if let Some(status) = self.process.try_wait().unwrap() {
                let folder = self.folder.display();
                panic!("redis-server ended with {status}; see redis.log in {folder}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether it has read its file and serves.
    async fn answers(&self) -> bool {
        let Ok(mut connection) = self.connection().await else { return false };
        redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
    }
}

/// A port below those that the system gives to outgoing connections: nobody takes it while the
/// server is away.
fn free_port(seed: u64) -> u16 {
    let mut random = Random::new(seed, u64::from(std::process::id()));
    loop {
        let port = u16::try_from(random.within(12_000, 30_000)).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn spawn(port: u16, folder: &PathBuf) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
        .args(["--appendfsync", "always", "--logfile", "redis.log", "--port"])
        .arg(port.to_string())
        .arg("--dir")
        .arg(folder)
        .kill_on_drop(true)
        .spawn()
        .expect("redis-server is on the PATH")
}
