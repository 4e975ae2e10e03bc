//! The load: jobs at an even pace, by three ways, and what their producers know of them.

use std::{sync::Arc, time::Duration};

use millstream::{event::EventId, job::JobId, producer};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    feed, operations,
    plan::{Jobs, Planned, Route},
    readers,
    support::now,
    world::{World, partition},
};

/// Jobs that come each second.
const PACE: f64 = 12.5;

/// How long a producer waits before it repeats what it does not know.
const PAUSE: Duration = Duration::from_millis(200);

/// Enqueues jobs until `end`.
pub async fn run(
    world: Arc<World>,
    seed: u64,
    feeds: Vec<mpsc::UnboundedSender<feed::Line>>,
    end: Instant,
) {
    let mut jobs = Jobs::new(seed);
    let start = Instant::now();
    for number in 0_u32.. {
        let due = start + Duration::from_secs_f64(f64::from(number) / PACE);
        if due >= end {
            break;
        }
        tokio::time::sleep_until(due).await;
        let planned = jobs.draw();
        let job = world.note(planned.clone());
        match planned.route {
            Route::Library => drop(world.tasks.spawn(library(world.clone(), job, planned))),
            Route::Plain => drop(world.tasks.spawn(plain(world.clone(), job, planned))),
            Route::Program => {
                let line = feed::Line { job, planned, sent: None };
                // A feed outlives the load.
                let _ = feeds[job % feeds.len()].send(line);
            }
        }
    }
}

/// A job's producer in this process. With an idempotency key it asks until it has an answer;
/// without one it asks once.
async fn library(world: Arc<World>, job: usize, planned: Planned) {
    loop {
        let asked = now();
        match world.producer.enqueue(planned.job()).await {
            Ok(receipt) => return acknowledged(&world, job, receipt.id, asked),
            Err(producer::Error::Broker(error)) if error.is_transient() => {}
            Err(error) => panic!("{}: {error}", planned.name),
        }
        if planned.job.idempotency_key.is_none() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A job added by a bare `XADD` on a connection of its own.
async fn plain(world: Arc<World>, job: usize, planned: Planned) {
    let lane = world.keys().lane(&partition(), planned.job.lane);
    let asked = now();
    let added: redis::RedisResult<String> = async {
        let client = redis::Client::open(world.proxy.url())?;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(Duration::from_secs(5)));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let text = serde_json::to_string(&planned.job()).unwrap();
        let mut command = redis::cmd("XADD");
        command.arg(&lane).arg("*").arg("job").arg(text).query_async(&mut connection).await
    }
    .await;
    if let Ok(entry) = added {
        assert!(entry.parse::<EventId>().is_ok(), "{entry}");
        acknowledged(&world, job, JobId::from_entry(&lane, &entry), asked);
    }
}

/// Notes what a producer was promised, and has the job read, and cancelled where that is planned.
pub fn acknowledged(world: &Arc<World>, job: usize, id: JobId, asked: u64) {
    if !world.acknowledged(job, id, asked) {
        return;
    }
    readers::start(world, job, id);
    let cancel = world.journal()[job].planned.cancel;
    if let Some(delay) = cancel {
        world.tasks.spawn(operations::cancel(Arc::clone(world), job, id, delay));
    }
}
