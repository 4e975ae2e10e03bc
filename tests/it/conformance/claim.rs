//! Reading lanes, opening attempts, promoting.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    pin::pin,
    time::{Duration, Instant},
};

use millstream::{
    broker::{
        Begin, Cancel, DeadLetter, Entry, Error, Limits, Next, Promoted, Receipt, Refusal, Spent,
        Sweep, Topic, Wake, Written,
    },
    error::Code,
    event::{Body, EventId, Started},
    job::{Job, JobId, Lane, Timestamp},
    state::State,
};
use tokio_util::sync::CancellationToken;

use super::log::deltas;
use crate::support::subject::{
    DEADLINE, Subject, begun, done, failed, failure, far, job, soon, worker,
};

const JOB: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"plain"}]}"#;

pub async fn a_read_gives_at_most_what_is_asked_for(s: &Subject) {
    for n in 0..5 {
        s.add(job(&n.to_string())).await;
    }
    let mut reader = s.reader(&worker("a")).await;
    assert!(reader.read(Lane::High, 9).await.unwrap().is_empty());
    let sizes = [
        reader.read(Lane::Normal, 2).await.unwrap().len(),
        reader.read(Lane::Normal, 2).await.unwrap().len(),
        reader.read(Lane::Normal, 2).await.unwrap().len(),
        reader.read(Lane::Normal, 2).await.unwrap().len(),
    ];
    assert_eq!(sizes, [2, 2, 1, 0]);
}

pub async fn an_entry_goes_to_one_reader(s: &Subject) {
    for n in 0..40 {
        s.add(job(&n.to_string())).await;
    }
    let read = async |name: &str| {
        let mut reader = s.reader(&worker(name)).await;
        let mut ids = Vec::new();
        loop {
            let entries = reader.read(Lane::Normal, 3).await.unwrap();
            if entries.is_empty() {
                return ids;
            }
            ids.extend(entries.into_iter().map(|entry| entry.id));
        }
    };
    let (a, b) = tokio::join!(read("a"), read("b"));
    let all: BTreeSet<JobId> = a.iter().chain(&b).copied().collect();
    assert_eq!((all.len(), a.len() + b.len()), (40, 40));
}

pub async fn a_wait_gives_at_most_one_entry_of_each_lane(s: &Subject) {
    for lane in Lane::ALL {
        for n in 0..2 {
            let mut job = job(&n.to_string());
            job.lane = lane;
            s.add(job).await;
        }
    }
    let mut reader = s.reader(&worker("a")).await;
    let stop = CancellationToken::new();
    let entries = soon(reader.wait(DEADLINE, &stop)).await.unwrap();
    let lanes: BTreeSet<Lane> = entries.iter().map(|entry| entry.place.lane).collect();
    assert!(!entries.is_empty());
    assert_eq!(lanes.len(), entries.len());
}

pub async fn a_wait_ends_when_an_entry_comes(s: &Subject) {
    for lane in Lane::ALL {
        let mut reader = s.reader(&worker("a")).await;
        let stop = CancellationToken::new();
        let mut sent = job("hello");
        sent.lane = lane;
        let (entries, receipt) =
            soon(async { tokio::join!(reader.wait(4 * DEADLINE, &stop), s.add(sent)) }).await;
        assert_eq!(entries.unwrap().iter().map(|e| e.id).collect::<Vec<_>>(), [receipt.id]);
    }
}

pub async fn a_wait_ends_after_its_time_without_turning(s: &Subject) {
    let mut reader = s.reader(&worker("a")).await;
    let (stop, block) = (CancellationToken::new(), Duration::from_millis(400));
    let (began, mut polls) = (Instant::now(), 0);
    let mut wait = pin!(reader.wait(block, &stop));
    let counted = poll_fn(|cx| {
        polls += 1;
        wait.as_mut().poll(cx)
    });
    assert!(soon(counted).await.unwrap().is_empty());
    // The server's clock ticks in milliseconds.
    assert!(began.elapsed() + Duration::from_millis(5) >= block, "{:?}", began.elapsed());
    // A loop that looks every 10 ms would be polled 40 times.
    assert!(polls < 20, "polled {polls} times");
}

pub async fn a_wait_stops_on_the_token(s: &Subject) {
    let mut reader = s.reader(&worker("a")).await;
    for _ in 0..20 {
        let stop = CancellationToken::new();
        let (entries, ()) =
            soon(async { tokio::join!(reader.wait(4 * DEADLINE, &stop), async { stop.cancel() }) })
                .await;
        assert!(entries.unwrap().is_empty());
    }
}

