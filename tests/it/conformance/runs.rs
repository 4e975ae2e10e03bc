//! New runs of dead jobs.

use std::time::Duration;

use millstream::{
    admin::{Admin, Purged, Requeued},
    broker::{
        Begin, Cancel, DeadLetter, Entry, Outcome, Reopened, Run, Topic, Written, redis::keys::Keys,
    },
    error::{Code, Failure},
    event::Body,
    job::{Job, Lane, Tenant, Timestamp},
    state::State,
};

use crate::support::subject::{Subject, begun, failed, failure, far, job, worker};

/// A job that has failed and lies among the dead letters.
pub async fn dead(s: &Subject) -> (Entry, DeadLetter) {
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
    // The entry of the run before is nobody's, also while the new one waits.
    assert_eq!(s.begin(&old, &me).await.unwrap(), Begin::Remove);
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
    assert_eq!((record.model.as_str(), record.enqueued_at), ("model-1", Some(letter.at)));
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

/// Guards against a reopening whose first sending arrives behind its own repeat, when the run that this one
/// opened is cancelled: it opened another, which had no entry.
pub async fn a_reopening_that_arrives_late_opens_nothing(s: &Subject) {
    let (_, letter) = dead(s).await;
    let requeued = Admin::new(s.shared()).requeue(&s.partition, &letter).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 2 });
    s.cancel(letter.id).await.unwrap();
    let before = s.job(letter.id).await.unwrap();
    let script = include_str!("../../../src/broker/redis/lua/reopen.lua");
    let names = |keys: &Keys| [keys.job(letter.id), keys.log(letter.id)];
    let (fence, run) = (letter.fence.to_string(), letter.run.to_string());
    let late = [letter.letter.as_str(), &fence, &run, "600000", ""];
    if let Some(answer) = s.run(script, names, &late) {
        assert_eq!(answer.trim(), "no\ncancelled");
    }
    assert_eq!(s.job(letter.id).await.unwrap(), before);
}

/// Guards against a requeued job that shows 1970 and no owner: its record was rebuilt by an earlier version.
pub async fn a_new_run_of_a_record_that_tells_nothing_tells_all(s: &Subject) {
    let (_, letter) = dead(s).await;
    s.ask("HDEL KEY queue lane tenant at model", |keys| keys.job(letter.id));
    s.reopen(&s.partition, &letter).await.unwrap();
    let record = s.job(letter.id).await.unwrap().unwrap();
    assert_eq!((record.enqueued_at, record.run), (Some(letter.at), 2));
    assert!(record.is_of(&Tenant::default()));
    assert_eq!((record.partition.as_ref(), record.model.as_str()), (Some(&s.partition), "model-1"));
}

