//! What the Redis adapter does with its options.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use millstream::{
    broker::{
        Error, Inspect as _, Recent, Shared,
        memory::Memory,
        redis::{Options, Redis, keys::Keys},
    },
    config::{Flag, Layers},
    job::{ChatRequest, Job, JobId, Tenant, Timestamp},
    producer::Producer,
    worker,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{stack_with, until};
use crate::support::{
    redis::Server,
    stack::{Stack, instant, paced},
};

/// An address that takes no more connections: the queue of those that nobody has accepted is full,
/// and the kernel leaves whoever comes next without an answer.
pub struct Deaf {
    pub address: String,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Deaf {
    pub async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        let patience = Duration::from_millis(300);
        while let Ok(taken) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
            waiting.push(taken.unwrap());
            assert!(waiting.len() < 100, "the queue of connections does not fill");
        }
        Self { address: address.to_string(), _listener: listener, _waiting: waiting }
    }
}

/// Connecting fails as unavailable after about `limit`.
async fn given_up(options: Options, limit: Duration) {
    let began = Instant::now();
    let error = Redis::connect(options).await.unwrap_err();
    let took = began.elapsed();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(took >= limit && took < limit + Duration::from_millis(1500), "{took:?} for {limit:?}");
}

#[tokio::test]
async fn a_server_that_takes_no_connection_is_given_up() {
    let deaf = Deaf::new().await;
    // One that takes connections and does not answer the handshake, which selects a database.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for place in [deaf.address.clone(), format!("{}/1", mute.local_addr().unwrap())] {
        for connect_timeout in [Duration::from_millis(200), Duration::from_millis(700)] {
            let url = format!("redis://{place}");
            let response_timeout = Duration::from_mins(5);
            let options = Options { url, connect_timeout, response_timeout, ..Options::default() };
            given_up(options, connect_timeout).await;
        }
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for response_timeout in [Duration::from_millis(200), Duration::from_millis(700)] {
        let url = format!("redis://{}", mute.local_addr().unwrap());
        let connect_timeout = Duration::from_mins(5);
        let options = Options { url, connect_timeout, response_timeout, ..Options::default() };
        given_up(options, response_timeout).await;
    }
}

