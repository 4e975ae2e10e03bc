//! What is asked from outside: cancelling, new runs of dead jobs, orders to workers.

use std::time::Duration;

use millstream::{
    admin::{Admin, Cancelled, Requeued},
    broker::{
        Begin, Cancel, DeadLetter, Entry, Order, Outcome, Refusal, Refused, Reopened, Run, Topic,
        Written,
    },
    error::{Code, Failure},
    event::{Body, Codec, Event, Frame},
    job::{Job, JobId, Lane, Timestamp},
    state::State,
};

use crate::support::subject::{Subject, begun, delta, done, failed, failure, far, job, worker};

fn cancelled(seq: u64) -> Frame {
    let usage = Some(serde_json::json!({"completion_tokens": 3}));
    let body = millstream::event::Cancelled { attempts: 1, usage, ..Default::default() };
    Frame::new(seq, &Body::Cancelled(body), Codec::Json).unwrap()
}

fn usage() -> Outcome {
    Outcome::Cancelled { usage: Some("{\"completion_tokens\":3}".to_owned()) }
}

async fn state(s: &Subject, id: JobId) -> State {
    s.job(id).await.unwrap().unwrap().state
}

/// The last event of the log, which must end it.
async fn last(s: &Subject, id: JobId) -> Event {
    s.log(id).await.pop().unwrap()
}

pub async fn a_waiting_job_is_cancelled_once(s: &Subject) {
    let mut job = job("not wanted");
    job.custom_id = Some("say \"no\"".to_owned());
    job.labels = serde_json::from_str(r#"{"user":"u"}"#).unwrap();
    let id = s.add(job.clone()).await.id;
    let mut listening = s.listen(&[Topic::Job(id)]).await;
    let partition = Some(s.partition.clone());
    assert_eq!(s.cancel(id).await.unwrap(), Cancel::Cancelled { partition });
    assert_eq!(s.cancel(id).await.unwrap(), Cancel::Over(State::Cancelled));
    let event = listening.event().await;
    assert_eq!(event, last(s, id).await);
    let Body::Cancelled(data) = event.body else { panic!("{event:?}") };
    assert_eq!((data.attempts, data.custom_id, data.labels), (0, job.custom_id, job.labels));
    assert_eq!(s.kinds(id).await, ["cancelled"]);
    let record = s.job(id).await.unwrap().unwrap();
    assert!(record.fence > 0 && record.ended_at.is_some());
    // Its entry is still there, and nobody's.
    let me = worker("a");
    let entry = s.claim(&me).await;
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.kinds(id).await, ["cancelled"]);
}

pub async fn a_parked_job_is_cancelled_and_unparked(s: &Subject) {
    let id = s.add(Job { not_before: Some(far()), ..job("later") }).await.id;
    let admin = Admin::new(s.shared());
    assert_eq!(admin.cancel(id).await.unwrap(), Cancelled::Cancelled);
    assert_eq!(s.depth(&s.partition).await.unwrap().parked, 0);
    assert!(!s.unpark(&s.partition, id).await.unwrap());
    assert_eq!(admin.cancel(id).await.unwrap(), Cancelled::Over { state: State::Cancelled });
}

pub async fn a_job_between_two_attempts_is_cancelled(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    assert_eq!(s.retry(&attempt, Duration::from_hours(1)).await, Written::Yes);
    let cancelled = s.cancel(attempt.job).await.unwrap();
    assert!(matches!(cancelled, Cancel::Cancelled { .. }), "{cancelled:?}");
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.kinds(attempt.job).await, ["started", "retrying", "cancelled"]);
    assert!(s.job(attempt.job).await.unwrap().unwrap().fence > attempt.fence);
    // The attempt that asked for the retry comes late.
    assert_eq!(s.retry(&attempt, Duration::ZERO).await, Written::Fenced);
}

