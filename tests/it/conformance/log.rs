//! The log and its live messages.

use millstream::{
    broker::{Attempt, Opened, Page, Topic, Window, Written},
    event::{Body, Codec, EventId, Frame},
    job::JobId,
    state::State,
};

use crate::support::subject::{Subject, begun, delta, done, job, retrying, started, worker};

/// `count` deltas from sequence 1.
pub fn deltas(count: u64) -> Vec<Frame> {
    (1..=count).map(|seq| delta(seq, &format!("t{seq} "), Codec::Json)).collect()
}

fn text(events: &[millstream::event::Event]) -> String {
    let say = |body: &Body| match body {
        Body::Delta(chunk) => chunk.text(),
        _ => String::new(),
    };
    events.iter().map(|event| say(&event.body)).collect()
}

pub async fn appended_events_are_read_in_either_codec(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    let frames =
        [delta(1, "caf\u{e9}\n", Codec::Json), delta(2, "\u{1f600} \u{0}", Codec::MessagePack)];
    assert_eq!(s.append(&attempt, &frames[..1]).await.unwrap(), Written::Yes);
    assert_eq!(s.append(&attempt, &frames[1..]).await.unwrap(), Written::Yes);
    let events = s.log(attempt.job).await;
    assert_eq!(text(&events), "caf\u{e9}\n\u{1f600} \u{0}");
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids, [0, 1, 2].map(|seq| EventId { fence: attempt.fence, seq }));
    assert_eq!(s.last(attempt.job).await.unwrap(), ids.last().copied());
}

pub async fn a_log_is_read_in_pages(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    assert_eq!(s.append(&attempt, &deltas(24)).await.unwrap(), Written::Yes);
    let (mut cursor, mut pages) = (EventId::START, Vec::new());
    loop {
        let page = s.read(attempt.job, cursor, 10).await.unwrap();
        let Some(last) = page.last() else { break };
        cursor = last.id;
        pages.push(page);
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 5]);
    assert_eq!(pages.concat(), s.log(attempt.job).await);
    // A cursor need not be an event: one of an earlier attempt lies before everything.
    let before = EventId { fence: attempt.fence - 1, seq: 99 };
    assert_eq!(s.read(attempt.job, before, 99).await.unwrap().len(), 25);
}

/// Pages of a log of large events took as many bytes as there were events.
pub async fn a_page_ends_where_its_bytes_do(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    let large = delta(1, &"x".repeat(10_000), Codec::Json);
    let frames: Vec<Frame> = (1..=6).map(|seq| Frame { seq, ..large.clone() }).collect();
    assert_eq!(s.append(&attempt, &frames).await.unwrap(), Written::Yes);
    let mut pages = Vec::new();
    let mut cursor = EventId::START;
    loop {
        let window = Window { events: 5, bytes: 25_000 };
        let page = s.page(attempt.job, cursor, window).await.unwrap();
        assert_eq!(s.open(attempt.job, cursor, window).await.unwrap().page, page);
        assert!(page.weight() <= window.bytes, "{}", page.weight());
        cursor = page.events.last().unwrap().id;
        pages.push((page.events.len(), page.more));
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [(3, true), (2, true), (2, false)]);
    // One that is larger than the page passes alone.
    for (after, more) in [(0, true), (5, false)] {
        let (after, window) =
            (EventId { fence: attempt.fence, seq: after }, Window { events: 5, bytes: 9_000 });
        let page = s.page(attempt.job, after, window).await.unwrap();
        assert_eq!((page.events.len(), page.weight() > window.bytes), (1, true));
        assert_eq!(page.more, more);
    }
}

pub async fn nothing_lies_behind_a_cursor_beyond_the_end(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    let largest = u64::MAX;
    for (fence, seq) in
        [(attempt.fence, 1), (attempt.fence, largest), (largest, 0), (largest, largest)]
    {
        let after = EventId { fence, seq };
        assert_eq!(s.read(attempt.job, after, 9).await.unwrap(), [], "{after}");
        let opened = s.open(attempt.job, after, Window::of(9)).await.unwrap();
        assert_eq!(opened.record.map(|record| record.state), Some(State::Running), "{after}");
        assert_eq!(opened.page, Page::default(), "{after}");
    }
}

