//! What operators see.

use std::time::Duration;

use millstream::{
    broker::{DeadLetter, Depth, LaneDepth, Spent, Window, Written},
    event::EventId,
    job::{Job, JobId, Lane, Tenant},
};

use crate::support::subject::{Subject, begun, failure, far, job, soon, worker};

pub async fn what_is_not_there_is_empty(s: &Subject) {
    s.ready().await.unwrap();
    assert_eq!(s.job(JobId::new()).await.unwrap(), None);
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth::default());
    assert_eq!(s.dead_letters(&s.partition, 9).await.unwrap(), []);
    assert_eq!(s.workers(&s.partition).await.unwrap(), []);
    assert_eq!(s.last(JobId::new()).await.unwrap(), None);
    assert_eq!(s.read(JobId::new(), EventId::START, 9).await.unwrap(), []);
}

/// What another tenant's job answered depended on the job.
pub async fn a_tenant_is_given_its_own_jobs_only(s: &Subject) {
    let [mine, other]: [Tenant; 2] = ["mine", "other"].map(|name| name.parse().unwrap());
    let id = s.add(Job { tenant: mine.clone(), ..job("q") }).await.id;
    let me = worker("a");
    let entry = s.claim_all(Lane::Normal, &me).await.remove(0);
    let attempt = begun(s.begin(&entry, &me).await.unwrap());
    let window = Window::of(9);
    let whole = s.open(id, EventId::START, window).await.unwrap();
    assert_eq!(whole.page.events.len(), 1);
    let own = s.open_for(&mine, id, EventId::START, window).await.unwrap().unwrap();
    assert_eq!((own.record, own.page), (whole.record.clone(), whole.page));
    let seen = EventId { fence: attempt.fence, seq: 0 };
    for after in [seen, EventId::END] {
        let own = s.open_for(&mine, id, after, window).await.unwrap().unwrap();
        assert!(own.record == whole.record && own.page.events.is_empty());
    }
    assert_eq!(s.job_for(&mine, id).await.unwrap(), whole.record);
    for (tenant, job) in [(&other, id), (&mine, JobId::new())] {
        assert!(s.open_for(tenant, job, EventId::START, window).await.unwrap().is_none());
        assert_eq!(s.job_for(tenant, job).await.unwrap(), None);
    }
}

pub async fn depth_follows_a_job_through_its_life(s: &Subject) {
    let me = worker("a");
    let lane = async |lane: Lane| s.depth(&s.partition).await.unwrap().lanes[lane.index()];
    for _ in 0..3 {
        s.add(job("q")).await;
    }
    assert_eq!(lane(Lane::Normal).await, LaneDepth { waiting: 3, pending: 0 });
    let entries = s.claim_all(Lane::Normal, &me).await;
    assert_eq!(lane(Lane::Normal).await, LaneDepth { waiting: 0, pending: 3 });
    assert_eq!(lane(Lane::High).await, LaneDepth::default());

    assert!(s.park(&entries[0], 1, far()).await.unwrap());
    let letter = DeadLetter::new(&entries[1], failure("no"), 1, 1);
    assert!(s.bury(&entries[1], &letter).await.unwrap());
    s.remove(&[Spent::from(&entries[2])]).await.unwrap();
    let expected = Depth { parked: 1, dead: 1, ..Depth::default() };
    assert_eq!(s.depth(&s.partition).await.unwrap(), expected);
}

pub async fn partitions_are_apart(s: &Subject) {
    let me = worker("a");
    let mut submission = s.submission(job("q"));
    submission.partition = s.second.clone();
    let id = s.enqueue(&[submission]).await.remove(0).unwrap().id;
    assert_eq!(s.depth(&s.partition).await.unwrap(), Depth::default());
    assert_eq!(s.depth(&s.second).await.unwrap().lanes[1].waiting, 1);
    assert!(s.claim_all(Lane::Normal, &me).await.is_empty());
    let mut reader = s.claimer(&s.second, &me).await.unwrap();
    let entry = reader.read(Lane::Normal, 1).await.unwrap().remove(0);
    assert_eq!((entry.id, &entry.place.partition), (id, &s.second));
    s.begin(&entry, &me).await.unwrap();
    assert_eq!(s.job(id).await.unwrap().unwrap().partition.as_ref(), Some(&s.second));
}

