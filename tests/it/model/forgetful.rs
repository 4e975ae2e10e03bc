//! A server that forgets: random cases on a Redis that is saved, killed and started again from its
//! snapshot in the middle of everything.
//!
//! The embedded broker forgets nothing while it lives, so no second broker tells the same story here,
//! and no reference foretells the answers. Workers, owners and operators act as the library's do
//! ([`hand`]), each on what it was told, also on what the server has forgotten since. After each step
//! every log is read, as by a reader who keeps all that he has seen:
//!
//! - an event ID never comes back with other words, whatever was forgotten in between;
//! - the invariants of a log hold ([`check::holds`]): IDs rise, a fence counts from 0 without a hole,
//!   a run has one terminal event and nothing behind it.
//!
//! At the end late second steps arrive, and one worker takes everything to its end. What was promised
//! before the snapshot, or after the last time that the server forgot, has come to its end: an
//! enqueued job to one terminal event in each run, a requeue to a run of its own, a cancel to
//! `cancelled`. Nothing is left in a lane or parked, and each failed job has its dead letter.

mod hand;
mod step;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use millstream::{
    admin::{Admin, Cancelled, Requeued},
    broker::{
        Claim as _, Claimer, DeadLetter, Enqueue as _, Entry, Error, Inspect as _, Log as _,
        Partition, Result, Submission, Sweep, Window, WorkerId,
        redis::{Options, Redis},
    },
    event::{Body, Event, EventId},
    job::{JobId, Lane},
    state::State,
};
use proptest::test_runner::TestCaseError;

use self::{
    hand::{Hand, Late},
    step::{Action, Case, JOBS, WORKERS},
};
use super::{check, pick, runner, runtime, shown};
use crate::support::{
    redis::Server,
    subject::{job, soon},
};

/// Most steps of a case.
const STEPS: usize = 60;

type Verdict<T = ()> = std::result::Result<T, String>;

/// Repeats a call for as long as its connections are dead.
async fn through<T>(call: impl AsyncFn() -> Result<T>) -> Verdict<T> {
    let answer = soon(async {
        loop {
            match call().await {
                Err(Error::Unavailable { .. }) => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                answer => break answer,
            }
        }
    });
    answer.await.map_err(|error| format!("the broker fails: {error}"))
}

/// What somebody was told will be, or is.
#[derive(Debug, Clone, Default)]
struct Promises {
    jobs: BTreeSet<usize>,
    /// Runs that requeues have opened.
    runs: BTreeSet<(usize, u32)>,
    /// Runs that are to end as cancelled.
    cancelled: BTreeSet<(usize, u32)>,
}

/// A worker's incarnation.
struct Worker {
    id: WorkerId,
    reader: Option<Box<dyn Claimer>>,
    hands: BTreeMap<String, Hand>,
}

impl Worker {
    fn new() -> Self {
        Self { id: WorkerId::new("w"), reader: None, hands: BTreeMap::new() }
    }
}

/// A case in progress.
struct Play<'a> {
    server: &'a mut Server,
    redis: Redis,
    partition: Partition,
    submissions: Vec<Submission>,
    workers: Vec<Worker>,
    late: Vec<Late>,
    /// Jobs that were enqueued, whatever the server knows of it.
    asked: BTreeSet<usize>,
    promises: Promises,
    /// As they stood when the server was saved.
    saved: Promises,
    /// Every event that was ever read, by job.
    seen: Vec<BTreeMap<EventId, Body>>,
}

impl<'a> Play<'a> {
    async fn new(server: &'a mut Server, redis: Redis, case: &Case, number: u32) -> Verdict<Self> {
        let partition = Partition::first(format!("forgets-{number}").parse().unwrap());
        through(async || redis.migrate(std::slice::from_ref(&partition)).await).await?;
        let submission = |(no, profile): (usize, &step::Profile)| {
            let mut job = job(&format!("question {no}"));
            job.lane = profile.lane;
            job.idempotency_key = profile.keyed.then(|| format!("{number}-{no}"));
            let payload = serde_json::to_vec(&job).unwrap();
            Submission { id: job.assign_id(), job, payload, partition: partition.clone() }
        };
        let mut play = Self {
            submissions: case.profiles.iter().enumerate().map(submission).collect(),
            server,
            redis,
            partition,
            workers: (0..WORKERS).map(|_| Worker::new()).collect(),
            late: Vec::new(),
            asked: BTreeSet::new(),
            promises: Promises::default(),
            saved: Promises::default(),
            seen: vec![BTreeMap::new(); JOBS],
        };
        play.save();
        Ok(play)
    }

    fn id(&self, no: usize) -> JobId {
        self.submissions[no].id
    }

    fn number(&self, id: JobId) -> usize {
        self.submissions.iter().position(|submission| submission.id == id).unwrap()
    }

    fn admin(&self) -> Admin {
        Admin::new(std::sync::Arc::new(self.redis.clone()))
    }

    fn save(&mut self) {
        assert_eq!(self.server.command(&["SAVE"]), "OK");
        self.saved = self.promises.clone();
    }

