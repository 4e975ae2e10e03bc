//! `millstream bench`: what is promised in figures, measured here and now.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Context, Error, Exit,
    args::{self, Common, Output},
    gateway,
    logging::{self, Level},
};
use crate::{
    bench::{Lab, Report, cancel, promotion, recovery, streams, ttft},
    config,
};

mod report;

/// The worker's program, beside this one.
const WORKER: &str = "millstream-worker";

/// The gateway's program, beside this one.
const GATEWAY: &str = "millstream-gateway";

/// What to measure.
#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    /// Crash recovery: from the kill of a worker to the first event of the job's next attempt
    ///
    /// Worker processes are killed by SIGKILL in mid-answer, at random moments between two
    /// renewals; others take their jobs over when the lease has run out. Budget: p50 6 s, max 9 s,
    /// with worker.lease, worker.renewal and worker.sweep at their defaults. 50 kills take about
    /// two minutes.
    Recovery {
        /// How many workers are killed
        #[arg(long, value_name = "NUMBER", default_value_t = 50,
              value_parser = clap::value_parser!(u32).range(1..=10_000))]
        kills: u32,

        /// How many jobs are on their way at a time
        #[arg(long, value_name = "NUMBER", default_value_t = 10,
              value_parser = clap::value_parser!(u32).range(1..=100))]
        at_once: u32,

        /// The worker's program [default: millstream-worker beside this program]
        #[arg(long, value_name = "PATH")]
        worker_bin: Option<PathBuf>,

        #[command(flatten)]
        shown: Shown,
    },

    /// Lateness of parked jobs: from the time a job is due to its `started` event
    ///
    /// Jobs come due at random times while two workers promote. Both times are Redis's own, in
    /// milliseconds. Budget: p99 50 ms.
    Promotion {
        /// How many jobs are scheduled
        #[arg(long, value_name = "NUMBER", default_value_t = 1000,
              value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        jobs: u32,

        /// The time over which they come due
        #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::duration)]
        over: Duration,

        #[command(flatten)]
        shown: Shown,
    },

    /// Cancel: from the call until the model is left alone, and until a reader knows
    ///
    /// Jobs in mid-answer are cancelled one by one, while others stream. The simulator tells when
    /// the connection to it was dropped. Budget: max 250 ms for both.
    Cancel {
        /// How many jobs are cancelled
        #[arg(long, value_name = "NUMBER", default_value_t = 100,
              value_parser = clap::value_parser!(u32).range(1..=100_000))]
        jobs: u32,

        /// How many jobs stream at a time
        #[arg(long, value_name = "NUMBER", default_value_t = 20,
              value_parser = clap::value_parser!(u32).range(1..=100))]
        at_once: u32,

        #[command(flatten)]
        shown: Shown,
    },

    /// Time to first token: what queue, worker and gateway add to a direct call
    ///
    /// The simulator is asked directly and through a gateway process, in turns, with nothing else under
    /// way. Budget: p50 1.5 ms, p99 6 ms.
    Ttft {
        /// How often each way is asked
        #[arg(long, value_name = "NUMBER", default_value_t = 1000,
              value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        pairs: u32,

        /// The gateway's program [default: millstream-gateway beside this program]
        #[arg(long, value_name = "PATH")]
        gateway_bin: Option<PathBuf>,

        #[command(flatten)]
        shown: Shown,
    },

    /// Open event streams: memory, commands of Redis and delay of events, with many of them at once
    ///
    /// The gateway is a process of its own. Jobs run slowly, each stream gets an event every 0.8 s.
    /// Budget: 25 KB and 4 commands per stream. Readers, worker and simulator run in this process, on the
    /// same cores.
    Streams {
        /// How many streams are open
        #[arg(long, value_name = "NUMBER", default_value_t = 10_000,
              value_parser = clap::value_parser!(u32).range(1..=100_000))]
        streams: u32,

        /// How many jobs they follow
        #[arg(long, value_name = "NUMBER", default_value_t = 1000,
              value_parser = clap::value_parser!(u32).range(1..=10_000))]
        jobs: u32,

        /// How long all are open
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = args::duration)]
        time: Duration,

        /// The gateway's program [default: millstream-gateway beside this program]
        #[arg(long, value_name = "PATH")]
        gateway_bin: Option<PathBuf>,

        #[command(flatten)]
        shown: Shown,
    },
}

/// How a measurement is shown.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Shown {
    /// End with exit code 7 when a budget is missed
    #[arg(long)]
    check: bool,

    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    output: Output,

    /// The same as --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl Shown {
    fn exit(self, met: bool) -> Exit {
        if self.check && !met { Exit::Missed } else { Exit::Ok }
    }
}

