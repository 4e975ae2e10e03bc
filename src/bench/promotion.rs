//! Promotion: how late a parked job begins, with two workers promoting.
//!
//! Jobs are scheduled at random times over some seconds. Two workers, each on connections of its
//! own, move them to their lanes when their time has come and run them. Lateness is the time of
//! the attempt's `started` event less the time the job was due; both are the server's, in
//! milliseconds. The events are read after all is over, so that nothing but the workers is busy.

use std::time::Duration;

use super::{
    Budget, Claim, Distribution, Error, Figure, Lab, Mark, Progress, Report, noise, random_below,
};
use crate::{
    event::{Body, Event, EventId},
    job::{Job, JobId, Timestamp},
};

/// Workers that promote at the same time.
const WORKERS: usize = 2;

/// Jobs that open connections and load scripts before anything is measured.
const WARM_UP: usize = 20;

/// Jobs that can certainly be enqueued in a second.
const ENQUEUED: u32 = 1000;

/// Most events of a job that runs without a retry, and some more.
const EVENTS: usize = 64;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many jobs are scheduled.
    pub jobs: u32,
    /// The time over which they come due.
    pub over: Duration,
}

/// Measures the lateness of parked jobs.
pub async fn run(lab: &Lab, options: &Options, progress: Progress<'_>) -> Result<Report, Error> {
    for number in 1..=WORKERS {
        lab.employ(&format!("promoter-{number}")).await?;
    }
    lab.wait_for_workers(WORKERS, || Ok(())).await?;
    let warm_up = (0..WARM_UP).map(|n| job(&format!("warm up {n}"))).collect();
    for receipt in lab.producer().enqueue_all(warm_up).await {
        receipt?;
    }
    lab.wait_until_empty().await?;
    let scheduled = schedule(lab, options).await?;
    let last = scheduled.iter().map(|(_, due)| due.0).max().unwrap_or(0);
    let (over, timers) = noise::beside(async {
        tokio::time::sleep(Duration::from_millis(last.saturating_sub(Timestamp::now().0))).await;
        lab.wait_until_empty().await
    })
    .await;
    over?;
    let (mut lateness, mut once, mut done) = (Vec::with_capacity(scheduled.len()), 0, 0);
    for (id, due) in &scheduled {
        let events = lab.broker().read(*id, EventId::START, EVENTS).await?;
        let starts: Vec<&Event> =
            events.iter().filter(|event| matches!(event.body, Body::Started(_))).collect();
        let Some(first) = starts.first() else {
            return Err(Error::Job { id: *id, what: "never began".to_owned() });
        };
        // The fence of an attempt is the time at which it began, by the server's clock.
        lateness.push(Duration::from_millis(first.id.fence.saturating_sub(due.0)));
        once += usize::from(starts.len() == 1 && first.id.fence >= due.0);
        done += usize::from(matches!(events.last(), Some(Event { body: Body::Done(_), .. })));
        progress();
    }
    let of = scheduled.len();
    Ok(Report {
        scenario: "promotion",
        setting: format!(
            "{of} jobs due at random times over {}, {WORKERS} workers promoting",
            humantime_serde::re::humantime::format_duration(options.over)
        ),
        figures: vec![
            Figure {
                name: "due to begun",
                distribution: lateness.into_iter().collect::<Distribution>(),
                budgets: vec![Budget {
                    mark: Mark::Percentile(99),
                    limit: Duration::from_millis(50),
                }],
            },
            timers,
        ],
        amounts: Vec::new(),
        claims: vec![
            Claim { text: "jobs begun once, and not before they were due", held: once, of },
            Claim { text: "answers whole", held: done, of },
        ],
        machine: lab.machine().await?,
    })
}

fn job(question: &str) -> Job {
    Job { stream: false, ..Lab::job("tokens=1", question) }
}

/// Parks the jobs; none is due before all of them are.
async fn schedule(lab: &Lab, options: &Options) -> Result<Vec<(JobId, Timestamp)>, Error> {
    let ahead = Duration::from_secs(2) + Duration::from_secs(1) * options.jobs / ENQUEUED;
    let start = Timestamp::now().after(ahead);
    let jobs: Vec<Job> = (0..options.jobs)
        .map(|n| {
            let due = start.after(random_below(options.over));
            Job { not_before: Some(due), ..job(&format!("parked {n}")) }
        })
        .collect();
    let due: Vec<Timestamp> = jobs.iter().filter_map(|job| job.not_before).collect();
    let mut scheduled = Vec::with_capacity(due.len());
    for (receipt, due) in lab.producer().enqueue_all(jobs).await.into_iter().zip(due) {
        let receipt = receipt?;
        if !receipt.parked {
            let what = "was due before it was parked; do this clock and Redis's differ?";
            return Err(Error::Job { id: receipt.id, what: what.to_owned() });
        }
        scheduled.push((receipt.id, due));
    }
    if Timestamp::now() > start {
        let what = "jobs were not parked before they came due";
        return Err(Error::Stalled { what, waited: ahead });
    }
    Ok(scheduled)
}
