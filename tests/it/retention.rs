//! How long a record is kept, whoever is late.

use std::{sync::Arc, time::Duration};

use millstream::{
    broker::{
        Enqueue as _, Limits, Partition, Shared, Submission,
        redis::{Options, Redis, keys::Keys},
    },
    job::{ChatRequest, Job, Lane},
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
