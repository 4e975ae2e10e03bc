//! Ending attempts, then entries; what a crash between the two leaves is found by the next.

use std::time::Duration;

use millstream::{
    broker::{Begin, DeadLetter, Depth, Outcome, Over, Spent, Submission, Topic, Written},
    error::{Code, Failure},
    event::{Body, Codec, EventId, Frame},
    job::{Job, Lane, Timestamp},
    state::State,
};

use crate::support::subject::{
    Subject, begun, delta, done, failed, failure, far, job, retrying, was_there, worker,
};

const HOUR: Duration = Duration::from_hours(1);

fn invalid() -> Failure {
    Failure::new(Code::InvalidJob, "cannot be read")
}

pub async fn done_ends_a_job_once(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    let frames = [delta(1, "answer", Codec::Json), done(2)];
    let outcome = Outcome::Done {
        finish_reason: Some("stop".to_owned()),
        usage: Some(r#"{"total_tokens":7}"#.to_owned()),
    };
    assert_eq!(s.conclude(&attempt, &frames, &outcome).await.unwrap(), Written::Yes);
    let record = s.job(attempt.job).await.unwrap().unwrap();
    assert_eq!((record.state, record.failures, &record.error), (State::Done, 0, &None));
    assert_eq!(record.finish_reason.as_deref(), Some("stop"));
    assert_eq!(record.usage, Some(serde_json::json!({"total_tokens": 7})));
    assert!(record.ended_at >= record.began_at && record.ended_at.is_some());

    // The reply was lost: the same again changes nothing, and neither does anything else.
    assert_eq!(s.conclude(&attempt, &frames, &outcome).await.unwrap(), Written::Yes);
    let fail = Outcome::Failed(failure("no"));
    let refused = s.conclude(&attempt, &[failed(3, failure("no"))], &fail).await.unwrap();
    assert_eq!(refused, Written::Fenced);
    assert_eq!(s.job(attempt.job).await.unwrap().unwrap(), record);
    assert_eq!(s.kinds(attempt.job).await, ["started", "delta", "done"]);

    // The worker died before it removed the entry: whoever is next is told to.
    for worker in [&me, &other] {
        assert_eq!(s.begin(&entry, worker).await.unwrap(), Begin::Remove);
    }
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth::default());
}

/// The ends that an attempt may come to, each as event 1.
fn three_ends() -> [(Frame, Outcome); 3] {
    [
        (done(1), Outcome::Done { finish_reason: None, usage: None }),
        (done(1), Outcome::Cancelled { usage: None }),
        (failed(1, failure("no")), Outcome::Failed(failure("no"))),
    ]
}

/// Guards against a job that runs again because its record, whose time is short, had expired before its
/// entry was acknowledged; also where the time of its idempotency key is shorter than a job's.
pub async fn a_job_that_is_over_is_known_until_its_entry_is_gone(s: &Subject) {
    let ttl = Duration::from_millis(30);
    let s = &s.fleeting(ttl).await;
    for (n, (frame, outcome)) in three_ends().into_iter().enumerate() {
        for keyed in [false, true] {
            let key = keyed.then(|| format!("{} {n}", s.partition));
            s.add(Job { idempotency_key: key, ..job("over") }).await;
            let entry = s.claim(&worker("a")).await;
            let attempt = begun(s.begin(&entry, &worker("a")).await.unwrap());
            let frames = std::slice::from_ref(&frame);
            assert_eq!(s.conclude(&attempt, frames, &outcome).await.unwrap(), Written::Yes);
            assert!(s.ttl(entry.id).await.unwrap().is_some_and(|left| left <= ttl), "{outcome:?}");
            tokio::time::sleep(ttl * 2).await;
            match s.begin(&entry, &worker("b")).await.unwrap() {
                Begin::Remove => {
                    let spent = Spent { over: Over::Here { keyed }, ..Spent::from(&entry) };
                    s.remove(&[spent]).await.unwrap();
                }
                Begin::Bury { error, attempts, fence } => {
                    let letter = DeadLetter::new(&entry, error, attempts, fence);
                    assert!(s.bury(&entry, &letter).await.unwrap());
                }
                other => panic!("{outcome:?} is not over: {other:?}"),
            }
            s.forgets(&entry).await;
        }
    }
}