#[tokio::test]
async fn every_key_and_channel_begins_with_the_prefix() {
    let options = Options { prefix: "mill-7".to_owned(), ..Options::default() };
    let stack = stack_with(options, instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let listener = stack.listener();
    // One that ends well, one that is buried, one that is parked.
    for model in ["m", "m?fault=status:400"] {
        let id = stack.ask(model, "where?").await;
        listener.listen(id).answer().await.unwrap();
    }
    let key = Keys::new("mill-7").dead(&stack.partition);
    until("a dead letter", || stack.server.command(&["EXISTS", &key]) == "1").await;
    stack.ask("m?fault=status:503", "again and again").await;
    let key = Keys::new("mill-7").parked(&stack.partition);
    until("a parked job", || stack.server.command(&["EXISTS", &key]) == "1").await;
    for what in [["KEYS", "*"].as_slice(), &["PUBSUB", "CHANNELS"]] {
        let names = stack.server.command(what);
        assert!(names.lines().count() >= 1, "{what:?}");
        for name in names.lines() {
            assert!(name.starts_with("mill-7:"), "{what:?}: {name}");
        }
    }
}

#[tokio::test]
async fn the_pool_opens_no_more_connections_than_allowed() {
    for pool_size in [1, 5] {
        let server = Server::start().await;
        let options = Options { url: server.url(), pool_size, ..Options::default() };
        let broker = Redis::connect(options).await.unwrap();
        // All of them want a connection, and none is open yet.
        let jobs: Vec<JobId> = (0..200).map(|_| JobId::new()).collect();
        let records = join_all(jobs.iter().map(|id| broker.job(*id))).await;
        assert!(records.into_iter().all(|record| record.unwrap().is_none()));
        // Whoever only looked may still be on the list for a moment; and a connection that is there early serves
        // those who wait for another.
        let most = usize::try_from(pool_size).unwrap();
        let pooled = || server.command(&["CLIENT", "LIST"]).trim().lines().count() - 1;
        until("no more connections than allowed", || pooled() <= most).await;
        assert!(most == 1 || pooled() > 1, "one connection for all");
    }
}

#[tokio::test]
async fn record_and_log_are_kept_while_the_job_is_not_over_and_after() {
    let job_ttl = Duration::from_hours(2);
    let result_ttl = Duration::from_mins(5);
    let options = Options { job_ttl, result_ttl, ..Options::default() };
    let stack = stack_with(options, paced(50.0)).await;
    let keys = Keys::new("ms");
    let is_kept = |key: &str, time: Duration| {
        let left: u128 = stack.server.command(&["PTTL", key]).parse().unwrap();
        assert!(left <= time.as_millis() && left + 60_000 > time.as_millis(), "{key}: {left}");
    };
    let id = stack.ask("m?tokens=40", "how long?").await;
    let (record, log) = (keys.job(id), keys.log(id));
    is_kept(&record, job_ttl);
    let (_stop, _worker) = stack.worker(worker::Options::default());
    until("some of the answer", || {
        stack.server.command(&["XLEN", &log]).parse::<u64>().unwrap() > 2
    })
    .await;
    is_kept(&record, job_ttl);
    is_kept(&log, job_ttl);
    stack.listener().listen(id).answer().await.unwrap();
    is_kept(&record, result_ttl);
    is_kept(&log, result_ttl);
}

/// Enqueues a job that no attempt can help, and waits until it is buried.
async fn bury(stack: &Stack, number: usize) -> JobId {
    let request = ChatRequest::ask("m?fault=status:400", &format!("dead {number}"));
    let id = stack.producer().enqueue(Job::new(request)).await.unwrap().id;
    stack.listener().listen(id).answer().await.unwrap();
    let dead = Keys::new("ms").dead(&stack.partition);
    let is_there = || stack.server.command(&["XREVRANGE", &dead, "+", "-", "COUNT", "1"]);
    until("a dead letter", || is_there().contains(&id.to_string())).await;
    id
}

#[tokio::test]
async fn the_newest_dead_letters_are_kept() {
    let stack = stack_with(Options { dead_max: 3, ..Options::default() }, instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let mut buried = Vec::new();
    for number in 0..7 {
        buried.push(bury(&stack, number).await);
    }
    // The older ones go a moment after a newer one is there.
    let dead = Keys::new("ms").dead(&stack.partition);
    until("older letters to go", || stack.server.command(&["XLEN", &dead]) == "3").await;
    let letters = stack.broker.dead_letters(&stack.partition, None, 100).await.unwrap();
    let kept: Vec<JobId> = letters.iter().map(|letter| letter.id).collect();
    assert_eq!(kept, buried[4..]);
}

#[tokio::test]
async fn a_dead_letter_beyond_its_time_goes() {
    let dead_ttl = Duration::from_hours(1);
    let stack = stack_with(Options { dead_ttl, ..Options::default() }, instant()).await;
    let dead = Keys::new("ms").dead(&stack.partition);
    let now = millstream::job::Timestamp::now().0;
    let [older, old, young] = [75, 70, 50].map(|minutes| format!("{}-0", now - minutes * 60_000));
    for id in [&older, &young] {
        stack.server.command(&["XADD", &dead, id, "id", "x"]);
    }
    let has = |id: &String| !stack.server.command(&["XRANGE", &dead, id, id]).is_empty();
    let dropped = async || stack.broker.depth(&stack.partition).await.unwrap().dropped;
    // Nothing is buried: a worker looks when it starts.
    let (_stop, _worker) = stack.worker(worker::Options::default());
    until("an hour and a quarter old", || !has(&older)).await;
    assert!(has(&young), "fifty minutes old");
    assert_eq!(dropped().await, 1);
    // Nobody else does: whoever drops one sees first that it is not being put back.
    let add = "redis.call('DEL', KEYS[1]); for _, id in ipairs(ARGV) do \
               redis.call('XADD', KEYS[1], id, 'id', 'x') end";
    stack.server.command(&["EVAL", add, "1", &dead, &old, &young]);
    bury(&stack, 0).await;
    assert_eq!(stack.server.command(&["XLEN", &dead]), "3");
    assert_eq!(stack.broker.expire(&stack.partition).await.unwrap(), 1);
    assert!(!has(&old), "an hour and ten minutes old");
    assert!(has(&young), "fifty minutes old");
    assert_eq!(dropped().await, 2);
}

#[tokio::test]
async fn each_bound_of_a_queue_is_the_one_that_is_configured() {
    let server = Server::start().await;
    for section in ["redis", "embedded"] {
        for (bound, value) in
            [("max_jobs", "3"), ("max_bytes", "600"), ("max_jobs_per_tenant", "2")]
        {
            server.command(&["FLUSHALL"]);
            let key = format!("{section}.limits.{bound}");
            let flags = [("producer.max_payload", "600"), (key.as_str(), value)];
            let flags = flags.map(|(key, value)| Flag::new("--set", key, value)).to_vec();
            let config = Layers { flags, ..Layers::default() }.load().unwrap().config;
            let broker: Shared = match section {
                "embedded" => Arc::new(Memory::new(config.embedded)),
                _ => super::connected(Options { url: server.url(), ..config.redis }).await,
            };
            let producer = Producer::new(broker, config.producer);
            let job = Job::new(ChatRequest::ask("m", &"x".repeat(200)));
            let bytes = serde_json::to_vec(&job).unwrap().len();
            let results = producer.enqueue_all(vec![job; 5]).await;
            let accepted = results.iter().filter(|result| result.is_ok()).count();
            let expected = if bound == "max_bytes" { 600 / bytes } else { value.parse().unwrap() };
            assert_eq!(accepted, expected, "{key}");
            let refusal = results.last().unwrap().as_ref().unwrap_err().to_string();
            assert!(refusal.contains(&format!("{key} is {value}")), "{refusal}");
        }
    }
}

#[tokio::test]
async fn the_most_recent_jobs_of_a_tenant_are_kept() {
    let server = Server::start().await;
    let tenant = Tenant::default();
    for section in ["redis", "embedded"] {
        let flags = [(format!("{section}.recent_jobs"), "3"), ("redis.job_ttl".to_owned(), "2h")];
        let flags = flags.map(|(key, value)| Flag::new("--set", &key, value)).to_vec();
        let config = Layers { flags, ..Layers::default() }.load().unwrap().config;
        let broker: Shared = match section {
            "embedded" => Arc::new(Memory::new(config.embedded)),
            _ => super::connected(Options { url: server.url(), ..config.redis }).await,
        };
        let producer = Producer::new(broker.clone(), config.producer);
        let mut added = Vec::new();
        for at in 1..=5 {
            let job = Job::new(ChatRequest::ask("m", "who?"));
            added.push((producer.enqueue(job).await.unwrap().id, Timestamp(at)));
        }
        broker.note(&tenant, &added[..4]).await.unwrap();
        broker.note(&tenant, &added[4..]).await.unwrap();
        let newest = added[2..].iter().rev().map(|(id, _)| *id).collect();
        assert_eq!(
            broker.recent(&tenant, None, 9).await.unwrap(),
            Recent::Jobs(newest),
            "{section}"
        );
        let older = broker.recent(&tenant, Some(added[1].0), 9).await.unwrap();
        assert_eq!(older, Recent::Unknown, "{section}");
    }
    let left = server.command(&["PTTL", &Keys::new("ms").recent(&tenant)]);
    let (left, whole) = (left.parse::<u64>().unwrap(), 2 * 60 * 60 * 1000);
    assert!(left <= whole && left + 60_000 > whole, "{left} ms");
}
