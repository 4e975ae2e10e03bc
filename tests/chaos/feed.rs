//! Real producer processes: each reads jobs from its standard input and acknowledges them on its
//! standard output, until it is killed or Redis leaves it; then another goes on.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use millstream::job::JobId;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::ChildStdin,
    sync::{mpsc, watch},
};

use crate::{
    load,
    plan::Planned,
    support::{PRODUCER, command, now},
    world::World,
};

/// How long it takes to start the next process.
const PAUSE: Duration = Duration::from_millis(200);

/// A job on its way to a producer.
#[derive(Debug, Clone)]
pub struct Line {
    pub job: usize,
    pub planned: Planned,
    /// When an earlier process was given it, in milliseconds since the epoch.
    pub sent: Option<u64>,
}

impl Line {
    /// With an idempotency key it may be sent again; then at once, as its schedule may have passed.
    fn text(&self) -> String {
        let job = if self.sent.is_some() { self.planned.job.clone() } else { self.planned.job() };
        format!("{}\n", serde_json::to_string(&job).unwrap())
    }

    fn is_keyed(&self) -> bool {
        self.planned.job.idempotency_key.is_some()
    }
}

/// What the producer tells of a job.
#[derive(Deserialize)]
struct Told {
    id: JobId,
    custom_id: String,
}

/// A chain of producer processes.
pub struct Feed {
    world: Arc<World>,
    lines: mpsc::UnboundedReceiver<Line>,
    /// Changes when the process is to be killed.
    kill: watch::Receiver<u64>,
    log: PathBuf,
    /// Sent and not acknowledged.
    open: BTreeMap<String, Line>,
    /// To be sent before anything else.
    again: Vec<Line>,
    closed: bool,
}

impl Feed {
    pub fn new(
        world: Arc<World>,
        lines: mpsc::UnboundedReceiver<Line>,
        kill: watch::Receiver<u64>,
        log: PathBuf,
    ) -> Self {
        let (open, again) = (BTreeMap::new(), Vec::new());
        Self { world, lines, kill, log, open, again, closed: false }
    }

    /// Runs until its input is closed and everything is acknowledged or given up.
    pub async fn run(mut self) {
        while !(self.closed && self.again.is_empty()) {
            self.process().await;
            // Without a key nobody knows; with one it is asked again.
            let open = std::mem::take(&mut self.open).into_values();
            self.again.extend(open.filter(Line::is_keyed));
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One process, to its end.
    async fn process(&mut self) {
        let trim = "producer.trim_every=50";
        let args = ["--file", "-", "--output", "json", "--on-error", "skip", "--set", trim];
        let args = args.map(str::to_owned);
        let url = self.world.proxy.url();
        let env = [("REDIS_URL", url.as_str())];
        let mut command = command(PRODUCER, &args, &env, &self.log);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = process.stdin.take();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        self.kill.borrow_and_update();
        for line in std::mem::take(&mut self.again) {
            self.send(&mut input, line).await;
        }
        loop {
            if self.closed {
                input = None;
            }
            tokio::select! {
                line = self.lines.recv(), if !self.closed => match line {
                    Some(line) => self.send(&mut input, line).await,
                    None => self.closed = true,
                },
                told = output.next_line() => match told.unwrap() {
                    Some(told) => self.told(&told),
                    None => break,
                },
                Ok(()) = self.kill.changed() => process.start_kill().unwrap(),
            }
        }
        process.wait().await.unwrap();
    }

    /// Sends a line. Where the process is gone already, nobody has it.
    async fn send(&mut self, input: &mut Option<ChildStdin>, line: Line) {
        let text = line.text();
        let sent = line.sent.unwrap_or_else(now);
        self.open.insert(line.planned.name.clone(), Line { sent: Some(sent), ..line });
        if let Some(input) = input {
            let _ = input.write_all(text.as_bytes()).await;
        }
    }

    fn told(&mut self, line: &str) {
        // The last line of a killed process may be cut.
        let Ok(told) = serde_json::from_str::<Told>(line) else { return };
        if let Some(line) = self.open.remove(&told.custom_id) {
            load::acknowledged(&self.world, line.job, told.id, line.sent.unwrap_or_default());
        }
    }
}
