//! Bounds of a queue: who is refused, what counts, and when it is given back.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use millstream::{
    broker::{
        Begin, Cancel, Correction, Counted, DeadLetter, Error, Limits, Load, Receipt, Result,
        Spent, redis::keys::Keys,
    },
    job::{Job, Labels, Lane},
};

use crate::support::subject::{Subject, begun, failure, far, job, worker};

fn jobs(max_jobs: u64) -> Limits {
    Limits { max_jobs, ..Limits::default() }
}

/// Many: what counts is looked at, and nobody is refused.
fn counting() -> Limits {
    jobs(1_000_000)
}

async fn counted(s: &Subject) -> (u64, u64) {
    let Counted { jobs, bytes, .. } = s.depth(&s.partition).await.unwrap().load;
    (jobs, bytes)
}

fn of(tenant: &str, question: &str) -> Job {
    Job { tenant: tenant.parse().unwrap(), ..job(question) }
}

fn bytes(s: &Subject, job: &Job) -> u64 {
    s.submission(job.clone()).payload.len() as u64
}

fn full(result: Result<Receipt>) -> String {
    match result {
        Err(error @ Error::Full { retry_after, .. }) => {
            assert!(retry_after > Duration::ZERO);
            assert_eq!((error.code(), error.is_transient()), ("queue_full", true));
            error.to_string()
        }
        other => panic!("not refused as full: {other:?}"),
    }
}

/// Which of a batch are accepted.
fn accepted(results: Vec<Result<Receipt>>) -> Vec<bool> {
    let each = results.into_iter().map(|result| match result {
        Ok(_) => true,
        refused => full(refused).is_empty(),
    });
    each.collect()
}

/// Claims everything in the normal lane and ends it.
async fn end_all(s: &Subject) {
    let entries = s.claim_all(Lane::Normal, &worker("ender")).await;
    s.remove(&entries.iter().map(Spent::from).collect::<Vec<_>>()).await.unwrap();
}

pub async fn a_full_queue_refuses_and_keeps_what_it_has(s: &Subject) {
    let s = s.limited(jobs(3)).await;
    let ids = [s.add(job("a")).await.id, s.add(job("b")).await.id, s.add(job("c")).await.id];
    let text = full(s.try_add(job("d")).await);
    let queue = &s.partition.queue;
    assert!(text.contains(&format!("queue full: queue `{queue}` holds 3 jobs")), "{text}");
    assert!(text.contains(".limits.max_jobs is 3"), "{text}");
    // In a worker's hands they are held as before.
    let entries = s.claim_all(Lane::Normal, &worker("a")).await;
    assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), ids);
    full(s.try_add(job("d")).await);
    s.remove(&[Spent::from(&entries[1])]).await.unwrap();
    s.add(job("d")).await;
    full(s.try_add(job("e")).await);
}

pub async fn bytes_are_bounded_and_a_smaller_job_still_fits(s: &Subject) {
    let (small, large) = (job("s"), job(&"l".repeat(500)));
    let max_bytes = bytes(s, &large) + bytes(s, &small);
    let s = s.limited(Limits { max_bytes, ..Limits::default() }).await;
    s.add(large.clone()).await;
    let text = full(s.try_add(large.clone()).await);
    assert!(text.contains(&format!("holds {} bytes", bytes(&s, &large))), "{text}");
    assert!(text.contains(&format!(".limits.max_bytes is {max_bytes}")), "{text}");
    full(s.try_add(job("sm")).await);
    s.add(small.clone()).await;
    assert_eq!(counted(&s).await, (2, max_bytes), "full to the byte");
    full(s.try_add(small).await);
    end_all(&s).await;
    assert_eq!(counted(&s).await, (0, 0));
    s.add(large).await;
}

pub async fn a_tenant_is_bounded_and_the_others_go_on(s: &Subject) {
    let s = s.limited(Limits { max_jobs_per_tenant: 2, ..Limits::default() }).await;
    for _ in 0..2 {
        s.add(of("acme", "q")).await;
    }
    let text = full(s.try_add(of("acme", "q")).await);
    assert!(text.contains("holds 2 jobs of tenant `acme`"), "{text}");
    assert!(text.contains(".limits.max_jobs_per_tenant is 2"), "{text}");
    s.add(of("other", "q")).await;
    end_all(&s).await;
    s.add(of("acme", "q")).await;
    assert_eq!(counted(&s).await.0, 1);
}