/// Guards against the record of a finished job that is kept for a job's whole time because its worker died
/// before it acknowledged the entry; and against one that goes with an entry which is not the job's own.
pub async fn a_job_whose_entry_is_removed_by_another_has_the_time_of_its_end(s: &Subject) {
    let ttl = Duration::from_millis(30);
    let s = &s.fleeting(ttl).await;
    for (frame, outcome) in three_ends() {
        let (entry, attempt) = s.running(&worker("a")).await;
        let id = entry.id.to_string();
        s.add_raw(Lane::Normal, &[("job", entry.payload()), ("id", id.as_bytes())]);
        let second = s.claim(&worker("b")).await;
        assert_eq!(s.conclude(&attempt, &[frame], &outcome).await.unwrap(), Written::Yes);
        assert_eq!(s.begin(&second, &worker("b")).await.unwrap(), Begin::Remove);
        s.remove(&[Spent::from(&second)]).await.unwrap();
        tokio::time::sleep(ttl * 2).await;
        // Its own entry still finds it.
        let owed = s.begin(&entry, &worker("c")).await.unwrap();
        assert!(matches!(owed, Begin::Remove | Begin::Bury { .. }), "{owed:?}");
        s.remove(&[Spent::from(&entry)]).await.unwrap();
        s.forgets(&entry).await;
    }
}

/// Guards against a record that dies before its log: the job ran for so long, or `redis.job_ttl` is so near
/// `redis.result_ttl`, that the time which it had left was shorter.
pub async fn a_job_that_is_over_has_the_whole_time_of_its_end(s: &Subject) {
    let mut all = three_ends().to_vec();
    all.extend(three_ends().into_iter().take(1));
    for (n, (frame, outcome)) in all.into_iter().enumerate() {
        let (entry, attempt) = s.running(&worker("a")).await;
        s.ask("PEXPIRE KEY 60000", |keys| keys.job(entry.id));
        assert_eq!(s.conclude(&attempt, &[frame], &outcome).await.unwrap(), Written::Yes);
        match (outcome, n) {
            (Outcome::Failed(error), _) => {
                let letter = DeadLetter::new(&entry, error, 1, attempt.fence);
                assert!(s.bury(&entry, &letter).await.unwrap());
            }
            (_, 0 | 1) => {
                let over = Over::Here { keyed: false };
                s.remove(&[Spent { over, ..Spent::from(&entry) }]).await.unwrap();
            }
            _ => s.remove(&[Spent::from(&entry)]).await.unwrap(),
        }
        let left = s.ttl(entry.id).await.unwrap().unwrap();
        assert!(left > HOUR * 23 && left <= HOUR * 24, "{n}: {left:?}");
    }
    // A key has its own from the end on.
    let key = Some(s.partition.to_string());
    s.add(Job { idempotency_key: key, ..job("keyed") }).await;
    let entry = s.claim(&worker("a")).await;
    let attempt = begun(s.begin(&entry, &worker("a")).await.unwrap());
    s.ask("PEXPIRE KEY 60000", |keys| keys.job(entry.id));
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    let left = s.ask("PTTL KEY", |keys| keys.job(entry.id));
    assert!(left.is_none_or(|left| left.parse::<u64>().unwrap() > 6 * 24 * 3_600_000));
}

/// Guards against entries that were deleted before the server refused to park or bury them.
pub async fn a_refused_move_loses_no_entry(s: &Subject) {
    let me = worker("a");
    let (retried, first) = s.running(&me).await;
    s.retry(&first, HOUR).await;
    let (broken, _) = s.running(&me).await;
    let letter = DeadLetter::new(&broken, invalid(), 1, 1);
    if s.ask("SET KEY taken", |keys| keys.parked_jobs(&s.partition)).is_none() {
        return;
    }
    s.ask("SET KEY taken", |keys| keys.dead(&s.partition));
    assert!(s.park(&retried, 1, far()).await.is_err());
    assert!(s.bury(&broken, &letter).await.is_err());
    s.ask("DEL KEY", |keys| keys.parked_jobs(&s.partition));
    s.ask("DEL KEY", |keys| keys.dead(&s.partition));
    let depth = s.depth(&s.partition).await.unwrap();
    assert_eq!((depth.lanes[1].pending, depth.parked, depth.dead), (2, 0, 0));
    assert!(s.park(&retried, 1, far()).await.unwrap());
    assert!(s.bury(&broken, &letter).await.unwrap());
    let depth = s.depth(&s.partition).await.unwrap();
    assert_eq!((depth.lanes[1].pending, depth.parked, depth.dead), (0, 1, 1));
}