    /// The server comes back as it was saved.
    async fn forget(&mut self) {
        self.server.restart().await;
        self.promises = self.saved.clone();
    }

    async fn step(&mut self, action: Action) -> Verdict {
        match action {
            Action::Enqueue { job } => self.enqueue(job).await?,
            Action::Promote => self.promote().await.map(drop)?,
            Action::Read { worker, lane } => self.read(worker, lane).await?,
            Action::Sweep { worker, ran_out } => self.sweep(worker, ran_out).await?,
            Action::Work { pick: at, word } => {
                let hands = self.workers.iter().enumerate();
                let hands: Vec<_> = hands
                    .flat_map(|(no, worker)| worker.hands.keys().map(move |key| (no, key.clone())))
                    .collect();
                if let Some((worker, key)) = pick(at, &hands).cloned() {
                    self.work(worker, &key, word).await?;
                }
            }
            Action::Crash { worker } => self.workers[worker] = Worker::new(),
            Action::Cancel { job } => self.cancel(job).await?,
            Action::Requeue { pick: at } => {
                if let Some(letter) = pick(at, &self.letters().await?).cloned() {
                    self.requeue(&letter).await?;
                }
            }
            Action::Deliver { pick: at } => {
                if !self.late.is_empty() {
                    let late = self.late.remove(at.index(self.late.len()));
                    late.arrive(&self.redis).await?;
                }
            }
            Action::Save => self.save(),
            Action::Forget => self.forget().await,
        }
        self.look().await
    }

    async fn enqueue(&mut self, no: usize) -> Verdict {
        // Without a key a second enqueue is a second job, under an ID of its own.
        if !self.asked.insert(no) && self.submissions[no].job.idempotency_key.is_none() {
            return Ok(());
        }
        let submission = [self.submissions[no].clone()];
        through(async || self.redis.enqueue(&submission).await.remove(0)).await?;
        self.promises.jobs.insert(no);
        Ok(())
    }

    async fn promote(&self) -> Verdict<usize> {
        let promoted = through(async || self.redis.promote(&self.partition, 1_000).await).await?;
        Ok(promoted.count)
    }

    async fn read(&mut self, worker: usize, lane: Lane) -> Verdict {
        let session = self.redis.session();
        let Worker { id, reader, .. } = &mut self.workers[worker];
        let given = soon(async {
            loop {
                let mut open = match reader.take() {
                    Some(open) => open,
                    None => match self.redis.claimer(&self.partition, id).await {
                        Ok(open) => open,
                        Err(Error::Unavailable { .. }) => continue,
                        Err(error) => break Err(error),
                    },
                };
                match open.read(lane, 2).await {
                    Ok(given) => {
                        *reader = Some(open);
                        break Ok(given);
                    }
                    Err(Error::Unavailable { .. }) => {}
                    Err(error) => break Err(error),
                }
            }
        });
        let given = given.await.map_err(|error| format!("reading: {error}"))?;
        self.given(worker, session, given);
        Ok(())
    }

    async fn sweep(&mut self, worker: usize, ran_out: bool) -> Verdict {
        let lease = if ran_out { Duration::ZERO } else { Duration::from_hours(1) };
        let sweep = Sweep { lease, most: 1_000, ask: true, deliveries: 1_000 };
        let (id, session) = (&self.workers[worker].id, self.redis.session());
        let swept = through(async || self.redis.sweep(&self.partition, id, &sweep).await).await?;
        self.given(worker, session, swept.entries);
        Ok(())
    }

    /// A worker has one hand on an entry, however often it is given it.
    fn given(&mut self, worker: usize, session: u64, entries: Vec<Entry>) {
        for mut entry in entries {
            entry.session = session;
            let key = format!("{} {}", entry.place.lane, entry.place.entry);
            self.workers[worker].hands.entry(key).or_insert_with(|| Hand::new(entry));
        }
    }

    async fn work(&mut self, worker: usize, key: &str, word: step::Word) -> Verdict {
        let Worker { id, hands, .. } = &mut self.workers[worker];
        let Some(mut hand) = hands.remove(key) else { return Ok(()) };
        let (left, late) = hand.go_on(&self.redis, id, word).await?;
        self.late.extend(late);
        if left {
            hands.insert(key.to_owned(), hand);
        }
        Ok(())
    }

    async fn cancel(&mut self, no: usize) -> Verdict {
        let admin = self.admin();
        let answer = through(async || admin.cancel(self.id(no)).await).await?;
        if matches!(answer, Cancelled::Cancelled | Cancelled::Asked { .. }) {
            let record = through(async || self.redis.job(self.id(no)).await).await?;
            let run = record.ok_or("a cancelled job without a record")?.run;
            self.promises.cancelled.insert((no, run));
        }
        Ok(())
    }

    async fn letters(&self) -> Verdict<Vec<DeadLetter>> {
        through(async || self.redis.dead_letters(&self.partition, None, 1_000).await).await
    }

    async fn requeue(&mut self, letter: &DeadLetter) -> Verdict {
        let admin = self.admin();
        let answer = through(async || admin.requeue(&self.partition, letter).await).await?;
        if let Requeued::Requeued { run } = answer {
            self.promises.runs.insert((self.number(letter.id), run));
        }
        Ok(())
    }

