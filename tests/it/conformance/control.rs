//! What is asked from outside: cancelling, orders to workers.

use std::time::Duration;

use millstream::{
    admin::{Admin, Cancelled},
    broker::{Begin, Cancel, Order, Outcome, Refusal, Refused, Topic, Written, redis::keys::Keys},
    error::{Code, Failure},
    event::{Body, Codec, Event, Frame},
    job::{Job, JobId, Lane, Timestamp},
    state::State,
};

use super::runs::dead;
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
    for again in [false, true] {
        let cancelled = Cancel::Cancelled { partition: partition.clone(), run: 1, again };
        assert_eq!(s.cancel(id).await.unwrap(), cancelled);
    }
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
    assert!(!s.unpark(&s.partition, id, 1).await.unwrap());
    assert!(s.cancelled(&[id]).await.unwrap().is_empty());
    assert_eq!(admin.cancel(id).await.unwrap(), Cancelled::Over { state: State::Cancelled });
}

pub async fn a_job_between_two_attempts_is_cancelled(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    assert_eq!(s.retry(&attempt, Duration::from_hours(1)).await, Written::Yes);
    let cancelled = s.cancel(attempt.job).await.unwrap();
    assert!(matches!(cancelled, Cancel::Cancelled { run: 1, .. }), "{cancelled:?}");
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);
    assert_eq!(s.kinds(attempt.job).await, ["started", "retrying", "cancelled"]);
    assert!(s.job(attempt.job).await.unwrap().unwrap().fence > attempt.fence);
    // The attempt that asked for the retry comes late.
    assert_eq!(s.retry(&attempt, Duration::ZERO).await, Written::Fenced);
}

/// Guards against a cancel whose first sending arrives behind its own repeat: it hit the run that an
/// operator had opened since.
pub async fn a_cancel_that_arrives_late_is_for_the_run_that_was_meant(s: &Subject) {
    let (entry, letter) = dead(s).await;
    s.reopen(&s.partition, &letter).await.unwrap();
    let script = include_str!("../../../src/broker/redis/lua/cancel.lua");
    let names = |keys: &Keys| [keys.job(entry.id), keys.log(entry.id)];
    let meant = ["ms:worker:", "600000", "a name", "1"];
    if let Some(answer) = s.run(script, names, &meant) {
        assert_eq!(answer.lines().next(), Some("moved"), "{answer}");
    }
    assert_eq!(state(s, entry.id).await, State::Waiting);
    assert_eq!(s.kinds(entry.id).await, ["started", "failed", "requeued"]);
    // Whoever asks now means the run that is there.
    let cancelled = s.cancel(entry.id).await.unwrap();
    assert!(matches!(cancelled, Cancel::Cancelled { run: 2, again: false, .. }), "{cancelled:?}");
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
    // A wish that was carried out is none for a run to come.
    assert!(s.cancelled(&[id]).await.unwrap().is_empty());
    assert_eq!(s.begin(&entry, &me).await.unwrap(), Begin::Remove);
    let (partition, run) = (Some(s.partition.clone()), 1);
    let before = Cancel::Cancelled { partition, run, again: true };
    assert_eq!(s.cancel(id).await.unwrap(), before);
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
    let soon = Timestamp::now().after(Duration::from_secs(1));
    s.add(Job { expires_at: Some(soon), ..job("in a hurry") }).await;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    tokio::time::sleep(Duration::from_millis(1_020)).await;
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    let again = begun(s.begin(&entry, &other).await.unwrap());
    s.retry(&again, Duration::ZERO).await;
    let promoted = s.promoted(&entry).await;
    begun(s.begin(&promoted, &other).await.unwrap());
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
