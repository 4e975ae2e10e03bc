//! A broker that has forgotten its last moments: records are rebuilt by those who remember them, and
//! whatever entry is left carries the job to its one end.

use std::time::Duration;

use millstream::{
    admin::Admin,
    broker::{
        Attempt, Begin, DeadLetter, Entry, Error, Outcome, Record, Spent, Written,
        redis::keys::Keys,
    },
    job::{ChatRequest, Job, Lane, Tenant},
    state::State,
};

use super::runs::dead;
use crate::support::subject::{
    Subject, begun, done, failed, failure, job, retrying, started, worker,
};

/// A retried job that runs by an entry of which nothing is left, and the entry that is there in its
/// stead: the broker has forgotten the promotion, and parked jobs are promoted once.
async fn displaced(s: &Subject) -> (Attempt, Entry) {
    let me = worker("a");
    let (first, attempt) = s.running(&me).await;
    s.retry_as(&attempt, retrying(1, &attempt)).await;
    let entry = s.promoted(&first).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    s.forget(attempt.job);
    let id = attempt.job.to_string();
    let fields = [("job", entry.payload()), ("id", id.as_bytes()), ("attempt", b"1")];
    s.add_raw(Lane::Normal, &fields);
    let left = s.claim(&worker("b")).await;
    assert_eq!((left.id, left.attempt), (entry.id, entry.attempt));
    assert_eq!(s.heal(&attempt, &entry, &[started(&attempt)]).await.unwrap(), Written::Yes);
    (attempt, left)
}

pub async fn whatever_entry_is_left_takes_over_a_healed_job(s: &Subject) {
    let (attempt, left) = displaced(s).await;
    let taken = begun(s.begin(&left, &worker("b")).await.unwrap());
    assert!(taken.fence > attempt.fence);
    assert_eq!((taken.number, taken.failures), (3, 1));
    assert_eq!(s.finish(&attempt, 1).await, Written::Fenced);
    assert_eq!(s.finish(&taken, 1).await, Written::Yes);
    assert_eq!(s.begin(&left, &worker("c")).await.unwrap(), Begin::Remove);
    // From here on the job has a place, and one entry.
    let (attempt, left) = displaced(s).await;
    let taken = begun(s.begin(&left, &worker("b")).await.unwrap());
    let again = Entry { place: attempt.place.clone(), ..left };
    assert_eq!(s.begin(&again, &worker("c")).await.unwrap(), Begin::Remove);
    assert_eq!(s.finish(&taken, 1).await, Written::Yes);
}

/// The worker of the healed attempt may be given the other entry, too.
pub async fn two_entries_of_a_healed_job_share_no_fence(s: &Subject) {
    let (attempt, left) = displaced(s).await;
    let taken = begun(s.begin(&left, &attempt.worker).await.unwrap());
    assert!(taken.fence > attempt.fence);
    assert_eq!(s.finish(&attempt, 1).await, Written::Fenced);
}

pub async fn whatever_entry_is_left_of_a_healed_job_is_parked_for_its_retry(s: &Subject) {
    let (attempt, left) = displaced(s).await;
    assert_eq!(s.retry(&attempt, Duration::from_millis(1)).await, Written::Yes);
    let Begin::Park { attempt: number, due } = s.begin(&left, &worker("b")).await.unwrap() else {
        panic!("not to be parked")
    };
    assert_eq!(number, 2);
    // Told again as long as it is not parked; what came of it runs.
    let owed = Begin::Park { attempt: 2, due };
    assert_eq!(s.begin(&left, &worker("c")).await.unwrap(), owed);
    let promoted = s.promoted(&left).await;
    let next = begun(s.begin(&promoted, &worker("b")).await.unwrap());
    assert_eq!((next.number, next.failures), (3, 2));
    assert_eq!(s.finish(&next, 1).await, Written::Yes);
}

pub async fn whatever_entry_is_left_of_a_healed_job_is_buried_for_its_failure(s: &Subject) {
    let (attempt, left) = displaced(s).await;
    let (error, frames) = (failure("no"), [failed(1, failure("no"))]);
    let outcome = Outcome::Failed(error.clone());
    assert_eq!(s.conclude(&attempt, &frames, &outcome).await.unwrap(), Written::Yes);
    let owed = Begin::Bury { error: error.clone(), attempts: 2, fence: attempt.fence };
    assert_eq!(s.begin(&left, &worker("b")).await.unwrap(), owed);
    assert!(s.bury(&left, &DeadLetter::new(&left, error, 2, attempt.fence)).await.unwrap());
}