pub async fn a_wait_with_a_cancelled_token_does_not_block(s: &Subject) {
    let mut reader = s.reader(&worker("a")).await;
    let stop = CancellationToken::new();
    stop.cancel();
    for _ in 0..20 {
        assert!(soon(reader.wait(4 * DEADLINE, &stop)).await.unwrap().is_empty());
    }
    // Whatever became of the reads that were stopped, no entry went to them.
    let id = s.add(job("after")).await.id;
    let entries = soon(reader.wait(DEADLINE, &CancellationToken::new())).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [id]);
}

pub async fn pending_is_what_was_given_and_not_settled(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    for lane in [Lane::Normal, Lane::Low, Lane::Normal] {
        let mut job = job("q");
        job.lane = lane;
        s.add(job).await;
    }
    let mut reader = s.reader(&me).await;
    assert!(reader.pending().await.unwrap().is_empty());
    let mut given = reader.read(Lane::Normal, 9).await.unwrap();
    given.extend(reader.read(Lane::Low, 9).await.unwrap());
    begun(s.begin(&given[0], &me).await.unwrap());
    let key = |entries: &[millstream::broker::Entry]| {
        entries.iter().map(|e| (e.place.lane, e.place.entry.clone())).collect::<BTreeSet<_>>()
    };
    // A reader opened anew finds what the one before was given.
    assert_eq!(key(&s.reader(&me).await.pending().await.unwrap()), key(&given));
    assert!(s.reader(&other).await.pending().await.unwrap().is_empty());
    s.remove(&[Spent::from(&given[0])]).await.unwrap();
    assert_eq!(key(&reader.pending().await.unwrap()), key(&given[1..]));
}

pub async fn begin_opens_an_attempt(s: &Subject) {
    let me = worker("a");
    let id = s.add(job("q")).await.id;
    let mut listening = s.listen(&[Topic::Job(id)]).await;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    assert_eq!((attempt.job, attempt.number, attempt.failures), (id, 1, 0));
    assert_eq!((&attempt.place, &attempt.worker), (&entry.place, &me));
    // A fence looks like a time, so that it cannot repeat after a loss of memory.
    assert!(attempt.fence >= entry.at.0, "{}", attempt.fence);
    let record = s.job(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempt, record.fence), (State::Running, 1, attempt.fence));
    assert_eq!(record.worker.as_deref(), Some(me.as_str()));
    assert!(record.began_at >= Some(entry.at));
    let [event] = &s.log(id).await[..] else { panic!("one event") };
    assert_eq!(event.id, EventId { fence: attempt.fence, seq: 0 });
    assert_eq!(event.body, Body::Started(Started { attempt: 1, worker: me.to_string() }));
    assert_eq!(&listening.event().await, event);
}

pub async fn a_repeated_begin_gives_the_same_attempt(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Begun(attempt.clone()));
    assert_eq!(s.kinds(attempt.job).await, ["started"]);
}

/// Guards against the first sending of a begin that arrives behind its own repeat and the first flush: it
/// opened an attempt that nobody ran, and fenced the one that did.
pub async fn a_begin_that_arrives_late_fences_nobody(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    assert_eq!(s.append(&attempt, &deltas(2)).await.unwrap(), Written::Yes);
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Begun(attempt.clone()));
    let third = deltas(3).split_off(2);
    assert_eq!(s.append(&attempt, &third).await.unwrap(), Written::Yes);
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    let before = s.job(entry.id).await.unwrap();
    // It was given back, and nobody has it.
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Late);
    assert_eq!(s.job(entry.id).await.unwrap(), before);
    let look = Sweep { lease: Duration::from_hours(1), most: 1, ask: false, deliveries: 100 };
    let taken = s.sweep(&s.partition, &other, &look).await.unwrap().entries.remove(0);
    assert!(taken.taking > entry.taking);
    let next = begun(s.begin(&taken, &other).await.unwrap());
    // Another has it: neither may the first worker begin it now, nor end it.
    let before = s.job(entry.id).await.unwrap();
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Late);
    let error = failure("no");
    let refused = s.refuse(&entry, &error, &failed(0, error.clone())).await.unwrap();
    assert_eq!(refused, Begin::Late);
    assert_eq!(s.job(entry.id).await.unwrap(), before);
    assert_eq!(s.begin(&taken, &other).await.unwrap(), Begin::Begun(next.clone()));
    assert_eq!(s.finish(&next, 1).await, Written::Yes);
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);
}

