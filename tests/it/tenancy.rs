//! What Redis keeps for tenants, seen on the server.

use std::{sync::Arc, time::Duration};

use millstream::{
    broker::{
        Rate, Recent, Shared,
        redis::{Options, Redis, keys::Keys},
    },
    job::{JobId, Tenant, Timestamp},
};

use crate::support::redis::Server;

async fn connected(server: &Server) -> Shared {
    Arc::new(Redis::connect(Options { url: server.url(), ..Options::default() }).await.unwrap())
}

#[tokio::test]
async fn a_bucket_is_shared_by_processes_and_gone_when_it_is_full() {
    let server = Server::start().await;
    let brokers = [connected(&server).await, connected(&server).await];
    let (tenant, rate) = (Tenant::default(), Rate { per_minute: 2, burst: 4 });
    let key = Keys::new("ms").rate(&tenant);
    for taken in 1..=4 {
        assert_eq!(brokers[taken % 2].admit(&tenant, &rate).await.unwrap(), None);
        let left: u64 = server.command(&["PTTL", &key]).parse().unwrap();
        let full = 30_000 * taken as u64;
        assert!(left <= full && left + 10_000 > full, "{left} ms after {taken} tokens");
    }
    for broker in &brokers {
        assert!(broker.admit(&tenant, &rate).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_clock_that_was_ahead_holds_nobody_up() {
    let server = Server::start().await;
    let broker = connected(&server).await;
    let tenant = Tenant::default();
    let tomorrow = Timestamp::now().after(Duration::from_hours(24)).0 * 1000;
    server.command(&["SET", &Keys::new("ms").rate(&tenant), &tomorrow.to_string()]);
    let rate = Rate { per_minute: 600, burst: 3 };
    let wait = broker.admit(&tenant, &rate).await.unwrap().expect("the bucket is empty");
    assert!(wait <= Duration::from_millis(100), "{wait:?}");
    tokio::time::sleep(wait).await;
    assert_eq!(broker.admit(&tenant, &rate).await.unwrap(), None);
}

#[tokio::test]
async fn what_a_stranger_lists_is_no_job() {
    let server = Server::start().await;
    let broker = connected(&server).await;
    let (tenant, job) = (Tenant::default(), JobId::new());
    broker.note(&tenant, &[(job, Timestamp(1))]).await.unwrap();
    server.command(&["ZADD", &Keys::new("ms").recent(&tenant), "2", "nonsense"]);
    assert_eq!(broker.recent(&tenant, None, 9).await.unwrap(), Recent::Jobs(vec![job]));
}