    /// Reads every log, as somebody who remembers all that he has read.
    async fn look(&mut self) -> Verdict {
        for no in 0..JOBS {
            let id = self.id(no);
            let log = through(async || self.redis.read(id, EventId::START, 10_000).await).await?;
            check::holds(&log).map_err(|rule| format!("job {no}: {rule}\n  {log:?}"))?;
            for Event { id, body } in log {
                let seen = self.seen[no].entry(id).or_insert_with(|| body.clone());
                if *seen != body {
                    return Err(format!("job {no}: {id} was {seen:?} and is {body:?}"));
                }
            }
        }
        Ok(())
    }

    /// A worker ends what it has in its hands.
    async fn finish(&mut self, worker: usize) -> Verdict {
        for key in self.workers[worker].hands.keys().cloned().collect::<Vec<_>>() {
            while self.workers[worker].hands.contains_key(&key) {
                self.work(worker, &key, step::Word::End(step::End::Done)).await?;
                self.look().await?;
            }
        }
        Ok(())
    }

    /// Everybody goes on, and one worker takes what is left to its end.
    async fn drain(&mut self) -> Verdict {
        for late in std::mem::take(&mut self.late) {
            late.arrive(&self.redis).await?;
        }
        self.look().await?;
        for worker in 0..WORKERS {
            self.finish(worker).await?;
        }
        for _ in 0..200 {
            self.promote().await?;
            for lane in Lane::ALL {
                self.read(0, lane).await?;
            }
            self.sweep(0, true).await?;
            self.finish(0).await?;
            let depth = through(async || self.redis.depth(&self.partition).await).await?;
            if depth.parked == 0 && depth.lanes.iter().all(|l| l.waiting + l.pending == 0) {
                return Ok(());
            }
            // A retry may be due in a moment.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err("entries are left that no worker brings to their end".to_owned())
    }

    async fn judge(&self) -> Verdict {
        let dead: BTreeSet<JobId> = self.letters().await?.iter().map(|letter| letter.id).collect();
        for no in 0..JOBS {
            let id = self.id(no);
            let opened =
                through(async || self.redis.open(id, EventId::START, Window::of(10_000)).await)
                    .await?;
            let log = opened.page.decode();
            let promised = self.promises.jobs.contains(&no);
            let wrong =
                |why: &str| Err(format!("job {no} {why}\n  {log:?}\n  {:?}", self.promises));
            let Some(record) = opened.record else {
                if promised {
                    return wrong("was promised and is lost");
                }
                continue;
            };
            // Nothing is left in a lane or parked: such a job's entry was forgotten, and then its worker
            // died.
            if !promised && !record.state.is_terminal() {
                continue;
            }
            let ends = check::ends(&log);
            let runs = usize::try_from(record.run).unwrap();
            if ends.iter().any(|count| *count != 1) || !record.state.is_terminal() {
                return wrong(&format!("is {}, and its runs ended {ends:?} times", record.state));
            }
            // A log that was rebuilt in a later run does not tell of those before it.
            if ends.len() > runs {
                return wrong(&format!(
                    "has {runs} runs by its record, and {} by its log",
                    ends.len()
                ));
            }
            if promised && record.state == State::Failed && !dead.contains(&id) {
                return wrong("has failed without a letter");
            }
            let asked = self.promises.runs.iter().filter(|(job, _)| *job == no);
            if let Some((_, run)) = asked.max().filter(|(_, run)| *run > record.run) {
                return wrong(&format!("was put back for run {run}, which is lost"));
            }
            if self.promises.cancelled.contains(&(no, record.run))
                && record.state != State::Cancelled
            {
                return wrong("was cancelled and ended otherwise");
            }
        }
        Ok(())
    }
}

async fn play(server: &mut Server, redis: &Redis, case: &Case, number: u32) -> Verdict {
    let mut play = Play::new(server, redis.clone(), case, number).await?;
    let mut story = String::new();
    let ended = async {
        for action in &case.steps {
            let _ = write!(story, "\n  {action:?}");
            play.step(*action).await?;
        }
        story.push_str("\n  the end");
        play.drain().await?;
        play.judge().await
    };
    let ended = ended.await;
    ended.map_err(|why| format!("{why}\nafter{story}"))
}

#[test]
fn a_server_that_forgets_loses_nothing_that_it_knew_before_and_nothing_ends_twice() {
    let runtime = runtime();
    let (mut server, redis) = runtime.block_on(async {
        let server = Server::start().await;
        let options = Options { url: server.url(), pool_size: 1, ..Options::default() };
        let redis = Redis::connect(options).await.unwrap();
        (server, redis)
    });
    let (number, server) = (std::cell::Cell::new(0_u32), std::cell::RefCell::new(&mut server));
    let result = runner(48).run(&step::case(STEPS), |case| {
        number.set(number.get() + 1);
        let mut server = server.borrow_mut();
        let played = play(&mut server, &redis, &case, number.get());
        runtime.block_on(played).map_err(TestCaseError::fail)
    });
    shown(result);
}