pub async fn a_batch_is_decided_job_by_job(s: &Subject) {
    let large = of("b", &"l".repeat(500));
    let max_bytes = bytes(s, &large) * 2;
    let s = s.limited(Limits { max_jobs: 5, max_bytes, max_jobs_per_tenant: 2 }).await;
    let batch = [
        (of("a", "1"), true),
        (of("a", "2"), true),
        (of("a", "3"), false), // the third of its tenant
        (large.clone(), true),
        (large, false), // too large for what is left
        (of("b", "6"), true),
        (Job { not_before: Some(far()), ..of("c", "7") }, true),
        (of("d", "8"), false), // the sixth
        (Job { not_before: Some(far()), ..of("d", "9") }, false),
    ];
    let submissions: Vec<_> = batch.iter().map(|(job, _)| s.submission(job.clone())).collect();
    let expected: Vec<bool> = batch.iter().map(|(_, fits)| *fits).collect();
    assert_eq!(accepted(s.enqueue(&submissions).await), expected);
    let depth = s.depth(&s.partition).await.unwrap();
    assert_eq!((depth.lanes[1].waiting, depth.parked, depth.load.jobs), (4, 1, 5));
    let entries = s.claim_all(Lane::Normal, &worker("a")).await;
    let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [0, 1, 3, 5].map(|at: usize| submissions[at].id), "in order");
    // What is refused leaves nothing behind.
    for at in [2, 4, 7, 8] {
        assert_eq!(s.job(submissions[at].id).await.unwrap(), None);
    }
}

pub async fn in_order_nothing_overtakes_what_was_refused(s: &Subject) {
    let s = s.limited(Limits { max_jobs_per_tenant: 1, ..Limits::default() }).await;
    let mut batch: Vec<_> = ["a", "a", "b", "c"].map(|tenant| s.submission(of(tenant, "q"))).into();
    batch.push(s.submission(Job { not_before: Some(far()), ..of("d", "q") }));
    batch[3].partition = s.second.clone();
    let refused = accepted(s.enqueue_in_order(&batch).await);
    assert_eq!(refused, [true, false, false, true, false], "the other partition goes on");
    end_all(&s).await;
    let rest = [batch[1].clone(), batch[2].clone(), batch[4].clone()];
    assert_eq!(accepted(s.enqueue_in_order(&rest).await), [true; 3]);
    assert_eq!(
        accepted(s.enqueue(&[batch[1].clone(), s.submission(of("e", "q"))]).await),
        [false, true]
    );
}

pub async fn each_queue_has_its_own_bound(s: &Subject) {
    let s = s.limited(jobs(1)).await;
    s.add(job("a")).await;
    full(s.try_add(job("b")).await);
    let mut elsewhere = s.submission(job("c"));
    elsewhere.partition = s.second.clone();
    let batch = [s.submission(job("d")), elsewhere.clone(), elsewhere];
    assert_eq!(accepted(s.enqueue(&batch).await), [false, true, false]);
    assert_eq!(s.depth(&s.second).await.unwrap().load.jobs, 1);
}

pub async fn a_count_is_given_back_once(s: &Subject) {
    let s = s.limited(counting()).await;
    let all: Vec<Job> = (0..6).map(|n| of(&format!("t{}", n % 2), &"x".repeat(n))).collect();
    let sum: u64 = all.iter().map(|job| bytes(&s, job)).sum();
    let batch: Vec<_> = all.into_iter().map(|job| s.submission(job)).collect();
    assert_eq!(accepted(s.enqueue(&batch).await), [true; 6]);
    assert_eq!(counted(&s).await, (6, sum));
    let me = worker("a");
    let entries = s.claim_all(Lane::Normal, &me).await;
    let spent: Vec<Spent> = entries.iter().map(Spent::from).collect();
    assert_eq!(spent[0].load.as_ref().unwrap().bytes, batch[0].payload.len() as u64);
    s.remove(&spent[..2]).await.unwrap();
    // Repeated after a lost reply, alone and among others.
    s.remove(&spent[..2]).await.unwrap();
    s.remove(&spent[1..4]).await.unwrap();
    let left: u64 = batch[4..].iter().map(|submission| submission.payload.len() as u64).sum();
    assert_eq!(counted(&s).await, (2, left));
    let letter = DeadLetter::new(&entries[0], failure("no"), 1, 1);
    assert!(!s.bury(&entries[0], &letter).await.unwrap());
    assert!(!s.park(&entries[0], 1, far()).await.unwrap());
    assert_eq!(counted(&s).await, (2, left));
    s.remove(&spent).await.unwrap();
    assert_eq!(counted(&s).await, (0, 0));
    assert!(s.reconcile(&s.partition).await.unwrap().is_none());
    assert!(s.reader(&me).await.pending().await.unwrap().is_empty());
}