pub async fn what_is_not_above_the_top_is_behind(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    assert_eq!(s.append(&attempt, &deltas(2)).await.unwrap(), Written::Yes);
    let before = s.log(attempt.job).await;
    // The same frames again: the reply of the first time was lost.
    assert_eq!(s.append(&attempt, &deltas(2)).await.unwrap(), Written::Behind);
    let stale = Attempt { fence: attempt.fence - 1, ..attempt.clone() };
    assert_eq!(s.append(&stale, &[delta(9, "x", Codec::Json)]).await.unwrap(), Written::Behind);
    assert_eq!(s.log(attempt.job).await, before);
}

pub async fn a_log_that_is_gone_is_missing_until_it_is_healed(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, first) = s.running(&me).await;
    s.retry_as(&first, retrying(1, &first)).await;
    let entry = s.promoted(&entry).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    assert_eq!((attempt.number, attempt.failures), (2, 1));

    let mut sent = vec![started(&attempt)];
    sent.extend(deltas(3));
    s.append(&attempt, &sent[1..]).await.unwrap();
    s.forget(attempt.job);
    assert_eq!(
        s.append(&attempt, &[delta(4, "t4 ", Codec::Json)]).await.unwrap(),
        Written::Missing
    );
    assert_eq!(s.last(attempt.job).await.unwrap(), None);
    assert_eq!(s.job(attempt.job).await.unwrap(), None);

    let mut listening = s.listen(&[Topic::Job(attempt.job)]).await;
    sent.push(delta(4, "t4 ", Codec::Json));
    assert_eq!(s.heal(&attempt, &entry, &sent).await.unwrap(), Written::Yes);
    assert_eq!(text(&s.log(attempt.job).await), "t1 t2 t3 t4 ");
    for seq in 0..5 {
        assert_eq!(listening.event().await.id, EventId { fence: attempt.fence, seq });
    }
    let record = s.job(attempt.job).await.unwrap().unwrap();
    assert_eq!((record.state, record.fence), (State::Running, attempt.fence));
    assert_eq!((record.attempt, record.failures), (2, 1));
    // Everything a running attempt rests on is there again.
    assert_eq!(s.append(&attempt, &[delta(5, "t5", Codec::Json)]).await.unwrap(), Written::Yes);
    let taken = begun(s.begin(&entry, &other).await.unwrap());
    assert_eq!((taken.number, taken.failures), (3, 1));
    assert_eq!(s.finish(&attempt, 6).await, Written::Fenced);
}

pub async fn healing_appends_only_what_is_missing(s: &Subject) {
    let (entry, attempt) = s.running(&worker("a")).await;
    let mut sent = vec![started(&attempt)];
    sent.extend(deltas(5));
    assert_eq!(s.append(&attempt, &sent[1..3]).await.unwrap(), Written::Yes);
    let mut listening = s.listen(&[Topic::Job(attempt.job)]).await;
    assert_eq!(s.heal(&attempt, &entry, &sent).await.unwrap(), Written::Yes);
    assert_eq!(text(&s.log(attempt.job).await), "t1 t2 t3 t4 t5 ");
    assert_eq!(s.heal(&attempt, &entry, &sent).await.unwrap(), Written::Yes);
    assert_eq!(s.kinds(attempt.job).await.len(), 6);
    for seq in 3..6 {
        assert_eq!(listening.event().await.id.seq, seq);
    }
    assert_eq!(s.finish(&attempt, 6).await, Written::Yes);
    assert_eq!(listening.event().await.body.kind(), "done");
}

pub async fn healing_gives_way_to_a_higher_fence_and_to_an_end(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, old) = s.running(&me).await;
    let new = begun(s.begin(&entry, &other).await.unwrap());
    let sent = [started(&old), delta(1, "x", Codec::Json)];
    assert_eq!(s.heal(&old, &entry, &sent).await.unwrap(), Written::Fenced);
    assert_eq!(s.finish(&new, 1).await, Written::Yes);
    let sent = [started(&new), done(1), delta(2, "x", Codec::Json)];
    assert_eq!(s.heal(&new, &entry, &sent).await.unwrap(), Written::Fenced);
    assert_eq!(s.kinds(new.job).await, ["started", "started", "done"]);
    assert_eq!(s.job(new.job).await.unwrap().unwrap().state, State::Done);
}

