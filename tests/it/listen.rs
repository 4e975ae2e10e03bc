//! Readers: late, in the middle, after the end, interrupted, without pub/sub.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use futures_util::{Stream, StreamExt, future::join_all};
use millstream::{
    broker::{Begin, Crashes, WorkerId, Written},
    event::{Body, Codec, Event, EventId, Frame},
    job::{JobId, Lane},
    listener::{self, Error, Listener},
    worker,
};

use crate::support::{
    redis::Server,
    stack::{Stack, connect, expected, instant, paced},
    subject::{delta, soon},
    web::Hand,
};

async fn all(events: impl Stream<Item = Result<Event, Error>>) -> Vec<Event> {
    events.map(Result::unwrap).collect().await
}

fn text(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        match &event.body {
            Body::Started(_) => text.clear(),
            Body::Delta(chunk) => text.push_str(&chunk.text()),
            _ => {}
        }
    }
    text
}

/// A listener that may not subscribe.
async fn deaf(stack: &Stack) -> Listener {
    let rules = ["ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@all", "-subscribe"];
    stack.server.command(&rules);
    let url = stack.server.url().replace("://", "://reader:pw@");
    Listener::new(connect(&url).await, listener::Options::default())
}

#[tokio::test]
async fn early_late_and_after_the_end_read_the_same() {
    let stack = Stack::start(paced(200.0)).await;
    let id = stack.ask("m?tokens=100", "the same?").await;
    let listener = stack.listener();
    let early = tokio::spawn(all(listener.listen(id).events()));
    let (_stop, _worker) = stack.worker(worker::Options::default());

    // A reader in another process comes when some of the answer is there.
    let elsewhere = stack.listener();
    let mut first = elsewhere.listen(id).events();
    while !matches!(first.next().await.unwrap().unwrap().body, Body::Delta(_)) {}
    let middle = all(elsewhere.listen(id).events()).await;
    let early = early.await.unwrap();
    let after = all(stack.listener().listen(id).events()).await;

    assert_eq!(early, after);
    assert_eq!(middle, after);
    assert_eq!(text(&after), expected("m?tokens=100", "the same?"));
    assert!(after.len() > 4, "it did stream: {}", after.len());
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_the_rest_once() {
    let stack = Stack::start(paced(300.0)).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let listener = stack.listener();
    let id = stack.ask("m?tokens=120", "resume").await;
    let mut seen = Vec::new();
    // Every connection reads two events and is dropped.
    loop {
        let after = seen.last().map_or(EventId::START, |event: &Event| event.id);
        let part = all(listener.listen(id).after(after).events().take(2)).await;
        if part.is_empty() {
            break;
        }
        seen.extend(part);
    }
    assert_eq!(seen, all(listener.listen(id).events()).await);
    assert_eq!(text(&seen), expected("m?tokens=120", "resume"));
}

#[tokio::test]
async fn at_or_above_the_end_the_stream_is_empty() {
    let stack = Stack::start(instant()).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let id = stack.ask("m", "over").await;
    let events = all(stack.listener().listen(id).events()).await;
    let end = events.last().unwrap().id;
    for after in [end, EventId { fence: end.fence + 5, seq: 0 }] {
        assert!(all(stack.listener().listen(id).after(after).events()).await.is_empty());
    }
}

#[tokio::test]
async fn an_unknown_job_is_not_found_and_a_quiet_one_times_out() {
    let stack = Stack::start(instant()).await;
    let listener = stack.listener();
    let none = listener.listen(JobId::new()).answer().await.unwrap_err();
    assert!(matches!(none, Error::NotFound(_)), "{none}");
    let id = stack.ask("m", "nobody works").await;
    let short = Duration::from_millis(30);
    let idle = listener.listen(id).idle_timeout(short).answer().await.unwrap_err();
    assert!(matches!(idle, Error::Idle(limit) if limit == short), "{idle}");
    let whole = listener.listen(id).timeout(short).answer().await.unwrap_err();
    assert!(matches!(whole, Error::Timeout(limit) if limit == short), "{whole}");
}

#[tokio::test]
async fn a_thousand_readers_of_one_job_cost_one_subscription() {
    let stack = Stack::start(paced(100.0)).await;
    let listener = stack.listener();
    let id = stack.ask("m?tokens=30", "popular").await;
    stack.reset_counts();
    let readers = (0..1000).map(|_| tokio::spawn(listener.listen(id).answer()));
    let readers: Vec<_> = readers.collect();
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let answers = join_all(readers).await;
    let expected = expected("m?tokens=30", "popular");
    assert!(answers.into_iter().all(|answer| answer.unwrap().unwrap().text == expected));
    // The others are the worker's: to its partition's wakes, and to what it is told.
    assert_eq!(stack.command_counts()["subscribe"], 3);
}

#[tokio::test]
async fn a_cut_subscriber_connection_loses_and_repeats_nothing() {
    let stack = Stack::start(paced(100.0)).await;
    let listener = stack.listener();
    let id = stack.ask("m?tokens=150", "cut").await;
    let reader = tokio::spawn(all(listener.listen(id).events()));
    let (_stop, _worker) = stack.worker(worker::Options::default());
    // Cut it again and again for as long as the answer lasts.
    let mut cuts = 0;
    while !reader.is_finished() {
        let killed = stack.server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        cuts += killed.parse::<u32>().unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(cuts >= 2, "{cuts} connections were cut");
    let seen = reader.await.unwrap();
    assert_eq!(seen, all(stack.listener().listen(id).events()).await);
    assert_eq!(text(&seen), expected("m?tokens=150", "cut"));
}

#[tokio::test]
async fn a_reader_too_slow_for_its_buffer_reads_the_log_again() {
    let stack = Stack::start(paced(400.0)).await;
    let options = listener::Options { buffer_bytes: 1024, page: 3, ..listener::Options::default() };
    let listener = Listener::new(stack.broker.clone(), options);
    let id = stack.ask("m?tokens=200", "slow reader").await;
    let flush_interval = Duration::from_millis(5);
    let (_stop, _worker) =
        stack.worker(worker::Options { flush_interval, ..worker::Options::default() });
    let mut events = listener.listen(id).events();
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(event.unwrap());
        tokio::time::sleep(Duration::from_millis(12)).await;
    }
    assert_eq!(seen, all(stack.listener().listen(id).events()).await);
}

/// A worker that dies between the two commands of a flush leaves an event that nobody published.
#[tokio::test]
async fn an_event_that_was_never_published_is_read_from_the_log() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "unpublished").await;
    let me = WorkerId::new("test");
    let mut reader = stack.broker.claimer(&stack.partition, &me).await.unwrap();
    let entry = reader.read(Lane::Normal, 1).await.unwrap().remove(0);
    let Begin::Begun(attempt) =
        stack.broker.begin(&entry, &me, Crashes { most: 3, alone: false }).await.unwrap()
    else {
        panic!("it does not begin")
    };
    let mut events = stack.listener().listen(id).events();
    assert_eq!(events.next().await.unwrap().unwrap().id.seq, 0);
    let body = |text: &str| -> Body {
        let chunk = serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        Body::Delta(serde_json::from_value(chunk).unwrap())
    };
    let frame = |seq, text| Frame::new(seq, &body(text), Codec::Json).unwrap();
    assert_eq!(stack.broker.append(&attempt, &[frame(1, "a")]).await.unwrap(), Written::Yes);
    assert_eq!(events.next().await.unwrap().unwrap().id.seq, 1);
    let silent = frame(2, "b");
    let log = format!("ms:{{job:{id}}}:log");
    let place = format!("{}-2", attempt.fence);
    let payload = String::from_utf8(silent.bytes).unwrap();
    stack.server.command(&["XADD", &log, &place, "delta", &payload]);
    assert_eq!(stack.broker.append(&attempt, &[frame(3, "c")]).await.unwrap(), Written::Yes);
    for seq in [2, 3] {
        assert_eq!(events.next().await.unwrap().unwrap().id.seq, seq);
    }
}