/// Guards against a second letter of a failure: its job was buried for the entry that was forgotten, or for
/// another that is left, and then for each that came.
pub async fn whatever_entries_are_left_of_a_healed_job_its_failure_has_one_letter(s: &Subject) {
    let (attempt, left) = displaced(s).await;
    let (error, frames) = (failure("no"), [failed(1, failure("no"))]);
    let outcome = Outcome::Failed(error.clone());
    assert_eq!(s.conclude(&attempt, &frames, &outcome).await.unwrap(), Written::Yes);
    let id = left.id.to_string();
    let fields = [("job", left.payload()), ("id", id.as_bytes()), ("attempt", b"1")];
    s.add_raw(Lane::Normal, &fields);
    let other = s.claim(&worker("c")).await;
    let letter = DeadLetter::new(&left, error.clone(), 2, attempt.fence);
    for entry in [&left, &other] {
        let owed = Begin::Bury { error: error.clone(), attempts: 2, fence: attempt.fence };
        assert_eq!(s.begin(entry, &worker("b")).await.unwrap(), owed);
        assert!(s.bury_as_told(entry, &letter).await.unwrap());
        assert!(!s.bury_as_told(entry, &letter).await.unwrap());
        assert_eq!(s.depth(&s.partition).await.unwrap().dead, 1);
    }
    // Another failure of the job is another letter.
    s.add_raw(Lane::Normal, &fields);
    let next = s.claim(&worker("c")).await;
    let letter = DeadLetter { fence: attempt.fence + 1, ..letter };
    assert!(s.bury_as_told(&next, &letter).await.unwrap());
    assert_eq!(s.depth(&s.partition).await.unwrap().dead, 2);
}

pub async fn whatever_entry_is_left_of_a_healed_job_runs_after_a_release(s: &Subject) {
    let (attempt, left) = displaced(s).await;
    assert!(!s.release(&attempt.worker, &attempt.place, Some(&attempt)).await.unwrap());
    assert_eq!(s.job(attempt.job).await.unwrap().unwrap().state, State::Waiting);
    let next = begun(s.begin(&left, &worker("b")).await.unwrap());
    assert_eq!((next.number, next.failures), (2, 1));
    assert_eq!(s.finish(&next, 1).await, Written::Yes);
}

/// A run has one end, whoever remembers a later fence: the broker has forgotten the takeover, and the
/// first worker, of which nobody knew that it lived, has come to an end.
pub async fn healing_gives_way_to_an_end_under_a_lower_fence(s: &Subject) {
    let ends = [
        (done(1), Outcome::Done { finish_reason: None, usage: None }),
        (failed(1, failure("no")), Outcome::Failed(failure("no"))),
        (done(1), Outcome::Cancelled { usage: None }),
    ];
    for (last, outcome) in ends {
        let (entry, old) = s.running(&worker("a")).await;
        let new = begun(s.begin(&entry, &worker("b")).await.unwrap());
        s.forget(old.job);
        assert_eq!(s.heal(&old, &entry, &[started(&old)]).await.unwrap(), Written::Yes);
        assert_eq!(s.conclude(&old, &[last], &outcome).await.unwrap(), Written::Yes);
        let before = (s.job(old.job).await.unwrap(), s.log(old.job).await);
        assert_eq!(
            s.heal(&new, &entry, &[started(&new)]).await.unwrap(),
            Written::Fenced,
            "{outcome:?}"
        );
        assert_eq!((s.job(old.job).await.unwrap(), s.log(old.job).await), before);
        s.remove(&[Spent::from(&entry)]).await.unwrap();
    }
}

pub async fn a_healed_attempt_belongs_to_its_run(s: &Subject) {
    let (_, letter) = dead(s).await;
    Admin::new(s.shared()).requeue(&s.partition, &letter).await.unwrap();
    let (me, other) = (worker("b"), worker("c"));
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    s.forget(attempt.job);
    assert_eq!(s.heal(&attempt, &entry, &[started(&attempt)]).await.unwrap(), Written::Yes);
    assert_eq!(s.job(attempt.job).await.unwrap().unwrap().run, 2);
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    assert_eq!(s.begin(&entry, &other).await.unwrap(), Begin::Remove);
}