pub async fn a_buried_job_counts_no_more(s: &Subject) {
    let s = s.limited(Limits { max_jobs_per_tenant: 1, ..Limits::default() }).await;
    s.add(of("acme", "q")).await;
    let entry = s.claim(&worker("a")).await;
    let letter = DeadLetter::new(&entry, failure("no"), 1, 1);
    assert!(s.bury(&entry, &letter).await.unwrap());
    assert_eq!(counted(&s).await, (0, 0));
    assert!(!s.bury(&entry, &letter).await.unwrap());
    s.add(of("acme", "q")).await;
    // Nor does the letter say that it counts: who adds its fields again adds what nobody counted.
    let kept = s.dead_letters(&s.partition, 9).await.unwrap().remove(0);
    assert_eq!(kept, DeadLetter { letter: kept.letter.clone(), ..letter });
    let fields: Vec<(&str, &[u8])> = kept
        .fields
        .iter()
        .map(|(name, value)| (std::str::from_utf8(name).unwrap(), value.as_slice()))
        .collect();
    s.add_raw(Lane::High, &fields);
    let again = s.claim_all(Lane::High, &worker("a")).await.remove(0);
    assert_eq!((again.id, &again.load), (entry.id, &None));
}

pub async fn a_retried_job_counts_all_along(s: &Subject) {
    let s = s.limited(counting()).await;
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    let before = counted(&s).await;
    assert_eq!(before, (1, entry.payload().len() as u64));
    s.retry(&attempt, Duration::from_millis(1)).await;
    let Begin::Park { attempt, due } = s.begin(&entry, &me).await.unwrap() else {
        panic!("not to be parked")
    };
    assert!(s.park(&entry, attempt, due).await.unwrap());
    assert_eq!(counted(&s).await, before, "parked");
    s.promote_until(1).await;
    assert_eq!(counted(&s).await, before, "promoted");
    let again = s.claim(&me).await;
    assert_eq!((&again.load, again.attempt), (&entry.load, 1));
    assert_eq!(again.payload(), entry.payload());
    assert!(s.reconcile(&s.partition).await.unwrap().is_none());
    s.remove(&[Spent::from(&again)]).await.unwrap();
    assert_eq!(counted(&s).await, (0, 0));
}

pub async fn a_scheduled_job_counts_from_its_enqueue(s: &Subject) {
    let s = s.limited(jobs(1)).await;
    let due = millstream::job::Timestamp::now().after(Duration::from_secs(1));
    let receipt = s.add(Job { not_before: Some(due), ..job("later") }).await;
    assert!(receipt.parked);
    full(s.try_add(job("now")).await);
    full(s.try_add(Job { not_before: Some(far()), ..job("much later") }).await);
    assert_eq!(s.depth(&s.partition).await.unwrap().parked, 1);
    s.promote_until(1).await;
    full(s.try_add(job("now")).await);
    assert!(s.reconcile(&s.partition).await.unwrap().is_none());
    let entry = s.claim(&worker("a")).await;
    let attempt = begun(s.begin(&entry, &worker("a")).await.unwrap());
    assert_eq!((attempt.job, attempt.number), (receipt.id, 1));
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    s.add(job("now")).await;
}

pub async fn a_cancelled_parked_job_counts_no_more(s: &Subject) {
    let s = &s.limited(jobs(1)).await;
    let id = s.add(Job { not_before: Some(far()), ..job("later") }).await.id;
    assert_eq!(counted(s).await.0, 1);
    for _ in 0..2 {
        millstream::admin::Admin::new(s.shared()).cancel(id).await.unwrap();
        assert_eq!(counted(s).await, (0, 0));
    }
    s.add(job("there is room")).await;
}

