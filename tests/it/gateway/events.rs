//! A job's events as server-sent events and in pages.

use std::time::Duration;

use millstream::{gateway::Options, job::JobId};
use reqwest::Method;
use serde_json::json;

use crate::support::{
    redis::Server,
    stack::connect,
    web::{Block, Hand, Reply, Sse, Web, embedded, options},
};

fn ids(blocks: &[Block]) -> Vec<&str> {
    blocks.iter().map(|block| block.id.as_str()).collect()
}

#[tokio::test]
async fn a_stream_replays_and_goes_on_live() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("old ").await;
    let mut stream = web.events(&id, "").await;
    assert_eq!(stream.headers["cache-control"], "no-cache, no-transform");
    assert_eq!(stream.headers["x-accel-buffering"], "no");
    assert_eq!(stream.headers["x-millstream-job"], id);
    let mut blocks = vec![stream.block().await, stream.block().await];
    hand.say("new").await;
    hand.done().await;
    blocks.extend(stream.rest().await);
    let fence = hand.attempt.fence;
    let expected: Vec<String> = (0..5).map(|seq| format!("{fence}-{seq}")).collect();
    assert_eq!(ids(&blocks), expected);
    let kinds: Vec<&str> = blocks.iter().map(|block| block.event.as_str()).collect();
    assert_eq!(kinds, ["started", "delta", "delta", "delta", "done"]);
    assert_eq!(blocks[1].json(), json!({"choices": [{"index": 0, "delta": {"content": "old "}}]}));
    assert_eq!(blocks[0].json()["attempt"], 1);
    assert_eq!(blocks[4].json()["usage"]["total_tokens"], 3);
    assert!(blocks.iter().all(|block| block.retry.is_empty()));
    // Whoever comes later reads the same.
    assert_eq!(web.events(&id, "").await.rest().await, blocks);
}

#[tokio::test]
async fn a_cursor_gives_the_rest_once_and_the_header_is_stronger() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    for word in ["a", "b", "c"] {
        hand.say(word).await;
    }
    let fence = hand.attempt.fence;
    let path = |query: &str| format!("/v1/jobs/{id}/events{query}");
    let resumed = |query: &str, header: &str| {
        let request = web.ask(Method::GET, &path(query));
        Sse::open(if header.is_empty() { request } else { request.header("last-event-id", header) })
    };
    let mut by_query = resumed(&format!("?after={fence}-1"), "").await;
    let mut by_header = resumed("", &format!("{fence}-1")).await;
    let mut by_both = resumed(&format!("?after={fence}-0"), &format!("{fence}-2")).await;
    // Above what there is: nothing is replayed, and what comes is told.
    let above = resumed(&format!("?after={fence}-900"), "").await;
    // Of a later attempt, which nobody knows of: the one that runs is told as a whole.
    let later = resumed("?after=9999999999999-5", "").await;
    for stream in [&mut by_query, &mut by_header] {
        assert_eq!(stream.block().await.says(), "b");
    }
    assert_eq!(by_both.block().await.says(), "c");
    hand.say("d").await;
    hand.done().await;
    let streams =
        [(by_query, "cd"), (by_header, "cd"), (by_both, "d"), (above, "d"), (later, "abcd")];
    for (stream, says) in streams {
        let blocks = stream.rest().await;
        let text: String =
            blocks.iter().filter(|block| block.event == "delta").map(Block::says).collect();
        assert_eq!(text, says, "{blocks:?}");
        assert_eq!(blocks.last().unwrap().event, "done");
    }
    let length = async |after: &str| web.events(&id, after).await.rest().await.len();
    assert_eq!((length(&format!("{fence}-4")).await, length("0-0").await), (2, 7));
}

#[tokio::test]
async fn at_or_above_the_end_there_is_nothing() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.done().await;
    let fence = hand.attempt.fence;
    for after in [format!("{fence}-2"), format!("{fence}-3"), format!("{}-0", fence + 1)] {
        let reply = web.get(&format!("/v1/jobs/{id}/events?after={after}")).await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (204, ""), "{after}");
        assert_eq!(reply.header("x-millstream-job"), id);
    }
    assert_eq!(web.metric("streams_open").await, 0.0);
}

