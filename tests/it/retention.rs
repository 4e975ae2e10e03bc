//! How long a record is kept, whoever is late.

use std::{sync::Arc, time::Duration};

use millstream::{
    broker::{
        Enqueue as _, Error, Limits, Partition, Shared, Submission,
        redis::{Options, Redis, keys::Keys},
    },
    job::{ChatRequest, Job, Lane, Timestamp},
    state::State,
    worker,
};

use crate::support::{
    proxy::Proxy,
    stack::{Stack, instant},
    subject::soon,
};

fn submission(key: Option<&str>) -> Submission {
    let request = ChatRequest::ask("m?tokens=1", "late");
    let job = Job { idempotency_key: key.map(str::to_owned), ..Job::new(request) };
    let payload = serde_json::to_vec(&job).unwrap();
    let partition = Partition::first(Default::default());
    Submission { id: job.assign_id(), job, payload, partition }
}

/// Guards against a producer that stalls behind the step that adds its job: what it writes into the
/// record when it goes on must not outlast the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_stalls_does_not_keep_what_is_over() {
    let mut stack = Stack::start(instant()).await;
    let key_ttl = Duration::from_hours(48);
    let options = Options { url: stack.server.url(), key_ttl, ..Options::default() };
    stack.broker = Arc::new(Redis::connect(options).await.unwrap());
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let keys = Keys::new("ms");
    let (lane, load) = (keys.lane(&stack.partition, Lane::Normal), keys.load(&stack.partition));
    let bounded = Limits { max_jobs: 100, ..Limits::default() };
    for (limits, step) in [(Limits::default(), lane), (bounded, load)] {
        // The server knows the scripts from then on: a step is one request.
        let direct = Options { url: stack.server.url(), limits, ..Options::default() };
        let direct = Redis::connect(direct).await.unwrap();
        direct.enqueue(&[submission(None)]).await.remove(0).unwrap();
        for key in [None, Some("once")] {
            let key = key.map(|key| format!("{key} {step}"));
            let proxy = Proxy::start(stack.server.port()).await;
            let options = Options { url: proxy.url(), limits, ..Options::default() };
            let broker: Shared = Arc::new(Redis::connect(options).await.unwrap());
            let slow = submission(key.as_deref());
            let id = slow.id;
            proxy.hold_behind(step.clone());
            let producing = tokio::spawn(async move { broker.enqueue(&[slow]).await.remove(0) });
            soon(proxy.holds()).await;
            soon(async {
                let over = async || {
                    let record = stack.broker.job(id).await.unwrap();
                    record.is_some_and(|record| record.state == State::Done)
                };
                while !over().await {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            proxy.let_through();
            soon(producing).await.unwrap().unwrap();
            let left = stack.broker.ttl(id).await.unwrap().unwrap();
            let most = if key.is_some() { key_ttl } else { Duration::from_hours(24) };
            assert!(left <= most, "{key:?} at {step}: {left:?}");
            // Accepted once, under its key.
            if key.is_some() {
                let repeat = stack.broker.enqueue(&[submission(key.as_deref())]).await.remove(0);
                assert!(repeat.unwrap().duplicate);
            }
        }
    }
}

/// Guards against a job whose record is gone after five seconds: before its producer, which has no limits, had
/// added it, one that has some was refused under the same key, and withdrew it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_refused_elsewhere_keeps_its_record() {
    let stack = Stack::start(instant()).await;
    let full = Limits { max_jobs: 1, ..Limits::default() };
    let full = Options { url: stack.server.url(), limits: full, ..Options::default() };
    let full = Redis::connect(full).await.unwrap();
    full.enqueue(&[submission(None)]).await.remove(0).unwrap();
    // The server knows the scripts from then on: a step is one request.
    stack.broker.enqueue(&[submission(Some("first"))]).await.remove(0).unwrap();
    let tomorrow = Timestamp::now().after(Duration::from_hours(24));
    for (key, not_before) in [("now", None), ("later", Some(tomorrow))] {
        let mut keyed = submission(Some(key));
        keyed.job.not_before = not_before;
        keyed.payload = serde_json::to_vec(&keyed.job).unwrap();
        let (id, record) = (keyed.id, Keys::new("ms").job(keyed.id));
        let proxy = Proxy::start(stack.server.port()).await;
        let options = Options { url: proxy.url(), ..Options::default() };
        let broker = Redis::connect(options).await.unwrap();
        proxy.hold_behind(record.clone());
        let slow = keyed.clone();
        let producing = tokio::spawn(async move { broker.enqueue(&[slow]).await.remove(0) });
        soon(proxy.holds()).await;
        let fields = async || stack.server.command(&["HLEN", &record]);
        soon(async { while fields().await != "1" {} }).await;
        let refused = full.enqueue(std::slice::from_ref(&keyed)).await.remove(0);
        assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
        proxy.let_through();
        assert_eq!(soon(producing).await.unwrap().unwrap().parked, not_before.is_some());
        let left = stack.broker.ttl(id).await.unwrap().unwrap();
        assert!(left > Duration::from_hours(6 * 24), "{key}: {left:?}");
        let repeat = stack.broker.enqueue(&[keyed]).await.remove(0).unwrap();
        assert_eq!((repeat.duplicate, repeat.parked), (true, not_before.is_some()));
    }
}