pub async fn a_running_job_ends_as_cancelled_and_in_no_other_way(s: &Subject) {
    let me = worker("a");
    let mut orders = s.listen(&[Topic::Worker(me.clone())]).await;
    let (entry, attempt) = s.running(&me).await;
    let id = attempt.job;
    for again in [false, true] {
        let asked = Cancel::Asked { worker: me.to_string(), again };
        assert_eq!(s.cancel(id).await.unwrap(), asked);
        assert_eq!(Order::read(&orders.next().await.1), Some(Order::Cancel(id)));
    }
    assert_eq!(s.cancelled(&[id, JobId::new()]).await.unwrap(), [id]);
    let record = s.job(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.cancelling), (State::Running, true));
    // What it has to say it may say, but not end otherwise.
    let text = [delta(1, "part", Codec::Json)];
    assert_eq!(s.append(&attempt, &text).await.unwrap(), Written::Yes);
    let stop = Outcome::Done { finish_reason: None, usage: None };
    let ways = [
        (stop, done(2)),
        (Outcome::Failed(failure("no")), failed(2, failure("no"))),
        (Outcome::Retry { error: failure("no"), delay: Duration::ZERO }, failed(2, failure("no"))),
    ];
    for (outcome, frame) in ways {
        let written = s.conclude(&attempt, &[frame], &outcome).await.unwrap();
        assert_eq!(written, Written::Cancelled, "{outcome:?}");
    }
    assert_eq!(s.kinds(id).await, ["started", "delta"]);
    for _ in 0..2 {
        let written = s.conclude(&attempt, &[cancelled(2)], &usage()).await.unwrap();
        assert_eq!(written, Written::Yes);
    }
    assert_eq!(s.kinds(id).await, ["started", "delta", "cancelled"]);
    let record = s.job(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.failures), (State::Cancelled, 0));
    assert_eq!(record.usage.unwrap()["completion_tokens"], 3);
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.cancel(id).await.unwrap(), Cancel::Over(State::Cancelled));
}

pub async fn whoever_takes_over_a_cancelled_job_ends_it(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    s.cancel(attempt.job).await.unwrap();
    let refused = Begin::Refuse { why: Refused::Cancelled, attempts: 1 };
    assert_eq!(s.begin(&entry, &other).await.unwrap(), refused);
    // Nor may it fail.
    let failing = Refusal::Failed(failure("no"));
    let frame = failed(0, failure("no"));
    assert_eq!(s.shared().refuse(&entry, &failing, &frame).await.unwrap(), refused);
    for _ in 0..2 {
        let answer = s.shared().refuse(&entry, &Refusal::Cancelled, &cancelled(0)).await.unwrap();
        assert_eq!(answer, Begin::Remove);
    }
    assert_eq!(s.kinds(attempt.job).await, ["started", "cancelled"]);
    assert_eq!(state(s, attempt.job).await, State::Cancelled);
    assert_eq!(s.finish(&attempt, 1).await, Written::Fenced);
}

pub async fn a_wish_to_cancel_outlives_a_release(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    s.cancel(attempt.job).await.unwrap();
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    let begin = s.begin(&entry, &other).await.unwrap();
    assert!(matches!(begin, Begin::Refuse { why: Refused::Cancelled, .. }), "{begin:?}");
}

pub async fn what_is_over_or_unknown_is_not_cancelled(s: &Subject) {
    assert_eq!(s.cancel(JobId::new()).await.unwrap(), Cancel::Unknown);
    let (_, attempt) = s.running(&worker("a")).await;
    s.finish(&attempt, 1).await;
    assert_eq!(s.cancel(attempt.job).await.unwrap(), Cancel::Over(State::Done));
    assert_eq!(s.kinds(attempt.job).await, ["started", "done"]);
    assert!(s.cancelled(&[attempt.job]).await.unwrap().is_empty());
}

pub async fn a_job_that_has_not_begun_in_time_is_refused(s: &Subject) {
    let me = worker("a");
    let soon = Timestamp::now().after(Duration::from_millis(20));
    s.add(Job { expires_at: Some(soon), ..job("in a hurry") }).await;
    s.add(Job { expires_at: Some(far()), ..job("at leisure") }).await;
    let mut entries = s.claim_all(Lane::Normal, &me).await;
    let late = entries.remove(0);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let refused = Begin::Refuse { why: Refused::Expired, attempts: 0 };
    assert_eq!(s.begin(&late, &me).await.unwrap(), refused);
    let error = Failure::new(Code::Expired, "late");
    let owed = s.refuse(&late, &error, &failed(0, error.clone())).await.unwrap();
    assert!(matches!(owed, Begin::Bury { attempts: 0, .. }), "{owed:?}");
    begun(s.begin(&entries[0], &me).await.unwrap());
}

pub async fn a_job_that_has_begun_does_not_expire(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let soon = Timestamp::now().after(Duration::from_millis(100));
    s.add(Job { expires_at: Some(soon), ..job("in a hurry") }).await;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    let again = begun(s.begin(&entry, &other).await.unwrap());
    s.retry(&again, Duration::ZERO).await;
    let promoted = s.promoted(&entry).await;
    begun(s.begin(&promoted, &other).await.unwrap());
}

