//! Many open streams: what each costs the gateway and Redis, and how late its events are.
//!
//! The gateway is a process of its own. The jobs run on one worker of this process, against the simulator,
//! slowly, so that all of them go on for the whole time. Readers are plain connections that ask for a job's
//! events and note when each arrives. One subscriber of this process hears the same events from Redis: an
//! event's delay is the time between the two. The readers are busy on the same cores as the gateway, so the delay
//! is an upper bound.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::{
    Amount, Claim, Error, Figure, Lab, Machine, Progress, Report,
    crowd::{Crowd, Log, Probe, Seen},
    noise,
    process::Process,
};
use crate::{admin::Admin, job::JobId, listener::Listener, producer::Producer};

/// Tokens per second of each answer: one event each.
const RATE: f64 = 1.25;

/// Longest time until all jobs run and all readers are connected.
const OPENING: Duration = Duration::from_secs(180);

/// Connections that are opened at once.
const AT_ONCE: usize = 200;

/// What a stream may cost.
const KILOBYTES: f64 = 25.0;
const COMMANDS: f64 = 4.0;

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Streams that are open.
    pub streams: usize,
    /// Jobs that run, which the streams share evenly.
    pub jobs: usize,
    /// How long everything is open.
    pub time: Duration,
    /// The gateway's program.
    pub gateway: PathBuf,
}

/// What was used while all streams were open.
struct Held {
    from: Instant,
    to: Instant,
    /// Bytes by which the gateway has grown.
    grown: u64,
    /// Commands of Redis for readers.
    calls: u64,
    /// Time that the gateway and this process were busy.
    busy: [Duration; 2],
    timers: Figure,
    seen: Vec<Seen>,
}

