//! `millstream jobs wait`: the ends of jobs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::super::{
    Context, Error, Exit,
    args::{self, Output},
    ended::Ended,
    parts::Broker,
    unserved::Vigil,
};
use crate::{
    config::Config,
    job::{JobId, QueueName},
    listener::{Listen, Listener},
    producer::Producer,
    state::State,
};

/// Most jobs that are awaited at once.
const AT_ONCE: usize = 256;

/// Most jobs whose queues are looked at, of those that are not over.
const LOOKED_AT: usize = 32;

/// Which ends.
#[derive(Debug, Args)]
pub(in crate::cli) struct Wait {
    /// The jobs
    #[arg(required_unless_present = "file")]
    ids: Vec<JobId>,

    /// A file of jobs, or - for standard input: on each line an ID, or an object with an "id", as
    /// `millstream-producer --output json` writes it
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Give up after this long; the exit code is then 6
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    timeout: Option<Duration>,

    /// How soon it says once more that no worker serves the queue of a job that waits; 100ms or longer
    #[arg(long, value_name = "DURATION", value_parser = args::pause, default_value = "10s")]
    warn_every: Duration,

    /// How the ends are written, in the order in which they come
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What comes first.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, and not for long")]
enum Step {
    End(Option<Ended>),
    /// It is time to look whether queues are served.
    Look,
}

/// Waits for ends, and writes each as it comes.
pub(super) async fn run(
    args: Wait,
    config: &Config,
    broker: &Broker,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let mut ids = args.ids;
    if let Some(path) = &args.file {
        let text = cx.unless_interrupted(read(path), "").await??;
        ids.extend(listed(&text)?);
    }
    let listener = Listener::new(broker.shared.clone(), config.listener.clone());
    let deadline = args.timeout.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
    let numbered = (1..).zip(ids.iter().copied());
    let mut ends = stream::iter(numbered)
        .map(|(line, id)| {
            let listen = listener.listen(id).idle_timeout(None);
            wait_until(deadline, Ended::unknown(id, line), listen, broker)
        })
        .buffer_unordered(AT_ONCE);
    let producer = Producer::new(broker.shared.clone(), config.producer.clone());
    let mut vigil = Vigil::new(args.warn_every);
    let mut awaited: BTreeMap<u64, JobId> = (1..).zip(ids.iter().copied()).collect();
    let (mut over, mut worst) = (0_usize, None::<Error>);
    loop {
        let left = format!("{over} of {} jobs are over; the others go on", ids.len());
        let step = async {
            tokio::select! {
                biased;
                ended = ends.next() => Step::End(ended),
                () = vigil.due() => Step::Look,
            }
        };
        let ended = match cx.unless_interrupted(step, &left).await? {
            Step::End(Some(ended)) => ended,
            Step::End(None) => break,
            Step::Look => {
                let queues = waiting(broker, awaited.values().copied());
                let queues = cx.unless_interrupted(queues, &left).await?;
                vigil.look(&producer, &queues, |warning| cx.terminal.warn(warning)).await;
                continue;
            }
        };
        awaited.remove(&ended.line);
        over += 1;
        match args.output {
            Output::Json => cx.terminal.json(&ended)?,
            Output::Text => cx.terminal.line(format_args!("{} {}", ended.id, ended.state))?,
        }
        if let Some(fault) = ended.fault {
            cx.terminal.fail(format_args!("line {}: {fault}", ended.line));
            let is_forgotten = fault.exit() == Exit::Forgotten;
            worst = worst.filter(|_| !is_forgotten).or(Some(fault));
        }
    }
    Ok(worst.map_or(Exit::Ok, |fault| match fault.exit() {
        Exit::Upstream => Exit::Job,
        exit => exit,
    }))
}

/// The queues in which the first of these jobs wait.
async fn waiting(broker: &Broker, jobs: impl Iterator<Item = JobId>) -> BTreeSet<QueueName> {
    let jobs: Vec<JobId> = jobs.take(LOOKED_AT).collect();
    // A broker that is away is no reason to warn.
    let records = broker.shared.records(&jobs).await.unwrap_or_default();
    let waiting = records.into_iter().flatten().filter(|record| record.state == State::Waiting);
    waiting.filter_map(|record| record.partition).map(|partition| partition.queue).collect()
}

/// Waits for the end of a job. At the deadline its record tells where it stands.
async fn wait_until(
    deadline: Option<(Instant, Duration)>,
    job: Ended,
    listen: Listen,
    broker: &Broker,
) -> Ended {
    let (id, line) = (job.id, job.line);
    let Some((at, limit)) = deadline else { return job.wait(listen).await };
    if let Ok(ended) = timeout_at(at, job.wait(listen)).await {
        return ended;
    }
    let mut ended = Ended::unknown(id, line);
    let record = broker.shared.job(id).await.ok().flatten();
    if let Some(record) = &record {
        ended.stands(record);
    }
    ended.late(limit, record.and_then(|record| record.due))
}

async fn read(path: &PathBuf) -> Result<String, Error> {
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut tokio::io::stdin(), &mut bytes)
            .await
            .map(|_| bytes)
    } else {
        tokio::fs::read(path).await
    };
    let text = bytes.and_then(|b| String::from_utf8(b).map_err(std::io::Error::other));
    text.map_err(|e| {
        let cause = format!("cannot read {}: {e}", path.display());
        Error::new(Exit::Usage, cause, "name a file of job IDs, one on a line")
    })
}

/// The IDs of a file, in order.
fn listed(text: &str) -> Result<Vec<JobId>, Error> {
    let mut ids = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let object = serde_json::from_str::<serde_json::Value>(line).ok();
        let id = object.as_ref().and_then(|object| object.get("id")?.as_str()).unwrap_or(line);
        let id = id.parse().map_err(|e| Error::new(Exit::Usage, format!("line {number}: {e}"), ""));
        ids.push(id?);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e";

    #[test]
    fn a_file_of_ids_takes_what_the_producer_writes() {
        let text = format!("{ID}\n\n{{\"id\":\"{ID}\",\"line\":1}}\r\n");
        let ids = listed(&text).unwrap();
        assert_eq!(ids.iter().map(ToString::to_string).collect::<Vec<_>>(), [ID, ID]);
        let error = listed(&format!("{ID}\nseven")).unwrap_err();
        assert!(error.to_string().starts_with("line 2: `seven` is not a job ID"), "{error}");
        assert_eq!(error.exit(), Exit::Usage);
    }
}