#[tokio::test]
async fn a_cursor_that_is_none_is_refused() {
    let web = Web::start(&embedded(), options());
    let id = web.enqueue("a").await;
    let path = format!("/v1/jobs/{id}/events");
    for garbage in
        ["-1", "x", "1", "1-", "-", "1-2-3", "99999999999999999999-1", "null", "undefined"]
    {
        let query = web.get(&format!("{path}?after={garbage}")).await;
        query.refused(400, "invalid_parameter");
        assert_eq!(query.json()["error"]["param"], "after");
        let header = Reply::of(web.ask(Method::GET, &path).header("last-event-id", garbage)).await;
        header.refused(400, "invalid_parameter");
        assert_eq!(header.json()["error"]["param"], "Last-Event-ID");
    }
    let bytes: &[u8] = b"\xff";
    let header = web.ask(Method::GET, &path).header("last-event-id", bytes);
    Reply::of(header).await.refused(400, "invalid_parameter");
    web.get(&format!("{path}?after=1-1&colour=red")).await.refused(400, "invalid_parameter");
    web.get(&format!("/v1/jobs/{}/events", JobId::new())).await.refused(404, "job_not_found");
    assert_eq!(web.metric("streams_open").await, 0.0);
}

#[tokio::test]
async fn events_come_in_pages_as_json() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("a").await;
    hand.say("b").await;
    let page = async |query: &str| {
        let request = web.ask(Method::GET, &format!("/v1/jobs/{id}/events?{query}"));
        let reply = Reply::of(request.header("accept", "application/json")).await;
        assert_eq!(
            (reply.header("x-millstream-job"), reply.status.as_u16()),
            (&*id, 200),
            "{}",
            reply.text
        );
        reply.json()
    };
    let fence = hand.attempt.fence;
    let first = page("limit=2").await;
    assert_eq!((&first["object"], first["data"].as_array().unwrap().len()), (&json!("list"), 2));
    assert_eq!((&first["has_more"], &first["over"]), (&json!(true), &json!(false)));
    assert_eq!(first["next_after"], format!("{fence}-1"));
    let delta = json!({"id": format!("{fence}-1"), "event": "delta",
        "data": {"choices": [{"index": 0, "delta": {"content": "a"}}]}});
    assert_eq!(first["data"][1], delta);
    let second = page(&format!("limit=2&after={fence}-1")).await;
    assert_eq!((&second["has_more"], &second["over"]), (&json!(false), &json!(false)));
    // A page without events does not lose the place.
    let empty = page(&format!("after={fence}-2")).await;
    assert_eq!((&empty["data"], &empty["next_after"]), (&json!([]), &json!(format!("{fence}-2"))));
    hand.done().await;
    // Not over as long as the log holds more.
    let rest = page(&format!("limit=1&after={fence}-2")).await;
    assert_eq!((&rest["has_more"], &rest["over"]), (&json!(true), &json!(false)));
    let last = page(&format!("after={fence}-3")).await;
    assert_eq!((&last["data"][0]["event"], &last["over"]), (&json!("done"), &json!(true)));
    for limit in ["0", "1001", "x"] {
        let path = format!("/v1/jobs/{id}/events?limit={limit}");
        let request = web.ask(Method::GET, &path).header("accept", "application/json");
        Reply::of(request).await.refused(400, "invalid_parameter");
    }
}

/// A client that would take anything got a page, and one that excluded the stream got the stream.
#[tokio::test]
async fn a_stream_or_a_page_comes_as_accept_prefers() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    Hand::begin(&broker).await.done().await;
    let path = format!("/v1/jobs/{id}/events");
    for (accept, kind) in [
        // As axios asks.
        ("application/json, text/plain, */*", "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("Application/Json", "application/json"),
        ("application/json, text/event-stream;q=0", "application/json"),
        ("application/json;q=0, */*", "text/event-stream"),
    ] {
        let request = web.ask(Method::GET, &path).header("accept", accept);
        let reply = Reply::of(request).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, kind), "{accept}");
        assert_eq!(reply.header("vary"), "accept");
    }
    let last = web.get(&format!("/v1/jobs/{id}")).await.json()["last_event_id"].clone();
    let over = web.get(&format!("{path}?after={}", last.as_str().unwrap())).await;
    assert_eq!((over.status.as_u16(), over.header("vary")), (204, "accept"));
}

