//! What is kept for each tenant: its recent jobs, and its bucket of requests.

use std::time::Duration;

use futures_util::future::join_all;
use millstream::{
    broker::{Rate, Recent},
    job::{Job, JobId, Tenant, Timestamp},
};

use crate::support::subject::{Subject, job, soon};

/// A tenant that no other behaviour uses.
fn tenant(s: &Subject, name: &str) -> Tenant {
    let text = format!("{name}-{}", s.partition.queue);
    text.chars().take(64).collect::<String>().parse().unwrap()
}

/// Adds a job of a tenant for each of these times and notes them, in one batch.
async fn noted(s: &Subject, tenant: &Tenant, times: &[u64]) -> Vec<(JobId, Timestamp)> {
    let mut jobs = Vec::new();
    for at in times {
        let id = s.add(Job { tenant: tenant.clone(), ..job("q") }).await.id;
        jobs.push((id, Timestamp(*at)));
    }
    s.note(tenant, &jobs).await.unwrap();
    jobs
}

async fn page(s: &Subject, tenant: &Tenant, before: Option<JobId>, most: usize) -> Vec<JobId> {
    match s.recent(tenant, before, most).await.unwrap() {
        Recent::Jobs(jobs) => jobs,
        Recent::Unknown => panic!("{before:?} is not known"),
    }
}

pub async fn recent_jobs_come_newest_first(s: &Subject) {
    let [mine, other] = ["mine", "other"].map(|name| tenant(s, name));
    assert_eq!(page(s, &mine, None, 9).await, []);
    s.note(&mine, &[]).await.unwrap();
    let mut all = noted(s, &mine, &[30, 10, 20]).await;
    all.extend(noted(s, &mine, &[20, 20, 25]).await);
    noted(s, &other, &[27]).await;
    all.sort_by_key(|(id, at)| std::cmp::Reverse((*at, *id)));
    let all: Vec<JobId> = all.into_iter().map(|(id, _)| id).collect();
    assert_eq!(page(s, &mine, None, usize::MAX).await, all);
    assert_eq!(page(s, &mine, None, 4).await, all[..4]);
    assert_eq!(page(s, &mine, None, 0).await, []);
}

pub async fn a_page_follows_a_job_and_says_where_that_is_unknown(s: &Subject) {
    let [mine, other] = ["mine", "other"].map(|name| tenant(s, name));
    noted(s, &mine, &[5, 5, 5, 6, 7]).await;
    let theirs = noted(s, &other, &[5]).await[0].0;
    let all = page(s, &mine, None, 9).await;
    for (at, job) in all.iter().enumerate() {
        assert_eq!(page(s, &mine, Some(*job), 9).await, all[at + 1..]);
    }
    assert_eq!(page(s, &mine, Some(all[0]), 2).await, all[1..3]);
    assert_eq!(page(s, &mine, Some(all[0]), 0).await, []);
    for unknown in [theirs, JobId::new()] {
        assert_eq!(s.recent(&mine, Some(unknown), 9).await.unwrap(), Recent::Unknown);
    }
    let nobody = tenant(s, "nobody");
    assert_eq!(s.recent(&nobody, Some(theirs), 9).await.unwrap(), Recent::Unknown);
}

pub async fn a_job_noted_again_moves(s: &Subject) {
    let mine = tenant(s, "mine");
    let [(first, _), (second, _)] = noted(s, &mine, &[1, 2]).await[..] else { panic!("two jobs") };
    s.note(&mine, &[(first, Timestamp(3))]).await.unwrap();
    assert_eq!(page(s, &mine, None, 9).await, [first, second]);
    assert_eq!(page(s, &mine, Some(first), 9).await, [second]);
}

pub async fn a_burst_is_admitted_and_then_one_token_at_a_time(s: &Subject) {
    let [mine, other] = ["mine", "other"].map(|name| tenant(s, name));
    // No token comes while the test runs.
    let rate = Rate { per_minute: 1, burst: 3 };
    let minute = Duration::from_mins(1);
    for _ in 0..3 {
        assert_eq!(s.admit(&mine, &rate).await.unwrap(), None);
    }
    for _ in 0..2 {
        let wait = s.admit(&mine, &rate).await.unwrap().expect("the bucket is empty");
        assert!(wait <= minute && wait > minute / 2, "{wait:?}");
    }
    assert_eq!(s.admit(&other, &rate).await.unwrap(), None);
}

pub async fn many_requests_are_admitted_together_or_not_at_all(s: &Subject) {
    let [mine, other] = ["mine", "other"].map(|name| tenant(s, name));
    let rate = Rate { per_minute: 1, burst: 5 };
    assert_eq!(s.admit_many(&mine, &rate, 3).await.unwrap(), None);
    let minute = Duration::from_mins(1);
    let wait = s.admit_many(&mine, &rate, 3).await.unwrap().expect("two are left");
    assert!(wait <= minute && wait > minute / 2, "{wait:?}");
    assert_eq!(s.admit_many(&mine, &rate, 2).await.unwrap(), None);
    // Of more than there can be, as many as there can be.
    assert_eq!(s.admit_many(&other, &rate, 9).await.unwrap(), None);
    let wait = s.admit(&other, &rate).await.unwrap().expect("the bucket is empty");
    assert!(wait <= minute, "{wait:?}");
}

pub async fn a_refused_tenant_is_admitted_when_it_was_told(s: &Subject) {
    let mine = tenant(s, "mine");
    let rate = Rate { per_minute: 300, burst: 1 };
    let wait = soon(async {
        loop {
            if let Some(wait) = s.admit(&mine, &rate).await.unwrap() {
                return wait;
            }
        }
    })
    .await;
    assert!(wait <= Duration::from_millis(200), "{wait:?}");
    tokio::time::sleep(wait).await;
    assert_eq!(s.admit(&mine, &rate).await.unwrap(), None);
}

pub async fn those_who_ask_at_once_share_one_bucket(s: &Subject) {
    let mine = tenant(s, "mine");
    let rate = Rate { per_minute: 1, burst: 10 };
    let asked = (0..40).map(|_| {
        let (broker, mine) = (s.shared(), mine.clone());
        tokio::spawn(async move { broker.admit(&mine, &rate).await.unwrap() })
    });
    let answers = join_all(asked).await;
    let admitted = answers.into_iter().filter(|answer| answer.as_ref().unwrap().is_none());
    assert_eq!(admitted.count(), 10);
}

pub async fn a_new_rate_holds_at_once(s: &Subject) {
    let mine = tenant(s, "mine");
    // Full again in ten minutes, at this rate.
    let slow = Rate { per_minute: 1, burst: 10 };
    for _ in 0..10 {
        assert_eq!(s.admit(&mine, &slow).await.unwrap(), None);
    }
    let quick = Rate { per_minute: 300, burst: 5 };
    let wait = s.admit(&mine, &quick).await.unwrap().expect("the bucket is empty");
    assert!(wait <= Duration::from_millis(200), "{wait:?}");
    tokio::time::sleep(wait).await;
    assert_eq!(s.admit(&mine, &quick).await.unwrap(), None);
}