/// Guards against a parked job that cannot be read and counts for ever, however it ends.
pub async fn a_parked_job_that_cannot_be_read_counts_until_it_ends(s: &Subject) {
    let s = s.limited(counting()).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(s.add(Job { not_before: Some(far()), ..job(&n.to_string()) }).await.id);
    }
    let torn = "normal,1,load=default,{torn";
    for id in &ids {
        if s.ask(&format!("HSET KEY {id} {torn}"), |keys| keys.parked_jobs(&s.partition)).is_none()
        {
            return;
        }
    }
    assert_eq!(counted(&s).await.0, 3);
    let correction = s.reconcile(&s.partition).await.unwrap();
    assert_eq!((correction.jobs, correction.tenants), (0, 0), "it still counts");
    // One is cancelled, one is buried, one is removed.
    s.cancel(ids[0]).await.unwrap();
    assert!(s.unpark(&s.partition, ids[0], 1).await.unwrap());
    assert_eq!(counted(&s).await.0, 2);
    s.ask(&format!("ZADD KEY 1 {}", ids[1]), |keys| keys.parked(&s.partition));
    s.promote_until(1).await;
    let entry = s.claim(&worker("a")).await;
    let load = entry.load.as_ref().unwrap();
    assert_eq!((load.tenant.as_str(), load.bytes), ("default", torn.len() as u64));
    s.bury(&entry, &DeadLetter::new(&entry, failure("no"), 0, 1)).await.unwrap();
    assert_eq!(counted(&s).await, (1, torn.len() as u64));
    s.ask(&format!("ZADD KEY 1 {}", ids[2]), |keys| keys.parked(&s.partition));
    s.promote_until(1).await;
    let entry = s.claim(&worker("a")).await;
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    assert_eq!(counted(&s).await, (0, 0));
}

pub async fn a_parked_copy_that_is_replaced_counts_no_more(s: &Subject) {
    let s = s.limited(counting()).await;
    let (entry, attempt) = s.running(&worker("a")).await;
    let one = counted(&s).await.1;
    let job = Job { not_before: Some(far()), ..entry.job.clone().unwrap() };
    let stale = millstream::broker::Submission { id: entry.id, ..s.submission(job) };
    for _ in 0..2 {
        // The second finds the first, and changes nothing.
        assert!(s.enqueue(std::slice::from_ref(&stale)).await.remove(0).unwrap().parked);
        assert_eq!(counted(&s).await, (2, one + stale.payload.len() as u64));
    }
    s.retry(&attempt, Duration::from_millis(1)).await;
    let again = s.promoted(&entry).await;
    assert_eq!(counted(&s).await, (1, one));
    assert!(s.reconcile(&s.partition).await.unwrap().is_none());
    s.remove(&[Spent::from(&again)]).await.unwrap();
    assert_eq!(counted(&s).await, (0, 0));
}

pub async fn a_taken_over_entry_still_says_what_it_counts(s: &Subject) {
    let s = s.limited(counting()).await;
    let (me, other) = (worker("a"), worker("b"));
    s.add(of("acme", "q")).await;
    let entry = s.claim(&me).await;
    assert!(s.release(&me, &entry.place, None).await.unwrap());
    let lease = Duration::from_hours(1);
    let swept = s
        .sweep(
            &s.partition,
            &other,
            &millstream::broker::Sweep { lease, most: 9, ask: false, deliveries: 9 },
        )
        .await
        .unwrap();
    let load = Load { tenant: "acme".parse().unwrap(), bytes: entry.payload().len() as u64 };
    assert_eq!((swept.entries.len(), &swept.entries[0].load), (1, &Some(load)));
    let pending = s.reader(&other).await.pending().await.unwrap();
    assert_eq!((pending.len(), &pending[0].load), (1, &swept.entries[0].load));
}

fn keyed(question: &str, key: &str) -> Job {
    Job { idempotency_key: Some(key.to_owned()), ..job(question) }
}