/// Guards against a queue that has filled its server and never becomes shorter: nothing in it could begin.
pub async fn what_a_full_server_holds_comes_to_its_end(s: &Subject) {
    let me = worker("a");
    for question in ["answered", "retried", "failed", "given back"] {
        s.add(job(question)).await;
    }
    let entries = s.claim_all(Lane::Normal, &me).await;
    if s.ask("CONFIG SET maxmemory 1", |_| String::new()).is_some() {
        let later = Job { not_before: Some(far()), ..job("later") };
        assert!(s.try_add(job("new")).await.is_err());
        assert!(s.try_add(later).await.is_err(), "a new job is parked in a full server");
    }
    let mut attempts = Vec::new();
    for entry in &entries {
        attempts.push(begun(s.begin(entry, &me).await.unwrap()));
    }
    let end = Outcome::Done { finish_reason: None, usage: None };
    let frames = [delta(1, "text", Codec::Json), done(2)];
    assert_eq!(s.conclude(&attempts[0], &frames, &end).await.unwrap(), Written::Yes);
    s.remove(&[Spent::from(&entries[0])]).await.unwrap();
    s.retry_as(&attempts[1], retrying(1, &attempts[1])).await;
    let again = s.promoted(&entries[1]).await;
    assert_eq!(begun(s.begin(&again, &me).await.unwrap()).number, 2);
    let refusal = failed(1, failure("no"));
    let failed = Outcome::Failed(failure("no"));
    assert_eq!(s.conclude(&attempts[2], &[refusal], &failed).await.unwrap(), Written::Yes);
    let letter = DeadLetter::new(&entries[2], failure("no"), 1, attempts[2].fence);
    assert!(s.bury(&entries[2], &letter).await.unwrap());
    let last = &attempts[3];
    assert!(s.release(&me, &entries[3].place, Some(last)).await.unwrap());
    assert_eq!(s.job(entries[0].id).await.unwrap().unwrap().state, State::Done);
    s.ask("CONFIG SET maxmemory 0", |_| String::new());
}

/// Guards against one long value, such as a real model's count, that makes the record a table of nearly
/// twice the size.
pub async fn a_finished_record_stays_small(s: &Subject) {
    let me = worker(&"host".repeat(16));
    let mut job = job("small");
    job.custom_id = Some("\u{fc}ber ".repeat(30));
    job.labels =
        serde_json::from_str(&format!(r#"{{"user":"{0}","place":"{0}"}}"#, "x".repeat(60)))
            .unwrap();
    let id = s.add(job.clone()).await.id;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    let usage = serde_json::json!({
        "prompt_tokens": 12_345, "completion_tokens": 2_048, "total_tokens": 14_393,
        "prompt_tokens_details": {"cached_tokens": 11_264, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 1_024, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    });
    let outcome =
        Outcome::Done { finish_reason: Some("stop".to_owned()), usage: Some(usage.to_string()) };
    assert_eq!(s.conclude(&attempt, &[done(1)], &outcome).await.unwrap(), Written::Yes);
    let record = s.job(id).await.unwrap().unwrap();
    assert_eq!(
        (record.usage, &record.custom_id, &record.labels),
        (Some(usage), &job.custom_id, &job.labels)
    );
    if let Some(encoding) = s.ask("OBJECT ENCODING KEY", |keys| keys.job(id)) {
        assert_eq!(encoding, "listpack");
        let bytes = s.ask("MEMORY USAGE KEY", |keys| keys.job(id)).unwrap();
        assert!(bytes.parse::<u64>().unwrap() < 1_500, "{bytes}");
    }
    // What stands in parts is put together again, also by the server.
    let waiting = s.add(job.clone()).await.id;
    s.cancel(waiting).await.unwrap();
    let Body::Cancelled(event) = s.log(waiting).await.pop().unwrap().body else { panic!() };
    assert_eq!((event.custom_id, event.labels), (job.custom_id, job.labels));
}

/// Guards against a retry that dropped every field of the entry that is not Millstream's own.
pub async fn a_retry_keeps_what_else_its_entry_says(s: &Subject) {
    let me = worker("a");
    let job: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"plain"}]}"#;
    let own: [(&str, &[u8]); 5] = [
        ("trace", b"00-4bf9-01"),
        ("a, b=c%", b"x,load=y z%41\xff\n"),
        ("", b""),
        ("twice", b"1"),
        ("twice", b"2"),
    ];
    let mut fields = vec![("job", job), ("load", b"no tenant")];
    fields.extend(own);
    s.add_raw(Lane::Normal, &fields);
    let mut entry = s.claim(&me).await;
    for _ in 0..2 {
        let attempt = begun(s.begin(&entry, &me).await.unwrap());
        s.retry(&attempt, Duration::ZERO).await;
        entry = s.promoted(&entry).await;
        let is_own =
            |name: &[u8]| ["job", "id", "at", "attempt"].iter().any(|n| n.as_bytes() == name);
        let kept: Vec<_> = entry.fields.iter().filter(|(name, _)| !is_own(name)).cloned().collect();
        let expected = own.map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
        assert_eq!(kept, expected);
        assert_eq!(entry.payload(), job);
    }
}

