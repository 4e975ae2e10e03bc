//! A private Redis server for one test.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use redis::Value;

use super::port;

/// Longest time for a server to answer for the first time.
const READY: Duration = Duration::from_secs(20);

/// A `redis-server` found on the PATH, on a free port, without persistence. It ends with this
/// value.
pub struct Server {
    process: Child,
    port: u16,
    dir: PathBuf,
    /// When its append-only file is written: `always`, `everysec`, or `no` for no file.
    aof: &'static str,
    /// The file that says how far its clock is ahead.
    clock: Option<PathBuf>,
}

impl Server {
    /// Starts a server and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with("no").await
    }

    /// A server that forgets nothing that it has answered.
    pub async fn durable() -> Self {
        Self::start_with("always").await
    }

    /// A server that forgets the last second at most, or two where its disk is slow.
    pub async fn every_second() -> Self {
        Self::start_with("everysec").await
    }

    /// A server with more arguments.
    pub async fn with(more: &[&str]) -> Self {
        Self::begin("no", more).await
    }

    /// A server whose time of day can be set: see [`Server::set_clock`].
    pub async fn with_a_clock() -> Self {
        let library = clock_library();
        let name = format!("millstream-clock-{}-{}", std::process::id(), port::free());
        let offset = std::env::temp_dir().join(name);
        std::fs::write(&offset, "0").unwrap();
        let mut server = Self::start().await;
        server.stop();
        server.process = command(server.port, &server.dir, server.aof)
            .env("LD_PRELOAD", library)
            .env("CLOCK_OFFSET", &offset)
            .spawn()
            .unwrap();
        server.clock = Some(offset);
        assert!(server.is_ready().await, "redis-server does not answer with a clock of its own");
        server
    }

    /// Sets its clock so far ahead of the time of day.
    pub fn set_clock(&self, ahead: Duration) {
        let offset = self.clock.as_ref().expect("started with a clock");
        let next = offset.with_extension("next");
        std::fs::write(&next, ahead.as_micros().to_string()).unwrap();
        std::fs::rename(next, offset).unwrap();
    }

    async fn start_with(aof: &'static str) -> Self {
        Self::begin(aof, &[]).await
    }

    async fn begin(aof: &'static str, more: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("millstream-test-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        // Between finding a port and using it another process may take it: then another is found.
        for _ in 0..10 {
            let port = port::free();
            let process = spawn(port, &dir, aof, more);
            let mut server = Self { process, port, dir: dir.clone(), aof, clock: None };
            if server.is_ready().await {
                return server;
            }
            // With it goes its folder.
            drop(server);
            std::fs::create_dir_all(&dir).unwrap();
        }
        panic!("no redis-server started within ten attempts");
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where its files are.
    pub fn folder(&self) -> &std::path::Path {
        &self.dir
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it: nothing is written, no connection is closed in order.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Sends it a signal: `STOP` makes it silent, `CONT` lets it go on.
    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Kills it and starts it again on the same port; empty, unless it is durable.
    pub async fn restart(&mut self) {
        self.stop();
        self.process = spawn(self.port, &self.dir, self.aof, &[]);
        assert!(self.is_ready().await, "redis-server does not answer after its restart");
    }

    /// Starts it again after it was stopped, with more arguments, and waits for nothing.
    pub fn start_again(&mut self, more: &[&str]) {
        self.process = spawn(self.port, &self.dir, self.aof, more);
    }

    /// Runs one command; its error, where it has one.
    pub fn ask(&self, words: &[&str]) -> redis::RedisResult<Value> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_connection_with_timeout(READY)?;
        let mut command = redis::Cmd::new();
        command.arg(words).query(&mut connection)
    }

    /// Runs one command, as `redis-cli` would, and gives the reply as text; arrays line by line.
    pub fn command<A: AsRef<[u8]>>(&self, words: &[A]) -> String {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_connection_with_timeout(READY).unwrap();
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word.as_ref());
        }
        text(&command.query::<Value>(&mut connection).unwrap())
    }

    /// Whether it answers before the deadline; `false` as soon as the process has ended.
    async fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + READY;
        let client = redis::Client::open(self.url()).unwrap();
        // Its own number, lest another server has taken the port in between.
        let mine = format!("process_id:{}\r\n", self.process.id());
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            let answer = client
                .get_connection_with_timeout(Duration::from_secs(1))
                .and_then(|mut connection| redis::cmd("INFO").query::<String>(&mut connection));
            if answer.is_ok_and(|info| info.contains(&mine) && info.contains("\nloading:0")) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
        self.clock.iter().for_each(|offset| drop(std::fs::remove_file(offset)));
    }
}

/// Compiles `clock.c`, once for each run of the tests.
fn clock_library() -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/clock.c");
    let library = std::env::temp_dir().join(format!("millstream-clock-{}.so", std::process::id()));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
    assert!(cc.status().expect("cc is on the PATH").success());
    library
}

fn spawn(port: u16, dir: &PathBuf, aof: &str, more: &[&str]) -> Child {
    command(port, dir, aof).args(more).spawn().expect("redis-server is on the PATH")
}

fn command(port: u16, dir: &PathBuf, aof: &str) -> Command {
    let append = if aof == "no" { ["no", "no"] } else { ["yes", aof] };
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", append[0]])
        .args(["--appendfsync", append[1], "--port"])
        .arg(port.to_string())
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn text(value: &Value) -> String {
    match value {
        Value::Nil => String::new(),
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Okay => "OK".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn a_restarted_server_is_empty_and_where_it_was() {
    let mut server = Server::start().await;
    let (port, url) = (server.port(), server.url());
    assert_eq!(server.command(&["SET", "k", "v"]), "OK");
    assert_eq!(server.command(&["MGET", "k", "none"]), "v\n");
    server.restart().await;
    assert_eq!((server.port(), server.url()), (port, url));
    assert_eq!(server.command(&["DBSIZE"]), "0");
}