pub async fn open_gives_the_record_and_a_page(s: &Subject) {
    let nobody = JobId::new();
    let empty = Opened { record: None, page: Page::default() };
    assert_eq!(s.open(nobody, EventId::START, Window::of(9)).await.unwrap(), empty);

    let waiting = s.add(job("q")).await.id;
    let opened = s.open(waiting, EventId::START, Window::of(9)).await.unwrap();
    assert_eq!((opened.record.unwrap().state, opened.page.events.len()), (State::Waiting, 0));
    s.claim(&worker("a")).await;

    let (_, attempt) = s.running(&worker("a")).await;
    s.append(&attempt, &deltas(4)).await.unwrap();
    s.finish(&attempt, 5).await;
    let cursor = EventId { fence: attempt.fence, seq: 1 };
    let opened = s.open(attempt.job, cursor, Window::of(3)).await.unwrap();
    assert_eq!(opened.record, s.job(attempt.job).await.unwrap());
    assert_eq!(opened.record.unwrap().state, State::Done);
    assert_eq!(opened.page.events.iter().map(|event| event.id.seq).collect::<Vec<_>>(), [2, 3, 4]);
    // Past the terminal event there is nothing, and the record says that nothing will follow.
    let end = s.last(attempt.job).await.unwrap().unwrap();
    assert_eq!(s.open(attempt.job, end, Window::of(9)).await.unwrap().page, Page::default());
}

pub async fn a_feed_hears_what_the_log_holds(s: &Subject) {
    let me = worker("a");
    let id = s.add(job("q")).await.id;
    let mut first = s.listen(&[Topic::Job(id)]).await;
    let mut second = s.listen(&[Topic::Job(id)]).await;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    s.append(&attempt, &[delta(1, "a", Codec::MessagePack), delta(2, "b", Codec::Json)])
        .await
        .unwrap();
    s.retry_as(&attempt, retrying(3, &attempt)).await;
    let next = begun(s.begin(&s.promoted(&entry).await, &me).await.unwrap());
    s.finish(&next, 1).await;
    let log = s.log(id).await;
    assert_eq!(log.len(), 6);
    for event in &log {
        assert_eq!(&first.event().await, event);
        assert_eq!(&second.event().await, event);
    }
    first.feed.ping().await.unwrap();
    assert!(first.is_empty());
}

pub async fn a_feed_hears_only_what_it_subscribes_to(s: &Subject) {
    let me = worker("a");
    let (_, a) = s.running(&me).await;
    let (_, b) = s.running(&me).await;
    let (topic_a, topic_b) = (Topic::Job(a.job), Topic::Job(b.job));
    let mut listening = s.listen(std::slice::from_ref(&topic_a)).await;
    s.append(&b, &[delta(1, "unheard", Codec::Json)]).await.unwrap();
    s.append(&a, &[delta(1, "heard", Codec::Json)]).await.unwrap();
    assert_eq!(listening.next().await.0, topic_a);
    listening.feed.subscribe(&topic_b).await.unwrap();
    // Subscribed twice is subscribed once.
    listening.feed.subscribe(&topic_b).await.unwrap();
    listening.feed.unsubscribe(&topic_a).await.unwrap();
    s.append(&a, &[delta(2, "unheard", Codec::Json)]).await.unwrap();
    s.append(&b, &[delta(2, "heard", Codec::Json)]).await.unwrap();
    s.append(&b, &[delta(3, "heard", Codec::Json)]).await.unwrap();
    for seq in [2, 3] {
        let (topic, message) = listening.next().await;
        let event = millstream::event::Event::decode_message(&message).unwrap();
        assert_eq!((topic, event.id.seq), (topic_b.clone(), seq));
    }
}

pub async fn a_refused_write_is_not_heard(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, old) = s.running(&me).await;
    let new = begun(s.begin(&entry, &other).await.unwrap());
    let mut listening = s.listen(&[Topic::Job(new.job)]).await;
    assert_eq!(s.finish(&old, 1).await, Written::Fenced);
    assert_eq!(s.heal(&old, &entry, &[started(&old), done(1)]).await.unwrap(), Written::Fenced);
    assert_eq!(s.finish(&new, 0).await, Written::Behind);
    assert_eq!(s.finish(&new, 1).await, Written::Yes);
    assert_eq!(listening.event().await.id, EventId { fence: new.fence, seq: 1 });
}
