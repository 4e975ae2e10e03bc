//! A private `redis-server`, ended with its value.

use std::{
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Error, folder::Folder};
use crate::broker::redis::{Options, Redis};

/// The server's program, found on the PATH.
const PROGRAM: &str = "redis-server";

/// Longest time for it to answer.
const READY: Duration = Duration::from_secs(10);

/// Another process may take the port between its being found and its being used.
const TRIES: u32 = 5;

#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    port: u16,
    /// Keeps others out, and this process out of another server on the port.
    password: String,
    _folder: Folder,
}

impl Server {
    /// Starts a server that keeps an append-only file, synced every second.
    pub(super) async fn start() -> Result<Self, Error> {
        for _ in 0..TRIES {
            let mut server = Self::spawn()?;
            if server.is_ready().await {
                return Ok(server);
            }
        }
        Err(Error::Stalled { what: "a private redis-server did not answer", waited: READY })
    }

    fn spawn() -> Result<Self, Error> {
        let failed = |source| Error::Program { program: PathBuf::from(PROGRAM), source };
        let folder = Folder::new()?;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let port = free.local_addr().map_err(failed)?.port();
        drop(free);
        let password = uuid::Uuid::new_v4().simple().to_string();
        let mut process = Command::new(PROGRAM)
            .arg("-")
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for this process, which ends the server when it needs it no more.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let input = process.stdin.take();
        let server = Self { process, port, password, _folder: folder };
        // Not as an argument: other users of the machine can see those.
        let lines = format!(
            "bind 127.0.0.1\nport {port}\nsave \"\"\nappendonly yes\nappendfsync everysec\n\
             requirepass {}\n",
            server.password
        );
        if let Some(mut input) = input {
            input.write_all(lines.as_bytes()).map_err(failed)?;
        }
        Ok(server)
    }

    /// Where it is, password included.
    pub(super) fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}", self.password, self.port)
    }

    /// Whether it answers in time; `false` as soon as it has ended.
    async fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            let options = Options { url: self.url(), ..Options::default() };
            if Redis::connect(options).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