#[tokio::test]
async fn an_open_stream_says_that_it_lives_as_often_as_configured() {
    let broker = embedded();
    let heartbeat = Duration::from_millis(100);
    let web = Web::start(&broker, Options { heartbeat, ..options() });
    let id = web.enqueue("a").await;
    let began = std::time::Instant::now();
    let mut stream = web.events(&id, "").await;
    // The first one says at once that nobody serves the queue.
    for _ in 0..4 {
        let block = stream.any().await.unwrap();
        assert!(!block.comment.is_empty() && block.event.is_empty(), "{block:?}");
    }
    let took = began.elapsed();
    // From then on a ping and the same words again may fall on one beat.
    assert!(took >= 2 * heartbeat && took < Duration::from_secs(10), "{took:?}");
    let seldom = Web::start(&broker, Options { heartbeat: Duration::from_secs(60), ..options() });
    let mut stream = seldom.events(&id, "").await;
    let mut hand = Hand::begin(&broker).await;
    tokio::time::sleep(2 * heartbeat).await;
    hand.say("a").await;
    assert_ne!(stream.any().await.unwrap().comment, "ping");
    assert_eq!(stream.any().await.unwrap().event, "started");
}

/// What a client does not take stays in the log, not in the gateway: it reads no further ahead than the
/// sockets take, and the client misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_misses_nothing() {
    const SAID: usize = 400;
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    let mut stream = web.events(&id, "").await;
    assert_eq!(stream.block().await.event, "started");
    // Far more than both sockets hold, while the reader reads nothing.
    let text = "x".repeat(32 * 1024);
    for n in 0..SAID {
        hand.say(&format!("{n} {text}")).await;
    }
    hand.done().await;
    for n in 0..SAID {
        let said = stream.block().await.says();
        assert_eq!(said.split_once(' ').unwrap().0, n.to_string());
    }
    assert_eq!(stream.rest().await.len(), 2);
}

/// Guards against a reader who is told that it has read all (204), of a job whose events have expired.
#[tokio::test]
async fn events_that_are_not_kept_any_more_are_not_read_to_the_end() {
    let server = Server::start().await;
    let broker = connect(&server.url()).await;
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("a").await;
    hand.done().await;
    let blocks = web.events(&id, "").await.rest().await;
    let (path, end) = (format!("/v1/jobs/{id}/events"), &blocks.last().unwrap().id);
    assert_eq!(web.get(&format!("{path}?after={end}")).await.status, 204);
    assert_eq!(server.command(&["DEL", &format!("ms:{{job:{id}}}:log")]), "1");
    for after in ["", &blocks[1].id, end] {
        for accept in ["text/event-stream", "application/json"] {
            let asked = web.ask(Method::GET, &format!("{path}?after={after}"));
            let gone = Reply::of(asked.header("accept", accept)).await;
            gone.refused(410, "events_expired");
            assert_eq!(gone.header("x-millstream-job"), id, "{accept}");
        }
    }
    let job = web.get(&format!("/v1/jobs/{id}")).await.json();
    assert_eq!((&job["state"], &job["text"]), (&json!("done"), &json!("")));
    assert_eq!(
        job["last_event_id"],
        json!(null),
        "by which a client knows that it is not the answer"
    );
}

/// Guards against a reader who is told the address of Redis, or the name of its user.
#[tokio::test]
async fn an_interrupted_stream_tells_nothing_of_redis() {
    let server = Server::start().await;
    let broker = connect(&server.url()).await;
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("a").await;
    let mut events = web.events(&id, "").await;
    assert_eq!(
        (events.block().await.event, events.block().await.says()),
        ("started".into(), "a".into())
    );
    server.command(&["ACL", "SETUSER", "default", "-xrange"]);
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let last = events.block().await;
    assert_eq!(
        (last.event.as_str(), &last.json()["code"]),
        ("interrupted", &json!("broker_forbidden"))
    );
    let port = server.url().rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    for word in ["redis:", "127.0.0.1", &port, "NOPERM", "xrange", "user"] {
        assert!(!last.data.contains(word), "{word}: {}", last.data);
    }
}