pub async fn a_failed_job_is_buried_by_whoever_is_next(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    let error = Failure::from_status(400, "bad request", None);
    let outcome = Outcome::Failed(error.clone());
    let frames = [failed(1, error.clone())];
    for _ in 0..2 {
        assert_eq!(s.conclude(&attempt, &frames, &outcome).await.unwrap(), Written::Yes);
    }
    let record = s.job(attempt.job).await.unwrap().unwrap();
    assert_eq!((record.state, record.failures), (State::Failed, 1));
    assert_eq!(record.error.as_ref(), Some(&error));
    assert!(record.ended_at.is_some());

    let owed = Begin::Bury { error: error.clone(), attempts: 1, fence: attempt.fence };
    assert_eq!(s.begin(&entry, &me).await.unwrap(), owed);
    assert_eq!(s.begin(&entry, &other).await.unwrap(), owed);
    let letter = DeadLetter::new(&entry, error, 1, attempt.fence);
    assert!(s.bury(&entry, &letter).await.unwrap());
    assert!(!s.bury(&entry, &letter).await.unwrap());
    let found = s.dead_letters(&s.partition, 9).await.unwrap();
    let named = DeadLetter { letter: found[0].letter.clone(), ..letter };
    assert_eq!(found, [named]);
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth { dead: 1, ..Depth::default() });

    let id = attempt.job.to_string();
    s.add_raw(Lane::Normal, &[("job", entry.payload()), ("id", id.as_bytes())]);
    assert_eq!(s.begin(&s.claim(&me).await, &me).await.unwrap(), Begin::Remove);
}

pub async fn a_failed_job_may_be_removed_as_well_as_buried(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    let error = Failure::from_status(400, "bad request", None);
    let outcome = Outcome::Failed(error.clone());
    assert_eq!(
        s.conclude(&attempt, &[failed(1, error.clone())], &outcome).await.unwrap(),
        Written::Yes
    );
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth::default());
    // A worker of a version that knows of no such thing comes late, and the record stays what it was.
    let letter = DeadLetter::new(&entry, error.clone(), 1, attempt.fence);
    assert!(!s.bury(&entry, &letter).await.unwrap());
    let record = s.job(attempt.job).await.unwrap().unwrap();
    assert_eq!((record.state, record.error), (State::Failed, Some(error)));
    assert_eq!(s.kinds(attempt.job).await, ["started", "failed"]);
}

pub async fn a_retry_is_parked_by_whoever_is_next(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    let before = Timestamp::now();
    for _ in 0..2 {
        assert_eq!(s.retry(&attempt, HOUR).await, Written::Yes);
    }
    let record = s.job(attempt.job).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempt, record.failures), (State::Parked, 1, 1));
    assert_eq!((record.error, record.ended_at), (Some(failure("try again")), None));
    let due = record.due.unwrap();
    let off = due.0.abs_diff(before.after(HOUR).0);
    assert!(off < 20_000, "due {off} ms beside the delay");
    assert_eq!(s.kinds(attempt.job).await, ["started", "retrying"]);

    // The worker died before it parked the entry.
    let owed = Begin::Park { attempt: 1, due };
    assert_eq!(s.begin(&entry, &other).await.unwrap(), owed);
    assert_eq!(s.begin(&entry, &me).await.unwrap(), owed);
    let mut listening = s.listen(&[Topic::Wake(s.partition.clone())]).await;
    assert!(s.park(&entry, 1, due).await.unwrap());
    assert_eq!(listening.next().await.0, Topic::Wake(s.partition.clone()));
    assert!(!s.park(&entry, 1, due).await.unwrap());
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth { parked: 1, ..Depth::default() });
}

