//! From input to broker in batches, and on to the answers where they are awaited.

mod retry;
mod submit;

use std::{
    collections::{BTreeSet, HashMap},
    future::pending,
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout_at},
};

use self::retry::Retries;
use super::{
    Args, LineSet, OnError,
    input::{self, Item, Source},
    progress::Progress,
    report::{Enqueued, Tally, counted},
    unfinished::{Unfinished, Why},
};
use crate::{
    broker::Submission,
    cli::{
        Context, Error, Exit, answer,
        args::Output,
        ended::{Ended, FORGOTTEN},
        parts::Broker,
        unserved::Vigil,
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
#[expect(clippy::struct_excessive_bools, reason = "none of them excludes another")]
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
    /// Whether the input is over, and all of it enqueued.
    is_fed: bool,
    /// When it gives up.
    deadline: Option<Instant>,
    /// The first failure of a job.
    worst: Option<Error>,
    /// Tasks of their own: while a batch is enqueued they go on, and give back the connections
    /// that it may be waiting for.
    awaited: JoinSet<Ended>,
    /// Of which jobs the end is awaited.
    unfinished: Unfinished,
    retries: Retries,
    progress: Progress,
    vigil: Vigil,
}

/// Enqueues everything that `source` gives, and reports it.
pub(super) async fn run(
    args: &Args,
    config: &Config,
    broker: Broker,
    mut source: Source,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let watched = cx.terminal.is_watched() && !source.is_one();
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
        is_fed: false,
        deadline: args.timeout.and_then(|limit| Instant::now().checked_add(limit)),
        worst: None,
        awaited: JoinSet::new(),
        unfinished: Unfinished::default(),
        retries: Retries::default(),
        progress: Progress::new(watched, args.wait, source.size(), args.progress_every),
        vigil: Vigil::new(args.progress_every),
    };
    let result = feed.run(&mut source, cx).await;
    feed.progress.end();
    match result {
        Err(error) => {
            feed.tell_unfinished(&error, cx).await;
            Err(error)
        }
        Ok(exit) => {
            if !feed.one {
                let tally = feed.tally.to_string();
                let left = feed.stopped.then(|| format!("stopped; {}", feed.left()));
                cx.terminal.say(left.unwrap_or(tally));
            }
            Ok(exit)
        }
    }
}