pub async fn another_worker_takes_over(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, old) = s.running(&me).await;
    let new = begun(s.begin(&entry, &other).await.unwrap());
    assert!(new.fence > old.fence);
    assert_eq!((new.number, new.failures, &new.worker), (2, 0, &other));
    assert_eq!(s.finish(&old, 1).await, Written::Fenced);
    assert_eq!(s.append(&old, &[done(1)]).await.unwrap(), Written::Behind);
    assert_eq!(s.finish(&new, 1).await, Written::Yes);
    assert_eq!(s.kinds(new.job).await, ["started", "started", "done"]);
}

pub async fn a_second_entry_of_a_job_is_removed(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    let id = attempt.job.to_string();
    s.add_raw(Lane::Normal, &[("job", entry.payload()), ("id", id.as_bytes())]);
    let duplicate = s.claim(&me).await;
    assert_eq!((duplicate.id, duplicate.place == entry.place), (attempt.job, false));
    assert_eq!(s.begin(&duplicate, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.begin(&duplicate, &worker("b")).await.unwrap(), Begin::Remove);
    s.finish(&attempt, 1).await;
    assert_eq!(s.begin(&duplicate, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.kinds(attempt.job).await, ["started", "done"]);
}

pub async fn a_second_entry_stays_nobodys_when_the_job_is_given_back(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    let id = attempt.job.to_string();
    s.add_raw(Lane::Normal, &[("job", entry.payload()), ("id", id.as_bytes())]);
    let duplicate = s.claim(&other).await;
    // This worker is about to remove it: would another begin it, the job would lose its entry.
    assert_eq!(s.begin(&duplicate, &other).await.unwrap(), Begin::Remove);
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    assert_eq!(s.begin(&duplicate, &worker("c")).await.unwrap(), Begin::Remove);
    begun(s.begin(&entry, &other).await.unwrap());
}

pub async fn an_entry_whose_retry_was_promoted_is_not_run(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (old, attempt) = s.running(&me).await;
    s.retry(&attempt, Duration::ZERO).await;
    let promoted = s.promoted(&old).await;
    // A begin that was long on its way: an attempt of this entry would have no entry.
    let late = s.begin(&old, &other).await.unwrap();
    assert!(matches!(late, Begin::Park { attempt: 1, .. }), "{late:?}");
    assert!(!s.park(&old, 1, far()).await.unwrap());
    begun(s.begin(&promoted, &me).await.unwrap());
}

pub async fn a_running_job_has_one_entry_whatever_another_claims(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    let id = attempt.job.to_string();
    s.add_raw(Lane::Normal, &[("job", entry.payload()), ("id", id.as_bytes()), ("attempt", b"7")]);
    let second = s.claim(&me).await;
    assert_eq!((second.id, second.attempt), (attempt.job, 7));
    for worker in [&me, &worker("b")] {
        assert_eq!(s.begin(&second, worker).await.unwrap(), Begin::Remove);
    }
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
}

pub async fn an_entry_older_than_the_last_attempt_is_removed(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    let id = attempt.job.to_string();
    s.add_raw(Lane::Normal, &[("job", entry.payload()), ("id", id.as_bytes()), ("attempt", b"0")]);
    let stale = s.claim(&me).await;
    s.retry(&attempt, Duration::from_millis(20)).await;
    assert_eq!(s.begin(&stale, &me).await.unwrap(), Begin::Remove);
    let due = s.job(attempt.job).await.unwrap().unwrap().due.unwrap_or_default();
    assert!(s.park(&entry, 1, due).await.unwrap());
    s.promote_until(1).await;
    assert_eq!(s.begin(&stale, &me).await.unwrap(), Begin::Remove);
    let promoted = s.claim(&me).await;
    assert_eq!(begun(s.begin(&promoted, &me).await.unwrap()).number, 2);
}

pub async fn a_plain_entry_needs_only_its_job(s: &Subject) {
    let me = worker("a");
    let place = s.add_raw(Lane::High, &[("job", JOB), ("note", b"kept")]);
    let mut reader = s.reader(&me).await;
    let entry = reader.read(Lane::High, 1).await.unwrap().remove(0);
    let lane_key = format!("ms:{{q:{}}}:high", s.partition);
    assert_eq!(entry.id, JobId::from_entry(&lane_key, &place.entry));
    assert_eq!((&entry.place, entry.attempt, entry.fields.len()), (&place, 0, 2));
    let again = reader.pending().await.unwrap();
    assert!(again[0].taking > entry.taking);
    assert_eq!(again, [Entry { taking: again[0].taking, ..entry.clone() }]);
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    let record = s.job(entry.id).await.unwrap().unwrap();
    assert_eq!((record.model.as_str(), record.enqueued_at), ("m", Some(entry.at)));
    assert_eq!((record.lane, record.partition.as_ref()), (Lane::High, Some(&s.partition)));
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
}

/// Guards against a plain entry that runs at once though its job says when.
pub async fn a_plain_entry_whose_time_has_not_come_is_parked(s: &Subject) {
    let me = worker("a");
    let due = Timestamp::now().after(Duration::from_millis(400));
    let job = format!(
        r#"{{"request":{{"model":"m","messages":[{{}}]}},"tenant":"acme","not_before":{}}}"#,
        due.0
    );
    s.add_raw(Lane::Normal, &[("job", job.as_bytes())]);
    let entry = s.claim(&me).await;
    for _ in 0..2 {
        assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Park { attempt: 0, due });
    }
    let record = s.job(entry.id).await.unwrap().unwrap();
    assert_eq!((record.state, record.due), (State::Parked, Some(due)));
    assert_eq!(record.tenant.unwrap().as_str(), "acme");
    let promoted = s.promoted(&entry).await;
    assert!(Timestamp::now() >= due);
    assert_eq!((promoted.id, promoted.at, promoted.run), (entry.id, entry.at, 1));
    let attempt = begun(s.begin(&promoted, &me).await.unwrap());
    assert_eq!(attempt.number, 1);
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);

    // It can be cancelled before its time.
    let job = job.replace(&due.0.to_string(), &far().0.to_string());
    s.add_raw(Lane::Normal, &[("job", job.as_bytes())]);
    let entry = s.claim(&me).await;
    let Begin::Park { attempt, due } = s.begin(&entry, &me).await.unwrap() else { panic!() };
    assert!(s.park(&entry, attempt, due).await.unwrap());
    let Cancel::Cancelled { partition: Some(partition), run: 1, .. } =
        s.cancel(entry.id).await.unwrap()
    else {
        panic!("not cancelled")
    };
    assert!(s.unpark(&partition, entry.id, 1).await.unwrap());
}

