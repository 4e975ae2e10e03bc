//! Connections: to Redis, which goes away and comes back, and of clients while the gateway closes.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millstream::{
    broker::{
        Partition, Shared,
        redis::{Options as RedisOptions, Redis},
    },
    gateway::Options,
};
use serde_json::json;

use crate::support::{
    redis::Server,
    stack::connect,
    subject::soon,
    web::{Block, Hand, Reply, Sse, Web, chat, embedded, options, streamed},
};

/// A broker that gives a silent server up after half a second.
async fn hasty(server: &Server) -> Shared {
    let response_timeout = Duration::from_millis(500);
    let options = RedisOptions { url: server.url(), response_timeout, ..RedisOptions::default() };
    let redis = Redis::connect(options).await.unwrap();
    redis.ensure_schema(&[Partition::first(Default::default())]).await.unwrap();
    std::sync::Arc::new(redis)
}

/// How often a command was run.
fn calls(server: &Server, command: &str) -> u64 {
    let info = server.command(&["INFO", "commandstats"]);
    let prefix = format!("cmdstat_{command}:calls=");
    let line = info.lines().find_map(|line| line.strip_prefix(&prefix));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_one_job_are_one_subscription() {
    let server = Server::start().await;
    let broker = connect(&server.url()).await;
    let web = Web::start(&broker, options());
    let id = web.enqueue("popular").await;
    // Its own, by which it notices that the server is gone.
    soon(async {
        while calls(&server, "subscribe") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let before = calls(&server, "subscribe");
    let mut streams = join_all((0..1000).map(|_| web.events(&id, ""))).await;
    assert_eq!(calls(&server, "subscribe"), before + 1);
    assert_eq!(web.listener.hub().topics(), 2);
    let mut hand = Hand::begin(&broker).await;
    hand.say("all").await;
    for stream in &mut streams {
        assert_eq!(
            (stream.block().await.event, stream.block().await.says()),
            ("started".into(), "all".into())
        );
    }
    let left = streams.split_off(500);
    drop(streams);
    web.until_metric("streams_open", 500.0).await;
    hand.done().await;
    for stream in left {
        assert_eq!(stream.rest().await.last().unwrap().event, "done");
    }
    assert_eq!(calls(&server, "subscribe"), before + 1);
    web.until_metric("streams_open", 0.0).await;
    web.until_metric("topics_open", 1.0).await;
    soon(async {
        while calls(&server, "unsubscribe") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Waits until requests are served again, nothing else done than asking.
async fn until_served(web: &Web) {
    soon(async {
        while web.get("/v1/jobs").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// What is refused while the broker is away, each at once and with a time to come back.
async fn refused_at_once(web: &Web, job: &str) {
    let began = Instant::now();
    for path in [
        "/v1/jobs",
        "/v1/queues",
        &format!("/v1/jobs/{job}"),
        &format!("/v1/jobs/{job}/events"),
        "/readyz",
    ] {
        for _ in 0..4 {
            let reply = web.get(path).await;
            reply.refused(503, "broker_unavailable");
            assert_eq!(reply.header("retry-after"), "2", "{path}");
        }
    }
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        // By now the broker is not even asked.
        let refused = web.post(path, &chat("a")).await;
        assert!(refused.refused(503, "broker_unavailable").contains("nothing was changed"));
    }
    web.delete(&format!("/v1/jobs/{job}")).await.refused(503, "broker_unavailable");
    // Each by itself would take half a second.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for path in ["/healthz", "/whoami"] {
        assert_eq!(web.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_silent_requests_are_refused_and_streams_wait() {
    let server = Server::start().await;
    let broker = hasty(&server).await;
    let web = Web::start(&broker, options());
    assert_eq!(web.get("/readyz").await.status, 200);
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("before ").await;
    let mut events = web.events(&id, "").await;
    assert_eq!(
        (events.block().await.event, events.block().await.says()),
        ("started".into(), "before ".into())
    );
    server.signal("STOP");
    // The first ones find out.
    let first = web.get("/v1/jobs").await;
    first.refused(503, "broker_unavailable");
    refused_at_once(&web, &id).await;
    server.signal("CONT");
    until_served(&web).await;
    assert_eq!(web.get("/readyz").await.status, 200);
    goes_on(events, &mut hand).await;
    assert_eq!(web.get(&format!("/v1/jobs/{id}")).await.json()["text"], "after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_a_restart_of_redis() {
    let mut server = Server::durable().await;
    let broker = hasty(&server).await;
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("before ").await;
    let mut events = web.events(&id, "").await;
    assert_eq!(
        (events.block().await.event, events.block().await.says()),
        ("started".into(), "before ".into())
    );
    server.stop();
    web.get("/v1/jobs").await.refused(503, "broker_unavailable");
    refused_at_once(&web, &id).await;
    server.restart().await;
    until_served(&web).await;
    let page = web.get(&format!("/v1/jobs/{id}")).await.json();
    assert_eq!((&page["text"], &page["state"]), (&json!("before "), &json!("running")));
    goes_on(events, &mut hand).await;
}

/// Another worker takes the job over, and the stream that was open tells it.
async fn goes_on(events: Sse, hand: &mut Hand) {
    hand.lose().await;
    hand.say("after").await;
    hand.done().await;
    let rest = events.rest().await;
    let kinds: Vec<&str> = rest.iter().map(|block| block.event.as_str()).collect();
    assert_eq!(kinds, ["started", "delta", "delta", "done"]);
    assert_eq!(rest[1].says(), "after");
}

/// A rolling restart: a stream breaks off with a hint, and goes on at another gateway, exactly once.
#[tokio::test]
async fn a_stream_goes_on_at_another_gateway() {
    let broker = embedded();
    let (old, new) = (Web::start(&broker, options()), Web::start(&broker, options()));
    let id = old.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("a").await;
    let mut stream = old.events(&id, "").await;
    let mut blocks = vec![stream.block().await, stream.block().await];
    let ended = tokio::spawn(old.end());
    let last = stream.block().await;
    let hint = Block {
        event: "reconnect".to_owned(),
        data: json!({"reason": "shutdown"}).to_string(),
        retry: "500".to_owned(),
        ..Block::default()
    };
    assert_eq!(last, hint);
    assert!(stream.next().await.is_none());
    let stopped = ended.await.unwrap();
    assert_eq!((stopped.streams, stopped.unfinished), (1, 0));
    hand.say("b").await;
    let resumed = new.ask(reqwest::Method::GET, &format!("/v1/jobs/{id}/events"));
    let resumed = Sse::open(resumed.header("last-event-id", &blocks[1].id)).await;
    hand.done().await;
    blocks.extend(resumed.rest().await);
    assert_eq!(blocks, new.events(&id, "").await.rest().await);
}

/// Answers in progress have the time of the drain.
#[tokio::test]
async fn a_completion_in_progress_ends_within_the_drain() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let whole = tokio::spawn(Reply::of(web.posted("/v1/chat/completions", &chat("whole"))));
    let mut first = Hand::begin(&broker).await;
    let asked = tokio::spawn(Sse::open(web.posted("/v1/chat/completions", &streamed("chunks"))));
    let mut second = Hand::begin(&broker).await;
    second.say("a").await;
    let mut stream = asked.await.unwrap();
    assert_eq!(stream.block().await.says(), "a");
    let (url, client) = (web.url.clone(), web.client.clone());
    let (stop, ended) = (web.stop.clone(), tokio::spawn(web.end()));
    stop.cancelled().await;
    // Nobody else comes in, once it listens no more.
    soon(async {
        while client.get(format!("{url}/healthz")).send().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for hand in [&mut first, &mut second] {
        hand.say("b").await;
        hand.done().await;
    }
    assert_eq!(whole.await.unwrap().json()["choices"][0]["message"]["content"], "b");
    let blocks = stream.rest().await;
    assert_eq!((blocks[0].says(), blocks.last().unwrap().data.as_str()), ("b".into(), "[DONE]"));
    assert_eq!(ended.await.unwrap().unfinished, 0);
}

#[tokio::test]
async fn a_completion_longer_than_the_drain_names_its_job_which_goes_on() {
    let broker = embedded();
    let drain = Duration::from_millis(300);
    let web = Web::start(&broker, Options { drain, ..options() });
    let other = Web::start(&broker, options());
    let whole = tokio::spawn(Reply::of(web.posted("/v1/chat/completions", &chat("whole"))));
    let mut first = Hand::begin(&broker).await;
    let asked = tokio::spawn(Sse::open(web.posted("/v1/chat/completions", &streamed("chunks"))));
    let mut second = Hand::begin(&broker).await;
    second.say("a").await;
    let mut stream = asked.await.unwrap();
    assert_eq!(stream.block().await.says(), "a");
    let began = Instant::now();
    let stopped = web.end().await;
    let took = began.elapsed();
    assert!(took >= drain && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(stopped.unfinished, 2);
    let whole = whole.await.unwrap();
    let (one, two) = (first.attempt.job.to_string(), second.attempt.job.to_string());
    assert!(whole.refused(503, "closing").contains(&format!("/v1/jobs/{one}")));
    assert_eq!((whole.header("retry-after"), whole.header("x-millstream-job")), ("1", &*one));
    let last = stream.rest().await.pop().unwrap().json();
    assert_eq!(last["error"]["code"], "closing");
    assert!(last["error"]["message"].as_str().unwrap().contains(&format!("/v1/jobs/{two}")));
    for hand in [&mut first, &mut second] {
        hand.done().await;
        let job = other.get(&format!("/v1/jobs/{}", hand.attempt.job)).await.json();
        assert_eq!((&job["state"], &job["cancelling"]), (&json!("done"), &json!(false)));
    }
}

#[tokio::test]
async fn a_gateway_that_closes_is_not_ready() {
    let broker = embedded();
    let listener = millstream::listener::Listener::new(broker.clone(), Default::default());
    let gateway =
        millstream::gateway::Gateway::new(broker, listener, Default::default(), options()).unwrap();
    // In an application's own server, which closes by itself.
    let app = gateway.router();
    let socket = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/readyz", socket.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(socket, app).await });
    let client = crate::support::web::client();
    assert_eq!(Reply::of(client.get(&url)).await.json()["status"], "ready");
    gateway.closing().cancel();
    let closing = Reply::of(client.get(&url)).await;
    closing.refused(503, "closing");
    assert_eq!(closing.header("retry-after"), "1");
}