pub async fn a_retry_replaces_a_stale_parked_copy(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    // A repeated enqueue has parked the job once more, for another time and without its attempt.
    let job = Job { not_before: Some(far()), ..entry.job.clone().unwrap() };
    let stale = Submission { id: entry.id, ..s.submission(job) };
    assert!(s.enqueue(&[stale]).await.remove(0).unwrap().parked);
    s.retry(&attempt, Duration::from_millis(1)).await;
    let again = s.promoted(&entry).await;
    assert_eq!((again.id, again.attempt), (entry.id, 1));
    assert_eq!(begun(s.begin(&again, &me).await.unwrap()).number, 2);
    assert_eq!(s.depth(&s.partition).await.unwrap().parked, 0);
}

pub async fn a_retried_job_runs_again(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    s.retry(&attempt, Duration::from_millis(10)).await;
    let promoted = s.promoted(&entry).await;
    assert_eq!((promoted.id, promoted.attempt, promoted.at), (entry.id, 1, entry.at));
    assert_eq!((promoted.payload(), promoted.place.lane), (entry.payload(), entry.place.lane));
    assert_ne!(promoted.place.entry, entry.place.entry);
    // The first worker repeats its end as long as no reply comes: it is written, promoted or not.
    assert_eq!(s.retry(&attempt, Duration::from_millis(10)).await, Written::Yes);
    let next = begun(s.begin(&promoted, &other).await.unwrap());
    assert!(next.fence > attempt.fence);
    assert_eq!((next.number, next.failures), (2, 1));
    assert_eq!(s.begin(&promoted, &other).await.unwrap(), Begin::Begun(next.clone()));
    let record = s.job(next.job).await.unwrap().unwrap();
    assert_eq!((record.state, record.due), (State::Running, None));
    // The first worker, back from a long sleep, still holds the entry that was parked.
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.finish(&attempt, 2).await, Written::Fenced);
    assert_eq!(s.finish(&next, 1).await, Written::Yes);
    assert_eq!(s.kinds(next.job).await, ["started", "retrying", "started", "done"]);
}

pub async fn a_stale_fence_changes_nothing(s: &Subject) {
    let (entry, old) = s.running(&worker("a")).await;
    let new = begun(s.begin(&entry, &worker("b")).await.unwrap());
    let (record, log) = (s.job(old.job).await.unwrap(), s.log(old.job).await);
    let outcomes = [
        (done(1), Outcome::Done { finish_reason: None, usage: None }),
        (failed(1, failure("no")), Outcome::Failed(failure("no"))),
        (retrying(1, &old), Outcome::Retry { error: failure("no"), delay: HOUR }),
    ];
    for (frame, outcome) in outcomes {
        let written = s.conclude(&old, &[frame], &outcome).await.unwrap();
        assert_eq!(written, Written::Fenced, "{outcome:?}");
    }
    assert_eq!(s.job(old.job).await.unwrap(), record);
    assert_eq!(s.log(old.job).await, log);
    assert_eq!(s.last(old.job).await.unwrap(), Some(EventId { fence: new.fence, seq: 0 }));
}

pub async fn an_end_that_is_behind_changes_nothing(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    s.append(&attempt, &[delta(1, "a", Codec::Json)]).await.unwrap();
    for seq in [0, 1] {
        assert_eq!(s.finish(&attempt, seq).await, Written::Behind);
    }
    assert_eq!(s.job(attempt.job).await.unwrap().unwrap().state, State::Running);
    assert_eq!(s.finish(&attempt, 2).await, Written::Yes);
    assert_eq!(s.kinds(attempt.job).await, ["started", "delta", "done"]);
}