pub async fn workers_are_those_that_have_read(s: &Subject) {
    let (first, second) = (worker("first"), worker("second"));
    for _ in 0..3 {
        s.add(job("q")).await;
    }
    let entries = s.reader(&first).await.read(Lane::Normal, 2).await.unwrap();
    let seen = soon(async {
        loop {
            let [seen] = &s.workers(&s.partition).await.unwrap()[..] else { panic!("one worker") };
            // Idle time counts in milliseconds: the order below needs a difference.
            if seen.idle > Duration::from_millis(5) {
                return seen.clone();
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((seen.id.as_str(), seen.pending), (first.as_str(), 2));
    s.reader(&second).await.read(Lane::Normal, 1).await.unwrap();
    s.remove(&[Spent::from(&entries[0])]).await.unwrap();
    let workers = s.workers(&s.partition).await.unwrap();
    let seen: Vec<_> = workers.iter().map(|w| (w.id.as_str(), w.pending)).collect();
    assert_eq!(seen, [(second.as_str(), 1), (first.as_str(), 1)]);
}

pub async fn dead_letters_come_oldest_first(s: &Subject) {
    let me = worker("a");
    for _ in 0..3 {
        s.add(job("q")).await;
    }
    let mut letters = Vec::new();
    for entry in s.claim_all(Lane::Normal, &me).await {
        let letter = DeadLetter::new(&entry, failure(&entry.place.entry), 3, 7);
        assert!(s.bury(&entry, &letter).await.unwrap());
        letters.push(letter);
    }
    let found = s.dead_letters(&s.partition, 9).await.unwrap();
    for (letter, found) in letters.iter_mut().zip(&found) {
        assert!(found.buried_at() >= letter.at);
        letter.letter.clone_from(&found.letter);
    }
    assert_eq!(found, letters);
    let behind = s.shared().dead_letters(&s.partition, Some(&letters[0].letter), 1).await.unwrap();
    assert_eq!(behind, letters[1..2]);
    assert_eq!(s.dead_letters(&s.partition, 2).await.unwrap(), letters[..2]);
    assert_eq!(s.dead_letters(&s.second, 9).await.unwrap(), []);
}

pub async fn records_come_in_the_order_in_which_they_are_asked_for(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    let waiting = s.add(job("q")).await.id;
    let asked = [waiting, JobId::new(), attempt.job, waiting];
    let found = s.records(&asked).await.unwrap();
    let mut expected = Vec::new();
    for id in asked {
        expected.push(s.job(id).await.unwrap());
    }
    assert!(expected[0].is_some() && expected[1].is_none() && expected[2].is_some());
    assert_eq!(found, expected);
    assert_eq!(s.records(&[]).await.unwrap(), []);
}

/// Guards against one record of a newer version's state that holds up all the others of a batch, and with
/// them the acknowledgements of a worker after a reconnect.
pub async fn a_record_that_cannot_be_read_hides_no_other(s: &Subject) {
    let (strange, known) = (s.add(job("q")).await.id, s.add(job("q")).await.id);
    let other = JobId::new();
    if s.ask("HSET KEY state dreaming", |keys| keys.job(strange)).is_none() {
        return;
    }
    s.ask("SET KEY text", |keys| keys.job(other));
    let found = s.records(&[strange, other, known]).await.unwrap();
    assert_eq!(found, [None, None, s.job(known).await.unwrap()]);
    assert!(found[2].is_some() && s.job(strange).await.is_err());
}

pub async fn a_job_that_is_over_says_how_long_it_is_kept(s: &Subject) {
    let (_, attempt) = s.running(&worker("a")).await;
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    let left = s.ttl(attempt.job).await.unwrap().expect("it is over");
    let day = Duration::from_hours(24);
    assert!(left <= day && left + Duration::from_mins(1) > day, "{left:?}");
    assert_eq!(s.ttl(JobId::new()).await.unwrap(), None);
}
