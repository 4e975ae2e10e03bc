//! Enqueueing, idempotency and trimming.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use millstream::{
    broker::{Begin, Error, Spent, Topic},
    job::{JobId, Labels, Lane, Timestamp},
    state::State,
};

use crate::support::subject::{Subject, begun, far, job, soon, worker};

pub async fn an_enqueued_job_waits_in_its_lane(s: &Subject) {
    for lane in Lane::ALL {
        let mut sent = job("hello");
        sent.lane = lane;
        sent.tenant = "acme".parse().unwrap();
        sent.custom_id = Some("mine".to_owned());
        sent.labels = Labels([("user".to_owned(), "u1".to_owned())].into());
        let submission = s.submission(sent.clone());
        let receipt = s.enqueue(std::slice::from_ref(&submission)).await.remove(0).unwrap();
        assert_eq!((receipt.id, receipt.parked, receipt.duplicate), (submission.id, false, false));

        let record = s.job(receipt.id).await.unwrap().unwrap();
        assert_eq!((record.id, record.state, record.lane), (receipt.id, State::Waiting, lane));
        assert_eq!(record.partition.as_ref(), Some(&s.partition));
        assert_eq!((record.attempt, record.failures, record.fence), (0, 0, 0));
        assert_eq!(
            (record.tenant, record.custom_id),
            (Some(sent.tenant.clone()), sent.custom_id.clone())
        );
        assert_eq!((record.model.as_str(), &record.labels), ("model-1", &sent.labels));
        assert_eq!((record.due, record.began_at, record.ended_at), (None, None, None));

        let entry = s.claim_all(lane, &worker("a")).await.remove(0);
        assert_eq!((entry.id, entry.attempt, Some(entry.at)), (receipt.id, 0, record.enqueued_at));
        assert_eq!((&entry.place.partition, entry.place.lane), (&s.partition, lane));
        assert_eq!(entry.job.as_ref(), Ok(&sent));
        assert_eq!(entry.payload(), submission.payload);
    }
}

pub async fn a_batch_is_answered_and_added_in_order(s: &Subject) {
    let batch: Vec<_> = (0..50).map(|n| s.submission(job(&n.to_string()))).collect();
    let ids: Vec<JobId> = batch.iter().map(|submission| submission.id).collect();
    let receipts = s.enqueue(&batch).await;
    assert_eq!(receipts.into_iter().map(|r| r.unwrap().id).collect::<Vec<_>>(), ids);
    let entries = s.claim_all(Lane::Normal, &worker("a")).await;
    assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), ids);
    let places: BTreeSet<_> = entries.iter().map(|entry| &entry.place.entry).collect();
    assert_eq!(places.len(), 50);
    assert!(s.enqueue(&[]).await.is_empty());
}

pub async fn a_scheduled_job_is_parked_and_wakes(s: &Subject) {
    let mut listening = s.listen(&[Topic::Wake(s.partition.clone())]).await;
    let mut later = job("later");
    later.not_before = Some(far());
    later.lane = Lane::Low;
    let receipt = s.add(later.clone()).await;
    assert!(receipt.parked && !receipt.duplicate);
    assert_eq!(listening.next().await.0, Topic::Wake(s.partition.clone()));
    let record = s.job(receipt.id).await.unwrap().unwrap();
    assert_eq!((record.state, record.due), (State::Parked, later.not_before));
    let depth = s.depth(&s.partition).await.unwrap();
    assert_eq!((depth.parked, depth.lanes[Lane::Low.index()].waiting), (1, 0));
    assert!(s.claim_all(Lane::Low, &worker("a")).await.is_empty());
}

pub async fn a_time_that_has_passed_does_not_park(s: &Subject) {
    let mut late = job("late");
    late.not_before = Some(Timestamp(1));
    let receipt = s.add(late).await;
    assert!(!receipt.parked);
    assert_eq!(s.job(receipt.id).await.unwrap().unwrap().state, State::Waiting);
    assert_eq!(s.claim(&worker("a")).await.id, receipt.id);
}

fn keyed(question: &str, key: &str) -> millstream::job::Job {
    let mut job = job(question);
    job.idempotency_key = Some(key.to_owned());
    job
}

pub async fn a_key_gives_one_job(s: &Subject) {
    let first = s.add(keyed("q", "one-job")).await;
    // The same meaning in other bytes is the same request.
    let mut same = keyed("q", "one-job");
    let text = r#"{"messages": [{"content":"q","role":"user"}], "model":"model-1"}"#;
    same.request = serde_json::from_str(text).unwrap();
    let second = s.add(same).await;
    assert_eq!((first.id, first.duplicate), (second.id, false));
    assert!(second.duplicate && !second.parked);
    let repeat = keyed("r", "one-batch");
    let batch = [s.submission(repeat.clone()), s.submission(repeat)];
    let results = s.enqueue(&batch).await;
    let duplicates = results.into_iter().filter(|result| result.as_ref().unwrap().duplicate);
    assert_eq!(duplicates.count(), 1);
    assert_eq!(s.depth(&s.partition).await.unwrap().lanes[1].waiting, 2);
}