pub async fn a_duplicate_is_not_counted(s: &Subject) {
    let s = s.limited(jobs(2)).await;
    let key = keyed("q", &s.partition.to_string());
    s.add(key.clone()).await;
    for _ in 0..3 {
        assert!(s.add(key.clone()).await.duplicate);
    }
    assert_eq!(counted(&s).await, (1, bytes(&s, &key)));
    let later = keyed("later", &format!("{} later", s.partition));
    let batch = [
        s.submission(key.clone()),
        s.submission(Job { not_before: Some(far()), ..later.clone() }),
        s.submission(later.clone()),
        s.submission(job("one too many")),
    ];
    let results = s.enqueue(&batch).await;
    let duplicates: Vec<_> = results.iter().flatten().map(|receipt| receipt.duplicate).collect();
    assert_eq!(duplicates, [true, false, true]);
    // At a full queue, too, it is told that it is there.
    assert!(s.add(key).await.duplicate && s.add(later).await.duplicate);
    assert_eq!(counted(&s).await.0, 2);
}

pub async fn a_refused_key_can_be_tried_again(s: &Subject) {
    let s = s.limited(jobs(1)).await;
    s.add(job("first")).await;
    let key = keyed("q", &s.partition.to_string());
    let batch = [s.submission(key.clone()), s.submission(key.clone())];
    for result in s.enqueue(&batch).await {
        full(result);
    }
    end_all(&s).await;
    let receipt = s.add(key.clone()).await;
    assert!(!receipt.duplicate);
    assert_eq!(s.claim(&worker("a")).await.id, receipt.id);
    assert!(s.add(key).await.duplicate);
}

/// Guards against records of refused requests that pile up in a full queue's Redis, and that readers
/// are shown as jobs which wait.
pub async fn a_refused_key_leaves_nothing_behind(s: &Subject) {
    let s = s.limited(jobs(1)).await;
    let there = s.submission(keyed("there", &format!("{} there", s.partition)));
    assert!(s.enqueue(std::slice::from_ref(&there)).await.remove(0).is_ok());
    let kept = s.ttl(there.id).await.unwrap();
    let labels = (0..16).map(|n| (n.to_string(), "v".repeat(256))).collect();
    let job = Job { labels: Labels(labels), ..keyed("q", &s.partition.to_string()) };
    let refused = s.submission(job);
    for _ in 0..2 {
        full(s.enqueue(std::slice::from_ref(&refused)).await.remove(0));
        assert_eq!(s.job(refused.id).await.unwrap(), None, "it is shown as a job");
        assert_eq!(s.cancel(refused.id).await.unwrap(), Cancel::Unknown);
        let left = s.ttl(refused.id).await.unwrap();
        assert!(left.is_none_or(|left| left <= Duration::from_secs(5)), "{left:?}");
        let fields = s.ask("HLEN KEY", |keys| keys.job(refused.id));
        assert!(fields.is_none_or(|fields| fields == "1"), "more than the reservation is left");
    }
    // A job that is there has its record as before, though its repeat finds no room.
    assert!(s.enqueue(std::slice::from_ref(&there)).await.remove(0).unwrap().duplicate);
    let left = s.ttl(there.id).await.unwrap();
    assert!(kept.zip(left).is_none_or(|(kept, left)| left + Duration::from_mins(1) > kept));
    end_all(&s).await;
    assert!(!s.enqueue(std::slice::from_ref(&refused)).await.remove(0).unwrap().duplicate);
    let record = s.job(refused.id).await.unwrap().unwrap();
    assert_eq!(record.labels, refused.job.labels);
    let kept = s.ttl(refused.id).await.unwrap();
    assert!(kept.is_none_or(|kept| kept > Duration::from_hours(1)), "{kept:?}");
}

/// Guards against counters that stay too high: a full server deleted the entry and then refused to count.
pub async fn what_leaves_a_full_server_counts_no_more(s: &Subject) {
    let limits = Limits { max_jobs: 9, ..Limits::default() };
    let s = &s.limited(limits).await;
    let later = Job { not_before: Some(far()), ..job("later") };
    let parked = s.add(later).await.id;
    s.add(job("now")).await;
    let entry = s.claim(&worker("a")).await;
    if s.ask("CONFIG SET maxmemory 1", |_| String::new()).is_none() {
        return;
    }
    s.remove(&[Spent::from(&entry)]).await.unwrap();
    assert!(s.unpark(&s.partition, parked, 1).await.unwrap());
    assert_eq!(s.depth(&s.partition).await.unwrap().load, Counted::default());
    s.ask("CONFIG SET maxmemory 0", |_| String::new());
}