/// Measures many open streams.
pub async fn run(
    lab: &mut Lab,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Report, Error> {
    let streams = options.streams.max(1);
    let options = Options { streams, jobs: options.jobs.clamp(1, streams), ..options.clone() };
    lab.configure(|config| {
        config.worker.concurrency = options.jobs;
        config.gateway.listen.set_port(0);
        config.gateway.limits.max_streams = streams + 1;
        config.gateway.limits.max_streams_per_tenant = streams + 1;
        config.gateway.limits.max_connections = streams + 100;
    });
    lab.employ("worker").await?;
    lab.wait_for_workers(1, || Ok(())).await?;
    let mut gateway = Process::start(&options.gateway, lab.config()).await?;
    let jobs = begin(lab, &options).await?;
    let probe = Probe::listen(&lab.listener(), &jobs).await?;
    let held = hold(lab, &options, &mut gateway, &jobs, progress).await?;
    let heard = probe.stop().await;
    dismiss(lab, &jobs).await?;
    Ok(report(&options, &held, &heard, lab.machine().await?))
}

/// Opens all streams, keeps them open for the time, and closes them.
async fn hold(
    lab: &Lab,
    options: &Options,
    gateway: &mut Process,
    jobs: &[JobId],
    progress: Progress<'_>,
) -> Result<Held, Error> {
    let (memory, calls_before) = (gateway.memory()?, calls(lab).await?);
    let stop = CancellationToken::new();
    let crowd = Arc::new(Crowd::new(gateway.address()?, jobs.to_vec(), stop.clone()));
    let readers: Vec<_> = stream::iter(0..options.streams)
        .map(|number| Arc::clone(&crowd).join(number))
        .buffer_unordered(AT_ONCE)
        .inspect_ok(|_| progress())
        .try_collect()
        .await?;
    let (from, before) = (Instant::now(), [gateway.busy()?, Process::own_busy()?]);
    let ((), timers) = noise::beside(tokio::time::sleep(options.time)).await;
    let (to, after) = (Instant::now(), [gateway.busy()?, Process::own_busy()?]);
    gateway.check()?;
    let grown = gateway.memory()?.saturating_sub(memory);
    let calls = calls(lab).await? - calls_before;
    stop.cancel();
    let mut seen = Vec::with_capacity(options.streams);
    for reader in readers {
        let ended = |error: tokio::task::JoinError| Error::Ended {
            name: "a reader".to_owned(),
            said: error.to_string(),
        };
        seen.push(reader.await.map_err(ended)?);
    }
    let busy = [0, 1].map(|at| after[at].saturating_sub(before[at]));
    Ok(Held { from, to, grown, calls, busy, timers, seen })
}

fn report(options: &Options, held: &Held, heard: &Log, machine: Machine) -> Report {
    let Held { from, to, grown, calls, busy, timers, seen } = held;
    let Options { streams, jobs, time, .. } = options;
    let least = usize::try_from(time.as_secs()).unwrap_or(usize::MAX);
    let share = |busy: Duration| busy.as_secs_f64() / (*to - *from).as_secs_f64() * 100.0;
    let held_by = |fine: &dyn Fn(&Seen) -> bool| seen.iter().filter(|reader| fine(reader)).count();
    Report {
        scenario: "streams",
        setting: format!(
            "{streams} event streams of {jobs} running jobs on one gateway process, for {} s",
            time.as_secs()
        ),
        figures: vec![
            Figure {
                name: "live message of Redis to reader",
                distribution: seen.iter().flat_map(|r| heard.delays(r, *from, *to)).collect(),
                budgets: Vec::new(),
            },
            timers.clone(),
        ],
        amounts: vec![
            Amount::most(
                "gateway's memory per stream, KB",
                per(*grown, *streams) / 1024.0,
                KILOBYTES,
            ),
            Amount::most("commands of Redis per stream", per(*calls, *streams), COMMANDS),
            Amount::told("gateway's use of a core, %", share(busy[0])),
            Amount::told("use of a core by readers, worker and simulator, %", share(busy[1])),
        ],
        claims: vec![
            Claim {
                text: "streams with an event for each second",
                held: held_by(&|reader| reader.within(*from, *to) >= least),
                of: *streams,
            },
            Claim {
                text: "streams without a gap or a repeat",
                held: held_by(&Seen::is_whole),
                of: *streams,
            },
        ],
        machine,
    }
}

/// Calls so far of the commands that a reader costs. Nobody else here calls them now.
async fn calls(lab: &Lab) -> Result<u64, Error> {
    let calls = lab.redis().calls().await?;
    let readers = ["hgetall", "xrange", "subscribe", "ssubscribe", "unsubscribe", "xrevrange"];
    Ok(readers.iter().filter_map(|name| calls.get(*name)).sum())
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn per(amount: u64, of: usize) -> f64 {
    amount as f64 / of as f64
}

/// Starts the jobs, and waits until each has said something.
async fn begin(lab: &Lab, options: &Options) -> Result<Vec<JobId>, Error> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "far below the limit"
    )]
    let tokens = ((options.time + OPENING).as_secs_f64() * RATE) as u64;
    let directives = format!("tokens={tokens},rate={RATE}");
    let producer: Producer = lab.producer();
    let batch = (0..options.jobs)
        .map(|number| Lab::job(&directives, &format!("stream {number}")))
        .collect();
    let mut ids = Vec::with_capacity(options.jobs);
    for result in producer.enqueue_all(batch).await {
        ids.push(result?.id);
    }
    let listener: Listener = lab.listener();
    let first = stream::iter(ids.clone()).map(|id| {
        let mut events = listener.listen(id).idle_timeout(OPENING).events();
        async move {
            match events.next().await {
                Some(Ok(_)) => Ok(()),
                Some(Err(error)) => Err(Error::from(error)),
                None => Err(Error::Job { id, what: "ended before it was followed".to_owned() }),
            }
        }
    });
    first.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(ids)
}

/// Cancels the jobs.
async fn dismiss(lab: &Lab, ids: &[JobId]) -> Result<(), Error> {
    let admin = Admin::new(lab.broker().clone());
    let cancels = stream::iter(ids).map(|id| admin.cancel(*id)).buffer_unordered(AT_ONCE);
    cancels.try_collect::<Vec<_>>().await?;
    lab.wait_until_empty().await
}
