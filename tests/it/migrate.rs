//! Migrations: applied once, resumed after a death in the middle, over jobs in every state, and
//! refused where binary and schema do not fit.

use std::time::Duration;

use futures_util::future::join_all;
use millstream::{
    broker::{
        Error, Partition,
        redis::{Options, Redis, migrate::Migration},
    },
    job::{ChatRequest, Job, Timestamp},
    state::State,
    worker,
};

use crate::support::{
    redis::Server,
    stack::{Stack, expected, instant, paced},
};

async fn redis(server: &Server) -> Redis {
    Redis::connect(Options { url: server.url(), ..Options::default() }).await.unwrap()
}

fn partitions(count: u16) -> Vec<Partition> {
    (0..count).map(|index| Partition { queue: "many".parse().unwrap(), index }).collect()
}

/// The binary's migrations and one more, which notes in the parked hash how often it ran.
fn and_another(breaking: &str) -> Vec<Migration> {
    let mut migrations = Migration::embedded();
    migrations.push(Migration {
        number: 2,
        name: "count".to_owned(),
        source: format!(
            "-- breaking: {breaking}\nreturn redis.call('HINCRBY', KEYS[5], 'runs', 1)"
        ),
    });
    migrations
}

fn runs(server: &Server, partition: &Partition) -> String {
    server.command(&["HGET", &format!("ms:{{q:{partition}}}:parked:jobs"), "runs"])
}

#[tokio::test]
async fn what_is_applied_is_not_applied_again() {
    let server = Server::start().await;
    let redis = redis(&server).await;
    let applied = redis.migrate(&partitions(3)).await.unwrap();
    assert_eq!(applied.len(), 3 * Migration::embedded().len());
    assert_eq!(redis.migrate(&partitions(3)).await.unwrap(), []);
    redis.check_schema(&partitions(3)).await.unwrap();
    for row in redis.migration_status().await.unwrap() {
        assert!(row.known && row.at.is_some());
        assert!(row.partitions.len() == 3 && row.partitions.iter().all(|(_, done)| *done));
    }
    let groups = server.command(&["XINFO", "GROUPS", "ms:{q:many:2}:low"]);
    assert!(groups.contains("workers") && groups.contains("last-delivered-id\n0-0"), "{groups}");
}

#[tokio::test]
async fn migrators_at_the_same_time_apply_each_step_once() {
    let server = Server::start().await;
    let redis = redis(&server).await;
    let (partitions, migrations) = (partitions(20), and_another("no"));
    let all = (0..8).map(|_| redis.migrate_with(&migrations, &partitions));
    let applied: usize = join_all(all).await.into_iter().map(|a| a.unwrap().len()).sum();
    assert_eq!(applied, 40);
    assert!(partitions.iter().all(|partition| runs(&server, partition) == "1"));
}

#[tokio::test]
async fn a_migrator_that_dies_in_the_middle_is_continued() {
    let server = Server::start().await;
    let (partitions, migrations) = (partitions(300), and_another("no"));
    let task = {
        let (redis, partitions, migrations) =
            (redis(&server).await, partitions.clone(), migrations.clone());
        tokio::spawn(async move { redis.migrate_with(&migrations, &partitions).await })
    };
    // It dies when some partitions have the second step and some do not; its lock stays.
    while runs(&server, &partitions[20]).is_empty() {
        tokio::task::yield_now().await;
    }
    task.abort();
    assert!(task.await.is_err(), "it was to die before its end");
    let redis = redis(&server).await;
    let rest = redis.migrate_with(&migrations, &partitions).await.unwrap();
    assert!(!rest.is_empty() && rest.len() < 300, "{} steps were left", rest.len());
    let counts: Vec<_> = partitions.iter().map(|partition| runs(&server, partition)).collect();
    // The step in which it died may have run and not been noted: migrations bear a replay.
    assert!(counts.iter().all(|runs| runs == "1" || runs == "2"), "{counts:?}");
    assert!(counts.iter().filter(|runs| *runs == "2").count() <= 1, "{counts:?}");
}

#[tokio::test]
async fn waiting_parked_and_running_jobs_go_through_it() {
    let stack = Stack::start(paced(30.0)).await;
    let running = stack.ask("m?tokens=45", "running").await;
    // With its one slot taken, it claims nothing else.
    let (stop, worker) =
        stack.worker(worker::Options { concurrency: 1, ..worker::Options::default() });
    while stack.broker.job(running).await.unwrap().unwrap().state != State::Running {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    let waiting = stack.ask("m?tokens=5", "waiting").await;
    let due = Timestamp::now().after(Duration::from_secs(1));
    let parked =
        Job { not_before: Some(due), ..Job::new(ChatRequest::ask("m?tokens=5", "parked")) };
    let parked = stack.producer().enqueue(parked).await.unwrap().id;

    // As if these keys came from a time before there was a schema, and as a step on top of it.
    stack.server.command(&["DEL", "ms:schema"]);
    let redis = redis(&stack.server).await;
    let here = [stack.partition.clone()];
    redis.migrate(&here).await.unwrap();
    assert_eq!(redis.migrate_with(&and_another("no"), &here).await.unwrap().len(), 1);

    assert_eq!(worker.await.unwrap().finished, 1);
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let listener = stack.listener();
    for (id, model, question) in [
        (running, "m?tokens=45", "running"),
        (waiting, "m?tokens=5", "waiting"),
        (parked, "m?tokens=5", "parked"),
    ] {
        let answer = listener.listen(id).answer().await.unwrap();
        assert_eq!(answer.text, expected(model, question));
        assert_eq!(answer.outcome.unwrap().attempts, 1);
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused_only_if_it_breaks() {
    let stack = Stack::start(instant()).await;
    let redis = redis(&stack.server).await;
    let here = [stack.partition.clone()];
    redis.migrate_with(&and_another("no"), &here).await.unwrap();
    redis.ensure_schema(&here).await.unwrap();

    stack.server.command(&["FLUSHALL"]);
    redis.migrate_with(&and_another("yes"), &here).await.unwrap();
    let error = redis.ensure_schema(&here).await.unwrap_err();
    assert!(matches!(error, Error::Schema(_)));
    let message = error.to_string();
    assert!(message.contains("0002_count") && message.contains("upgrade this binary"), "{message}");
}

#[tokio::test]
async fn a_changed_script_and_a_missing_step_are_refused() {
    let server = Server::start().await;
    let redis = redis(&server).await;
    let message = redis.check_schema(&partitions(1)).await.unwrap_err().to_string();
    assert!(
        message.contains("0001_lanes") && message.contains("millstream migrate up"),
        "{message}"
    );

    let mut migrations = Migration::embedded();
    migrations[0].source.push_str("\n-- changed");
    redis.migrate_with(&migrations, &partitions(1)).await.unwrap();
    let message = redis.migrate(&partitions(1)).await.unwrap_err().to_string();
    assert!(message.contains("checksum"), "{message}");
}
