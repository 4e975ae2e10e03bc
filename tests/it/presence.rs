//! A worker that lives counts as one, however long it has had nothing to do.
//!
//! The servers before 7.2 let the idle time of a consumer run on while it waits in blocking reads, so
//! these tests set back the time at which one was last seen: what holds after an hour holds at once.

use std::time::Duration;

use millstream::{
    broker::redis::keys::{GROUP, Keys},
    job::{JobId, Lane},
    state::State,
    worker::{self, Stopped},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    program::{MILLSTREAM, PRODUCER, Ran, Running, WORKER, run},
    stack::{Stack, instant, paced},
    subject::soon,
    web::{self, Web},
};

const HOUR: Duration = Duration::from_hours(1);

/// The checksum of a dumped value.
fn crc64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc: u64, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x95ac_9329_ac4b_c9b5 } else { 0 }
        })
    })
}

/// Makes every lane see the consumer for the last time so long before it did.
fn age(stack: &Stack, consumer: &str, by: Duration) {
    let client = redis::Client::open(stack.server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    for key in Keys::new("ms").lanes(&stack.partition) {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query(&mut connection).unwrap();
        let mut dump = dump[..dump.len() - 8].to_vec();
        let name = consumer.as_bytes();
        let at = dump.windows(name.len()).position(|part| part == name).unwrap() + name.len();
        let seen: &mut [u8] = &mut dump[at..at + 8];
        let time = u64::from_le_bytes(seen.try_into().unwrap());
        let by = u64::try_from(by.as_millis()).unwrap();
        seen.copy_from_slice(&(time - by).to_le_bytes());
        let crc = crc64(&dump).to_le_bytes();
        dump.extend(crc);
        let mut restore = redis::cmd("RESTORE");
        restore.arg(&key).arg(0).arg(dump).arg("REPLACE");
        restore.exec(&mut connection).unwrap();
    }
}

/// The only worker, which has just been seen.
async fn consumer(stack: &Stack) -> String {
    soon(async {
        loop {
            let workers = stack.broker.workers(&stack.partition).await.unwrap();
            if let Some(worker) = workers.into_iter().find(|worker| worker.listens) {
                return worker.id;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// A worker that waits for entries, and was last seen an hour ago.
async fn idle(stack: &Stack) -> (CancellationToken, JoinHandle<Stopped>) {
    let worker = stack.worker(worker::Options::default());
    stack.blocked(1).await;
    age(stack, &consumer(stack).await, HOUR);
    let workers = stack.broker.workers(&stack.partition).await.unwrap();
    assert!(workers[0].idle >= HOUR, "{workers:?}");
    worker
}

/// Guards against a live worker that counts as none after 45 s without a job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_is_counted_and_shown() {
    let stack = Stack::start(instant()).await;
    let (_stop, _worker) = idle(&stack).await;
    assert_eq!(stack.producer().live_workers(&Default::default()).await.unwrap(), 1);
    let web = Web::start(&stack.broker, web::options());
    let queues = web.get("/v1/queues").await.json();
    assert_eq!(queues["data"][0]["workers"], 1, "{queues}");
    let shown = told(&stack, MILLSTREAM, &["workers"]).await;
    assert!(shown.out.lines().any(|line| line.trim_end().ends_with("yes")), "{shown:?}");
    web.end().await;
    // It still waits in the lanes, and is given what comes.
    let id = stack.ask("m?tokens=1", "after an hour").await;
    soon(stack.listener().listen(id).answer()).await.unwrap();
}

/// Guards against a dead worker that counts as a live one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_gone_is_not_counted() {
    let stack = Stack::start(instant()).await;
    let url = stack.server.url();
    let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", stack.base_url.as_str())];
    let dying = Running::start(WORKER, &[], &env);
    stack.blocked(1).await;
    age(&stack, &consumer(&stack).await, HOUR);
    assert_eq!(stack.producer().live_workers(&Default::default()).await.unwrap(), 1);
    dying.signal("KILL");
    soon(async {
        while stack.producer().live_workers(&Default::default()).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(stack.broker.workers(&stack.partition).await.unwrap().len(), 1);
}

async fn told(stack: &Stack, program: &'static str, args: &[&str]) -> Ran {
    let url = stack.server.url();
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let ran = move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(program, &args, &[("REDIS_URL", url.as_str())])
    };
    tokio::task::spawn_blocking(ran).await.unwrap()
}

/// A worker of one slot that runs a job of some seconds, and was last seen an hour ago: what is
/// enqueued meanwhile does not make it be seen.
async fn busy(stack: &Stack) -> JobId {
    let (stop, _worker) = stack.worker(worker::Options { concurrency: 1, ..Default::default() });
    std::mem::forget(stop);
    let consumer = consumer(stack).await;
    let id = stack.ask("m?tokens=30", "keeps it busy").await;
    soon(async {
        while stack.broker.job(id).await.unwrap().is_none_or(|job| job.state != State::Running) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    age(stack, &consumer, HOUR);
    id
}

/// Guards against a producer that warns of a queue without workers though one lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_do_not_warn_of_a_queue_that_a_worker_serves() {
    let stack = Stack::start(paced(10.0)).await;
    let long = busy(&stack).await;
    let warned = told(&stack, PRODUCER, &["--model", "m?tokens=1", "--user", "Hi"]).await;
    assert!(warned.code == Some(0) && !warned.err.contains("no live worker"), "{warned:?}");
    assert_eq!(stack.broker.job(long).await.unwrap().unwrap().state, State::Running);
    let asked = told(&stack, MILLSTREAM, &["ask", "--model", "m?tokens=1", "Hi"]).await;
    assert!(asked.code == Some(0) && !asked.err.contains("no live worker"), "{asked:?}");
}

/// Guards against the janitor that forgets a live worker: its own, too, an hour after its last job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_is_not_forgotten() {
    let stack = Stack::start(instant()).await;
    let forget = Duration::from_millis(300);
    let block = Duration::from_millis(100);
    let (_stop, _worker) = stack.worker(worker::Options { forget, block, ..Default::default() });
    let consumer = consumer(&stack).await;
    stack.reset_counts();
    // Looked at several times since it was idle for so long.
    soon(async {
        while stack.command_counts().get("xinfo|consumers").is_none_or(|looks| *looks < 12) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let lane = Keys::new("ms").lane(&stack.partition, Lane::Normal);
    let names = stack.server.command(&["XINFO", "CONSUMERS", &lane, GROUP]);
    assert!(names.contains(&consumer), "{names}");
}
