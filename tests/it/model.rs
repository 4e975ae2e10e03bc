//! The whole state machine at once: random cases against a reference.
//!
//! A case is a few jobs and what happens to them: every transition by workers, owners and operators
//! who each know only what they were told, over a network that loses replies, repeats calls and
//! delivers them late, with workers that die. Each call is made on a broker and on a
//! [`reference`], a queue of plain lists; after each the answers, records, logs, depths and dead
//! letters must be the same, and the invariants must hold of the logs as they are:
//!
//! - IDs rise, each fence counts its events from 0 without a hole, and fences are never lowered;
//! - a run has one terminal event, and nothing after it;
//! - a job that was promised and is not over is carried by an entry or parked, and one that has
//!   failed by an entry or a dead letter.
//!
//! At the end what is late arrives, one honest worker takes everything to its end, and every run
//! must have come to exactly one. On Redis the same case runs on the embedded broker too, and both
//! must have told the same story.
//!
//! A server that forgets has cases of its own ([`forgetful`]). Not here, but in tests of their own: live messages,
//! deliveries counted, times to live. `PROPTEST_CASES` sets the number of cases. A case that has failed is kept in
//! `tests/it/model.regressions` and runs first from then on.

mod check;
mod drain;
mod forgetful;
mod frames;
mod hand;
mod jobs;
mod play;
mod real;
mod record;
mod reference;
mod step;
mod terms;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use millstream::broker::{
    Claim, Partition, Shared, Sweep, WorkerId,
    redis::{Options, Redis},
};
use proptest::{
    sample::Index,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner},
};

use self::{
    play::Play,
    real::{Halt, Real},
    reference::Reference,
    step::Case,
    terms::{Answer, Call},
};
use crate::support::{redis::Server, subject::memory_broker};

/// Most steps of a case.
const STEPS: usize = 160;

/// A runner for so many cases, unless the environment says otherwise.
fn runner(cases: u32) -> TestRunner {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let config = Config::default();
    TestRunner::new(Config {
        cases: if asked { config.cases } else { cases },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/it/model.regressions",
        ))),
        // A test is ended as stuck after two minutes.
        max_shrink_time: 45_000,
        max_shrink_iters: 20_000,
        ..config
    })
}

/// Picks one, where there is one.
fn pick<T>(index: Index, from: &[T]) -> Option<&T> {
    (!from.is_empty()).then(|| index.get(from))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn shown<T: Debug>(result: Result<(), TestError<T>>) {
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("{why}\n{case:#?}"),
        Err(TestError::Abort(why)) => panic!("given up: {why}"),
    }
}

/// Calls and answers, in order.
type Story = Vec<(Call, Answer)>;

/// Plays a case on each of these brokers; the story of each.
async fn play(case: &Case, brokers: &[Shared], partition: &Partition) -> Result<Vec<Story>, Halt> {
    // The same IDs on all: they decide between equal times.
    let submissions = jobs::submissions(&case.profiles, partition);
    let rank = |no: usize| submissions.iter().filter(|other| other.id < submissions[no].id).count();
    let ranks: Vec<usize> = (0..submissions.len()).map(rank).collect();
    let mut stories = Vec::new();
    for broker in brokers {
        let real = Real::new(broker.clone(), &case.profiles, submissions.clone());
        let mut play = Play::new(real, Reference::new(&case.profiles, ranks.clone()));
        play.make(&Call::Enqueue { job: 0, conflicting: false }).await?;
        for step in &case.steps {
            play.step(step).await?;
        }
        play.drain().await?;
        stories.push(play.story);
    }
    Ok(stories)
}

fn verdict(result: Result<Vec<Story>, Halt>) -> Result<Story, TestCaseError> {
    match result {
        Ok(mut stories) if stories.iter().all(|story| *story == stories[0]) => {
            Ok(stories.swap_remove(0))
        }
        Ok(stories) => Err(TestCaseError::fail(format!("two brokers, two stories: {stories:#?}"))),
        Err(Halt::Wrong(why)) => Err(TestCaseError::fail(why)),
        Err(Halt::TooSlow) => Err(TestCaseError::reject("the machine is too slow")),
    }
}

