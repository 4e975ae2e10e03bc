//! `millstream-producer`: one job from flags, or many from JSON Lines.

#![expect(clippy::doc_markdown, reason = "the comments of arguments are the text of --help")]

mod feed;
mod input;
mod progress;
mod report;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};

use super::{
    Context, Error, Exit,
    answer::{self, Follow},
    args::{self, Common, Output, Param},
    exit::EXIT_CODES,
    logging::{self, Level},
    parts::{self, Broker},
};
use crate::{
    broker::{self, memory::Memory},
    config::{Config, Flag},
    job::{Job, Labels, Lane, QueueName, Tenant, Timestamp},
    listener::Listener,
    producer::{self, Producer},
};

/// What happens after the table of exit codes.
const NOTES: &str = "\
Output:
  text  the job's ID on a line; with --wait the answer (of many jobs: under a line that names each)
  json  an object on a line: {id, line, state, custom_id}; with --wait, in the order in which jobs
        end: {id, line, state, custom_id, text, finish_reason, usage, attempts, error}
  Lines count from 1, empty ones included. A job that was there already, under its idempotency key,
  is told with the state that it is in.";

/// Enqueue one job from flags, or many from JSON Lines
///
/// Each line of --file is a chat request, or {"request": ..., "queue", "lane", "tenant",
/// "idempotency_key", "custom_id", "labels", "not_before", "expires_at", "deadline_ms", "max_attempts",
/// "stream", "dead_letter"}, or an OpenAI Batch input line. Flags overrule what a line says.
#[derive(Debug, Parser)]
#[command(name = "millstream-producer", version, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES, after_long_help = format!("{EXIT_CODES}\n\n{NOTES}"))]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub struct Args {
    #[command(flatten)]
    one: One,

    /// Enqueue the jobs of this file, JSON Lines; - for standard input
    #[arg(help_heading = "Many jobs", long, value_name = "PATH")]
    file: Option<PathBuf>,

    #[command(flatten)]
    options: Options,

    /// Make enqueuing repeatable: each job without a key gets this name, a colon, and its
    /// custom_id, or # and its line number. An interrupted file can then be run again without
    /// duplicates
    #[arg(help_heading = "Many jobs", long, value_name = "NAME", conflicts_with = "model", value_parser = prefix)]
    idempotency_prefix: Option<String>,

    /// What to do about a line that cannot be accepted: stop there, or skip it; either way the exit
    /// code is 2. Only an idempotency key that is taken shows when the lines of its batch
    /// (producer.batch) are enqueued already
    #[arg(help_heading = "Many jobs", long, value_enum, default_value_t, value_name = "WHAT")]
    on_error: OnError,

    /// Wait while the queue is full, however long, instead of giving up with exit code 4. In each
    /// queue, jobs are enqueued in the order of their lines
    #[arg(help_heading = "Every job", long, conflicts_with = "dry_run")]
    block: bool,

    /// Largest job, in bytes of JSON [default: producer.max_payload, 1048576]
    #[arg(long, value_name = "BYTES")]
    max_payload: Option<usize>,

    /// Check everything, enqueue nothing
    #[arg(help_heading = "Results", long, conflicts_with_all = ["wait", "stream"])]
    dry_run: bool,

    /// Wait until the jobs are over, up to 1,024 at a time; the exit code is 6 where one failed
    #[arg(help_heading = "Results", long)]
    wait: bool,

    /// Stream the answer of one job to standard output
    #[arg(help_heading = "Results", long, conflicts_with_all = ["wait", "file"])]
    stream: bool,

    /// How results are written to standard output
    #[arg(help_heading = "Results", long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    common: Common,
}

/// One job from flags.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "One job")]
struct One {
    /// The model
    #[arg(long, value_name = "NAME", required_unless_present = "file", conflicts_with = "file")]
    model: Option<String>,

    /// What the user says
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    #[arg(required_unless_present_any = ["messages_file", "file"])]
    user: Option<String>,

    /// What the model is told before everything else
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    system: Option<String>,

    /// A file with a JSON array of messages, which stand before what the user says
    #[arg(long, value_name = "PATH", conflicts_with = "file")]
    messages_file: Option<PathBuf>,

    /// A field of the request, such as temperature=0.2; JSON where it can be read as such,
    /// otherwise text; can be repeated
    #[arg(long = "param", value_name = "NAME=VALUE", conflicts_with = "file")]
    #[arg(value_parser = args::param)]
    params: Vec<Param>,

