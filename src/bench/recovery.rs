//! Crash recovery: from the kill of a worker to the first event of the job's next attempt.
//!
//! Workers are processes of their own. Each victim runs one job at a time; it is killed by SIGKILL
//! after its reader has seen several deltas, at a random moment of two renewals, so that the last
//! renewal lies anywhere behind. Another takes its place at once, as a supervisor would see to.
//! Two heirs with many slots stand by, past the grace within which a sweeper takes nothing; a
//! victim that is idle may inherit as well. Several victims die independently of each other, and
//! every job is followed to its end before its place is given to the next.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use humantime_serde::re::humantime::format_duration;

use super::{
    Budget, Claim, Distribution, Error, Figure, Lab, Mark, Progress, Report,
    fleet::Fleet,
    random_below,
    watch::{End, Watch},
};
use crate::{listener::Listener, producer::Producer};

/// Workers that are killed, and those that are not.
const VICTIM: &str = "victim";
const HEIR: &str = "heir";

/// Heirs, and the jobs that each may run at once.
const HEIRS: usize = 2;
const SLOTS: usize = 64;

/// Deltas that a reader has seen before the kill.
const DELTAS: u32 = 3;

/// Tokens per second of an answer.
const RATE: u32 = 25;

/// What an answer has left when its worker is killed, at least.
const REST: Duration = Duration::from_secs(2);

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How many workers are killed.
    pub kills: u32,
    /// How many jobs are on their way at a time, each in the hands of a worker.
    pub at_once: usize,
    /// The worker's program.
    pub worker: PathBuf,
}

/// One kill.
struct Kill {
    /// Until the first event of the next attempt.
    took: Duration,
    /// Whether the answer ended well, and said again what it had said before the kill.
    whole: bool,
}

/// Measures crash recovery.
pub async fn run(lab: &Lab, options: &Options, progress: Progress<'_>) -> Result<Report, Error> {
    let at_once = options.at_once.clamp(1, usize::try_from(options.kills).unwrap_or(1).max(1));
    let scene = Scene::set(lab, options, at_once).await?;
    let kills: Vec<Kill> = stream::iter(0..options.kills)
        .map(|number| scene.kill(number))
        .buffer_unordered(at_once)
        .inspect_ok(|_| progress())
        .try_collect()
        .await?;
    let worker = &lab.config().worker;
    let (lease, renewal) = (format_duration(worker.lease), format_duration(worker.renewal));
    let sweep = format_duration(worker.sweep);
    Ok(Report {
        scenario: "recovery",
        setting: format!(
            "{} worker processes killed by SIGKILL in mid-answer, {at_once} jobs at once, {HEIRS} \
             heirs; lease {lease}, renewal {renewal}, sweep {sweep}",
            kills.len()
        ),
        figures: vec![Figure {
            name: "kill to first event of the next attempt",
            distribution: kills.iter().map(|kill| kill.took).collect::<Distribution>(),
            budgets: vec![
                Budget { mark: Mark::Percentile(50), limit: Duration::from_secs(6) },
                Budget { mark: Mark::Max, limit: Duration::from_secs(9) },
            ],
        }],
        amounts: Vec::new(),
        claims: vec![Claim {
            text: "answers whole in spite of the kill",
            held: kills.iter().filter(|kill| kill.whole).count(),
            of: kills.len(),
        }],
        machine: lab.machine().await?,
    })
}

/// The workers, and what it takes to give them jobs and watch.
struct Scene {
    fleet: Mutex<Fleet>,
    producer: Producer,
    listener: Listener,
    /// Kills come within this time after the first deltas.
    window: Duration,
    patience: Duration,
}

impl Scene {
    /// Starts the workers, and waits until the heirs take over what they find.
    async fn set(lab: &Lab, options: &Options, victims: usize) -> Result<Self, Error> {
        let worker = &lab.config().worker;
        let mut fleet = Fleet::new(&options.worker, lab.config())?;
        for _ in 0..HEIRS {
            fleet.hire(HEIR, SLOTS)?;
        }
        for _ in 0..victims {
            fleet.hire(VICTIM, 1)?;
        }
        lab.wait_for_workers(HEIRS + victims, || fleet.check()).await?;
        // The first sweep begins the grace.
        tokio::time::sleep(worker.sweep * 3 / 2 + worker.lease).await;
        fleet.check()?;
        Ok(Self {
            fleet: Mutex::new(fleet),
            producer: lab.producer(),
            listener: lab.listener(),
            window: worker.renewal * 2,
            patience: worker.lease * 3 + Duration::from_secs(20),
        })
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One kill. A job that goes to an heir runs to its end there, and another is tried.
    async fn kill(&self, number: u32) -> Result<Kill, Error> {
        loop {
            if let Some(kill) = self.attempt(number).await.map_err(|error| self.explain(error))? {
                return Ok(kill);
            }
        }
    }

    /// A worker that ended by itself says more than the silence that it left.
    fn explain(&self, error: Error) -> Error {
        self.fleet().check().err().unwrap_or(error)
    }

    async fn attempt(&self, number: u32) -> Result<Option<Kill>, Error> {
        let tokens = (self.window + REST).as_secs() * u64::from(RATE);
        let job = Lab::job(&format!("tokens={tokens},rate={RATE}"), &format!("kill {number}"));
        let id = self.producer.enqueue(job).await?.id;
        let mut watch = Watch::new(id, self.listener.listen(id).idle_timeout(self.patience));
        watch.until(|watch| watch.deltas >= DELTAS || watch.is_over()).await?;
        if Fleet::has_role(VICTIM, &watch.worker) {
            let pause = random_below(self.window);
            // Read on meanwhile: what comes after the kill is new.
            let _ = tokio::time::timeout(pause, watch.until(Watch::is_over)).await;
        }
        let killed = match watch.end {
            None => self.fleet().kill(VICTIM, &watch.worker)?,
            Some(_) => None,
        };
        let Some(killed) = killed else {
            watch.until(Watch::is_over).await?;
            return Ok(None);
        };
        self.fleet().hire(VICTIM, 1)?;
        let (attempt, mut before) = (watch.attempt, watch.text.clone());
        while watch.attempt == attempt && !watch.is_over() {
            before.clone_from(&watch.text);
            watch.next().await?;
        }
        let took = killed.elapsed();
        if watch.attempt == attempt {
            // It had just ended.
            return Ok(None);
        }
        watch.until(Watch::is_over).await?;
        let words = watch.text.split(' ').count();
        let whole = watch.end == Some(End::Done)
            && watch.text.starts_with(&before)
            && u64::try_from(words) == Ok(tokens);
        Ok(Some(Kill { took, whole }))
    }
}
