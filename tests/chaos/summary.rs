//! What a run came to, in figures.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    path::Path,
};

use serde_json::Value;

use crate::{
    faults::Done,
    fleet::Kill,
    history::{Asked, Fate, Finals, Kind, Step},
    plan::{FaultKind, Outlook, Planned},
};

/// What a run of half an hour is to reach.
const JOBS: usize = 20_000;
const FAULTS: usize = 300;
const EACH: usize = 30;

/// How long before a kill another fault still delays the recovery: a lease and a sweep.
const AFTERMATH: u64 = 8000;

type Counts = BTreeMap<String, usize>;

/// The figures.
#[derive(Default)]
pub struct Summary {
    pub seed: u64,
    pub seconds: u64,
    jobs: usize,
    long: usize,
    kinds: Counts,
    fates: Counts,
    ends: Counts,
    troubles: Counts,
    faults: Counts,
    kills: usize,
    hits: usize,
    /// Kill to the next `started`, in milliseconds: of all, and of those that no other fault touched.
    recovery: Vec<u64>,
    calm: Vec<u64>,
    steps: Counts,
    retries: Counts,
    sessions: usize,
    readers: usize,
    requeues: usize,
    cancels: usize,
    /// Lines of the workers' logs above `INFO`.
    said: Counts,
    fenced: usize,
    /// What the server's forgetting has undone.
    pub excused: String,
}

fn count(counts: &mut Counts, name: impl Into<String>) {
    *counts.entry(name.into()).or_default() += 1;
}

impl Summary {
    pub fn new(seed: u64, seconds: u64) -> Self {
        Self { seed, seconds, ..Self::default() }
    }

    pub fn jobs(&mut self, planned: &[Planned], asked: &[Asked], finals: &Finals) {
        self.jobs = planned.len();
        let there: BTreeSet<&str> = finals.jobs.values().map(|kept| kept.name.as_str()).collect();
        for (planned, asked) in planned.iter().zip(asked) {
            self.long += usize::from(planned.long);
            count(&mut self.kinds, planned.kind());
            count(
                &mut self.fates,
                match asked.fate {
                    Fate::Acknowledged(_) => "acknowledged",
                    Fate::Unknown if there.contains(asked.name.as_str()) => "unknown and there",
                    Fate::Unknown => "unknown and not there",
                },
            );
            count(&mut self.troubles, planned.trouble.unwrap_or("none"));
            self.readers += asked.readers.len();
            self.sessions +=
                asked.readers.iter().map(|reader| reader.sessions.len()).sum::<usize>();
            self.requeues += asked.requeues.acknowledged;
            self.cancels += asked.cancels.acknowledged;
        }
        let good = planned.iter().filter(|job| job.outlook == Outlook::Good);
        let good: BTreeSet<&str> = good.map(|job| job.name.as_str()).collect();
        for kept in finals.jobs.values() {
            let code = kept.log.last().filter(|step| step.kind == Kind::Failed);
            let code = code.map(|step| format!(" ({})", step.says)).unwrap_or_default();
            let odd = kept.state == "failed" && good.contains(kept.name.as_str());
            let odd = if odd { ", unplanned" } else { "" };
            count(&mut self.ends, format!("{}{code}{odd}", kept.state));
            for step in &kept.log {
                count(&mut self.steps, step.kind.name());
                if step.kind == Kind::Retrying {
                    count(&mut self.retries, &*step.says);
                }
            }
        }
    }

    pub fn faults(&mut self, done: &[Done], kills: &[Kill], finals: &Finals) {
        for fault in done {
            count(&mut self.faults, fault.kind.name());
        }
        self.kills = kills.len();
        let mut hits = BTreeSet::new();
        for kept in finals.jobs.values() {
            for (kill, next) in cut_short(&kept.log, kills) {
                hits.insert(kill.at);
                let Some(next) = next.and_then(|next| next.checked_sub(kill.at)) else { continue };
                self.recovery.push(next);
                let touched = |fault: &&Done| {
                    fault.from != kill.at
                        && !matches!(fault.kind, FaultKind::ListenerDrop | FaultKind::ProducerKill)
                        && !(fault.from <= kill.at && kill.at <= fault.until)
                        && fault.until + AFTERMATH > kill.at
                        && fault.from < kill.at + next
                };
                if !done.iter().any(|fault| touched(&fault)) {
                    self.calm.push(next);
                }
            }
        }
        self.hits = hits.len();
        self.recovery.sort_unstable();
        self.calm.sort_unstable();
    }

