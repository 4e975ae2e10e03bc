//! A Redis that would lose jobs is not used: a part of a Cluster, or one that evicts.

use millstream::{
    broker::{
        Partition,
        redis::{Options, Redis},
    },
    job::{ChatRequest, Job, JobId, QueueName},
    producer::Producer,
    worker,
};

use crate::support::{
    program::{GATEWAY, MILLSTREAM, PRODUCER, Ran, WORKER, run},
    redis::Server,
    stack::{Stack, connect, expected, instant},
    subject::soon,
};

/// A node of a Cluster that owns slots 0 to `last`.
async fn node(last: u32) -> Server {
    let server = Server::with(&["--cluster-enabled", "yes"]).await;
    server.command(&["CLUSTER", "ADDSLOTSRANGE", "0", &last.to_string()]);
    if last == 16_383 {
        soon(async {
            while !server.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    server
}

/// Every program, each in a way that needs Redis.
fn every_program(url: &str) -> Vec<(String, Ran)> {
    let env = [("REDIS_URL", url), ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")];
    let line = ["--model", "m", "--user", "hi"];
    [
        (PRODUCER, &line[..]),
        (WORKER, &[]),
        (GATEWAY, &[]),
        (MILLSTREAM, &["ask", "hi"]),
        (MILLSTREAM, &["dev"]),
        (MILLSTREAM, &["queues"]),
        (MILLSTREAM, &["migrate", "up"]),
        (MILLSTREAM, &["bench", "cancel"]),
    ]
    .map(|(program, args)| (format!("{program} {args:?}"), run(program, args, &env)))
    .into()
}

/// Guards against jobs that a Cluster takes and that no worker can ever run: only the keys of some
/// slots could be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_cluster_is_refused_by_every_program() {
    let server = node(8_191).await;
    for (program, ran) in every_program(&server.url()) {
        assert_eq!(ran.code, Some(18), "{program}: {ran:?}");
        assert!(ran.err.contains("8192 of its 16384 slots"), "{program}: {ran:?}");
    }
}

/// Guards against jobs that wait for ever for a slot that has moved: no time brings it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_has_moved_is_no_outage() {
    let server = node(16_383).await;
    let broker = connect(&server.url()).await;
    server.command(&["CLUSTER", "DELSLOTSRANGE", "0", "16383"]);
    let other = node(16_383).await;
    other.command(&["CLUSTER", "MEET", "127.0.0.1", &server.port().to_string()]);
    let error = soon(async {
        loop {
            match broker.job(JobId::new()).await {
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                answer => break answer.unwrap_err(),
            }
        }
    })
    .await;
    assert_eq!(error.code(), "broker_cluster", "{error}");
    assert!(error.to_string().contains("MOVED"), "{error}");
}

/// A node that owns every slot is a Redis like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_node_is_served() {
    let server = node(16_383).await;
    let stack = Stack::on(server, instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m", "one node").await;
    let answer = soon(stack.listener().listen(id).answer()).await.unwrap();
    assert_eq!(answer.text, expected("m", "one node"));
    let (url, line) = (stack.server.url(), ["--model", "m", "--user", "hi", "--wait"]);
    let asked = tokio::task::spawn_blocking(move || run(PRODUCER, &line, &[("REDIS_URL", &*url)]));
    let ran = asked.await.unwrap();
    assert_eq!((ran.code, ran.out.trim_end()), (Some(0), &*expected("m", "hi")), "{ran:?}");
}

/// Guards against a Redis that drops whole lanes when its memory is full, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_drops_jobs_is_refused_unless_that_is_accepted() {
    let server = Server::with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let url = server.url();
    for (program, ran) in every_program(&url) {
        assert_eq!(ran.code, Some(19), "{program}: {ran:?}");
        assert!(
            ran.err.contains("allkeys-lru") && ran.err.contains("redis.allow_eviction"),
            "{program}: {ran:?}"
        );
    }
    let line = ["--model", "m", "--user", "hi"];
    let env = [("REDIS_URL", &*url), ("MILLSTREAM_REDIS__ALLOW_EVICTION", "true")];
    let ran = run(PRODUCER, &line, &env);
    assert!(ran.code == Some(0) && ran.err.contains("REDIS DROPS ANY KEY"), "{ran:?}");
    // What has a time to live may go: that is said, and no more.
    server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    let ran = run(PRODUCER, &line, &[("REDIS_URL", &url)]);
    assert!(ran.code == Some(0) && ran.err.contains("volatile-ttl"), "{ran:?}");
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let ran = run(PRODUCER, &line, &[("REDIS_URL", &url)]);
    assert!(ran.code == Some(0) && !ran.err.contains("maxmemory-policy"), "{ran:?}");
}

/// Who may not read the configuration is told the policy all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_seen_where_the_configuration_may_not_be_read() {
    let server = Server::with(&["--maxmemory-policy", "allkeys-random"]).await;
    server.command(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config"]);
    let options = |allow_eviction| Options {
        url: server.url().replace("//", "//app:pw@"),
        allow_eviction,
        ..Options::default()
    };
    let error = Redis::connect(options(false)).await.unwrap_err();
    assert_eq!(error.code(), "broker_eviction", "{error}");
    let broker = Redis::connect(options(true)).await.unwrap();
    broker.ensure_schema(&[Partition::first(QueueName::default())]).await.unwrap();
    let producer = Producer::new(std::sync::Arc::new(broker), Default::default());
    producer.enqueue(Job::new(ChatRequest::ask("m", "hi"))).await.unwrap();
}