/// A job that has failed and lies among the dead letters.
async fn dead(s: &Subject) -> (Entry, DeadLetter) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    let error = failure("hopeless");
    let frames = [failed(1, error.clone())];
    s.conclude(&attempt, &frames, &Outcome::Failed(error.clone())).await.unwrap();
    let history = s.job(entry.id).await.unwrap().unwrap().history;
    assert_eq!((history.len(), &history[0].error), (1, &error));
    let letter = DeadLetter { history, ..DeadLetter::new(&entry, error, 1, attempt.fence) };
    assert!(s.bury(&entry, &letter).await.unwrap());
    let letter = s.dead_letters(&s.partition, 9).await.unwrap().pop().unwrap();
    assert_eq!(letter.history.len(), 1);
    (entry, letter)
}

pub async fn a_dead_job_gets_a_new_run(s: &Subject) {
    let (old, letter) = dead(s).await;
    let mut listening = s.listen(&[Topic::Job(letter.id), Topic::Wake(s.partition.clone())]).await;
    let admin = Admin::new(s.shared());
    let requeued = admin.requeue(&s.partition, &letter).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 2 });
    let event = listening.event().await;
    assert!(matches!(&event.body, Body::Requeued(data) if data.run == 2), "{event:?}");
    assert!(event.id.fence > letter.fence);
    assert_eq!(listening.next().await.1, b"added");
    let record = s.job(letter.id).await.unwrap().unwrap();
    assert_eq!((record.state, record.run, record.attempt), (State::Waiting, 2, 0));
    assert_eq!((record.failures, record.history.len(), record.error), (0, 0, None));
    assert_eq!((record.model.as_str(), record.ended_at), ("model-1", None));
    // Somebody else had the same letter in hand.
    assert_eq!(admin.requeue(&s.partition, &letter).await.unwrap(), Requeued::Gone);
    let me = worker("b");
    let entry = s.claim(&me).await;
    assert_eq!((entry.id, entry.run, entry.at), (old.id, 2, old.at));
    assert_eq!(entry.payload(), old.payload());
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    assert_eq!((attempt.number, attempt.failures), (1, 0));
    assert!(attempt.fence > event.id.fence);
    assert_eq!(s.begin(&old, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    let kinds = ["started", "failed", "requeued", "started", "done"];
    assert_eq!(s.kinds(letter.id).await, kinds);
    assert_eq!(admin.requeue(&s.partition, &letter).await.unwrap(), Requeued::Gone);
    // Nor does it open anything for one who does not look.
    let no = Reopened::No(State::Done);
    assert_eq!(s.reopen(&s.partition, &letter).await.unwrap(), no);
    assert_eq!(s.depth(&s.partition).await.unwrap().dead, 0);
}

pub async fn a_new_run_is_opened_once_whatever_dies_in_between(s: &Subject) {
    let (_, letter) = dead(s).await;
    let fresh = Reopened::Yes(Run { number: 2, fresh: true });
    assert_eq!(s.reopen(&s.partition, &letter).await.unwrap(), fresh);
    // The one that opened it is gone; the letter is still there, and is put back again.
    let again = Reopened::Yes(Run { number: 2, fresh: false });
    assert_eq!(s.reopen(&s.partition, &letter).await.unwrap(), again);
    let run = Run { number: 2, fresh: false };
    assert!(s.requeue(&s.partition, &letter, run).await.unwrap());
    assert!(!s.requeue(&s.partition, &letter, run).await.unwrap());
    assert_eq!(s.kinds(letter.id).await, ["started", "failed", "requeued"]);
    let me = worker("b");
    let entry = s.claim(&me).await;
    begun(s.begin(&entry, &me).await.unwrap());
}

pub async fn a_letter_purged_under_a_requeue_leaves_no_run_without_an_entry(s: &Subject) {
    let (_, letter) = dead(s).await;
    let Reopened::Yes(run) = s.reopen(&s.partition, &letter).await.unwrap() else { panic!() };
    assert_eq!(s.purge(&s.partition, std::slice::from_ref(&letter.letter)).await.unwrap(), 1);
    // Also twice, where the first reply was lost: the second entry is nobody's.
    for _ in 0..2 {
        assert!(s.requeue(&s.partition, &letter, run).await.unwrap());
    }
    let me = worker("b");
    let entries = s.claim_all(Lane::Normal, &me).await;
    let attempt = begun(s.begin(&entries[0], &me).await.unwrap());
    assert_eq!(s.begin(&entries[1], &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    assert_eq!(s.begin(&entries[1], &me).await.unwrap(), Begin::Remove);
}

pub async fn a_new_run_needs_neither_record_nor_log(s: &Subject) {
    let (_, letter) = dead(s).await;
    s.forget(letter.id);
    let admin = Admin::new(s.shared());
    let requeued = admin.requeue(&s.partition, &letter).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 2 });
    let record = s.job(letter.id).await.unwrap().unwrap();
    assert!(record.fence > letter.fence);
    assert_eq!((record.model.as_str(), record.enqueued_at), ("model-1", letter.at));
    let me = worker("b");
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    assert_eq!(s.kinds(letter.id).await, ["requeued", "started", "done"]);
}

pub async fn a_stale_letter_opens_nothing(s: &Subject) {
    let (_, letter) = dead(s).await;
    let admin = Admin::new(s.shared());
    admin.requeue(&s.partition, &letter).await.unwrap();
    let me = worker("b");
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    let no = Reopened::No(State::Failed);
    let error = failure("again");
    let frames = [failed(1, error.clone())];
    s.conclude(&attempt, &frames, &Outcome::Failed(error.clone())).await.unwrap();
    let second = DeadLetter::new(&entry, error, 1, attempt.fence);
    assert!(s.bury(&entry, &second).await.unwrap());
    // Repeated, as after a lost reply, when the run that it opened has failed, too.
    assert_eq!(admin.requeue(&s.partition, &letter).await.unwrap(), Requeued::Gone);
    assert_eq!(s.reopen(&s.partition, &letter).await.unwrap(), no);
    // Its own run is over: the letter that counts is the second.
    let stale = DeadLetter { letter: "1-1".to_owned(), ..letter };
    assert_eq!(s.reopen(&s.partition, &stale).await.unwrap(), no);
    let second = s.dead_letters(&s.partition, 9).await.unwrap().pop().unwrap();
    assert_eq!(second.run, 2);
    let requeued = admin.requeue(&s.partition, &second).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 3 });
}