impl Bench {
    fn shown(&self) -> Shown {
        match self {
            Self::Recovery { shown, .. }
            | Self::Promotion { shown, .. }
            | Self::Cancel { shown, .. }
            | Self::Ttft { shown, .. }
            | Self::Streams { shown, .. } => *shown,
        }
    }

    /// Its name, and how many samples it takes.
    fn size(&self) -> (&'static str, u64) {
        match self {
            Self::Recovery { kills, .. } => ("kills", (*kills).into()),
            Self::Ttft { pairs, .. } => ("pairs", (*pairs).into()),
            Self::Streams { streams, .. } => ("streams", (*streams).into()),
            Self::Promotion { jobs, .. } | Self::Cancel { jobs, .. } => ("jobs", (*jobs).into()),
        }
    }
}

/// Measures, and writes what came of it.
pub(super) async fn run(what: Bench, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let config = common.load(Vec::new(), cx)?.config;
    logging::start(&config.log, Level::Quiet)?;
    let mut lab = cx.unless_interrupted(Lab::open(&config), "").await??;
    let place = if lab.is_private() {
        "a private redis-server, ended afterwards".to_owned()
    } else {
        config::masked_url(&config.redis.url)
    };
    cx.terminal.say(format_args!("broker: {place}, keys {}:*; model: simulator", lab.prefix()));
    let bar = bar(&what, cx.terminal.is_watched());
    let measured = cx.unless_interrupted(measure(&what, &mut lab, &bar), "").await;
    bar.finish_and_clear();
    let is_private = lab.is_private();
    let prefix = lab.prefix().to_owned();
    let closed = lab.close().await;
    if let (Err(error), false) = (&closed, is_private) {
        cx.terminal.warn(format_args!("keys {prefix}:* are left: {error}"));
    }
    let report = measured??;
    let shown = what.shown();
    match (shown.json, shown.output) {
        (true, _) | (_, Output::Json) => cx.terminal.json(&report::json(&report))?,
        (false, Output::Text) => report::text(&report, &mut cx.terminal)?,
    }
    Ok(shown.exit(report.is_met()))
}

async fn measure(what: &Bench, lab: &mut Lab, bar: &ProgressBar) -> Result<Report, Error> {
    let progress = || bar.inc(1);
    let report = match what {
        Bench::Recovery { kills, at_once, worker_bin, .. } => {
            let worker = program(worker_bin.as_ref(), WORKER)?;
            let at_once = usize::try_from(*at_once).unwrap_or(1);
            let options = recovery::Options { kills: *kills, at_once, worker };
            recovery::run(lab, &options, &progress).await?
        }
        Bench::Ttft { pairs, gateway_bin, .. } => {
            let gateway = program(gateway_bin.as_ref(), GATEWAY)?;
            ttft::run(lab, &ttft::Options { pairs: *pairs, gateway }, &progress).await?
        }
        Bench::Streams { streams, jobs, time, gateway_bin, .. } => {
            gateway::many_descriptors();
            let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
            let gateway = program(gateway_bin.as_ref(), GATEWAY)?;
            let (streams, jobs) = (number(*streams), number(*jobs));
            let options = streams::Options { streams, jobs, time: *time, gateway };
            streams::run(lab, &options, &progress).await?
        }
        Bench::Promotion { jobs, over, .. } => {
            let options = promotion::Options { jobs: *jobs, over: *over };
            promotion::run(lab, &options, &progress).await?
        }
        Bench::Cancel { jobs, at_once, .. } => {
            let at_once = usize::try_from(*at_once).unwrap_or(1);
            cancel::run(lab, &cancel::Options { jobs: *jobs, at_once }, &progress).await?
        }
    };
    Ok(report)
}

/// A program that is named, or one beside this.
fn program(named: Option<&PathBuf>, usual: &str) -> Result<PathBuf, Error> {
    Ok(match named {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe()?.with_file_name(usual),
    })
}

/// A bar over the samples, where a person may be watching.
fn bar(what: &Bench, watched: bool) -> ProgressBar {
    if !watched {
        return ProgressBar::hidden();
    }
    let (unit, size) = what.size();
    let bar = ProgressBar::new(size).with_message(unit);
    bar.enable_steady_tick(Duration::from_millis(250));
    match ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{elapsed_precise}]") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_checked_budget_decides_how_it_ends() {
        let shown = |check| Shown { check, output: Output::Text, json: false };
        assert_eq!([true, false].map(|met| shown(false).exit(met)), [Exit::Ok, Exit::Ok]);
        assert_eq!([true, false].map(|met| shown(true).exit(met)), [Exit::Ok, Exit::Missed]);
    }
}