/// An unparking that named only the job took the retry of a run that was opened since, and lost it.
pub async fn a_late_unparking_leaves_a_later_run_its_retry(s: &Subject) {
    let (old, letter) = dead(s).await;
    s.reopen(&s.partition, &letter).await.unwrap();
    // Whoever cancels run 2 is slow to unpark, or the first to try was.
    let Cancel::Cancelled { run: 2, again: false, .. } = s.cancel(old.id).await.unwrap() else {
        panic!()
    };
    Admin::new(s.shared()).requeue(&s.partition, &letter).await.unwrap();
    let me = worker("b");
    let entry = s.claim(&me).await;
    assert_eq!(entry.run, 3);
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    s.retry(&attempt, Duration::from_hours(1)).await;
    assert!(s.park(&entry, 1, far()).await.unwrap());
    for run in [1, 2] {
        assert!(!s.unpark(&s.partition, old.id, run).await.unwrap());
        assert_eq!(s.depth(&s.partition).await.unwrap().parked, 1);
    }
    // What is cancelled from here on is run 3, and its retry goes.
    let partition = Some(s.partition.clone());
    for again in [false, true] {
        let cancelled = Cancel::Cancelled { partition: partition.clone(), run: 3, again };
        assert_eq!(s.cancel(old.id).await.unwrap(), cancelled);
    }
    assert!(s.unpark(&s.partition, old.id, 3).await.unwrap());
    assert!(!s.unpark(&s.partition, old.id, 3).await.unwrap());
    assert_eq!(s.depth(&s.partition).await.unwrap().parked, 0);
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

pub async fn purged_letters_are_gone(s: &Subject) {
    let (_, first) = dead(s).await;
    let (_, second) = dead(s).await;
    let admin = Admin::new(s.shared());
    let gone = |purged| Purged { purged, left: Vec::new() };
    assert_eq!(admin.purge(&s.partition, std::slice::from_ref(&first)).await.unwrap(), gone(1));
    assert_eq!(admin.purge(&s.partition, &[first]).await.unwrap(), gone(0));
    assert_eq!(admin.purge(&s.partition, &[]).await.unwrap(), gone(0));
    assert_eq!(s.dead_letters(&s.partition, 9).await.unwrap(), [second]);
}

/// Guards against housekeeping that drops the only entry of a run: its requeue was interrupted between
/// opening the run and putting the letter back.
pub async fn a_letter_that_is_being_put_back_does_not_expire(s: &Subject) {
    let s = &s.aging(Duration::from_millis(40)).await;
    let mut letters = Vec::new();
    for _ in 0..3 {
        letters.push(dead(s).await.1);
    }
    s.reopen(&s.partition, &letters[1]).await.unwrap();
    let mut dropped = 0;
    while dropped < 2 {
        dropped += s.expire(&s.partition).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Whoever buries another drops none for its age.
    let (_, young) = dead(s).await;
    let left = [letters[1].clone(), young];
    assert_eq!(s.dead_letters(&s.partition, 9).await.unwrap()[..1], left[..1]);
    let requeued = Admin::new(s.shared()).requeue(&s.partition, &letters[1]).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 2 });
    assert_eq!(s.claim(&worker("b")).await.id, letters[1].id);
}

/// Guards against a run that waits for ever: the only letter that has its entry was dropped for newer ones.
pub async fn a_letter_that_is_being_put_back_is_not_dropped_for_newer_ones(s: &Subject) {
    let s = &s.keeping(2).await;
    let mut letters = vec![dead(s).await.1, dead(s).await.1];
    s.reopen(&s.partition, &letters[0]).await.unwrap();
    for _ in 0..3 {
        letters.push(dead(s).await.1);
    }
    let left: Vec<_> = s.dead_letters(&s.partition, 9).await.unwrap();
    assert_eq!(left, [letters[0].clone(), letters[4].clone()]);
    assert_eq!(s.depth(&s.partition).await.unwrap().dropped, 3);
    let requeued = Admin::new(s.shared()).requeue(&s.partition, &letters[0]).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 2 });
    assert_eq!(s.claim(&worker("b")).await.id, letters[0].id);
}

pub async fn a_letter_that_is_being_put_back_is_not_purged(s: &Subject) {
    let (_, first) = dead(s).await;
    let (_, second) = dead(s).await;
    let admin = Admin::new(s.shared());
    // Whoever opened the run is gone: its job waits, and only the letter has its entry.
    s.reopen(&s.partition, &first).await.unwrap();
    let both = [first.clone(), second.clone()];
    assert_eq!(s.unfinished(&both).await.unwrap(), [true, false]);
    let purged = admin.purge(&s.partition, &both).await.unwrap();
    assert_eq!(purged, Purged { purged: 1, left: vec![first.id] });
    assert_eq!(s.dead_letters(&s.partition, 9).await.unwrap(), std::slice::from_ref(&first));
    let requeued = admin.requeue(&s.partition, &first).await.unwrap();
    assert_eq!(requeued, Requeued::Requeued { run: 2 });
    let me = worker("b");
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    assert_eq!(s.unfinished(&both).await.unwrap(), [false, false]);
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    // One whose new run was cancelled waits for nothing.
    let (_, third) = dead(s).await;
    s.reopen(&s.partition, &third).await.unwrap();
    s.cancel(third.id).await.unwrap();
    let purged = admin.purge(&s.partition, &[third]).await.unwrap();
    assert_eq!((purged.purged, purged.left.len()), (1, 0));
}
