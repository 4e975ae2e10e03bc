//! Deployments in different databases of one server, which share its channels.

use millstream::{
    job::{ChatRequest, Job, Timestamp},
    producer::{self, Producer},
    worker,
};

use crate::support::{
    stack::{Stack, connect, expected, instant},
    subject::soon,
};

/// Guards against a reader that is given the tokens, and the end, of another database's job: the same tenant
/// and key make the same ID.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_hears_nothing_of_the_same_job_in_another_database() {
    let stack = Stack::start(instant()).await;
    let other = connect(&format!("{}/1", stack.server.url())).await;
    let keyed = |question: &str| {
        let mut job = Job::new(ChatRequest::ask("m?tokens=4", question));
        job.idempotency_key = Some("invoice-7".to_owned());
        job
    };
    let id = stack.producer().enqueue(keyed("ours")).await.unwrap().id;
    let theirs = Producer::new(other.clone(), producer::Options::default());
    assert_eq!(theirs.enqueue(keyed("theirs")).await.unwrap().id, id);
    let listener = stack.listener();
    let reader = tokio::spawn(async move { listener.listen(id).answer().await });
    soon(async {
        let heard = || stack.server.command(&["PUBSUB", "CHANNELS", &format!("*{id}*")]);
        while heard().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let (stop_theirs, worker_theirs) = stack.worker_on(other.clone(), worker::Options::default());
    let their_listener = millstream::listener::Listener::new(other, Default::default());
    let answer = soon(their_listener.listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m?tokens=4", "theirs"));
    assert!(!reader.is_finished(), "no worker serves this database yet");
    let (stop, worker) = stack.worker(worker::Options::default());
    let answer = soon(reader).await.unwrap().unwrap();
    assert_eq!(answer.text, expected("m?tokens=4", "ours"));
    stop.cancel();
    stop_theirs.cancel();
    worker.await.unwrap();
    worker_theirs.await.unwrap();
}

/// Guards against jobs that stay parked because a worker of another database says that nothing is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_job_is_due_whatever_another_database_says() {
    let stack = Stack::start(instant()).await;
    let other = connect(&format!("{}/1", stack.server.url())).await;
    let (stop, worker) = stack.worker(worker::Options::default());
    let looks = || stack.command_counts().get("zrangebyscore").copied().unwrap_or_default();
    let looked = async |count: u64| {
        while looks() < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    // Each looks once as it starts, and tells what it has found.
    soon(looked(1)).await;
    let mut job = Job::new(ChatRequest::ask("m?tokens=2", "scheduled"));
    let due = Timestamp::now().after(std::time::Duration::from_secs(2));
    job.not_before = Some(due);
    let id = stack.producer().enqueue(job).await.unwrap().id;
    let (stop_theirs, worker_theirs) = stack.worker_on(other, worker::Options::default());
    soon(looked(2)).await;
    assert!(Timestamp::now() < due);
    soon(stack.listener().listen(id).answer()).await.unwrap();
    stop.cancel();
    stop_theirs.cancel();
    worker.await.unwrap();
    worker_theirs.await.unwrap();
}