    /// Your own name for the job, echoed in its result
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    custom_id: Option<String>,

    /// The same tenant and key give the same job, however often it is enqueued
    #[arg(long, value_name = "KEY", conflicts_with = "file")]
    idempotency_key: Option<String>,
}

/// Where and how jobs run.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Every job")]
struct Options {
    /// The queue [default: default]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,

    /// The priority: high, normal or low [default: normal]
    #[arg(long, value_name = "LANE")]
    lane: Option<Lane>,

    /// Who owns the job [default: default]
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,

    /// A label, echoed in the result; can be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = args::pair)]
    labels: Vec<(String, String)>,

    /// Begin no sooner than after this time
    #[arg(long, value_name = "DURATION", value_parser = args::duration, conflicts_with = "at")]
    delay: Option<Duration>,

    /// Begin no sooner than at this time, RFC 3339 such as 2026-11-21T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = future)]
    at: Option<Timestamp>,

    /// Fail the job as expired unless it has begun by then, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = future, conflicts_with = "expires_in")]
    expires_at: Option<Timestamp>,

    /// Fail the job as expired unless it has begun within this time
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    expires_in: Option<Duration>,

    /// Most attempts that may fail, 1 to 100 [default: the worker's]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    max_attempts: Option<u32>,

    /// Publish the answer whole instead of while it is generated
    #[arg(long)]
    no_stream: bool,

    /// Longest time one attempt may take
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    deadline: Option<Duration>,
}

/// What to do about a line that cannot be accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Enqueue nothing after it
    #[default]
    Stop,
    /// Report it and go on
    Skip,
}

fn prefix(text: &str) -> Result<String, String> {
    if (1..=128).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("allowed: 1 to 128 bytes".to_owned())
    }
}

fn future(text: &str) -> Result<Timestamp, String> {
    let time: Timestamp = text.parse().map_err(|e: crate::job::Invalid| e.to_string())?;
    let now = Timestamp::now();
    if time < now {
        return Err(format!("{time} has passed (it is {now}); leave it out to run at once"));
    }
    Ok(time)
}

impl Options {
    /// Sets what the flags say.
    fn apply(&self, job: &mut Job) {
        let Self { queue, lane, tenant, labels, delay, at, .. } = self;
        let Self { expires_at, expires_in, max_attempts, no_stream, deadline, .. } = self;
        set(&mut job.queue, queue.as_ref());
        set(&mut job.lane, lane.as_ref());
        set(&mut job.tenant, tenant.as_ref());
        job.labels.0.extend(labels.iter().cloned());
        let due = delay.map(|delay| Timestamp::now().after(delay)).or(*at);
        job.not_before = due.or(job.not_before);
        let expires = expires_in.map(|time| Timestamp::now().after(time)).or(*expires_at);
        job.expires_at = expires.or(job.expires_at);
        job.max_attempts = max_attempts.or(job.max_attempts);
        job.stream &= !no_stream;
        let deadline = deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        job.deadline_ms = deadline.or(job.deadline_ms);
    }
}

fn set<T: Clone>(field: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}

impl Args {
    /// The job that the flags describe.
    async fn job(&self) -> Result<Job, Error> {
        let one = &self.one;
        let mut messages = Vec::new();
        if let Some(path) = &one.messages_file {
            let cause = |e: &dyn std::fmt::Display| {
                let cause = format!("cannot read {}: {e}", path.display());
                Error::new(Exit::Usage, cause, "name a file with a JSON array of messages")
            };
            let bytes = tokio::fs::read(path).await.map_err(|e| cause(&e))?;
            messages = serde_json::from_slice(&bytes).map_err(|e| cause(&e))?;
        }
        let (model, user) = (one.model.as_deref().unwrap_or_default(), one.user.as_deref());
        let request = args::request(model, one.system.as_deref(), messages, user, &one.params)?;
        let mut job = Job {
            custom_id: one.custom_id.clone(),
            idempotency_key: one.idempotency_key.clone(),
            labels: Labels::default(),
            ..Job::new(request)
        };
        self.options.apply(&mut job);
        Ok(job)
    }
}