/// Guards against plain entries of one key that run beside each other, and beside the job of that key.
pub async fn plain_entries_of_one_key_are_one_job(s: &Subject) {
    let me = worker("a");
    let mut keyed = job("once");
    keyed.idempotency_key = Some("once".to_owned());
    let bytes = serde_json::to_vec(&keyed).unwrap();
    for _ in 0..3 {
        s.add_raw(Lane::Normal, &[("job", &bytes)]);
    }
    let entries = s.claim_all(Lane::Normal, &me).await;
    assert!(entries.iter().all(|entry| entry.id == keyed.assign_id()));
    let attempt = begun(s.begin(&entries[0], &me).await.unwrap());
    assert_eq!(s.begin(&entries[1], &me).await.unwrap(), Begin::Remove);
    // From the first attempt on the key is that of this request.
    let other = Job { request: job("another").request, ..keyed.clone() };
    let refused = s.enqueue(&[s.submission(other)]).await.remove(0).unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
    let again = s.add(keyed.clone()).await;
    assert_eq!((again.id, again.duplicate), (attempt.job, true));
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    assert_eq!(s.begin(&entries[2], &me).await.unwrap(), Begin::Remove);
}

/// Guards against an entry that takes the place of another tenant's job by naming its ID.
pub async fn an_entry_that_names_another_tenants_job_touches_nothing_of_it(s: &Subject) {
    let me = worker("a");
    let mut keyed = job("theirs");
    keyed.tenant = "acme".parse().unwrap();
    keyed.idempotency_key = Some("invoice-7".to_owned());
    let id = s.add(keyed).await.id;
    let theirs = s.claim(&me).await;
    let forge = async |run: &[u8]| {
        s.add_raw(Lane::Normal, &[("job", JOB), ("id", id.to_string().as_bytes()), ("run", run)]);
        s.claim(&me).await
    };
    let before = s.job(id).await.unwrap();
    let forged = forge(b"1").await;
    assert_eq!(s.begin(&forged, &me).await.unwrap(), Begin::Foreign);
    assert_eq!((s.job(id).await.unwrap(), s.log(id).await), (before, Vec::new()));
    let attempt = begun(s.begin(&theirs, &me).await.unwrap());
    // Neither while it runs nor when it is over, and not as a later run.
    for run in [&b"1"[..], b"2", b"4294967295"] {
        assert_eq!(s.begin(&forge(run).await, &me).await.unwrap(), Begin::Foreign);
    }
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    let done = (s.job(id).await.unwrap(), s.log(id).await);
    let mut forged = forge(b"2").await;
    assert_eq!(s.begin(&forged, &me).await.unwrap(), Begin::Foreign);
    assert_eq!((s.job(id).await.unwrap(), s.log(id).await), done);
    // Nor does one that is no job fail a job that waits.
    let mut theirs = job("theirs, too");
    theirs.tenant = "acme".parse().unwrap();
    let waiting = s.add(theirs).await.id;
    s.claim(&me).await;
    let name = waiting.to_string();
    s.add_raw(Lane::Normal, &[("job", b"{"), ("id", name.as_bytes()), ("at", b"1")]);
    let broken = s.claim(&me).await;
    let error = broken.job.clone().unwrap_err();
    let refusal = Refusal::Failed(error.clone());
    let refused = s.shared().refuse(&broken, &refusal, &failed(0, error)).await.unwrap();
    assert_eq!(refused, Begin::Foreign);
    assert_eq!(s.job(waiting).await.unwrap().unwrap().state, State::Waiting);
    // It becomes a dead letter of its own.
    forged.disown();
    assert_ne!(forged.id, id);
    assert_eq!(forged.job.unwrap_err().code, Code::InvalidJob);
}