pub async fn a_retry_within_a_new_run_belongs_to_it(s: &Subject) {
    let (_, letter) = dead(s).await;
    Admin::new(s.shared()).requeue(&s.partition, &letter).await.unwrap();
    let me = worker("b");
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    s.retry(&attempt, Duration::ZERO).await;
    let promoted = s.promoted(&entry).await;
    assert_eq!(promoted.run, 2);
    assert_eq!(begun(s.begin(&promoted, &me).await.unwrap()).number, 2);
}

pub async fn a_requeued_job_does_not_expire(s: &Subject) {
    let me = worker("a");
    let soon = Timestamp::now().after(Duration::from_millis(5));
    s.add(Job { expires_at: Some(soon), ..job("in a hurry") }).await;
    let entry = s.claim(&me).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let error = Failure::new(Code::Expired, "late");
    let owed = s.refuse(&entry, &error, &failed(0, error.clone())).await.unwrap();
    let Begin::Bury { attempts, fence, .. } = owed else { panic!("{owed:?}") };
    s.bury(&entry, &DeadLetter::new(&entry, error, attempts, fence)).await.unwrap();
    let letter = s.dead_letters(&s.partition, 9).await.unwrap().remove(0);
    Admin::new(s.shared()).requeue(&s.partition, &letter).await.unwrap();
    let entry = s.claim(&me).await;
    begun(s.begin(&entry, &me).await.unwrap());
}

pub async fn a_cancelled_run_can_be_opened_again(s: &Subject) {
    let (_, letter) = dead(s).await;
    s.reopen(&s.partition, &letter).await.unwrap();
    s.cancel(letter.id).await.unwrap();
    let requeued = Admin::new(s.shared()).requeue(&s.partition, &letter).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 3 });
    let kinds = ["started", "failed", "requeued", "cancelled", "requeued"];
    assert_eq!(s.kinds(letter.id).await, kinds);
}

pub async fn an_order_reaches_the_worker_it_is_for(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    assert_eq!(s.tell(&me, Order::Drain).await.unwrap(), 0);
    let mut orders = s.listen(&[Topic::Worker(me.clone())]).await;
    assert_eq!(s.tell(&other, Order::Drain).await.unwrap(), 0);
    assert_eq!(s.tell(&me, Order::Drain).await.unwrap(), 1);
    let (topic, message) = orders.next().await;
    assert_eq!((topic, Order::read(&message)), (Topic::Worker(me), Some(Order::Drain)));
    assert!(orders.is_empty());
}

pub async fn purged_letters_are_gone(s: &Subject) {
    let (_, first) = dead(s).await;
    let (_, second) = dead(s).await;
    let admin = Admin::new(s.shared());
    assert_eq!(admin.purge(&s.partition, std::slice::from_ref(&first)).await.unwrap(), 1);
    assert_eq!(admin.purge(&s.partition, &[first]).await.unwrap(), 0);
    assert_eq!(admin.purge(&s.partition, &[]).await.unwrap(), 0);
    assert_eq!(s.dead_letters(&s.partition, 9).await.unwrap(), [second]);
}
