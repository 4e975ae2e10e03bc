//! A gateway process, and what it uses.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use super::{Error, folder::Folder};
use crate::config::{self, Config};

/// Longest time for it to listen.
const READY: Duration = Duration::from_secs(20);

/// Clock ticks per second of `/proc/PID/stat`; the same on every Linux.
const TICKS: u32 = 100;

/// Ended by SIGKILL with its value.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: u32,
    url: String,
    program: PathBuf,
    folder: Folder,
}

impl Process {
    /// Starts the program with this configuration and no other, and waits for its first line, its address, and
    /// until it has reached the broker.
    pub(super) async fn start(program: &Path, config: &Config) -> Result<Self, Error> {
        let failed = |source| Error::Program { program: program.to_owned(), source };
        let folder = Folder::new()?;
        let path = folder.path().join("gateway.log");
        let log = File::create(&path).map_err(|source| Error::Folder { path, source })?;
        let mut command = std::process::Command::new(program);
        command
            .current_dir(folder.path())
            .env_clear()
            .envs(config::variables(config))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0);
        let mut child = Command::from(command).kill_on_drop(true).spawn().map_err(failed)?;
        let pid = child.id().unwrap_or(0);
        let lines = child.stdout.take().map(|out| BufReader::new(out).lines());
        let first = async {
            match lines {
                Some(mut lines) => lines.next_line().await.ok().flatten(),
                None => None,
            }
        };
        let url = tokio::time::timeout(READY, first).await.ok().flatten().unwrap_or_default();
        let mut process = Self { child, pid, url, program: program.to_owned(), folder };
        process.check()?;
        let serves = async {
            while !process.is_ready().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let stalled =
            Error::Stalled { what: "the gateway did not reach the broker", waited: READY };
        tokio::time::timeout(READY, serves).await.map_err(|_| stalled)?;
        Ok(process)
    }

    /// Whether it has reached the broker: before, it refuses.
    async fn is_ready(&self) -> bool {
        let head = async {
            let address = self.address().map_err(std::io::Error::other)?;
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut head = String::new();
            BufReader::new(stream).read_line(&mut head).await.map(|_| head)
        };
        head.await.is_ok_and(|head| head.starts_with("HTTP/1.1 200 "))
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Result<SocketAddr, Error> {
        let address = self.url.strip_prefix("http://").and_then(|address| address.parse().ok());
        address.ok_or(Error::Stalled { what: "the gateway did not listen", waited: READY })
    }

    /// Bytes of memory that it holds.
    pub(super) fn memory(&self) -> Result<u64, Error> {
        let status = self.read("status")?;
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes =
            kilobytes.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.unwrap_or_default() * 1024)
    }

    /// Time that it has used on all cores.
    pub(super) fn busy(&self) -> Result<Duration, Error> {
        Ok(busy(&self.read("stat")?))
    }

    /// Time that this process has used.
    pub(super) fn own_busy() -> Result<Duration, Error> {
        let path = PathBuf::from("/proc/self/stat");
        let stat = fs::read_to_string(&path).map_err(|source| Error::Folder { path, source })?;
        Ok(busy(&stat))
    }

    fn read(&self, name: &str) -> Result<String, Error> {
        let path = PathBuf::from(format!("/proc/{}/{name}", self.pid));
        fs::read_to_string(&path).map_err(|source| Error::Folder { path, source })
    }

    /// Fails where it has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                let log = fs::read_to_string(self.folder.path().join("gateway.log"));
                let log = log.unwrap_or_default();
                let said = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
                Err(Error::Ended { name: "the gateway".to_owned(), said: said.to_owned() })
            }
            Err(source) => Err(Error::Program { program: self.program.clone(), source }),
        }
    }
}

/// User and system time of a `stat` line: the 12th and 13th field behind the name.
fn busy(stat: &str) -> Duration {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|n| n.parse::<u32>().ok());
    Duration::from_secs(1) / TICKS * (ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(busy(stat), Duration::from_secs(2));
    }
}