/// A cursor that no event has, in the fence that runs: the reader heard nothing, and its stream ended
/// without the job's end.
#[tokio::test]
async fn a_cursor_above_the_last_event_of_the_running_fence_is_told_what_comes() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "above").await;
    let mut hand = Hand::begin(&stack.broker).await;
    hand.say("old ").await;
    let after = EventId { fence: hand.attempt.fence, seq: 900 };
    let listener = stack.listener();
    let above = async || listener.listen(id).after(after).open().await.unwrap().events();
    let (first, second) = (above().await, above().await);
    stack.reset_counts();
    let first = tokio::spawn(all(first.take(2)));
    hand.say("a").await;
    // The first event may have been written again; the second tells.
    while !stack.command_counts().contains_key("xrevrange") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    hand.say("b").await;
    let seen = soon(first).await.unwrap();
    assert_eq!(text(&seen), "ab", "{seen:?}");
    hand.say("c").await;
    hand.done().await;
    let seen = soon(all(second)).await;
    assert_eq!(text(&seen), "abc", "{seen:?}");
    assert!(seen.last().unwrap().body.is_terminal());
}

/// The same where the next event is the end, and where nothing arrives live.
#[tokio::test]
async fn a_cursor_above_the_last_event_is_told_the_end() {
    let stack = Stack::start(instant()).await;
    for listener in [stack.listener(), deaf(&stack).await] {
        let id = stack.ask("m", "above").await;
        let mut hand = Hand::begin(&stack.broker).await;
        let after = EventId { fence: hand.attempt.fence, seq: 900 };
        let events = listener.listen(id).after(after).open().await.unwrap().events();
        hand.done().await;
        let seen = soon(all(events)).await;
        assert!(seen.last().unwrap().body.is_terminal(), "{seen:?}");
    }
}

