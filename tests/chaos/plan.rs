//! What is to happen, by seed: which jobs come, and which faults.

use std::time::Duration;

use millstream::job::{ChatRequest, Job, Lane, Timestamp};

use crate::{proxy::Cut, random::Random};

/// How a job gets to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// By the library's producer in this process.
    Library,
    /// By `millstream-producer`.
    Program,
    /// By a bare `XADD`, as from any language.
    Plain,
}

/// How a job is read while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// By nobody.
    None,
    /// By one reader that stays.
    Steady,
    /// By one that leaves after so many events and comes back, again and again.
    Restless(usize),
    /// By two, of which one comes so much later.
    Late(Duration),
}

/// How a job is expected to end, if nobody cancels it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// As done.
    Good,
    /// As failed, and as done once it is put back.
    Doubtful,
    /// As failed.
    Hopeless,
}

/// One job to come.
#[derive(Debug, Clone)]
pub struct Planned {
    pub name: String,
    pub route: Route,
    pub job: Job,
    /// Scheduled so long after it is enqueued.
    pub delay: Option<Duration>,
    /// Whether its answer takes 5 s or more.
    pub long: bool,
    /// What the model does wrong.
    pub trouble: Option<&'static str>,
    pub outlook: Outlook,
    /// Cancelled so long after it was acknowledged.
    pub cancel: Option<Duration>,
    /// Whether its first dead letter is put back.
    pub is_put_back: bool,
    pub reading: Reading,
}

/// What passes: the next attempt, or the one after it, is whole.
const PASSING: [&str; 8] = [
    "status:503*1",
    "status:500:text*2",
    "status:429:retry-after:1*1",
    "drop:4*1",
    "truncate:6*1",
    "error:3*1",
    "malformed:5*1",
    "silence:2*1",
];

/// What outlasts the attempts of one run.
const DOUBTFUL: [&str; 2] = ["status:503*3", "drop:2*2"];

/// What does not pass.
const LASTING: [&str; 3] = ["status:400", "error:3", "status:503"];

/// Jobs in the order in which they come.
pub struct Jobs {
    random: Random,
    seed: u64,
    count: u64,
}

impl Jobs {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed, 1), seed, count: 0 }
    }

    /// Everything about the next job is drawn here, whatever becomes of it.
    pub fn draw(&mut self) -> Planned {
        let random = &mut self.random;
        self.count += 1;
        let name = format!("chaos-{}-{}", self.seed, self.count);
        let long = random.percent(60);
        // The answer ends (tokens - 1) / rate after its first token.
        let (tokens, rate) =
            if long { (random.within(32, 50), 6) } else { (random.within(1, 12), 20) };
        let (trouble, outlook) = match random.below(100) {
            0..10 => (Some(PASSING[random.index(PASSING.len())]), Outlook::Good),
            10..13 => (Some(DOUBTFUL[random.index(DOUBTFUL.len())]), Outlook::Doubtful),
            13..16 => (Some(LASTING[random.index(LASTING.len())]), Outlook::Hopeless),
            _ => (None, Outlook::Good),
        };
        let fault = trouble.map(|fault| format!(",fault={fault}")).unwrap_or_default();
        let model = format!("m?tokens={tokens},rate={rate},ttft=50{fault}");
        let route = match random.below(100) {
            0..55 => Route::Library,
            55..85 => Route::Program,
            _ => Route::Plain,
        };
        let keyed = random.percent(50) && route != Route::Plain;
        let lane = Lane::ALL[random.index(3)];
        let delay = (random.percent(6) && route != Route::Plain).then(|| random.millis(500, 4000));
        let stream = !random.percent(4);
        let reading = match random.below(100) {
            0..15 => Reading::None,
            15..60 => Reading::Steady,
            60..85 => Reading::Restless(random.index(12) + 1),
            _ => Reading::Late(random.millis(500, 6000)),
        };
        let cancelled = random.percent(6) && outlook == Outlook::Good;
        let cancel = cancelled.then(|| random.millis(0, 5000));
        let is_put_back = outlook == Outlook::Doubtful || random.percent(50);
        let job = Job {
            lane,
            idempotency_key: keyed.then(|| name.clone()),
            custom_id: Some(name.clone()),
            max_attempts: (outlook != Outlook::Good).then_some(2),
            stream,
            ..Job::new(ChatRequest::ask(&model, &name))
        };
        Planned { name, route, job, delay, long, trouble, outlook, cancel, is_put_back, reading }
    }
}

impl Planned {
    /// The job as it is enqueued at this moment.
    pub fn job(&self) -> Job {
        let not_before = self.delay.map(|delay| Timestamp::now().after(delay));
        Job { not_before, ..self.job.clone() }
    }

