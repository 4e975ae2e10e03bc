//! A worker dies between every pair of its steps: whatever the step, another worker brings the job
//! to the one end that it has, and nothing is left behind.
//!
//! Each test runs a job once to count the steps, and then once for each step and side: a worker
//! dies there, and an honest one comes after it.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use millstream::{
    admin::Admin,
    broker::{Partition, Shared, redis::keys::Keys},
    event::{Body, Event},
    job::{ChatRequest, Job, JobId, Lane},
    listener::Listener,
    retry::Schedule,
    state::State,
    worker,
};

use crate::support::{
    dying::{Fate, Plan, Side},
    stack::{Stack, instant, oracle},
    subject::soon,
    victim::Victim,
};

/// How the job goes that a worker dies over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    /// It streams, and is there before the worker.
    Done,
    /// It comes while the worker waits for it.
    Awaited,
    /// Its answer comes whole.
    Whole,
    /// Its first attempt fails, and the next one succeeds.
    Retried,
    /// The model refuses it for good.
    Failed,
    /// Its owner cancels it while it runs.
    Cancelled,
    /// Its entry is not a job.
    Unreadable,
    /// A first worker died right after its attempt began.
    TakenOver,
    /// The worker is told to give it back while it runs.
    Released,
}

impl Story {
    fn model(self) -> &'static str {
        match self {
            Self::Retried => "m?tokens=4,fault=status:503*1",
            Self::Failed => "m?fault=status:400",
            Self::Cancelled => "m?tokens=8,fault=silence:2",
            Self::Released => "m?tokens=200,rate=200",
            _ => "m?tokens=5,rate=400",
        }
    }

    fn end(self) -> State {
        match self {
            Self::Failed | Self::Unreadable => State::Failed,
            Self::Cancelled => State::Cancelled,
            _ => State::Done,
        }
    }

    /// Steps that a worker must have taken on the way.
    fn must_take(self) -> &'static [&'static str] {
        match self {
            Self::Done => &["pending", "read", "begin", "append", "conclude", "remove"],
            Self::Awaited => &["wait", "begin", "append", "conclude", "remove"],
            Self::Whole => &["begin", "conclude", "remove"],
            Self::Retried => &["begin", "conclude", "job", "park", "promote", "remove"],
            Self::Failed => &["begin", "conclude", "job", "bury"],
            Self::Cancelled => &["begin", "append", "conclude", "remove"],
            Self::Unreadable => &["refuse", "job", "bury"],
            Self::TakenOver => &["sweep", "begin", "append", "conclude", "remove"],
            Self::Released => &["begin", "append", "release"],
        }
    }
}

const LEASE: Duration = Duration::from_millis(300);

fn options(partition: &Partition) -> worker::Options {
    worker::Options {
        queues: vec![partition.queue.clone()],
        concurrency: 4,
        lease: LEASE,
        renewal: Duration::from_millis(100),
        sweep: Duration::from_millis(50),
        flush_interval: Duration::from_millis(2),
        retry: Schedule { initial: Duration::from_millis(20), ..Schedule::default() },
        ..worker::Options::default()
    }
}

/// One job and the worker that dies over it.
struct Case<'a> {
    stack: &'a Stack,
    listener: &'a Listener,
    story: Story,
    plan: Plan,
    partition: Partition,
}

/// What a case came to.
struct Outcome {
    name: String,
    steps: Vec<&'static str>,
    fell: bool,
    request: ChatRequest,
    text: String,
}