/// Guards against an entry that takes the place of a job of its own tenant by naming its ID: whichever came first was
/// run, and the other removed.
pub async fn an_entry_that_names_another_job_of_its_tenant_is_refused(s: &Subject) {
    let me = worker("a");
    let keyed = Job { idempotency_key: Some("their-own".to_owned()), ..job("keyed") };
    for theirs in [job("plain"), keyed] {
        let id = s.add(theirs.clone()).await.id;
        let own = s.claim(&me).await;
        let other = Job { request: job("another").request, ..theirs.clone() };
        let keyless = Job { idempotency_key: None, ..theirs.clone() };
        let forged = [other, Job { custom_id: Some("x".to_owned()), ..keyless }];
        let at = own.at.0.to_string();
        let forge = async |job: &Job| {
            let (name, bytes) = (id.to_string(), serde_json::to_vec(job).unwrap());
            let fields = [("job", &*bytes), ("id", name.as_bytes()), ("at", at.as_bytes())];
            s.add_raw(Lane::Normal, &fields);
            s.claim(&me).await
        };
        let mut entries = Vec::new();
        for job in &forged {
            entries.push(forge(job).await);
        }
        let are_refused = async || {
            for entry in &entries {
                assert_eq!(s.begin(entry, &me).await.unwrap(), Begin::Foreign);
            }
        };
        are_refused().await;
        let attempt = begun(s.begin(&own, &me).await.unwrap());
        are_refused().await;
        assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
        are_refused().await;
        // The same job once more is a repetition.
        assert_eq!(s.begin(&forge(&theirs).await, &me).await.unwrap(), Begin::Remove);
        let record = s.job(id).await.unwrap().unwrap();
        assert_eq!((record.state, record.attempt), (State::Done, 1));
        let error = {
            entries[0].disown();
            entries[0].job.clone().unwrap_err()
        };
        assert_eq!(error.code, Code::InvalidJob);
        assert!(error.message.contains(&id.to_string()), "{error}");
    }
}