/// The broker has forgotten the log's tail, which the reader has seen, and its worker writes it again.
#[tokio::test]
async fn what_is_written_again_is_not_told_again() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "again").await;
    let mut hand = Hand::begin(&stack.broker).await;
    for word in ["a", "b", "c"] {
        hand.say(word).await;
    }
    let cursor = EventId { fence: hand.attempt.fence, seq: 3 };
    let log = format!("ms:{{job:{id}}}:log");
    let kept: Vec<Frame> = all(stack.listener().listen(id).events().take(4))
        .await
        .iter()
        .map(|event| Frame::new(event.id.seq, &event.body, Codec::Json).unwrap())
        .collect();
    for seq in [2, 3] {
        stack.server.command(&["XDEL", &log, &format!("{}-{seq}", cursor.fence)]);
    }
    stack.server.command(&["XSETID", &log, &format!("{}-1", cursor.fence)]);
    let events = stack.listener().listen(id).after(cursor).open().await.unwrap().events();
    assert_eq!(
        stack.broker.heal(&hand.attempt, &hand.entry, &kept[..3]).await.unwrap(),
        Written::Yes
    );
    // The reply of the last one was lost, and the reader had it.
    assert_eq!(stack.broker.append(&hand.attempt, &kept[3..]).await.unwrap(), Written::Yes);
    hand.say("d").await;
    hand.done().await;
    let seen = soon(all(events)).await;
    assert_eq!(text(&seen), "d", "{seen:?}");
}

/// Guards against a reader that is told an attempt again: a worker that was frozen says its next words after
/// another has taken its job over, the log refuses them, and the reader went back to where they would stand.
#[tokio::test]
async fn late_words_of_an_attempt_that_is_over_repeat_nothing() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "late").await;
    let mut hand = Hand::begin(&stack.broker).await;
    hand.say("a").await;
    let frozen = hand.attempt.clone();
    hand.lose().await;
    hand.say("a").await;
    let cursor = EventId { fence: hand.attempt.fence, seq: 1 };
    let events = stack.listener().listen(id).after(cursor).open().await.unwrap().events();
    let late = [delta(2, "late", Codec::Json)];
    assert_eq!(stack.broker.append(&frozen, &late).await.unwrap(), Written::Behind);
    hand.say("b").await;
    hand.done().await;
    let seen = soon(all(events)).await;
    let ids: Vec<_> = seen.iter().map(|event| event.id.seq).collect();
    assert_eq!(ids, [2, 3, 4], "{seen:?}");
}

/// Guards against a text that no log holds: Redis has forgotten the attempt that the reader is at, and the one
/// before it comes to an end, while nothing arrives live or as it does.
#[tokio::test]
async fn a_cursor_in_an_attempt_that_is_forgotten_is_told_the_one_that_ends_the_job() {
    let stack = Stack::start(instant()).await;
    for listener in [stack.listener(), deaf(&stack).await] {
        let id = stack.ask("m", "another").await;
        let mut hand = Hand::begin(&stack.broker).await;
        hand.say("a").await;
        let after = EventId { fence: hand.attempt.fence + 1, seq: 3 };
        let events = listener.listen(id).after(after).open().await.unwrap().events();
        hand.say("b").await;
        hand.done().await;
        let seen = soon(all(events)).await;
        assert_eq!(text(&seen), "ab", "{seen:?}");
        assert!(matches!(seen[0].body, Body::Started(_)), "{seen:?}");
        assert!(seen.last().unwrap().body.is_terminal(), "{seen:?}");
    }
}