/// Enqueues what the arguments say, and follows it where they ask for that.
pub async fn run(args: Args, cx: &mut Context) -> Result<Exit, Error> {
    if args.stream && args.output == Output::Json {
        let remedy = "use --wait with --output json, or `millstream jobs tail --output json`";
        return Err(Error::new(Exit::Usage, "--stream writes the answer as text", remedy));
    }
    let max_payload = args.max_payload.map(|bytes| bytes.to_string());
    let flags = max_payload.map(|v| Flag::new("--max-payload", "producer.max_payload", v));
    let config = args.common.load(flags.into_iter().collect(), cx)?.config;
    logging::start(&config.log, Level::Warn);
    if args.dry_run {
        let nowhere = Arc::new(Memory::new(config.embedded.clone()));
        let producer = Producer::new(nowhere, config.producer.clone());
        return feed::dry(&args, &config, &producer, cx).await;
    }
    parts::needs_redis(&config)?;
    if args.stream {
        return stream(args, &config, cx).await;
    }
    // The input is opened first: where it is missing nothing has happened yet.
    let source = input::Source::open(&args, &config).await?;
    let broker = cx.unless_interrupted(Broker::open(&config), "nothing is enqueued").await??;
    feed::run(&args, &config, broker, source, cx).await
}

async fn stream(args: Args, config: &Config, cx: &mut Context) -> Result<Exit, Error> {
    let job = args.job().await?;
    let queue = job.queue.clone();
    let broker = cx.unless_interrupted(Broker::open(config), "nothing is enqueued").await??;
    broker.prepare(std::slice::from_ref(&queue)).await?;
    let producer = Producer::new(broker.shared.clone(), config.producer.clone());
    let listener = Listener::new(broker.shared.clone(), config.listener.clone());
    let enqueued = if args.block {
        producer.enqueue_waiting(job, &cx.interrupt).await
    } else {
        producer.enqueue(job).await
    };
    let receipt = enqueued.map_err(|error| match error {
        producer::Error::Broker(broker::Error::Full { .. }) if args.block => {
            Error::interrupted("nothing is enqueued")
        }
        error => error.into(),
    })?;
    feed::warn_unserved(&producer, &queue, cx).await;
    let follow = Follow { durable: true, ..Follow::default() };
    answer::show(follow, &listener, receipt.id, cx).await.map(|_| Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(more: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["millstream-producer"], more].concat())
    }

    #[tokio::test]
    async fn a_job_is_what_the_flags_say() {
        let args = args(&[
            "--model=m",
            "--user=hi",
            "--system=s",
            "--param=temperature=0.2",
            "--queue=q",
            "--lane=high",
            "--tenant=t",
            "--custom-id=c",
            "--label=user=u",
            "--label=chat=7",
            "--idempotency-key=k",
            "--delay=5m",
            "--max-attempts=2",
            "--no-stream",
            "--deadline=90s",
        ]);
        let job = args.unwrap().job().await.unwrap();
        let mut value = serde_json::to_value(&job).unwrap();
        let due = value.as_object_mut().unwrap().remove("not_before").unwrap();
        let ahead = due.as_u64().unwrap() - Timestamp::now().0;
        assert!((299_000..=300_000).contains(&ahead), "{ahead}");
        assert_eq!(
            value,
            serde_json::json!({
                "request": {"model": "m", "messages": [
                    {"role": "system", "content": "s"}, {"role": "user", "content": "hi"}
                ], "temperature": 0.2},
                "queue": "q", "lane": "high", "tenant": "t", "idempotency_key": "k",
                "custom_id": "c", "labels": {"user": "u", "chat": "7"}, "deadline_ms": 90000,
                "max_attempts": 2, "stream": false,
            })
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for bad in [
            &["--model=m"][..],
            &["--user=hi"],
            &["--file=-", "--model=m"],
            &["--file=-", "--param=a=1"],
            &["--file=-", "--stream"],
            &["--model=m", "--user=u", "--idempotency-prefix=p"],
            &["--model=m", "--user=u", "--wait", "--stream"],
            &["--model=m", "--user=u", "--delay=1m", "--at=2999-01-01T00:00:00Z"],
            &["--model=m", "--user=u", "--at=2020-01-01T00:00:00Z"],
            &["--model=m", "--user=u", "--lane=fast"],
            &["--model=m", "--user=u", "--max-attempts=0"],
        ] {
            assert!(args(bad).is_err(), "{bad:?}");
        }
        let error = args(&["--model=m", "--user=u", "--at=2020-01-01T00:00:00Z"]).unwrap_err();
        assert!(error.to_string().contains("has passed"), "{error}");
    }
}