/// Guards against an entry that revives a job that is over, or replaces one that runs, by naming a later run.
pub async fn an_entry_opens_no_run_by_saying_so(s: &Subject) {
    let me = worker("a");
    let again = async |own: &Entry, run: &str| {
        let name = own.id.to_string();
        let fields = [("job", own.payload()), ("id", name.as_bytes()), ("run", run.as_bytes())];
        s.add_raw(Lane::Normal, &fields);
        s.claim(&me).await
    };
    for run in ["2", "4294967295"] {
        for end in ["waits", "runs", "done", "cancelled"] {
            let id = s.add(job(end)).await.id;
            let own = s.claim(&me).await;
            let mut attempt = None;
            match end {
                "waits" => {}
                "cancelled" => drop(s.cancel(id).await.unwrap()),
                _ => attempt = Some(begun(s.begin(&own, &me).await.unwrap())),
            }
            if end == "done" {
                assert_eq!(s.finish(attempt.as_ref().unwrap(), 1).await, Written::Yes);
            }
            let before = (s.job(id).await.unwrap(), s.log(id).await);
            let forged = again(&own, run).await;
            assert_eq!(s.begin(&forged, &me).await.unwrap(), Begin::Foreign, "{end}");
            assert_eq!((s.job(id).await.unwrap(), s.log(id).await), before, "{end}");
            if end == "waits" {
                begun(s.begin(&own, &me).await.unwrap());
            }
        }
    }
}

/// Guards against a second plain entry of a key that vanishes although it asks for something else.
pub async fn a_plain_entry_of_a_key_with_another_request_is_refused_by_name(s: &Subject) {
    let me = worker("a");
    let keyed = Job { idempotency_key: Some("one-request".to_owned()), ..job("once") };
    let other = Job { request: job("another").request, ..keyed.clone() };
    let add = async |job: &Job| {
        s.add_raw(Lane::Normal, &[("job", &serde_json::to_vec(job).unwrap())]);
        s.claim(&me).await
    };
    let first = add(&keyed).await;
    let mut second = add(&other).await;
    let attempt = begun(s.begin(&first, &me).await.unwrap());
    assert_eq!(s.begin(&second, &me).await.unwrap(), Begin::Foreign);
    // The same request in other bytes is the same job.
    let same = add(&Job { custom_id: Some("x".to_owned()), ..keyed.clone() }).await;
    assert_eq!(s.begin(&same, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    second.disown();
    let error = second.job.clone().unwrap_err();
    assert!(error.message.contains("idempotency_key"), "{error}");
    let answer = s.refuse(&second, &error, &failed(0, error.clone())).await.unwrap();
    assert!(matches!(answer, Begin::Bury { .. }), "{answer:?}");
    assert_ne!(second.id, attempt.job);
}

/// Guards against a key whose fingerprint was that of another request than the one that ran, or of none: its next
/// request was answered by an answer to something else.
pub async fn what_runs_under_a_key_keeps_its_fingerprint(s: &Subject) {
    let me = worker("a");
    for (key, names_key) in [("named", true), ("squatted", false)] {
        let ran = Job { idempotency_key: Some(key.to_owned()), ..job("ran") };
        let id = ran.assign_id();
        let written = if names_key { ran.clone() } else { job("ran") };
        let (name, bytes) = (id.to_string(), serde_json::to_vec(&written).unwrap());
        s.add_raw(Lane::Normal, &[("job", &bytes), ("id", name.as_bytes())]);
        let entry = s.claim(&me).await;
        begun(s.begin(&entry, &me).await.unwrap());
        let other = Job { request: job("another").request, ..ran.clone() };
        let refused = s.enqueue(&[s.submission(other)]).await.remove(0).unwrap_err();
        assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
        let repeated = s.enqueue(&[s.submission(ran)]).await.remove(0);
        assert_eq!(repeated.is_ok_and(|receipt| receipt.duplicate), names_key, "{key}");
    }
    // A key that is reserved for one request is not taken by another.
    let reserved = Job { idempotency_key: Some("reserved".to_owned()), ..job("reserved") };
    let id = s.add(reserved.clone()).await.id;
    let other = Job { request: job("another").request, ..reserved.clone() };
    s.add_raw(Lane::Normal, &[("job", &serde_json::to_vec(&other).unwrap())]);
    let entries = s.claim_all(Lane::Normal, &me).await;
    assert_eq!(s.begin(&entries[1], &me).await.unwrap(), Begin::Foreign);
    assert_eq!(begun(s.begin(&entries[0], &me).await.unwrap()).job, id);
}

/// Guards against a job that an earlier version has enqueued, whose record does not tell its jobs apart, and that
/// nobody runs any more.
pub async fn a_record_of_an_earlier_version_believes_its_entry(s: &Subject) {
    let me = worker("a");
    let keyed = Job { idempotency_key: Some("of-an-earlier-version".to_owned()), ..job("keyed") };
    for theirs in [job("plain"), keyed] {
        let id = s.add(theirs.clone()).await.id;
        s.ask("HDEL KEY sum", |keys| keys.job(id));
        let own = s.claim(&me).await;
        let attempt = begun(s.begin(&own, &me).await.unwrap());
        assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
        let (name, bytes) = (id.to_string(), serde_json::to_vec(&theirs).unwrap());
        s.add_raw(Lane::Normal, &[("job", &bytes), ("id", name.as_bytes())]);
        assert_eq!(s.begin(&s.claim(&me).await, &me).await.unwrap(), Begin::Remove);
    }
}

/// Guards against an entry that says of another tenant's parked job that it cannot be read, and fails it so.
pub async fn an_entry_that_forges_a_broken_parked_job_fails_none(s: &Subject) {
    let me = worker("a");
    let theirs = Job { tenant: "acme".parse().unwrap(), not_before: Some(far()), ..job("theirs") };
    let id = s.add(theirs).await.id;
    let retried = s.add(Job { tenant: "acme".parse().unwrap(), ..job("retried") }).await.id;
    let own = s.claim(&me).await;
    let attempt = begun(s.begin(&own, &me).await.unwrap());
    assert_eq!(s.retry(&attempt, Duration::from_hours(1)).await, Written::Yes);
    for id in [id, retried] {
        let before = s.job(id).await.unwrap();
        let name = id.to_string();
        let fields = [("id", name.as_bytes()), ("parked", b"torn"), ("attempt", b"4294967295")];
        s.add_raw(Lane::Normal, &fields);
        let forged = s.claim(&me).await;
        let error = forged.job.clone().unwrap_err();
        let answer = s.refuse(&forged, &error, &failed(0, error.clone())).await.unwrap();
        assert_eq!(answer, Begin::Foreign);
        assert_eq!(s.job(id).await.unwrap(), before);
    }
}

/// Guards against bounds that are narrower than those under which a job was accepted: it must not become
/// a dead letter for waiting while the fleet is upgraded.
pub async fn a_job_that_was_accepted_is_not_judged_by_newer_bounds(s: &Subject) {
    let me = worker("a");
    let labels: Vec<String> = (0..20).map(|n| format!("\"{n}\":\"\"")).collect();
    let job = format!(
        r#"{{"request":{{"model":"{}","messages":[{{}}]}},"custom_id":"{}","labels":{{{}}},
        "max_attempts":1000,"not_before":{},"expires_at":{}}}"#,
        "m".repeat(300),
        "c".repeat(300),
        labels.join(","),
        Timestamp::MAX.0 + 1,
        Timestamp::MAX.0 + 1,
    );
    let id = JobId::new();
    let name = id.to_string();
    let accepted = [("job", job.as_bytes()), ("id", name.as_bytes())];
    s.add_raw(Lane::Normal, &accepted);
    let entry = s.claim(&me).await;
    assert_eq!(entry.job.as_ref().map(|job| job.max_attempts), Ok(Some(1000)));
    // Parked for a retry it is the same entry.
    assert!(s.park(&entry, 1, Timestamp(1)).await.unwrap());
    s.promote_until(1).await;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    let record = s.job(id).await.unwrap().unwrap();
    assert_eq!(record.model, "m".repeat(256), "lists show no more than they did");
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    let letter = DeadLetter::new(&entry, failure("no"), 1, attempt.fence);
    assert_eq!(letter.job(), entry.job.ok());
    // A plain entry comes to its door here.
    s.add_raw(Lane::Low, &accepted[..1]);
    assert!(s.claim_all(Lane::Low, &me).await.remove(0).job.is_err());
}