/// A job whose record and log are gone with Redis: its reader waited for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_a_job_that_redis_has_forgotten_is_told_so() {
    let mut stack = Stack::start(instant()).await;
    let forgotten_after = Duration::from_millis(300);
    let options = listener::Options { forgotten_after, ..listener::Options::default() };
    let listener = Listener::new(stack.broker.clone(), options);
    let id = stack.ask("m", "gone").await;
    let reader = tokio::spawn(listener.listen(id).idle_timeout(None).answer());
    // A plain XADD has no record before it begins: nothing is missing.
    let own = listener.listen(JobId::new()).expected().idle_timeout(Duration::from_secs(3));
    let own = tokio::spawn(own.answer());
    while listener.hub().topics() < 2 || stack.command_counts().get("xrange") != Some(&2) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack.server.stop();
    stack.server.restart().await;
    let error = soon(reader).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Forgotten(job) if job == id), "{error}");
    assert_eq!(error.code(), "job_forgotten");
    let error = soon(own).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Idle(_)), "{error}");
}

/// A log that expires while a reader is still at its pages: the reader waited for ever.
#[tokio::test]
async fn a_log_that_expires_in_mid_replay_ends_its_reader_with_the_reason() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "expires").await;
    let mut hand = Hand::begin(&stack.broker).await;
    hand.say("a").await;
    hand.say("b").await;
    hand.done().await;
    for record_too in [true, false] {
        let options = listener::Options { page: 2, ..listener::Options::default() };
        let listener = Listener::new(stack.broker.clone(), options);
        let mut events = listener.listen(id).idle_timeout(None).events();
        events.next().await.unwrap().unwrap();
        let record = format!("ms:{{job:{id}}}");
        stack.server.command(&["COPY", &format!("{record}:log"), &format!("{record}:kept")]);
        stack.server.command(&["DEL", &format!("{record}:log")]);
        if record_too {
            stack.server.command(&["RENAME", &record, &format!("{record}:record")]);
        }
        events.next().await.unwrap().unwrap();
        let error = soon(events.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Expired(job) if job == id), "{error}");
        assert!(events.next().await.is_none());
        stack.server.command(&["RENAME", &format!("{record}:kept"), &format!("{record}:log")]);
        if record_too {
            stack.server.command(&["RENAME", &format!("{record}:record"), &record]);
        }
    }
}

/// The server's own time of every command of a kind, until the stream is closed.
fn monitor(server: &Server) -> impl FnOnce() -> Vec<(f64, String)> + use<> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.write_all(b"MONITOR\r\n").unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut ok = String::new();
    lines.read_line(&mut ok).unwrap();
    assert_eq!(ok.trim(), "+OK");
    let reader = std::thread::spawn(move || {
        lines
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| {
                let (time, rest) = line.strip_prefix('+')?.split_once(' ')?;
                Some((time.parse().ok()?, rest.to_owned()))
            })
            .collect()
    });
    move || {
        stream.shutdown(std::net::Shutdown::Both).unwrap();
        reader.join().unwrap()
    }
}

#[tokio::test]
async fn without_pub_sub_reads_follow_the_backoff_and_deliver() {
    let stack = Stack::start(instant()).await;
    let listener = deaf(&stack).await;
    let id = stack.ask("m", "no pub/sub").await;

    let end = monitor(&stack.server);
    let reader = tokio::spawn(listener.listen(id).answer());
    tokio::time::sleep(Duration::from_secs(6)).await;
    let log = format!("{{job:{id}}}:log");
    let reads: Vec<f64> = end()
        .into_iter()
        .filter(|(_, command)| command.contains("\"XRANGE\"") && command.contains(&log))
        .map(|(time, _)| time)
        .collect();
    // The first read is the replay. Then 50 ms, half as much again each time, at most 2 s; ± 30 %.
    let mut wait: f64 = 0.05;
    for (index, pair) in reads.windows(2).enumerate() {
        let gap = pair[1] - pair[0];
        assert!(gap >= wait * 0.65 && gap <= wait * 1.3 + 0.12, "gap {index}: {gap} for {wait}");
        wait = (wait * 1.5).min(2.0);
    }
    assert!((9..=14).contains(&reads.len()), "{} reads in 6 s", reads.len());

    let (_stop, _worker) = stack.worker(worker::Options::default());
    let answer = reader.await.unwrap().unwrap();
    assert_eq!(answer.text, expected("m", "no pub/sub"));
}