pub async fn what_nobody_counted_weighs_nothing(s: &Subject) {
    let s = s.limited(jobs(1)).await;
    for _ in 0..3 {
        s.add_raw(Lane::Normal, &[("job", br#"{"model":"m","messages":[{}]}"#)]);
    }
    s.add(job("q")).await;
    assert_eq!(counted(&s).await.0, 1);
    let me = worker("a");
    let entries = s.claim_all(Lane::Normal, &me).await;
    let marks: Vec<bool> = entries.iter().map(|entry| entry.load.is_some()).collect();
    assert_eq!(marks, [false, false, false, true]);
    let letter = DeadLetter::new(&entries[0], failure("no"), 1, 1);
    assert!(s.bury(&entries[0], &letter).await.unwrap());
    s.remove(&[Spent::from(&entries[1])]).await.unwrap();
    assert!(s.park(&entries[2], 1, millstream::job::Timestamp(1)).await.unwrap());
    s.promote_until(1).await;
    let again = s.claim(&me).await;
    assert_eq!(again.load, None);
    s.remove(&[Spent::from(&again)]).await.unwrap();
    assert_eq!(counted(&s).await.0, 1);
    full(s.try_add(job("r")).await);
    s.remove(&[Spent::from(&entries[3])]).await.unwrap();
    assert_eq!(counted(&s).await, (0, 0));
}

pub async fn producers_at_work_together_never_pass_a_bound(s: &Subject) {
    const MOST: u64 = 20;
    let s = s.limited(jobs(MOST)).await;
    let (entered, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let produce = async |name: usize| {
        for round in 0..40 {
            let tenant = format!("t{name}");
            let batch: Vec<_> =
                (0..5).map(|n| s.submission(of(&tenant, &format!("{round} {n}")))).collect();
            for accepted in accepted(s.enqueue(&batch).await) {
                let tally = if accepted { &entered } else { &refused };
                tally.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let drain = async {
        let (me, mut ended) = (worker("drain"), 0);
        let mut reader = s.reader(&me).await;
        loop {
            let was_over = over.load(Ordering::Relaxed);
            let entries = reader.read(Lane::Normal, 7).await.unwrap();
            if entries.is_empty() && was_over {
                return ended;
            }
            let depth = s.depth(&s.partition).await.unwrap();
            let held = depth.lanes[1].waiting + depth.lanes[1].pending;
            assert!(held <= MOST && depth.load.jobs <= MOST, "{depth:?}");
            s.remove(&entries.iter().map(Spent::from).collect::<Vec<_>>()).await.unwrap();
            ended += entries.len() as u64;
        }
    };
    let producers = async {
        join_all((0..4).map(produce)).await;
        over.store(true, Ordering::Relaxed);
    };
    let ((), ended) = tokio::join!(producers, drain);
    assert_eq!(ended, entered.load(Ordering::Relaxed));
    assert_eq!(ended + refused.load(Ordering::Relaxed), 4 * 40 * 5);
    assert!(refused.load(Ordering::Relaxed) > 0, "the bound was never met");
    assert_eq!(counted(&s).await, (0, 0));
    assert!(s.reconcile(&s.partition).await.unwrap().is_none());
}

pub async fn a_recount_sets_the_counters_right(s: &Subject) {
    let s = s.limited(counting()).await;
    assert!(s.reconcile(&s.partition).await.unwrap().is_none(), "nothing is there");
    assert!(s.mend(&s.partition).await.unwrap().is_none());
    for tenant in ["a", "a", "b"] {
        s.add(of(tenant, "q")).await;
    }
    s.add(Job { not_before: Some(far()), ..of("c", "q") }).await;
    let before = counted(&s).await;
    assert!(s.mend(&s.partition).await.unwrap().is_none());
    // A worker that knows nothing of counts ends two entries.
    let entries = s.claim_all(Lane::Normal, &worker("old")).await;
    let ended = &entries[1..];
    let unknown = ended.iter().map(|entry| Spent { load: None, ..Spent::from(entry) });
    s.remove(&unknown.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(counted(&s).await, before);
    let lost: u64 = ended.iter().map(|entry| entry.payload().len() as u64).sum();
    let bytes = -i64::try_from(lost).unwrap();
    let correction = s.mend(&s.partition).await.unwrap();
    assert_eq!(correction, Correction { jobs: -2, bytes, tenants: 2 });
    let load = s.depth(&s.partition).await.unwrap().load;
    assert_eq!(load, Counted { jobs: 2, bytes: before.1 - lost, corrected: 4 });
    assert!(s.mend(&s.partition).await.unwrap().is_none());
    assert!(s.reconcile(&s.partition).await.unwrap().is_none());
    assert_eq!(s.depth(&s.partition).await.unwrap().load, load, "a second one changes nothing");
    s.remove(&[Spent::from(&entries[0])]).await.unwrap();
    assert_eq!(counted(&s).await.0, 1);
}

/// Guards against counters that a recount could not set right to the byte, or that a stranger has left, and that
/// refuse jobs for ever at a queue in which there is nothing.
pub async fn where_nothing_is_held_nothing_counts(s: &Subject) {
    let s = s.limited(counting()).await;
    let load = |keys: &Keys| keys.load(&s.partition);
    for _ in 0..2 {
        s.add(of("acme", "q")).await;
    }
    s.ask("HINCRBY KEY bytes 7", load);
    let entries = s.claim_all(Lane::Normal, &worker("a")).await;
    s.remove(&[Spent::from(&entries[0])]).await.unwrap();
    let with = if s.ask("HGET KEY bytes", load).is_some() { 7 } else { 0 };
    assert_eq!(counted(&s).await, (1, bytes(&s, &of("acme", "q")) + with));
    s.remove(&[Spent::from(&entries[1])]).await.unwrap();
    assert_eq!(counted(&s).await, (0, 0));
    assert!(s.mend(&s.partition).await.unwrap().is_none());
    for (left, wrong) in [("bytes 9", (-9, 0)), ("t:ghost 2", (0, 1))] {
        let Some(_) = s.ask(&format!("HSET KEY {left}"), load) else { return };
        let correction = s.mend(&s.partition).await.unwrap();
        assert_eq!((correction.jobs, (correction.bytes, correction.tenants)), (0, wrong));
        assert!(s.mend(&s.partition).await.unwrap().is_none());
    }
    assert_eq!(s.ask("HEXISTS KEY t:ghost", load).unwrap(), "0");
    assert_eq!(counted(&s).await, (0, 0));
}

pub async fn what_nobody_counted_asks_for_no_recount(s: &Subject) {
    let s = s.limited(counting()).await;
    s.add(of("acme", "counted")).await;
    let places: Vec<_> = (0..3)
        .map(|_| s.add_raw(Lane::Normal, &[("job", br#"{"model":"m","messages":[{}]}"#)]))
        .collect();
    // A counter of bytes that is wrong is found by whoever reads the jobs, and by nobody else.
    let set = s.ask("HINCRBY KEY bytes 7", |keys| keys.load(&s.partition));
    assert!(s.mend(&s.partition).await.unwrap().is_none(), "the jobs were read");
    let bytes = if set.is_some() { -7 } else { 0 };
    let correction = s.reconcile(&s.partition).await.unwrap();
    assert_eq!(correction, Correction { bytes, ..Correction::default() });
    // An entry that counts goes without a word, and the others hide it until they go.
    let me = worker("old");
    let entries = s.claim_all(Lane::Normal, &me).await;
    assert_eq!(
        entries.iter().skip(1).map(|e| &e.place).collect::<Vec<_>>(),
        Vec::from_iter(&places)
    );
    for (left, entry) in entries.iter().enumerate() {
        assert!(s.mend(&s.partition).await.unwrap().is_none(), "after {left}");
        s.remove(&[Spent { load: None, ..Spent::from(entry) }]).await.unwrap();
    }
    let all = join_all((0..4).map(|_| s.mend(&s.partition))).await;
    let jobs: i64 = all.into_iter().map(|correction| correction.unwrap().jobs).sum();
    assert_eq!((jobs, counted(&s).await), (-1, (0, 0)), "one of them counted");
}