pub async fn promote_moves_what_is_due_exactly_once(s: &Subject) {
    let mut ids = BTreeSet::new();
    for _ in 0..30 {
        ids.insert(s.parked(Timestamp(1)).await);
    }
    let promoter = || {
        let (broker, partition) = (s.shared(), s.partition.clone());
        tokio::spawn(async move {
            let mut moved = 0;
            loop {
                let promoted = broker.promote(&partition, 3).await.unwrap();
                moved += promoted.count;
                let Some(next_in) = promoted.next_in else { return moved };
                tokio::time::sleep(next_in).await;
            }
        })
    };
    let (a, b) = soon(async { tokio::join!(promoter(), promoter()) }).await;
    assert_eq!(a.unwrap() + b.unwrap(), 30);
    let entries = s.claim_all(Lane::Normal, &worker("a")).await;
    assert_eq!(entries.len(), 30);
    assert_eq!(entries.iter().map(|entry| entry.id).collect::<BTreeSet<_>>(), ids);
}

/// Guards against every worker asking the broker whenever any job is parked.
pub async fn whoever_parks_the_first_job_says_when_it_is_due(s: &Subject) {
    let mut listening = s.listen(&[Topic::Wake(s.partition.clone())]).await;
    let in_hours = |hours| Timestamp::now().after(Duration::from_hours(hours));
    let mut next = async |hours: Option<u64>| {
        let due_in = loop {
            match Wake::read(&listening.next().await.1) {
                Some(Wake::Next(Next { due_in, workers: 1 })) => break due_in,
                Some(Wake::Next(other)) => panic!("heard by one: {other:?}"),
                _ => {}
            }
        };
        let (short, whole) = (Duration::from_mins(1), hours.map(Duration::from_hours));
        assert_eq!(due_in.is_some(), whole.is_some());
        assert!(due_in.zip(whole).is_none_or(|(due, all)| due <= all && due + short > all));
    };
    // Nothing is told of the one that comes later: what is heard next is of the third.
    for (hours, told) in [(4, true), (5, false), (3, true)] {
        s.add(Job { not_before: Some(in_hours(hours)), ..job("later") }).await;
        if told {
            next(Some(hours)).await;
        }
    }
    s.add(job("retried")).await;
    let entry = s.claim(&worker("a")).await;
    assert!(s.park(&entry, 1, in_hours(2)).await.unwrap());
    next(Some(2)).await;
    let bounded = s.limited(Limits { max_jobs: 100, ..Limits::default() }).await;
    if s.ask("PING", |_| String::new()).is_some() {
        bounded.add(Job { not_before: Some(in_hours(1)), ..job("bounded") }).await;
        next(Some(1)).await;
    }
    // Whoever looks tells the others, who need not look then.
    let promoted = s.promote(&s.partition, 9).await.unwrap();
    next(Some(if s.ask("PING", |_| String::new()).is_some() { 1 } else { 2 })).await;
    assert_eq!(promoted.count, 0);
}