impl Case<'_> {
    fn broker(&self) -> &Shared {
        &self.stack.broker
    }

    fn victim(&self, plan: Plan) -> Victim {
        let url = self.stack.server.url();
        Victim::start(&url, &self.stack.base_url, options(&self.partition), Fate::new(plan))
    }

    async fn enqueue(&self) -> (JobId, ChatRequest) {
        let request = ChatRequest::ask(self.story.model(), self.partition.queue.as_str());
        if self.story == Story::Unreadable {
            let lane = Keys::new("ms").lane(&self.partition, Lane::Normal);
            let entry = self.stack.server.command(&["XADD", &lane, "*", "job", "no job"]);
            return (JobId::from_entry(&lane, &entry), request);
        }
        let mut job = Job::new(request.clone());
        job.queue = self.partition.queue.clone();
        job.stream = self.story != Story::Whole;
        (self.stack.producer().enqueue(job).await.unwrap().id, request)
    }

    async fn state(&self, id: JobId) -> State {
        self.broker().job(id).await.unwrap().map_or(State::Waiting, |record| record.state)
    }

    /// Waits until the job is over and nothing of it is left but its result.
    async fn settled(&self, id: JobId) {
        while !self.state(id).await.is_terminal() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        loop {
            let depth = self.broker().depth(&self.partition).await.unwrap();
            let busy = depth.lanes.iter().any(|lane| lane.waiting + lane.pending > 0);
            if !busy && depth.parked == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What happens from outside, once the worker runs the job.
    async fn intervene(&self, id: JobId, victim: &Victim) {
        if !matches!(self.story, Story::Cancelled | Story::Released) {
            return;
        }
        // Not before the first words: an append is among the steps to die at.
        while !victim.fate.steps().contains(&"append") && !victim.fate.dead.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        // What it is to die of is under way: hurried, it would drop that.
        if self.story == Story::Released && victim.fate.is_due() {
            return;
        }
        match self.story {
            Story::Cancelled => {
                Admin::new(self.broker().clone()).cancel(id).await.unwrap();
            }
            _ => victim.hurry.cancel(),
        }
    }

    async fn run(self) -> Outcome {
        let mut queued = None;
        if self.story != Story::Awaited {
            queued = Some(self.enqueue().await);
        }
        if self.story == Story::TakenOver {
            let first = self.victim(Plan::Die("begin", 1, Side::After));
            first.fate.dead.cancelled().await;
            first.kill().await;
        }
        let victim = self.victim(self.plan);
        let (id, request) = match queued {
            Some(queued) => queued,
            None => {
                while !victim.fate.steps().contains(&"wait") && !victim.fate.dead.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                self.enqueue().await
            }
        };
        self.intervene(id, &victim).await;
        let name = format!("{:?} {:?}", self.story, self.plan);
        let fate = victim.fate.clone();
        let over = async {
            // It leaves; nobody else is there to end the job, and nothing is under way behind it.
            if self.story == Story::Released {
                return victim.ended.cancelled().await;
            }
            self.settled(id).await;
            // What it was to die of may be under way just now.
            if fate.is_due() {
                fate.dead.cancelled().await;
            }
        };
        tokio::select! {
            () = fate.dead.cancelled() => {}
            () = soon(over) => {}
        }
        let (steps, fell) = (fate.steps(), fate.fell());
        victim.kill().await;

        let (stop, heir) = self.stack.worker(options(&self.partition));
        let settled = tokio::time::timeout(Duration::from_secs(20), self.settled(id)).await;
        assert!(settled.is_ok(), "{name}: never over; {:?}", self.broker().job(id).await);
        stop.cancel();
        heir.await.unwrap();
        let name = format!("{name}, steps {steps:?}");
        self.check(id, &name, fell).await;
        let answer = self.listener.listen(id).answer().await.unwrap();
        Outcome { name, steps, fell, request, text: answer.text }
    }

    /// One end, the expected one; no holes; nothing left.
    async fn check(&self, id: JobId, name: &str, fell: bool) {
        let events: Vec<Event> =
            self.listener.listen(id).events().map(Result::unwrap).collect().await;
        let kinds: Vec<&str> = events.iter().map(|event| event.body.kind()).collect();
        let ends = events.iter().filter(|event| event.body.is_terminal()).count();
        assert_eq!(ends, 1, "{name}: {kinds:?}");
        assert_eq!(self.state(id).await, self.story.end(), "{name}: {kinds:?}");
        assert_eq!(*kinds.last().unwrap(), self.story.end().to_string(), "{name}");
        let held: u64 = {
            let log = Keys::new("ms").log(id);
            self.stack.server.command(&["XLEN", &log]).parse().unwrap()
        };
        assert_eq!(held, events.len() as u64, "{name}: events behind the last: {kinds:?}");
        for pair in events.windows(2) {
            let (last, next) = (pair[0].id, pair[1].id);
            let anew = next.fence > last.fence && next.seq == 0;
            assert!(last.precedes(next) || anew, "{name}: a hole at {next}: {events:?}");
        }
        let attempts = |event: &Event| match &event.body {
            Body::Started(started) => Some(started.attempt),
            _ => None,
        };
        let attempts: Vec<u32> = events.iter().filter_map(attempts).collect();
        // Each death costs one attempt at most; one that was given back is not counted.
        let regular = match self.story {
            Story::Unreadable => 0,
            Story::Retried | Story::TakenOver | Story::Released => 2,
            _ => 1,
        };
        assert!(attempts.len() <= regular + usize::from(fell), "{name}: {attempts:?}");
        let released = [Plan::Live, Plan::Die("release", 1, Side::After)].contains(&self.plan);
        if self.story == Story::Released && released {
            assert_eq!(attempts, [1, 1], "{name}");
        }
        let letters = self.broker().dead_letters(&self.partition, None, 10).await.unwrap();
        let ids: Vec<JobId> = letters.iter().map(|letter| letter.id).collect();
        let dead = if self.story.end() == State::Failed { vec![id] } else { Vec::new() };
        assert_eq!(ids, dead, "{name}");
    }
}

/// What is a step only where it moved something: there is nothing before it to die of.
const FOUND: [&str; 2] = ["sweep", "promote"];

/// To die before and after each of these steps.
fn plans(steps: &[&'static str]) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let number = steps[..=at].iter().filter(|other| *other == step).count();
        if !FOUND.contains(step) {
            plans.push(Plan::Die(step, number, Side::Before));
        }
        plans.push(Plan::Die(step, number, Side::After));
    }
    plans
}

/// Tells the story once for each step and side.
async fn at_every_step(story: Story) {
    let stack = Stack::start(instant()).await;
    let listener = stack.listener();
    let case = |plan: Plan, number: usize| {
        let queue = format!("{story:?}-{number}").to_lowercase().parse().unwrap();
        let partition = Partition::first(queue);
        Case { stack: &stack, listener: &listener, story, plan, partition }.run()
    };
    let alive = case(Plan::Live, 0).await;
    for step in story.must_take() {
        assert!(alive.steps.contains(step), "{step} is not among {:?}", alive.steps);
    }
    let plans = plans(&alive.steps);
    let cases = plans.iter().zip(1..).map(|(plan, number)| case(*plan, number));
    // In order, so that a plan and what came of it stay together.
    let mut told: Vec<Outcome> = stream::iter(cases).buffered(16).collect().await;
    let fell = |plan: &Plan| told[plans.iter().position(|p| p == plan).unwrap()].fell;
    for step in story.must_take() {
        let before = FOUND.contains(step) || fell(&Plan::Die(step, 1, Side::Before));
        assert!(before && fell(&Plan::Die(step, 1, Side::After)), "nobody died at {step}");
    }
    let deaths = told.iter().filter(|outcome| outcome.fell).count();
    println!("{story:?}: {deaths} deaths, at {:?}", alive.steps);
    if story.end() == State::Done {
        told.push(alive);
        let requests: Vec<String> =
            told.iter().map(|o| serde_json::to_string(&o.request).unwrap()).collect();
        for (outcome, expected) in told.iter().zip(oracle(&requests, &[])) {
            assert_eq!(outcome.text, expected, "{}", outcome.name);
        }
    }
}

macro_rules! stories {
    ($($name:ident: $story:ident,)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            at_every_step(Story::$story).await;
        })*
    };
}

stories! {
    over_a_job_that_is_done: Done,
    over_a_job_that_comes_while_it_waits: Awaited,
    over_an_answer_that_comes_whole: Whole,
    over_a_job_that_is_retried: Retried,
    over_a_job_that_fails: Failed,
    over_a_job_that_is_cancelled: Cancelled,
    over_an_entry_that_is_no_job: Unreadable,
    over_a_job_that_it_took_over: TakenOver,
    over_a_job_that_it_gives_back: Released,
}
