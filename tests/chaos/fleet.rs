//! The workers: real processes, each behind a proxy of its own, that are killed, frozen and drained.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::process::Child;

use crate::{
    proxy::Proxy,
    support::{self, WORKER, command, knows, signal},
};

/// Worker processes that run at a time.
pub const WORKERS: usize = 4;

/// Longest time for a worker to drain, beyond what it is given.
const DRAINED: Duration = Duration::from_secs(30);

/// A killed worker.
#[derive(Debug, Clone)]
pub struct Kill {
    /// What its ID begins with.
    pub worker: String,
    /// When, in milliseconds since the epoch.
    pub at: u64,
}

/// A place for one worker process at a time.
struct Slot {
    proxy: Proxy,
    process: Child,
    name: String,
    incarnation: u32,
}

/// All worker processes.
pub struct Fleet {
    slots: Vec<Slot>,
    args: Vec<String>,
    base_url: String,
    folder: PathBuf,
    pub kills: Vec<Kill>,
    /// Workers that ended without being told to, or not as they should.
    pub surprises: Vec<String>,
}

/// How every worker is told to behave: the default lease and renewal, short deadlines, and budgets
/// that faults do not use up.
fn arguments() -> Vec<String> {
    let mut settings = vec![
        ("log.format", "json"),
        ("worker.concurrency", "48"),
        ("worker.lease", "6s"),
        ("worker.renewal", "2s"),
        ("worker.drain", "1500ms"),
        ("worker.first_token_timeout", "10s"),
        ("worker.idle_timeout", "5s"),
        ("worker.total_timeout", "60s"),
        ("worker.retry.max_attempts", "100"),
        ("worker.retry.initial", "300ms"),
        ("worker.retry.max", "3s"),
    ];
    // Keys that not every version knows.
    let more = [("worker.max_crashes", "100"), ("worker.retry.max_crashes", "100")];
    settings.extend(more.into_iter().filter(|(key, value)| knows(key, value)));
    settings.into_iter().flat_map(|(k, v)| ["--set".to_owned(), format!("{k}={v}")]).collect()
}

impl Fleet {
    pub async fn start(redis: u16, base_url: String, folder: PathBuf) -> Self {
        let args = arguments();
        let mut fleet = Self {
            slots: Vec::new(),
            args,
            base_url,
            folder,
            kills: Vec::new(),
            surprises: Vec::new(),
        };
        for slot in 0..WORKERS {
            let proxy = Proxy::to(redis).await;
            let (name, process) = fleet.spawn(slot, 0, &proxy);
            fleet.slots.push(Slot { proxy, process, name, incarnation: 0 });
        }
        fleet
    }

    fn spawn(&self, slot: usize, incarnation: u32, proxy: &Proxy) -> (String, Child) {
        let name = format!("w{slot}x{incarnation}");
        let url = proxy.url();
        let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", self.base_url.as_str())];
        let args = [&["--name".to_owned(), name.clone()], &self.args[..]].concat();
        let log = self.folder.join(format!("worker-{name}.log"));
        let process = command(WORKER, &args, &env, &log).spawn().unwrap();
        (name, process)
    }

    fn again(&mut self, slot: usize) {
        let incarnation = self.slots[slot].incarnation + 1;
        let (name, process) = self.spawn(slot, incarnation, &self.slots[slot].proxy);
        let slot = &mut self.slots[slot];
        (slot.name, slot.process, slot.incarnation) = (name, process, incarnation);
    }

    /// Starts again what ended by itself, which no fault excuses.
    pub fn revive(&mut self) {
        for at in 0..self.slots.len() {
            if let Some(status) = self.slots[at].process.try_wait().unwrap() {
                self.surprises.push(format!("worker {} ended with {status}", self.slots[at].name));
                self.again(at);
            }
        }
    }

    /// Where the workers' logs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the IDs of the workers begin with, by slot.
    pub fn names(&self) -> Vec<String> {
        self.slots.iter().map(|slot| format!("{}-", slot.name)).collect()
    }

    pub fn proxy(&self, slot: usize) -> &Proxy {
        &self.slots[slot].proxy
    }

    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.slots.iter().map(|slot| &slot.proxy)
    }

    /// Kills a worker with SIGKILL; another takes its slot after this time.
    pub async fn kill(&mut self, slot: usize, away: Duration) {
        let at = support::now();
        self.slots[slot].process.kill().await.unwrap();
        self.kills.push(Kill { worker: format!("{}-", self.slots[slot].name), at });
        tokio::time::sleep(away).await;
        self.again(slot);
    }

    /// Stops a worker's clock for this time.
    pub async fn freeze(&mut self, slot: usize, time: Duration) {
        signal(&self.slots[slot].process, "STOP");
        tokio::time::sleep(time).await;
        signal(&self.slots[slot].process, "CONT");
    }

    /// Has a worker leave in order, as for a deploy.
    pub async fn drain(&mut self, slot: usize, away: Duration) {
        let Slot { process, name, .. } = &mut self.slots[slot];
        signal(process, "TERM");
        match tokio::time::timeout(DRAINED, process.wait()).await {
            Ok(status) => {
                let status = status.unwrap();
                if !status.success() {
                    self.surprises.push(format!("worker {name}, drained, ended with {status}"));
                }
            }
            Err(_) => {
                self.surprises.push(format!("worker {name} did not end within {DRAINED:?}"));
                process.kill().await.unwrap();
            }
        }
        tokio::time::sleep(away).await;
        self.again(slot);
    }

    /// Ends all workers.
    pub async fn stop(&mut self) {
        for slot in &mut self.slots {
            slot.process.kill().await.unwrap();
        }
    }
}