pub async fn a_key_held_by_another_request_is_refused(s: &Subject) {
    let first = s.add(keyed("q", "held")).await;
    match s.try_add(keyed("another", "held")).await {
        Err(Error::Conflict { id }) => assert_eq!(id, first.id),
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(s.depth(&s.partition).await.unwrap().lanes[1].waiting, 1);
}

pub async fn the_same_key_of_two_tenants_is_two_jobs(s: &Subject) {
    let mut other = keyed("another", "two-tenants");
    other.tenant = "other".parse().unwrap();
    let (first, second) = (s.add(keyed("q", "two-tenants")).await, s.add(other).await);
    assert_ne!(first.id, second.id);
    assert!(!second.duplicate);
}

pub async fn a_key_tells_whether_its_job_is_parked(s: &Subject) {
    let mut later = keyed("q", "parked");
    later.not_before = Some(far());
    assert!(!s.add(later.clone()).await.duplicate);
    let again = s.add(later).await;
    assert!(again.duplicate && again.parked);
    assert_eq!(s.depth(&s.partition).await.unwrap().parked, 1);
    s.cancel(again.id).await.unwrap();
    let mut later = keyed("q", "parked");
    later.not_before = Some(far());
    assert!(!s.add(later).await.parked, "it is over");
}

pub async fn a_key_tells_whether_its_job_waits_for_a_retry(s: &Subject) {
    let me = worker("a");
    s.add(keyed("q", "tried")).await;
    let attempt = begun(s.begin(&s.claim(&me).await, &me).await.unwrap());
    assert!(!s.add(keyed("q", "tried")).await.parked, "it runs");
    s.retry(&attempt, Duration::from_hours(1)).await;
    let again = s.add(keyed("q", "tried")).await;
    assert!(again.duplicate && again.parked);
}

pub async fn a_key_of_a_finished_job_adds_nothing(s: &Subject) {
    let me = worker("a");
    let first = s.add(keyed("q", "finished")).await;
    let entry = s.claim(&me).await;
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    s.finish(&attempt, 1).await;
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    let again = s.add(keyed("q", "finished")).await;
    assert_eq!((again.id, again.duplicate, again.parked), (first.id, true, false));
    assert!(s.claim_all(Lane::Normal, &me).await.is_empty());
}

pub async fn sixteen_enqueues_of_one_key_run_once(s: &Subject) {
    let tasks = (0..16).map(|_| {
        let (broker, submission) = (s.shared(), s.submission(keyed("q", "sixteen")));
        tokio::spawn(async move { broker.enqueue(&[submission]).await.remove(0).unwrap() })
    });
    let receipts: Vec<_> =
        soon(join_all(tasks)).await.into_iter().map(|receipt| receipt.unwrap()).collect();
    let ids: BTreeSet<JobId> = receipts.iter().map(|receipt| receipt.id).collect();
    assert_eq!(ids.len(), 1);
    assert!(receipts.iter().any(|receipt| !receipt.duplicate));
    // Callers that overlap may each add an entry; one of them opens the only attempt.
    let mut attempts = Vec::new();
    for entry in s.claim_all(Lane::Normal, &worker("a")).await {
        match s.begin(&entry, &worker("b")).await.unwrap() {
            Begin::Begun(attempt) => attempts.push(attempt),
            other => assert_eq!(other, Begin::Remove),
        }
    }
    assert_eq!(attempts.len(), 1);
    assert_eq!(s.kinds(receipts[0].id).await, ["started"]);
}

pub async fn trim_keeps_everything_unread_or_pending(s: &Subject) {
    assert_eq!(s.trim(&s.partition, Lane::Normal).await.unwrap(), 0);
    for n in 0..6 {
        s.add(job(&n.to_string())).await;
    }
    let mut reader = s.reader(&worker("a")).await;
    let entries = reader.read(Lane::Normal, 4).await.unwrap();
    // 0 and 1 are acknowledged, 2 is pending, 3 acknowledged behind it, 4 and 5 are unread.
    let mut left = 0;
    for index in [0, 1, 3] {
        left += u64::from(s.ack_only(&entries[index].place));
    }
    let removed = s.trim(&s.partition, Lane::Normal).await.unwrap();
    assert_eq!(removed, if left == 3 { 2 } else { 0 });
    assert_eq!(s.trim(&s.partition, Lane::Normal).await.unwrap(), 0);
    let pending = reader.pending().await.unwrap();
    assert!(pending.iter().any(|entry| entry.id == entries[2].id && entry.job.is_ok()));
    let unread = reader.read(Lane::Normal, 9).await.unwrap();
    assert_eq!(unread.len(), 2);
    for entry in pending.iter().chain(&unread) {
        s.ack_only(&entry.place);
    }
    s.add(job("new")).await;
    s.trim(&s.partition, Lane::Normal).await.unwrap();
    assert_eq!(reader.read(Lane::Normal, 9).await.unwrap().len(), 1);
}