pub async fn what_cannot_be_read_is_refused_and_buried(s: &Subject) {
    let me = worker("a");
    let raw: [&[(&str, &[u8])]; 5] = [
        &[("jib", b"{}")],
        &[("job", b"\xff\xfe{")],
        &[("job", b"{\"model\":\"m\"}")],
        &[("job", b"{\"model\":\"m\",\"messages\":[{}]}"), ("id", b"seven")],
        &[("job", b""), ("attempt", b"-1"), ("\u{e9}t\u{e9}", b"\x00\x80 kept")],
    ];
    for fields in raw {
        s.add_raw(Lane::Normal, fields);
        let entry = s.claim(&me).await;
        assert!(entry.job.is_err(), "{fields:?}");
        let mut listening = s.listen(&[Topic::Job(entry.id)]).await;
        let frame = failed(0, invalid());
        let Begin::Bury { error, attempts, fence } =
            s.refuse(&entry, &invalid(), &frame).await.unwrap()
        else {
            panic!("not to be buried")
        };
        assert_eq!((&error, attempts), (&invalid(), 0));
        assert_eq!(listening.event().await.id, EventId { fence, seq: 0 });
        let record = s.job(entry.id).await.unwrap().unwrap();
        assert_eq!((record.state, record.fence, record.attempt), (State::Failed, fence, 0));
        assert_eq!(record.error, Some(invalid()));
        // Again, after a lost reply, and by a worker that finds the entry: the same answer.
        let again = s.refuse(&entry, &failure("other"), &frame).await.unwrap();
        assert_eq!(again, Begin::Bury { error: invalid(), attempts: 0, fence });
        assert_eq!(s.begin(&entry, &worker("b")).await.unwrap(), again);
        assert_eq!(s.kinds(entry.id).await, ["failed"]);
        let letter = DeadLetter::new(&entry, error, attempts, fence);
        assert!(s.bury(&entry, &letter).await.unwrap());
        let dead = s.dead_letters(&s.partition, 99).await.unwrap();
        let last = dead.last().unwrap();
        assert_eq!(last, &DeadLetter { letter: last.letter.clone(), ..letter.clone() });
        let bytes: Vec<_> =
            fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
        assert_eq!(letter.fields, bytes);
    }
}

pub async fn a_waiting_job_can_be_refused(s: &Subject) {
    let id = s.add(job("q")).await.id;
    let entry = s.claim(&worker("a")).await;
    let begin = s.refuse(&entry, &invalid(), &failed(0, invalid())).await.unwrap();
    assert!(matches!(begin, Begin::Bury { attempts: 0, .. }), "{begin:?}");
    let record = s.job(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.model.as_str()), (State::Failed, "model-1"));
    assert!(record.ended_at.is_some());
}

pub async fn refusing_a_running_job_ends_its_attempt(s: &Subject) {
    let (entry, attempt) = s.running(&worker("a")).await;
    let frame = failed(0, invalid());
    let Begin::Bury { attempts, fence, .. } = s.refuse(&entry, &invalid(), &frame).await.unwrap()
    else {
        panic!("not to be buried")
    };
    assert_eq!((attempts, fence > attempt.fence), (1, true));
    assert_eq!(s.finish(&attempt, 1).await, Written::Fenced);
    assert_eq!(s.kinds(attempt.job).await, ["started", "failed"]);
    assert_eq!(s.job(attempt.job).await.unwrap().unwrap().state, State::Failed);
}

pub async fn refusing_repeats_what_an_entry_is_owed(s: &Subject) {
    let me = worker("a");
    let frame = failed(0, invalid());
    let (entry, attempt) = s.running(&me).await;
    let id = attempt.job.to_string();
    s.add_raw(Lane::Normal, &[("job", entry.payload()), ("id", id.as_bytes())]);
    let duplicate = s.claim(&me).await;
    assert_eq!(s.refuse(&duplicate, &invalid(), &frame).await.unwrap(), Begin::Remove);
    s.retry(&attempt, HOUR).await;
    let owed = s.refuse(&entry, &invalid(), &frame).await.unwrap();
    assert!(matches!(owed, Begin::Park { attempt: 1, .. }), "{owed:?}");
    assert_eq!(s.kinds(attempt.job).await, ["started", "retrying"]);

    let (entry, attempt) = s.running(&me).await;
    s.finish(&attempt, 1).await;
    assert_eq!(s.refuse(&entry, &invalid(), &frame).await.unwrap(), Begin::Remove);
    assert_eq!(s.job(attempt.job).await.unwrap().unwrap().state, State::Done);
    assert_eq!(s.kinds(attempt.job).await, ["started", "done"]);
}

