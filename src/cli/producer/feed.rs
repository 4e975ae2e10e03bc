//! From input to broker in batches, and on to the answers where they are awaited.

mod submit;

use std::{collections::BTreeSet, time::Duration};

pub(super) use submit::warn_unserved;
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Args, OnError,
    input::{Item, Source},
    progress::Progress,
    report::{Enqueued, Tally, counted},
};
use crate::{
    broker::Submission,
    cli::{
        Context, Error, Exit,
        answer::{self, Ended},
        args::Output,
        parts::Broker,
    },
    config::Config,
    job::{JobId, QueueName, Timestamp},
    listener::Listener,
    producer::{self, Producer},
};

/// Most jobs that are awaited at once.
const AT_ONCE: usize = 1024;
/// Most bytes of input in a batch.
const BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// How long a batch that is not full waits for more input.
const LINGER: Duration = Duration::from_millis(20);

/// Enqueuing under way.
struct Feed<'a> {
    args: &'a Args,
    batch: usize,
    broker: Broker,
    producer: Producer,
    listener: Listener,
    one: bool,
    queues: BTreeSet<QueueName>,
    tally: Tally,
    /// Whether a refused line has stopped it.
    stopped: bool,
    /// Whether it has said that it waits for room.
    waits: bool,
    /// The last job that was enqueued.
    last: Option<JobId>,
    /// The first failure of a job.
    worst: Option<Error>,
    /// Tasks of their own: while a batch is enqueued they go on, and give back the connections
    /// that it may be waiting for.
    awaited: JoinSet<Ended>,
    progress: Progress,
}

/// What a batch waits for.
enum Next {
    Item(std::io::Result<Option<Item>>),
    Ended(Result<Ended, JoinError>),
    Linger,
    Interrupted,
}

/// Whether the feed goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    /// The input is over, or a line was refused and that stops it.
    Over,
    Interrupted,
}

/// Enqueues everything that `source` gives, and reports it.
pub(super) async fn run(
    args: &Args,
    config: &Config,
    broker: Broker,
    mut source: Source,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let mut feed = Feed {
        args,
        batch: config.producer.batch,
        producer: Producer::new(broker.shared.clone(), config.producer.clone()),
        listener: Listener::new(broker.shared.clone(), config.listener.clone()),
        broker,
        one: source.is_one(),
        queues: BTreeSet::new(),
        tally: Tally::default(),
        stopped: false,
        waits: false,
        last: None,
        worst: None,
        awaited: JoinSet::new(),
        progress: Progress::new(cx.terminal.is_watched() && !source.is_one(), source.size()),
    };
    let result = feed.run(&mut source, cx).await;
    feed.progress.end();
    if !feed.one && result.is_ok() {
        let whole =
            if feed.stopped { format!("stopped; {}", feed.left()) } else { feed.tally.to_string() };
        cx.terminal.say(whole);
    }
    result
}

