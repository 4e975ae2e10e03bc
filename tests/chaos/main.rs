//! Chaos: real processes under random faults, and a checker that judges what the clients saw.
//!
//! `make chaos SECONDS=1800 SEED=7` runs it for as long as one likes; the same seed gives the same
//! jobs and faults. Nothing here is tried again until it passes.

#![allow(missing_docs, reason = "tests say what they do in their names")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed expectation is a failed test, in the helpers too"
)]
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::missing_errors_doc,
    reason = "nothing here is exported"
)]

mod checker;
mod collect;
mod faults;
mod feed;
mod fleet;
mod forgotten;
mod history;
mod load;
mod operations;
mod plan;
mod proxy;
mod random;
mod readers;
mod server;
mod summary;
mod support;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use millstream::simulator::{self, Simulator};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    checker::{Breach, Violation},
    faults::{Done, Victims},
    feed::Feed,
    fleet::Fleet,
    history::{Asked, Span},
    plan::{Faults, Planned},
    server::Server,
    summary::Summary,
    world::World,
};

/// Chains of producer processes.
const FEEDS: usize = 2;

/// Most violations of each kind that are printed.
const SHOWN: usize = 5;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, not a number"))
        }
        _ => default,
    }
}

/// A run's own folder, which stays where the run fails.
fn folder(seed: u64) -> PathBuf {
    let name = format!("chaos-{seed}-{}", std::process::id());
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

async fn simulate() -> (String, DropGuard) {
    let listen = ([127, 0, 0, 1], 0).into();
    let options = simulator::Options { listen, ..simulator::Options::default() };
    let simulator = Simulator::bind(options).await.unwrap();
    let base_url = simulator.base_url();
    let stop = CancellationToken::new();
    tokio::spawn(simulator.run(stop.clone()));
    (base_url, stop.drop_guard())
}

/// Load and faults until `end`, and then quiet until nothing moves. How many readers still wait, if nothing else
/// does.
async fn storm(victims: &mut Victims, seed: u64, end: Instant) -> (Vec<Done>, Option<usize>) {
    let world = Arc::clone(&victims.world);
    let mut senders = Vec::new();
    for number in 0..FEEDS {
        let (sender, lines) = mpsc::unbounded_channel();
        let kill = watch::Sender::new(0);
        let log = victims.fleet.folder().join(format!("producer-{number}.log"));
        world.tasks.spawn(Feed::new(world.clone(), lines, kill.subscribe(), log).run());
        senders.push(sender);
        victims.feeds.push(kill);
    }
    let stop = CancellationToken::new();
    world.tasks.spawn(operations::operate(world.clone(), stop.clone()));
    let load = tokio::spawn(load::run(world.clone(), seed, senders, end));
    let forgets = setting("CHAOS_FORGETS", 0);
    let done = faults::run(victims, Faults::new(seed, forgets), end).await;
    victims.fleet.revive();
    load.await.unwrap();
    stop.cancel();
    let rested = collect::settle(&world).await;
    world.over.cancel();
    world.tasks.close();
    world.tasks.wait().await;
    (done, rested)
}

/// The journal, with the texts that the model gives.
fn history(world: &World) -> (Vec<Planned>, Vec<Asked>) {
    let (planned, mut asked): (Vec<_>, Vec<_>) =
        world.journal().drain(..).map(|entry| (entry.planned, entry.asked)).unzip();
    let request = |planned: &Planned| serde_json::to_string(&planned.job.request).unwrap();
    let texts = support::oracle(&planned.iter().map(request).collect::<Vec<_>>());
    assert_eq!(texts.len(), asked.len());
    for (asked, text) in asked.iter_mut().zip(texts) {
        asked.text = text;
    }
    (planned, asked)
}

fn tell(summary: &Summary, violations: &[Violation], surprises: &[String]) {
    println!("{summary}");
    for surprise in surprises {
        println!("surprise: {surprise}");
    }
    let mut kinds: BTreeMap<Breach, Vec<&Violation>> = BTreeMap::new();
    for violation in violations {
        kinds.entry(violation.breach).or_default().push(violation);
    }
    for (breach, violations) in kinds {
        println!("{} times {breach:?}:", violations.len());
        for violation in violations.iter().take(SHOWN) {
            println!("  {}", violation.detail);
        }
    }
    println!("{} violations, {} surprises", violations.len(), surprises.len());
}

/// Keeps what the clients saw of the jobs that violations name, the faults, and what was forgotten.
fn note(folder: &Path, violations: &[Violation], asked: &[Asked], done: &[Done], lost: &[Span]) {
    let mut text = String::new();
    for Done { kind, from, until } in done {
        writeln!(text, "{from} to {until}: {}", kind.name()).unwrap();
    }
    for Span { from, until } in lost {
        writeln!(text, "{from} to {until}: forgotten").unwrap();
    }
    let names: BTreeSet<&str> =
        violations.iter().filter_map(|found| found.detail.split(':').next()).collect();
    for asked in asked.iter().filter(|asked| names.contains(asked.name.as_str())) {
        writeln!(text, "{asked:?}").unwrap();
    }
    std::fs::write(folder.join("history.txt"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_random_faults_every_job_ends_once_and_is_read_whole() {
    let (seed, seconds) = (setting("CHAOS_SEED", 1), setting("CHAOS_SECONDS", 60));
    let folder = folder(seed);
    println!("chaos: seed {seed}, {seconds} s, in {}", folder.display());
    let server = Server::start(folder.join("redis"), seed).await;
    let (base_url, _simulator) = simulate().await;
    let world = World::new(server.port()).await;
    let fleet = Fleet::start(server.port(), base_url, folder.clone()).await;
    let mut victims =
        Victims { server, fleet, world: world.clone(), forgotten: Vec::new(), feeds: Vec::new() };
    let end = Instant::now() + Duration::from_secs(seconds);
    let (done, waiting) = storm(&mut victims, seed, end).await;
    let mut finals = collect::finals(&world, &victims.server).await;
    victims.fleet.stop().await;
    let (planned, mut asked) = history(&world);
    let excused = forgotten::excuse(&mut asked, &mut finals, &victims.forgotten);
    let violations = checker::check(&asked, &finals);
    let mut summary = Summary::new(seed, seconds);
    summary.jobs(&planned, &asked, &finals);
    summary.faults(&done, &victims.fleet.kills, &finals);
    summary.excused = format!("{excused}");
    summary.logs(&folder);
    tell(&summary, &violations, &victims.fleet.surprises);
    // Who reads a job that has no entry, or one that is expected and forgotten, waits.
    let at_rest = waiting == Some(excused.waiting);
    note(&folder, &violations, &asked, &done, &victims.forgotten);
    let sound = violations.is_empty() && victims.fleet.surprises.is_empty() && at_rest;
    assert!(sound, "seed {seed}; Redis and the logs of all processes are in {}", folder.display());
    std::fs::remove_dir_all(folder).unwrap();
}