pub async fn entries_of_any_lane_are_removed_together(s: &Subject) {
    let me = worker("a");
    let mut spent = Vec::new();
    for lane in Lane::ALL {
        for _ in 0..3 {
            let mut job = job("q");
            job.lane = lane;
            s.add(job).await;
        }
        spent.extend(s.claim_all(lane, &me).await.iter().map(Spent::from));
    }
    s.remove(&[]).await.unwrap();
    s.remove(&spent[..8]).await.unwrap();
    // The last with others that are gone already.
    s.remove(&spent[6..]).await.unwrap();
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth::default());
    assert!(s.reader(&me).await.pending().await.unwrap().is_empty());
}

pub async fn what_is_removed_is_neither_parked_nor_buried(s: &Subject) {
    let (entry, attempt) = s.running(&worker("a")).await;
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    let letter = DeadLetter::new(&entry, failure("no"), 1, attempt.fence);
    assert!(!s.park(&entry, 1, far()).await.unwrap());
    assert!(!s.bury(&entry, &letter).await.unwrap());
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth::default());
}

pub async fn of_two_ends_of_an_entry_one_counts(s: &Subject) {
    for _ in 0..10 {
        let (entry, attempt) = s.running(&worker("a")).await;
        let before = s.depth(&s.partition).await.unwrap();
        let letter = DeadLetter::new(&entry, failure("no"), 1, attempt.fence);
        let (due, broker) = (far(), s.shared());
        let parking = tokio::spawn({
            let entry = entry.clone();
            async move { was_there(broker.park(&entry, 1, due, u64::MAX).await.unwrap()) }
        });
        let buried = s.bury(&entry, &letter).await.unwrap();
        let parked = parking.await.unwrap();
        assert_ne!(parked, buried);
        let after = s.depth(&s.partition).await.unwrap();
        assert_eq!(after.parked - before.parked, u64::from(parked));
        assert_eq!(after.dead - before.dead, u64::from(buried));
    }
}

pub async fn a_dead_letter_goes_when_its_time_is_over(s: &Subject) {
    let bury = async |s: &Subject| {
        let (entry, attempt) = s.running(&worker("a")).await;
        let letter = DeadLetter::new(&entry, failure("no"), 1, attempt.fence);
        assert!(s.bury(&entry, &letter).await.unwrap());
        s.dead_letters(&s.partition, 9).await.unwrap().pop().unwrap().buried_at()
    };
    bury(s).await;
    assert_eq!(s.expire(&s.partition).await.unwrap(), 0, "it is young");
    let s = &s.aging(Duration::from_millis(40)).await;
    let buried_at = bury(s).await;
    let before = s.depth(&s.partition).await.unwrap();
    assert!(before.dead > 0);
    let mut dropped = 0;
    while dropped < before.dead {
        dropped += s.expire(&s.partition).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(buried_at.after(Duration::from_millis(40)) < Timestamp::now(), "it was young");
    let after = s.depth(&s.partition).await.unwrap();
    assert_eq!((after.dead, after.dropped), (0, before.dropped + before.dead));
    assert_eq!(s.expire(&s.partition).await.unwrap(), 0);
    assert_eq!(s.expire(&s.second).await.unwrap(), 0, "nothing is there");
}

pub async fn a_plain_entry_keeps_its_bytes_and_its_id_when_parked(s: &Subject) {
    let me = worker("a");
    let payload = b" {\"model\":\"m\",\n \"messages\":[{\"role\":\"user\"}] , \"n\": 1.0 }\n";
    s.add_raw(Lane::Low, &[("job", payload)]);
    let entry = s.claim_all(Lane::Low, &me).await.remove(0);
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    s.retry(&attempt, Duration::from_millis(1)).await;
    let promoted = s.promoted(&entry).await;
    assert_eq!((promoted.id, promoted.at, promoted.attempt), (entry.id, entry.at, 1));
    assert_eq!((promoted.payload(), promoted.place.lane), (&payload[..], Lane::Low));
    assert_eq!(begun(s.begin(&promoted, &me).await.unwrap()).number, 2);
}