/// Answers that so many cases are sure to meet. Cases that reach nothing would find nothing.
const COMMON: [&str; 34] = [
    "Enqueue Accepted",
    "Enqueue Conflict",
    "Promote Promoted",
    "Read Given",
    "Pending Given",
    "Sweep Given",
    "Renew Gone",
    "Begin Begun",
    "Begin Remove",
    "Begin Park",
    "Begin Bury",
    "Begin Refuse",
    "Append Written(Yes)",
    "Append Written(Behind)",
    "Heal Written(Yes)",
    "Conclude Written(Yes)",
    "Conclude Written(Fenced)",
    "Conclude Written(Behind)",
    "Refuse Bury",
    "Refuse Remove",
    "Remove Settled(true)",
    "Park Settled(true)",
    "Park Settled(false)",
    "Bury Settled(true)",
    "Bury Settled(false)",
    "Release Settled(true)",
    "Release Settled(false)",
    "Cancel Cancelled",
    "Cancel Asked",
    "Cancel Over",
    "Reopen Opened",
    "Requeue Settled(true)",
    "Requeue Settled(false)",
    "Purge Purged",
];

/// A call and its answer by their names alone.
fn name((call, answer): &(Call, Answer)) -> String {
    let head = |text: String, end: &[char]| text.split(end).next().unwrap_or_default().to_owned();
    let answer = match answer {
        Answer::Written(_) | Answer::Settled(_) => format!("{answer:?}"),
        _ => head(format!("{answer:?}"), &[' ', '(']),
    };
    format!("{} {answer}", head(format!("{call:?}"), &[' ']))
}

#[test]
fn the_embedded_broker_is_what_the_reference_says() {
    let (runtime, mut runner) = (runtime(), runner(256));
    let met = RefCell::new(BTreeSet::new());
    let result = runner.run(&step::case(STEPS), |case| {
        let (broker, _) = memory_broker();
        let partition = Partition::first("model".parse().unwrap());
        let story = verdict(runtime.block_on(play(&case, &[broker], &partition)))?;
        met.borrow_mut().extend(story.iter().map(name));
        Ok(())
    });
    shown(result);
    let met = met.into_inner();
    let missed: Vec<_> = COMMON.into_iter().filter(|answer| !met.contains(*answer)).collect();
    assert!(missed.is_empty() || runner.config().cases < 256, "never met: {missed:?}");
}

#[test]
fn redis_and_the_embedded_broker_tell_one_story() {
    let runtime = runtime();
    // One server for all cases, each with a queue and jobs of its own.
    let (_server, redis) = runtime.block_on(async {
        let server = Server::start().await;
        let options = Options { url: server.url(), pool_size: 1, ..Options::default() };
        let redis = Redis::connect(options).await.unwrap();
        calm(&redis).await;
        (server, redis)
    });
    let number = Cell::new(0_u32);
    let result = runner(64).run(&step::case(STEPS), |case| {
        number.set(number.get() + 1);
        let partition = Partition::first(format!("model-{}", number.get()).parse().unwrap());
        let brokers: [Shared; 2] = [memory_broker().0, Arc::new(redis.clone())];
        let stories = runtime.block_on(async {
            redis.migrate(std::slice::from_ref(&partition)).await.unwrap();
            play(&case, &brokers, &partition).await
        });
        verdict(stories).map(drop)
    });
    shown(result);
}

/// The broker's grace begins with the first sweep; leases that take no time are beyond it from then
/// on.
async fn calm(redis: &Redis) {
    let sweep = Sweep { lease: Duration::from_hours(1), most: 1, ask: false, deliveries: 1 };
    let partition = Partition::first("model".parse().unwrap());
    redis.sweep(&partition, &WorkerId::new("first"), &sweep).await.unwrap();
}
