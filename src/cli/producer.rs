//! `millstream-producer`: one job from flags, or many from JSON Lines.

#![expect(clippy::doc_markdown, reason = "the comments of arguments are the text of --help")]

mod feed;
mod input;
mod lines;
mod options;
mod progress;
mod report;
mod unfinished;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};
use lines::LineSet;
use options::{One, Options, Request};

use super::{
    Context, Error, Exit,
    answer::{self, Follow},
    args::{self, Common, Output},
    exit::EXIT_CODES,
    logging::{self, Level},
    parts::{self, Broker},
    unserved::Vigil,
};
use crate::{
    broker::{self, memory::Memory},
    config::{Config, Flag},
    listener::Listener,
    producer::{self, Producer},
};

/// What happens after the table of exit codes.
const NOTES: &str = "\
Output:
  text  the job's ID on a line; with --wait the answer (of many jobs: under a line that names each)
  json  an object on a line: {id, line, state, custom_id, labels}; with --wait, in the order in which
        jobs end: {id, line, state, custom_id, labels, model, text, finish_reason, usage, attempts,
        enqueued_at, began_at, ended_at, ttft_ms, run_ms, error}, times in ms since the epoch
  Lines count from 1, empty ones included. A job that was there already, under its idempotency key,
  is told with the state that it is in.

Run again:
  With --idempotency-prefix the same command can be run again after any interruption: it enqueues
  what is missing and, with --wait, gives every answer once more. Answers are kept for
  redis.result_ttl (1 day); what has ended is not run again for redis.key_ttl (7 days), and another
  prefix asks for everything anew. Without a prefix, a --wait that ends early writes an object for each job
  that is not over; `millstream jobs wait --file -` takes these lines.";

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

    #[command(flatten)]
    request: Request,

    /// Enqueue the jobs of this file, JSON Lines; - for standard input
    #[arg(help_heading = "Many jobs", long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Only these lines of the file, such as 4813- or 3,5-6,8-
    #[arg(help_heading = "Many jobs", long, value_name = "LINES")]
    #[arg(conflicts_with_all = ["user", "messages_file"])]
    lines: Option<LineSet>,

    #[command(flatten)]
    options: Options,

    /// Make enqueuing repeatable: each job without a key gets this name, a colon, and its
    /// custom_id, or # and its line number. An interrupted file can then be run again without
    /// duplicates
    #[arg(help_heading = "Many jobs", long, value_name = "NAME", value_parser = options::prefix)]
    #[arg(conflicts_with_all = ["user", "messages_file"])]
    idempotency_prefix: Option<String>,

    /// Put jobs back that were there already, under their keys, and have failed: each begins a new
    /// run, with a new budget of attempts
    #[arg(
        help_heading = "Many jobs",
        long,
        requires = "idempotency_prefix",
        conflicts_with = "dry_run"
    )]
    retry_failed: bool,

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

    /// Check every line and report all that cannot be accepted, enqueue nothing
    #[arg(help_heading = "Results", long, conflicts_with = "follow")]
    dry_run: bool,

    /// Wait until the jobs are over, up to 1,024 at a time; the exit code is 6 where one failed
    #[arg(help_heading = "Results", long, group = "follow")]
    wait: bool,

    /// Stream the answer of one job to standard output
    #[arg(help_heading = "Results", long, group = "follow", conflicts_with = "file")]
    stream: bool,

    /// Give up waiting after this long; the exit code is then 6, and what is enqueued goes on
    #[arg(help_heading = "Results", long, value_name = "DURATION", requires = "follow")]
    #[arg(value_parser = args::duration)]
    timeout: Option<Duration>,

    /// How often a line on standard error tells how far it is, where that is no terminal, and how
    /// soon it says once more that no worker serves the queue; 100ms or longer
    #[arg(help_heading = "Results", long, value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = args::pause)]
    progress_every: Duration,

    /// How results are written to standard output
    #[arg(help_heading = "Results", long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,

    #[command(flatten)]
    common: Common,
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

/// Enqueues what the arguments say, and follows it where they ask for that.
pub async fn run(args: Args, cx: &mut Context) -> Result<Exit, Error> {
    if args.stream && args.output == Output::Json {
        let remedy = "use --wait with --output json, or `millstream jobs tail --output json`";
        return Err(Error::new(Exit::Usage, "--stream writes the answer as text", remedy));
    }
    let max_payload = args.max_payload.map(|bytes| bytes.to_string());
    let flags = max_payload.map(|v| Flag::new("--max-payload", "producer.max_payload", v));
    let config = args.common.load(flags.into_iter().collect(), cx)?.config;
    logging::start(&config.log, Level::Warn)?;
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
    let job = args.one.job(&args.request, &args.options).await?;
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
    let mut vigil = Vigil::new(args.progress_every);
    vigil.look(&producer, [&queue], |warning| cx.terminal.warn(warning)).await;
    let follow = Follow {
        within: args.timeout,
        unserved: Some((vigil, &producer, &queue)),
        durable: true,
        ..Follow::default()
    };
    answer::show(follow, &listener, receipt.id, cx).await.map(|_| Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Timestamp;

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
        let args = args.unwrap();
        let job = args.one.job(&args.request, &args.options).await.unwrap();
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
            &["--file=-", "--user=u"],
            &["--file=-", "--lines=0"],
            &["--model=m", "--user=u", "--lines=3-"],
            &["--file=-", "--retry-failed"],
            &["--file=-", "--timeout=5s"],
            &["--file=-", "--dry-run", "--wait"],
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