impl Feed<'_> {
    async fn run(&mut self, source: &mut Source, cx: &mut Context) -> Result<Exit, Error> {
        let mut flow = Flow::On;
        while flow == Flow::On {
            let (jobs, next) = self.fill(source, cx).await?;
            if next == Flow::Interrupted {
                return Err(Error::interrupted(self.left()));
            }
            self.enqueue(jobs, cx).await?;
            flow = if self.stopped { Flow::Over } else { next };
        }
        while !self.awaited.is_empty() {
            let remedy = match self.last {
                Some(job) if self.one => answer::resume(job),
                _ => format!("{}; what is not over goes on", self.tally),
            };
            let Some(ended) = cx.unless_interrupted(self.awaited.join_next(), remedy).await? else {
                break;
            };
            self.ended(ended, cx)?;
        }
        if self.tally.refused > 0 {
            return Ok(Exit::Usage);
        }
        match self.worst.take() {
            Some(error) if self.one => Err(error),
            Some(error) if error.exit() == Exit::Upstream => Ok(Exit::Job),
            Some(error) => Ok(error.exit()),
            None => Ok(Exit::Ok),
        }
    }

    /// Where the input was left, as a remedy.
    fn left(&self) -> String {
        match self.one {
            false => self.tally.left(self.args.idempotency_prefix.as_deref()),
            true if self.tally.unknown.is_empty() => "nothing is enqueued".to_owned(),
            true => "whether the job is enqueued is not known; with --idempotency-key it can be \
                     enqueued again without harm"
                .to_owned(),
        }
    }

    /// Reads a batch, while answers that are awaited come in.
    async fn fill(
        &mut self,
        source: &mut Source,
        cx: &mut Context,
    ) -> Result<(Vec<(u64, Submission)>, Flow), Error> {
        let mut jobs: Vec<(u64, Submission)> = Vec::new();
        let (mut linger, mut first) = (Instant::now(), None);
        loop {
            let room = !self.args.wait || self.awaited.len() + jobs.len() < AT_ONCE;
            if jobs.len() >= self.batch || (!room && !jobs.is_empty()) {
                return Ok((jobs, Flow::On));
            }
            let next = tokio::select! {
                biased;
                () = cx.interrupt.cancelled() => Next::Interrupted,
                Some(ended) = self.awaited.join_next(), if !self.awaited.is_empty() => Next::Ended(ended),
                item = source.next(), if room => Next::Item(item),
                () = sleep_until(linger), if !jobs.is_empty() => Next::Linger,
            };
            let item = match next {
                Next::Interrupted => return Ok((jobs, Flow::Interrupted)),
                Next::Linger => return Ok((jobs, Flow::On)),
                Next::Ended(ended) => {
                    self.ended(ended, cx)?;
                    continue;
                }
                Next::Item(Ok(None)) => return Ok((jobs, Flow::Over)),
                Next::Item(Ok(Some(item))) => item,
                Next::Item(Err(error)) => {
                    let cause = format!("cannot read the input: {error}");
                    return Err(Error::new(Exit::Unexpected, cause, self.left()));
                }
            };
            let (offset, begin) = (item.offset, *first.get_or_insert(item.offset));
            self.progress.show(offset, || self.tally.to_string());
            // What can be refused is refused before anything behind it is sent.
            let now = Timestamp::now();
            match item.job.map_err(Into::into).and_then(|job| self.producer.check(job, now)) {
                Ok(submission) => jobs.push((item.line, submission)),
                Err(error) => self.refuse(item.line, error, cx)?,
            }
            if self.stopped {
                return Ok((jobs, Flow::Over));
            }
            if jobs.len() == 1 {
                linger = Instant::now() + LINGER;
            }
            if offset - begin >= BATCH_BYTES {
                return Ok((jobs, Flow::On));
            }
        }
    }

    /// Reports a line that cannot be accepted, which may stop everything.
    fn refuse(&mut self, line: u64, error: producer::Error, cx: &mut Context) -> Result<(), Error> {
        let error = Error::from(error);
        if self.one {
            return Err(error);
        }
        self.tally.refused += 1;
        self.stopped |= self.args.on_error == OnError::Stop;
        self.progress.around(|| cx.terminal.fail(format_args!("line {line}: {error}")));
        Ok(())
    }

    /// Reports the end of a job.
    fn ended(&mut self, ended: Result<Ended, JoinError>, cx: &mut Context) -> Result<(), Error> {
        let mut ended = ended.map_err(|error| Error::new(Exit::Unexpected, error, self.left()))?;
        self.tally.ended += 1;
        self.tally.failed += u64::from(ended.state != "done");
        let terminal = &mut cx.terminal;
        let one = self.one;
        self.progress.around(|| match self.args.output {
            Output::Json => terminal.json(&ended),
            Output::Text if !one => ended.write(terminal),
            Output::Text if ended.text.is_empty() => Ok(()),
            Output::Text => terminal.line(ended.text.trim_end_matches('\n')),
        })?;
        if self.worst.is_none() {
            self.worst = ended.fault.take();
        }
        Ok(())
    }
}

/// Checks everything that would be enqueued.
pub(super) async fn dry(
    args: &Args,
    config: &Config,
    producer: &Producer,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let mut source = Source::open(args, config).await?;
    let (mut valid, mut refused) = (0_u64, 0_u64);
    loop {
        let item = cx.unless_interrupted(source.next(), "nothing is enqueued").await?;
        let item = item.map_err(|e| Error::new(Exit::Unexpected, e, "nothing is enqueued"))?;
        let Some(Item { line, job, .. }) = item else { break };
        let checked = job.map_err(Into::into).and_then(|j| producer.check(j, Timestamp::now()));
        match checked {
            Ok(submission) => {
                valid += 1;
                let id = submission.job.idempotency_key.is_some().then_some(submission.id);
                let custom_id = submission.job.custom_id.as_deref();
                if args.output == Output::Json {
                    cx.terminal.json(&Enqueued { id, line, state: "valid", custom_id })?;
                }
            }
            Err(error) if source.is_one() => return Err(error.into()),
            Err(error) => {
                refused += 1;
                cx.terminal.fail(format_args!("line {line}: {error}"));
                if args.on_error == OnError::Stop {
                    break;
                }
            }
        }
    }
    cx.terminal.say(format_args!(
        "nothing enqueued: {} valid, {} refused",
        counted(valid, "job"),
        counted(refused, "line")
    ));
    Ok(if refused > 0 { Exit::Usage } else { Exit::Ok })
}