pub async fn record_and_log_each_tell_of_a_higher_fence(s: &Subject) {
    let (entry, old) = s.running(&worker("a")).await;
    let new = begun(s.begin(&entry, &worker("b")).await.unwrap());
    for key in [Keys::job, Keys::log] {
        if s.ask("DEL KEY", |keys| key(keys, new.job)).is_some() {
            assert_eq!(s.heal(&old, &entry, &[started(&old)]).await.unwrap(), Written::Fenced);
            assert_eq!(s.heal(&new, &entry, &[started(&new)]).await.unwrap(), Written::Yes);
        }
    }
    assert_eq!(s.heal(&old, &entry, &[started(&old)]).await.unwrap(), Written::Fenced);
    assert_eq!(s.finish(&new, 1).await, Written::Yes);
}

/// Guards against an answer that changes hands: the rebuilt record did not tell whose job it is, and was
/// read as the default tenant's.
pub async fn a_healed_record_is_whole(s: &Subject) {
    let me = worker("a");
    let mut job = Job { tenant: "acme".parse().unwrap(), ..job("whose") };
    job.custom_id = Some("line 7".to_owned());
    job.idempotency_key = Some("once".to_owned());
    job.labels = serde_json::from_str(r#"{"user":"u"}"#).unwrap();
    let id = s.add(job.clone()).await.id;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    let before = s.job(id).await.unwrap().unwrap();
    s.forget(id);
    for _ in 0..2 {
        assert_eq!(s.heal(&attempt, &entry, &[started(&attempt)]).await.unwrap(), Written::Yes);
        let record = s.job(id).await.unwrap().unwrap();
        assert!(record.is_of(&job.tenant), "{:?}", record.tenant);
        assert_eq!(record, Record { began_at: record.began_at, ..before.clone() });
    }
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    assert!(s.job(id).await.unwrap().unwrap().is_of(&job.tenant));
    // Its key is known again, too.
    assert!(s.add(job.clone()).await.duplicate);
    let other = Job { request: ChatRequest::ask("m", "another"), ..job };
    assert!(matches!(s.try_add(other).await, Err(Error::Conflict { .. })));
}

/// Guards against what nobody is known to own being taken for the default tenant's.
pub async fn a_record_that_names_no_owner_is_nobodys(s: &Subject) {
    let me = worker("a");
    s.add_raw(Lane::Normal, &[("job", b"no job")]);
    let entry = s.claim(&me).await;
    let error = failure("no job");
    s.refuse(&entry, &error, &failed(0, error.clone())).await.unwrap();
    let record = s.job(entry.id).await.unwrap().unwrap();
    assert_eq!((record.tenant, record.enqueued_at), (None, Some(entry.at)));
    // What an earlier version has rebuilt tells nothing but the attempt.
    let (entry, attempt) = s.running(&me).await;
    if s.ask("HDEL KEY queue tenant at model lane", |keys| keys.job(entry.id)).is_some() {
        let record = s.job(entry.id).await.unwrap().unwrap();
        assert_eq!((record.tenant, record.enqueued_at), (None, None));
        assert_eq!(s.heal(&attempt, &entry, &[started(&attempt)]).await.unwrap(), Written::Yes);
        let record = s.job(entry.id).await.unwrap().unwrap();
        assert!(record.is_of(&Tenant::default()));
        assert_eq!(record.enqueued_at, Some(entry.at));
    }
}

/// Guards against the record of a reservation, whose time is short, that expires in mid-run because
/// its producer died before it accepted the job.
pub async fn a_young_record_has_its_whole_time_once_it_runs(s: &Subject) {
    let me = worker("a");
    let id = s.add(Job { idempotency_key: Some("young".to_owned()), ..job("young") }).await.id;
    s.ask("HDEL KEY added", |keys| keys.job(id));
    s.ask("PEXPIRE KEY 60000", |keys| keys.job(id));
    let entry = s.claim(&me).await;
    begun(s.begin(&entry, &me).await.unwrap());
    let Some(left) = s.ask("PTTL KEY", |keys| keys.job(id)) else { return };
    assert!(left.parse::<i64>().unwrap() > 6 * 24 * 3_600_000, "{left}");
}

/// The same worker is given the entry of an attempt whose words are forgotten: its fence is spent, as
/// readers may have seen other words under it.
pub async fn a_worker_that_has_begun_before_gets_a_new_fence(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    assert_eq!(begun(s.begin(&entry, &me).await.unwrap()), attempt, "a repeat for a lost reply");
    let mut again = entry;
    again.anew();
    let next = begun(s.begin(&again, &me).await.unwrap());
    assert!(next.fence > attempt.fence);
    assert_eq!((next.number, next.failures), (2, 0));
    assert_eq!(s.job(attempt.job).await.unwrap().unwrap().crashes, 0);
    assert_eq!(s.kinds(attempt.job).await, ["started", "started"]);
    assert_eq!(s.finish(&attempt, 1).await, Written::Fenced);
}