    /// What it is, for the summary.
    pub fn kind(&self) -> String {
        let length = if self.long { "long" } else { "short" };
        let keyed = if self.job.idempotency_key.is_some() { ", keyed" } else { "" };
        format!("{:?}, {length}{keyed}", self.route).to_lowercase()
    }
}

/// The kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    WorkerKill,
    WorkerFreeze,
    WorkerDrain,
    RedisKill,
    RedisShutdown,
    /// It comes back without the last moments before it was killed.
    RedisForget,
    Cut,
    Stall,
    ListenerDrop,
    ProducerKill,
}

impl FaultKind {
    pub const ALL: [Self; 10] = [
        Self::WorkerKill,
        Self::WorkerFreeze,
        Self::WorkerDrain,
        Self::RedisKill,
        Self::RedisShutdown,
        Self::RedisForget,
        Self::Cut,
        Self::Stall,
        Self::ListenerDrop,
        Self::ProducerKill,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::WorkerKill => "worker-kill",
            Self::WorkerFreeze => "worker-freeze",
            Self::WorkerDrain => "worker-drain",
            Self::RedisKill => "redis-kill",
            Self::RedisShutdown => "redis-shutdown",
            Self::RedisForget => "redis-forget",
            Self::Cut => "cut",
            Self::Stall => "stall",
            Self::ListenerDrop => "listener-drop",
            Self::ProducerKill => "producer-kill",
        }
    }
}

/// One fault to come.
#[derive(Debug, Clone)]
pub struct Fault {
    /// How long nothing happens before it.
    pub gap: Duration,
    pub kind: FaultKind,
    /// How long it lasts: frozen, away, held still, or until the process is started again.
    pub time: Duration,
    /// Chooses the victim among those there are.
    pub pick: u64,
    /// How connections are cut.
    pub cut: Cut,
    /// How much of its past the server forgets.
    pub forgotten: Duration,
}

/// Faults in the order in which they come: every kind once, in a random order, again and again.
pub struct Faults {
    random: Random,
    /// How much more often than any other the server forgets its last moments.
    forgets: u64,
    deck: Vec<FaultKind>,
    /// The next one is long in coming.
    calm: bool,
}

impl Faults {
    pub fn new(seed: u64, forgets: u64) -> Self {
        Self { random: Random::new(seed, 2), forgets, deck: Vec::new(), calm: false }
    }

    pub fn draw(&mut self) -> Fault {
        let random = &mut self.random;
        if self.deck.is_empty() {
            self.deck = FaultKind::ALL.to_vec();
            self.deck.extend((0..self.forgets).map(|_| FaultKind::RedisForget));
            random.shuffle(&mut self.deck);
        }
        let kind = self.deck.pop().unwrap();
        // One in three lasts longer than a lease.
        let lasting = random.percent(33);
        let time = match kind {
            FaultKind::WorkerFreeze | FaultKind::Stall if lasting => random.millis(6500, 11_000),
            FaultKind::WorkerFreeze | FaultKind::Stall => random.millis(300, 4000),
            FaultKind::RedisKill | FaultKind::RedisShutdown | FaultKind::RedisForget => {
                random.millis(0, 2500)
            }
            _ => random.millis(0, 1500),
        };
        // Some come after everything has recovered, and of a kill the recovery is then awaited.
        let calm = random.percent(if kind == FaultKind::WorkerKill { 50 } else { 10 });
        let long = calm || self.calm;
        self.calm = calm && kind == FaultKind::WorkerKill;
        let gap = if long { random.millis(9000, 12_000) } else { random.millis(200, 2500) };
        let cut = [Cut::Closed, Cut::Torn, Cut::Torn, Cut::Stranded][random.index(4)];
        // `appendfsync everysec` loses up to a second.
        let forgotten = random.millis(20, 1000);
        Fault { gap, kind, time, pick: random.number(), cut, forgotten }
    }
}

#[test]
fn a_seed_gives_its_plan_again() {
    let plan = |seed| -> String {
        let (mut jobs, mut faults) = (Jobs::new(seed), Faults::new(seed, 0));
        (0..50).map(|_| format!("{:?} {:?}", jobs.draw(), faults.draw())).collect()
    };
    assert_eq!(plan(3), plan(3));
    assert_ne!(plan(3), plan(4));
}

#[test]
fn at_least_half_of_the_jobs_are_long_and_every_kind_of_fault_comes_evenly() {
    let (mut jobs, mut faults) = (Jobs::new(1), Faults::new(1, 0));
    let long = (0..2000).filter(|_| jobs.draw().long).count();
    assert!(long >= 1000, "{long}");
    let drawn: Vec<Fault> = (0..100).map(|_| faults.draw()).collect();
    for kind in FaultKind::ALL {
        assert_eq!(drawn.iter().filter(|fault| fault.kind == kind).count(), 10);
    }
}