impl Feed<'_> {
    async fn run(&mut self, source: &mut Source, cx: &mut Context) -> Result<Exit, Error> {
        let mut more = true;
        while more {
            let (jobs, is_over) = self.fill(source, cx).await?;
            self.enqueue(jobs, cx).await?;
            more = !(self.stopped || is_over);
        }
        self.is_fed = !self.stopped;
        self.progress.all_read();
        while !self.awaited.is_empty() {
            self.step(pending::<()>(), cx).await?;
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

    /// Does `work`, unless something else comes first and is dealt with: the end of an awaited job, or
    /// the time to tell how far it is. Then the answer is `None`, and `work` is dropped.
    async fn step<T>(
        &mut self,
        work: impl Future<Output = T>,
        cx: &mut Context,
    ) -> Result<Option<T>, Error> {
        let idle = self.awaited.is_empty() && !self.waits;
        let deadline = self.deadline;
        let deadline = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let ended = tokio::select! {
            biased;
            () = cx.interrupt.cancelled() => return Err(Error::interrupted(self.left())),
            () = deadline => return Err(self.late()),
            Some(ended) = self.awaited.join_next(), if !self.awaited.is_empty() => ended,
            result = work => return Ok(Some(result)),
            () = sleep_until(self.progress.next()), if !self.one => {
                if let Some(line) = self.progress.tick(&self.tally) {
                    cx.terminal.say(line);
                }
                return Ok(None);
            }
            () = self.vigil.due(), if !idle => {
                self.look_at_workers(cx).await;
                return Ok(None);
            }
        };
        self.ended(ended, cx)?;
        Ok(None)
    }

    /// Warns of queues that no worker serves.
    async fn look_at_workers(&mut self, cx: &mut Context) {
        let Self { vigil, producer, queues, progress, .. } = self;
        let warn = |warning: &dyn std::fmt::Display| progress.around(|| cx.terminal.warn(warning));
        vigil.look(producer, &*queues, warn).await;
    }

    /// The error of a wait that has taken too long.
    fn late(&self) -> Error {
        let limit = self.args.timeout.unwrap_or_default().as_secs_f64();
        Error::new(Exit::Job, format_args!("not over after {limit} s"), self.left())
    }

    /// Where it was left, as a remedy.
    fn left(&self) -> String {
        let prefix = self.args.idempotency_prefix.as_deref();
        match (self.one, self.unfinished.first(), prefix) {
            (true, Some(job), _) => answer::resume(job),
            (true, None, _) if self.tally.unknown.is_empty() => "nothing is enqueued".to_owned(),
            (true, None, _) => {
                "whether the job is enqueued is not known; with --idempotency-key it \
                                can be enqueued again without harm"
                    .to_owned()
            }
            (false, _, Some(prefix)) if self.is_fed => format!(
                "{}; what is not over goes on; run it again with --idempotency-prefix {prefix} for \
                 the rest",
                self.tally
            ),
            (false, _, None) if self.is_fed => format!("{}; {}", self.tally, Unfinished::REMEDY),
            (false, first, prefix) => {
                let all = LineSet::all();
                let meant = self.args.lines.as_ref().unwrap_or(&all);
                let left = self.tally.left(prefix, meant);
                match first.filter(|_| prefix.is_none()) {
                    Some(_) => format!("{left}; {}", Unfinished::REMEDY),
                    None => left,
                }
            }
        }
    }

    /// Reads a batch, while answers that are awaited come in; whether it is the last one.
    async fn fill(
        &mut self,
        source: &mut Source,
        cx: &mut Context,
    ) -> Result<(Vec<(u64, Submission)>, bool), Error> {
        let mut jobs: Vec<(u64, Submission)> = Vec::new();
        let (mut linger, mut first) = (Instant::now(), None);
        loop {
            let room = !self.args.wait || self.awaited.len() + jobs.len() < AT_ONCE;
            if jobs.len() >= self.batch || (!room && !jobs.is_empty()) {
                return Ok((jobs, false));
            }
            let is_first = jobs.is_empty();
            let read = async {
                match (room, is_first) {
                    (false, _) => pending().await,
                    (true, true) => Some(source.next().await),
                    (true, false) => timeout_at(linger, source.next()).await.ok(),
                }
            };
            let item = match self.step(read, cx).await? {
                None => continue,
                Some(None) => return Ok((jobs, false)),
                Some(Some(Ok(None))) => return Ok((jobs, true)),
                Some(Some(Ok(Some(item)))) => item,
                Some(Some(Err(error))) => {
                    let cause = format!("cannot read the input: {error}");
                    return Err(Error::new(input::unread(&error), cause, self.left()));
                }
            };
            let (offset, begin) = (item.offset, *first.get_or_insert(item.offset));
            self.progress.read(offset);
            // What can be refused is refused before anything behind it is sent.
            let now = Timestamp::now();
            match item.job.map_err(Into::into).and_then(|job| self.producer.check(job, now)) {
                Ok(submission) => jobs.push((item.line, submission)),
                Err(error) => self.refuse(item.line, error, cx)?,
            }
            if self.stopped {
                return Ok((jobs, true));
            }
            if jobs.len() == 1 {
                linger = Instant::now() + LINGER;
            }
            if offset - begin >= BATCH_BYTES {
                return Ok((jobs, false));
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
        self.unfinished.remove(ended.line);
        self.tally.ended += 1;
        self.tally.failed += u64::from(ended.state != "done" && ended.state != FORGOTTEN);
        self.tally.tokens += ended.tokens();
        self.tally.expired += u64::from(ended.state == "done" && ended.fault.is_some());
        let terminal = &mut cx.terminal;
        let one = self.one;
        self.progress.around(|| match self.args.output {
            Output::Json => terminal.json(&ended),
            Output::Text if !one => ended.write(terminal),
            Output::Text if ended.text.is_empty() => Ok(()),
            Output::Text => terminal.lines(ended.text.trim_end_matches('\n')),
        })?;
        let is_forgotten = ended.state == FORGOTTEN;
        self.tally.forgotten += u64::from(is_forgotten);
        if self.worst.is_none() || is_forgotten {
            self.worst = ended.fault.take();
        }
        Ok(())
    }

    /// After an early end: tells the jobs whose answers are still to come, for they are paid for. A
    /// prefix gives them again.
    async fn tell_unfinished(&mut self, error: &Error, cx: &mut Context) {
        let json = self.args.output == Output::Json;
        if !json && (self.one || self.args.idempotency_prefix.is_some()) {
            return;
        }
        let why = match error.exit() {
            Exit::Interrupted => Why::Interrupted,
            Exit::Job => Why::Late,
            _ => Why::Broken,
        };
        for ended in self.unfinished.ends(&self.broker.shared, why).await {
            // Who has closed the output wants no more of it; the error is told all the same.
            if cx.terminal.json(&ended).is_err() {
                return;
            }
        }
    }
}

/// Checks everything that would be enqueued, to the last line.
pub(super) async fn dry(
    args: &Args,
    config: &Config,
    producer: &Producer,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let mut source = Source::open(args, config).await?;
    let (mut valid, mut refused) = (0_u64, 0_u64);
    let mut keys = Keys::default();
    loop {
        let item = cx.unless_interrupted(source.next(), "nothing is enqueued").await?;
        let item = item.map_err(|e| Error::new(input::unread(&e), e, "nothing is enqueued"))?;
        let Some(Item { line, job, .. }) = item else { break };
        let checked = job.map_err(Into::into).and_then(|j| producer.check(j, Timestamp::now()));
        match checked.map_err(Error::from).and_then(|job| keys.check(line, job)) {
            Ok(submission) => {
                valid += 1;
                let id = submission.job.idempotency_key.is_some().then_some(submission.id);
                let (custom_id, labels) =
                    (submission.job.custom_id.as_deref(), &submission.job.labels);
                if args.output == Output::Json {
                    cx.terminal.json(&Enqueued { id, line, state: "valid", custom_id, labels })?;
                }
            }
            Err(error) if source.is_one() => return Err(error),
            Err(error) => {
                refused += 1;
                cx.terminal.fail(format_args!("line {line}: {error}"));
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

/// The jobs with a key of a file, with the line and the request of each.
#[derive(Default)]
struct Keys(HashMap<JobId, (u64, String)>);

impl Keys {
    /// Refuses a job whose key another line has for another request, as enqueuing both would.
    fn check(&mut self, line: u64, submission: Submission) -> Result<Submission, Error> {
        if let Some(key) = &submission.job.idempotency_key {
            let fingerprint = submission.job.request.fingerprint();
            let (first, known) =
                self.0.entry(submission.id).or_insert_with(|| (line, fingerprint.clone()));
            if *known != fingerprint {
                let cause =
                    format!("line {first} has the idempotency key `{key}` for another request");
                return Err(Error::new(Exit::Usage, cause, "give each request a key of its own"));
            }
        }
        Ok(submission)
    }
}