pub async fn promote_goes_by_time_and_stops_at_what_is_asked(s: &Subject) {
    let empty = s.promote(&s.partition, 9).await.unwrap();
    assert_eq!(empty, Promoted { count: 0, next_in: None });
    let late = s.parked(Timestamp(2_000)).await;
    let early = s.parked(Timestamp(1_000)).await;
    s.parked(far()).await;
    // What is due already but not asked for is due at once.
    let first = s.promote(&s.partition, 1).await.unwrap();
    assert_eq!(first, Promoted { count: 1, next_in: Some(Duration::ZERO) });
    let second = s.promote(&s.partition, 9).await.unwrap();
    assert_eq!(second.count, 1);
    assert!(second.next_in > Some(Duration::from_mins(50)), "{second:?}");
    assert_eq!(s.promote(&s.partition, 9).await.unwrap().count, 0);
    let entries = s.claim_all(Lane::Normal, &worker("a")).await;
    assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [early, late]);
    assert_eq!(s.depth(&s.partition).await.unwrap().parked, 1);
}

pub async fn a_promoted_job_runs_and_its_parked_copy_is_gone(s: &Subject) {
    let me = worker("a");
    let mut later = job("later");
    later.not_before = Some(Timestamp::now().after(Duration::from_secs(1)));
    later.lane = Lane::Low;
    let Receipt { id, parked: true, .. } = s.add(later.clone()).await else {
        panic!("a second has passed before the job was there")
    };
    s.promote_until(1).await;
    assert!(Some(Timestamp::now()) >= later.not_before);
    assert_eq!(s.job(id).await.unwrap().unwrap().state, State::Waiting);
    let entry = s.claim_all(Lane::Low, &me).await.remove(0);
    assert_eq!((entry.id, entry.attempt, entry.job.as_ref()), (id, 0, Ok(&later)));
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    assert_eq!(s.job(id).await.unwrap().unwrap().due, None);
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
}

pub async fn a_wait_ends_when_a_job_is_promoted(s: &Subject) {
    let id = s.parked(Timestamp(1)).await;
    let mut reader = s.reader(&worker("a")).await;
    let stop = CancellationToken::new();
    let (entries, ()) =
        soon(async { tokio::join!(reader.wait(4 * DEADLINE, &stop), s.promote_until(1)) }).await;
    assert_eq!(entries.unwrap().iter().map(|entry| entry.id).collect::<Vec<_>>(), [id]);
}
