//! Cancel: from the call until the model is left alone, and until a reader knows.
//!
//! Many jobs stream at once, on two workers, and one after the other is cancelled at a random moment
//! between two flushes. One cancel is on its way at a time, so that the next answer that the
//! simulator sees cut short is the one that was cancelled.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Mutex;

use super::{
    Budget, Claim, Error, Figure, Lab, Mark, Progress, Report, noise, random_below,
    watch::{End, Watch},
};
use crate::{
    admin::{Admin, Cancelled},
    listener::Listener,
    producer::Producer,
    simulator::Meter,
};

/// Workers that run the jobs.
const WORKERS: usize = 2;

/// Deltas that a reader has seen before the cancel.
const DELTAS: u32 = 3;

/// What an answer would be if nobody cancelled it: minutes.
const ANSWER: &str = "tokens=10000,rate=25";

/// Longest wait for what a cancel brings about.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many jobs are cancelled.
    pub jobs: u32,
    /// How many stream at a time.
    pub at_once: usize,
}

/// One cancel, and what was seen of it.
struct Seen {
    /// Until the simulator saw its answer cut short.
    dropped: Duration,
    /// Until a reader had the job's last event.
    told: Duration,
    /// Whether that event was `cancelled`, and the answer to the call that a worker was asked.
    cancelled: bool,
}

/// Measures how soon a cancel takes effect.
pub async fn run(lab: &Lab, options: &Options, progress: Progress<'_>) -> Result<Report, Error> {
    for number in 1..=WORKERS {
        lab.employ(&format!("worker-{number}")).await?;
    }
    lab.wait_for_workers(WORKERS, || Ok(())).await?;
    let scene = Scene {
        admin: Admin::new(lab.broker().clone()),
        producer: lab.producer(),
        listener: lab.listener(),
        meter: lab.meter().clone(),
        window: lab.config().worker.flush_interval,
        turn: Mutex::new(()),
    };
    let at_once = options.at_once.max(1);
    let cancels = stream::iter(0..options.jobs)
        .map(|number| scene.cancel(number))
        .buffer_unordered(at_once)
        .inspect_ok(|_| progress())
        .try_collect();
    let (seen, timers) = noise::beside(cancels).await;
    let seen: Vec<Seen> = seen?;
    let budget = Budget { mark: Mark::Max, limit: Duration::from_millis(250) };
    let figure = |name, samples: fn(&Seen) -> Duration| Figure {
        name,
        distribution: seen.iter().map(samples).collect(),
        budgets: vec![budget],
    };
    let of = seen.len();
    let again =
        usize::try_from(lab.meter().stats().requests).unwrap_or(usize::MAX).saturating_sub(of);
    Ok(Report {
        scenario: "cancel",
        setting: format!(
            "{of} streaming jobs cancelled one by one, up to {at_once} at once on {WORKERS} workers"
        ),
        figures: vec![
            figure("cancel to upstream connection dropped", |seen| seen.dropped),
            figure("cancel to `cancelled` event at a reader", |seen| seen.told),
            timers,
        ],
        amounts: Vec::new(),
        claims: vec![
            Claim {
                text: "jobs ended as cancelled by their worker",
                held: seen.iter().filter(|seen| seen.cancelled).count(),
                of,
            },
            // With it, every answer that was seen cut short was the one just cancelled.
            Claim { text: "model called once for each job", held: of.saturating_sub(again), of },
        ],
        machine: lab.machine().await?,
    })
}

/// What it takes to give jobs out, to cancel them and to watch.
struct Scene {
    admin: Admin,
    producer: Producer,
    listener: Listener,
    meter: Meter,
    /// Cancels come within this time after a delta.
    window: Duration,
    /// Held by the one whose cancel is on its way.
    turn: Mutex<()>,
}

impl Scene {
    async fn cancel(&self, number: u32) -> Result<Seen, Error> {
        let job = Lab::job(ANSWER, &format!("cancel {number}"));
        let id = self.producer.enqueue(job).await?.id;
        let mut watch = Watch::new(id, self.listener.listen(id).idle_timeout(PATIENCE));
        watch.until(|watch| watch.deltas >= DELTAS || watch.is_over()).await?;
        let turn = self.turn.lock().await;
        // Read on meanwhile: only what comes after the call is left to read then.
        let pause = random_below(self.window);
        let _ = tokio::time::timeout(pause, watch.until(Watch::is_over)).await;
        if watch.is_over() {
            return Err(Error::Job { id, what: "ended before it was cancelled".to_owned() });
        }
        let cut = self.meter.stats().aborted + 1;
        let called = Instant::now();
        let dropped = async {
            self.meter.aborted(cut).await;
            called.elapsed()
        };
        let told = async {
            watch.until(Watch::is_over).await?;
            Ok::<_, Error>(called.elapsed())
        };
        let effects = async { tokio::join!(self.admin.cancel(id), dropped, told) };
        let Ok((answer, dropped, told)) = tokio::time::timeout(PATIENCE, effects).await else {
            return Err(Error::Stalled { what: "a cancel took no effect", waited: PATIENCE });
        };
        drop(turn);
        let asked = matches!(answer?, Cancelled::Asked { again: false, .. });
        let told = told?;
        Ok(Seen { dropped, told, cancelled: asked && watch.end == Some(End::Cancelled) })
    }
}