    /// Reads what the workers said of themselves.
    pub fn logs(&mut self, folder: &Path) {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with("worker-") {
                continue;
            }
            let text = std::fs::read(&path).unwrap();
            for line in String::from_utf8_lossy(&text).lines() {
                let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
                let level = line["level"].as_str().unwrap_or_default();
                let message = line["fields"]["message"].as_str().unwrap_or_default();
                self.fenced += usize::from(line["fields"]["reason"] == "fenced");
                if ["WARN", "ERROR"].contains(&level) {
                    count(&mut self.said, format!("{level} {message}"));
                }
            }
        }
    }

    fn marks(&self) -> Vec<(String, bool)> {
        let least = FaultKind::ALL.iter().map(|kind| self.faults.get(kind.name()).unwrap_or(&0));
        let faults: usize = self.faults.values().sum();
        let least = *least.min().unwrap();
        let mark = |text: String, reached| (text, reached);
        vec![
            mark(format!("{} of {JOBS} jobs", self.jobs), self.jobs >= JOBS),
            mark(format!("{faults} of {FAULTS} faults"), faults >= FAULTS),
            mark(format!("{least} of {EACH} faults of each kind"), least >= EACH),
            mark(format!("{} of {} jobs long", self.long, self.jobs), self.long * 2 >= self.jobs),
            mark(
                format!("{} of {} kills hit a running answer", self.hits, self.kills),
                self.hits * 2 >= self.kills,
            ),
        ]
    }
}

/// The attempts of a log that a kill ended, and when the next one began.
fn cut_short<'a>(
    log: &'a [Step],
    kills: &'a [Kill],
) -> impl Iterator<Item = (&'a Kill, Option<u64>)> {
    log.iter().enumerate().filter_map(move |(at, step)| {
        let kill = kills.iter().find(|kill| step.says.starts_with(&kill.worker));
        let kill = kill.filter(|_| step.kind == Kind::Started)?;
        let rest = &log[at + 1..];
        let own = rest.iter().take_while(|next| next.id.fence == step.id.fence);
        if own.clone().any(|next| next.kind.is_terminal() || next.kind == Kind::Retrying) {
            return None;
        }
        let next = rest.iter().find(|next| next.kind == Kind::Started).map(|next| next.id.fence);
        // Another took it over before the worker was killed.
        (next.is_none_or(|next| next >= kill.at)).then_some((kill, next))
    })
}

fn spread(times: &[u64]) -> String {
    let Some(last) = times.last() else { return "none".to_owned() };
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("p50 {} ms, p95 {} ms, max {last} ms of {}", at(50), at(95), times.len())
}

fn table(f: &mut fmt::Formatter<'_>, title: &str, counts: &Counts) -> fmt::Result {
    let mut cells = String::new();
    for (name, count) in counts {
        let comma = if cells.is_empty() { "" } else { "; " };
        write!(cells, "{comma}{name} {count}")?;
    }
    writeln!(f, "  {title}: {cells}")
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "chaos: seed {}, {} s, {} jobs", self.seed, self.seconds, self.jobs)?;
        table(f, "jobs by kind", &self.kinds)?;
        table(f, "by what their producer knows", &self.fates)?;
        table(f, "by end", &self.ends)?;
        table(f, "model's troubles", &self.troubles)?;
        table(f, "faults", &self.faults)?;
        writeln!(f, "  kill to next attempt: {}", spread(&self.recovery))?;
        writeln!(f, "    of these, away from other faults: {}", spread(&self.calm))?;
        table(f, "events", &self.steps)?;
        table(f, "retries", &self.retries)?;
        writeln!(f, "  attempts given up as fenced: {}", self.fenced)?;
        writeln!(f, "  requeues {}, cancels {}", self.requeues, self.cancels)?;
        writeln!(f, "  readers {}, over {} connections", self.readers, self.sessions)?;
        writeln!(f, "  forgotten by the server: {}", self.excused)?;
        table(f, "workers' logs", &self.said)?;
        for (text, reached) in self.marks() {
            writeln!(f, "  {} {text}", if reached { "reached:" } else { "not reached:" })?;
        }
        Ok(())
    }
}
