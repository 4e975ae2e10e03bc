//! Leases: renewed by who holds them, taken over when they run out, given back.

use std::{
    slice::from_ref,
    time::{Duration, Instant},
};

use millstream::{
    broker::redis::keys::Keys,
    broker::{
        Attempt, Begin, Crashes, Entry, Limits, Refused, Spent, Sweep, Swept, Topic, Wake,
        WorkerId, Written,
    },
    error::Code,
    job::{Lane, Timestamp},
    state::State,
};

use crate::support::subject::{DEADLINE, Subject, begun, delta, failed, job, soon, worker};

const DAY: Duration = Duration::from_hours(24);
const NEVER: Duration = Duration::from_hours(1);
const SOON: Duration = Duration::from_millis(30);

fn look(lease: Duration, most: usize) -> Sweep {
    Sweep { lease, most, ask: false, deliveries: 8 }
}

async fn sweep(s: &Subject, worker: &WorkerId, lease: Duration, most: usize) -> Vec<Entry> {
    s.sweep(&s.partition, worker, &look(lease, most)).await.unwrap().entries
}

/// The broker's grace begins with the first sweep, and is over for leases of a moment.
async fn calm(s: &Subject) {
    sweep(s, &worker("first"), NEVER, 1).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Sweeps until `count` entries were taken over: their leases run out meanwhile.
async fn swept(s: &Subject, worker: &WorkerId, lease: Duration, count: usize) -> Vec<Entry> {
    let taken = async {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.extend(sweep(s, worker, lease, count - taken.len()).await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        taken
    };
    tokio::time::timeout(DEADLINE, taken).await.expect("nothing was taken over")
}

pub async fn what_ran_out_of_lease_is_taken_over(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, old) = s.running(&me).await;
    assert_eq!(sweep(s, &other, NEVER, 9).await, []);
    let taken = swept(s, &other, SOON, 1).await;
    assert_eq!((taken[0].id, &taken[0].place), (entry.id, &entry.place));
    assert_eq!(taken[0].job, entry.job);
    let new = begun(s.begin(&taken[0], &other).await.unwrap());
    assert_eq!(new.number, 2);
    // The one that came back late changes nothing.
    let late = [delta(1, "late", millstream::event::Codec::Json)];
    assert_eq!(s.append(&old, &late).await.unwrap(), Written::Behind);
    assert_eq!(s.renew(&me, from_ref(&entry.place)).await.unwrap(), from_ref(&entry.place));
    assert_eq!(s.renew(&other, &[entry.place]).await.unwrap(), []);
}

/// Guards against workers with a short lease that take the jobs of live ones with a longer one.
pub async fn a_lease_lasts_as_long_as_its_worker_has_announced(s: &Subject) {
    let (patient, plain, other) = (worker("patient"), worker("plain"), worker("other"));
    s.announce(&s.partition, &patient, NEVER).await.unwrap();
    let (kept, _) = s.running(&patient).await;
    let (lost, _) = s.running(&plain).await;
    // Both have lain for as long.
    tokio::time::sleep(SOON * 2).await;
    let taken = swept(s, &other, SOON, 1).await;
    assert_eq!(taken[0].id, lost.id);
    assert_eq!(sweep(s, &other, SOON, 9).await.len(), 0);
    assert_eq!(s.renew(&patient, from_ref(&kept.place)).await.unwrap(), []);
    // A sweeper's own lease counts, too, and so does an entry that was given back.
    assert_eq!(sweep(s, &other, NEVER, 9).await, []);
    assert!(s.release(&patient, &kept.place, None).await.unwrap());
    assert_eq!(swept(s, &plain, SOON, 1).await[0].id, kept.id);
    // It leaves, and nothing of it stays.
    assert_eq!(s.retire(&s.partition, Some(&patient), DAY).await.unwrap(), 1);
    let known = format!("HEXISTS KEY {patient}");
    if let Some(left) = s.ask(&known, |keys| keys.leases(&s.partition)) {
        assert_eq!(left, "0");
    }
}

pub async fn a_renewed_lease_does_not_run_out(s: &Subject) {
    let (mut me, mut other) = (worker("a"), worker("b"));
    let lease = Duration::from_millis(400);
    let (entry, _) = s.running(&me).await;
    for _ in 0..10 {
        let renewing = Instant::now();
        assert_eq!(s.renew(&me, from_ref(&entry.place)).await.unwrap(), []);
        tokio::time::sleep(Duration::from_millis(80)).await;
        if !sweep(s, &other, lease, 9).await.is_empty() {
            // Only where this machine stood still in between, for as long as the lease.
            let passed = renewing.elapsed();
            assert!(passed >= lease, "taken over {passed:?} after its renewal began");
            std::mem::swap(&mut me, &mut other);
        }
    }
}

pub async fn renewing_steals_nothing_back(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, _) = s.running(&me).await;
    let mine = swept(s, &other, SOON, 1).await;
    assert_eq!(s.renew(&me, from_ref(&entry.place)).await.unwrap(), from_ref(&entry.place));
    let mut reader = s.reader(&me).await;
    assert!(reader.pending().await.unwrap().is_empty());
    s.remove(&[Spent::from(&mine[0])]).await.unwrap();
    // What is settled is nobody's, and renewing does not bring it back.
    assert_eq!(s.renew(&other, from_ref(&entry.place)).await.unwrap(), [entry.place]);
    assert_eq!(s.depth(&s.partition).await.unwrap().lanes[1].pending, 0);
}

pub async fn of_two_sweepers_one_takes_an_entry(s: &Subject) {
    for lane in Lane::ALL {
        for n in 0..10 {
            let mut job = job(&format!("{lane} {n}"));
            job.lane = lane;
            s.add(job).await;
        }
        // Given back, each can be taken, and once it is taken its lease lasts.
        let leaving = worker("leaving");
        for entry in s.claim_all(lane, &leaving).await {
            assert!(s.release(&leaving, &entry.place, None).await.unwrap());
        }
    }
    let (a, b) = (worker("a"), worker("b"));
    let (of_a, of_b) = tokio::join!(sweep(s, &a, NEVER, 30), sweep(s, &b, NEVER, 30));
    let mut places: Vec<_> = of_a
        .iter()
        .chain(&of_b)
        .map(|entry| entry.place.entry.clone() + entry.place.lane.as_str())
        .collect();
    places.sort();
    places.dedup();
    assert_eq!((places.len(), of_a.len() + of_b.len()), (30, 30));
    // And the other leaves it alone: it is still pending, and its own.
    for (worker, entries) in [(&a, of_a), (&b, of_b)] {
        let places: Vec<_> = entries.into_iter().map(|entry| entry.place).collect();
        assert!(s.renew(worker, &places).await.unwrap().is_empty());
    }
}

pub async fn a_sweep_takes_no_more_than_asked_and_tells_whether_anything_is_in_flight(s: &Subject) {
    let me = worker("a");
    let ask = async |most| {
        let look = Sweep { ask: true, ..look(SOON, most) };
        s.sweep(&s.partition, &me, &look).await.unwrap()
    };
    let nothing = Swept { in_flight: Some(false), ..Swept::default() };
    assert_eq!(ask(9).await, nothing);
    for n in 0..5 {
        s.add(job(&n.to_string())).await;
    }
    assert_eq!(ask(9).await.in_flight, Some(false));
    s.claim_all(Lane::Normal, &worker("dead")).await;
    assert_eq!(ask(9).await.in_flight, Some(true));
    let some = swept(s, &me, SOON, 2).await;
    assert_eq!(some.len(), 2);
    assert_eq!(swept(s, &worker("b"), SOON, 5).await.len(), 5);
}

pub async fn a_released_entry_keeps_its_place_and_its_budget(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    let mut listening = s.listen(&[Topic::Wake(s.partition.clone())]).await;
    for _ in 0..2 {
        assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    }
    assert_eq!(listening.next().await.1, Wake::Released.as_str().as_bytes());
    let record = s.job(entry.id).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempt, record.fence), (State::Waiting, 0, attempt.fence));
    // Taken at once, though no lease has run out.
    let taken = sweep(s, &other, NEVER, 1).await;
    assert_eq!(taken[0].place, entry.place);
    let again: Attempt = begun(s.begin(&taken[0], &other).await.unwrap());
    assert_eq!(again.number, 1);
    assert!(again.fence > attempt.fence);
    assert!(!s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    assert_eq!(s.finish(&again, 1).await, Written::Yes);
    assert_eq!(s.begin(&taken[0], &other).await.unwrap(), Begin::Remove);
}

pub async fn a_job_that_has_just_ended_gives_its_entry_back(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    let (entry, attempt) = s.running(&me).await;
    assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    // The second step is still owed, and is not long in coming.
    let taken = sweep(s, &other, NEVER, 1).await.remove(0);
    assert_eq!(s.begin(&taken, &other).await.unwrap(), Begin::Remove);
    assert_eq!(s.job(entry.id).await.unwrap().unwrap().state, State::Done);
}

pub async fn a_retry_that_comes_after_a_release_is_fenced(s: &Subject) {
    let me = worker("a");
    let (entry, attempt) = s.running(&me).await;
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
    assert_eq!(s.retry(&attempt, NEVER).await, Written::Fenced);
    assert_eq!(s.kinds(entry.id).await, ["started"]);
    assert_eq!(s.job(entry.id).await.unwrap().unwrap().state, State::Waiting);
}

pub async fn an_entry_that_never_began_can_be_released(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    s.add(job("not begun")).await;
    let entry = s.claim(&me).await;
    assert!(!s.release(&other, &entry.place, None).await.unwrap());
    assert!(s.release(&me, &entry.place, None).await.unwrap());
    assert_eq!(sweep(s, &other, NEVER, 1).await.len(), 1);
}

pub async fn a_wake_is_heard_by_all_and_so_is_a_sweep(s: &Subject) {
    calm(s).await;
    let mut listening = s.listen(&[Topic::Wake(s.partition.clone())]).await;
    s.wake(&s.partition, Wake::Claimed).await.unwrap();
    // The broker has been in reach for longer than this.
    sweep(s, &worker("a"), Duration::from_millis(1), 1).await;
    for wake in [Wake::Claimed, Wake::Swept] {
        let (topic, message) = listening.next().await;
        assert_eq!((topic, Wake::read(&message)), (Topic::Wake(s.partition.clone()), Some(wake)));
    }
}

pub async fn an_attempt_lost_with_its_worker_is_a_crash(s: &Subject) {
    let (me, other, third) = (worker("a"), worker("b"), worker("c"));
    calm(s).await;
    // Past any doubt that an outage has made the leases run out: longer than two leases.
    tokio::time::sleep(SOON * 2).await;
    let (entry, _) = s.running(&me).await;
    let taken = swept(s, &other, SOON, 1).await.remove(0);
    assert!(taken.crashed, "a lease ran out");
    let shared = s.shared();
    let most = |most| Crashes { most, alone: false };
    let begun = begun(shared.begin(&taken, &other, most(2)).await.unwrap());
    let record = s.job(entry.id).await.unwrap().unwrap();
    assert_eq!((record.crashes, record.failures, begun.number), (1, 0, 2));
    assert_eq!(record.history.len(), 1);
    assert_eq!((record.history[0].attempt, record.history[0].error.code), (1, Code::WorkerLost));
    assert!(record.history[0].error.message.contains(me.as_str()));
    // The second crash is one too many: nothing begins, and nothing is written.
    let taken = swept(s, &third, SOON, 1).await.remove(0);
    let refused = shared.begin(&taken, &third, most(2)).await.unwrap();
    assert_eq!(refused, Begin::Refuse { why: Refused::Poison { crashes: 2 }, attempts: 2 });
    assert_eq!(s.job(entry.id).await.unwrap().unwrap().fence, begun.fence);
    // Where more are allowed it runs, but with no other such job beside it.
    assert_eq!(shared.begin(&taken, &third, most(3)).await.unwrap(), Begin::Alone);
    assert_eq!(s.job(entry.id).await.unwrap().unwrap().fence, begun.fence);
    let alone = Crashes { most: 3, alone: true };
    assert!(matches!(shared.begin(&taken, &third, alone).await.unwrap(), Begin::Begun(_)));
    assert_eq!(s.job(entry.id).await.unwrap().unwrap().crashes, 2);
}

pub async fn an_attempt_that_its_own_worker_lost_is_a_crash(s: &Subject) {
    let me = worker("a");
    calm(s).await;
    tokio::time::sleep(SOON * 2).await;
    let most = Crashes { most: 2, alone: true };
    let (entry, first) = s.running(&me).await;
    // As where a task has panicked, in an incarnation that lives on.
    let mut taken = swept(s, &me, SOON, 1).await.remove(0);
    assert!(taken.crashed);
    let second = begun(s.shared().begin(&taken, &me, most).await.unwrap());
    assert!((second.number, second.fence > first.fence) == (2, true), "{second:?}");
    assert_eq!(s.job(entry.id).await.unwrap().unwrap().crashes, 1);
    // A repeat for a lost reply does not say it again.
    taken.crashed = false;
    assert_eq!(begun(s.shared().begin(&taken, &me, most).await.unwrap()), second);
    let taken = swept(s, &me, SOON, 1).await.remove(0);
    let refused = s.shared().begin(&taken, &me, most).await.unwrap();
    assert_eq!(refused, Begin::Refuse { why: Refused::Poison { crashes: 2 }, attempts: 2 });
}

pub async fn what_was_given_back_is_no_crash(s: &Subject) {
    let (me, other) = (worker("a"), worker("b"));
    calm(s).await;
    let (entry, attempt) = s.running(&me).await;
    // The entry alone: as a worker whose begin landed without its reply gives it back.
    assert!(s.release(&me, &entry.place, None).await.unwrap());
    let taken = sweep(s, &other, NEVER, 1).await.remove(0);
    assert!(!taken.crashed);
    let again =
        begun(s.shared().begin(&taken, &other, Crashes { most: 1, alone: false }).await.unwrap());
    assert!(again.fence > attempt.fence);
    assert_eq!(s.job(entry.id).await.unwrap().unwrap().crashes, 0);
}

pub async fn an_entry_delivered_too_often_is_not_parsed(s: &Subject) {
    calm(s).await;
    s.add(job("kills its reader")).await;
    s.claim(&worker("first")).await;
    let look = |most| Sweep { deliveries: 2, ..look(Duration::from_millis(1), most) };
    let mut taken = Vec::new();
    for n in 0..2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let swept = s.sweep(&s.partition, &worker("next"), &look(1)).await.unwrap();
        taken.extend(swept.entries);
        assert!(taken[n].job.is_ok(), "delivery {}", n + 2);
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    let swept = s.sweep(&s.partition, &worker("last"), &look(1)).await.unwrap();
    let refused = swept.entries[0].job.as_ref().unwrap_err();
    assert_eq!(refused.code, Code::Poison);
    assert!(refused.message.contains("3 times"), "{refused}");
    assert_eq!(swept.entries[0].payload(), taken[0].payload(), "nothing of it is lost");
}

/// Guards against a job that is known by its key and fails under another ID, when its entry comes too often:
/// its record says for ever that it runs, and its readers wait.
pub async fn a_plain_entry_delivered_too_often_fails_as_the_job_of_its_key(s: &Subject) {
    calm(s).await;
    let mut keyed = job("kills its worker");
    keyed.idempotency_key = Some("invoice-7".to_owned());
    let id = keyed.assign_id();
    s.add_raw(Lane::Normal, &[("job", &serde_json::to_vec(&keyed).unwrap())]);
    let first = worker("first");
    let entry = s.claim(&first).await;
    begun(s.begin(&entry, &first).await.unwrap());
    let look = Sweep { deliveries: 0, ..look(Duration::from_millis(1), 1) };
    tokio::time::sleep(Duration::from_millis(5)).await;
    let taken = s.sweep(&s.partition, &worker("last"), &look).await.unwrap().entries.remove(0);
    let error = taken.job.clone().unwrap_err();
    assert_eq!((taken.id, error.code), (id, Code::Poison));
    let answer = s.refuse(&taken, &error, &failed(0, error.clone())).await.unwrap();
    assert!(matches!(answer, Begin::Bury { .. }), "{answer:?}");
    assert_eq!(s.job(id).await.unwrap().unwrap().state, State::Failed);
    assert_eq!(s.kinds(id).await, ["started", "failed"]);
}

pub async fn a_renewal_makes_earlier_deliveries_good(s: &Subject) {
    calm(s).await;
    let me = worker("a");
    s.add(job("renewed")).await;
    let entry = s.claim(&worker("first")).await;
    let look = Sweep { deliveries: 1, ..look(Duration::from_millis(1), 1) };
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let swept = s.sweep(&s.partition, &me, &look).await.unwrap();
        assert!(swept.entries[0].job.is_ok());
        assert!(s.renew(&me, from_ref(&entry.place)).await.unwrap().is_empty());
    }
}

pub async fn entries_deleted_under_a_worker_are_counted(s: &Subject) {
    calm(s).await;
    let me = worker("a");
    let (first, _) = s.running(&me).await;
    if !s.delete(&first.place) {
        return;
    }
    let renewed = s.shared().renew(&me, from_ref(&first.place)).await.unwrap();
    assert_eq!((renewed.gone.len(), renewed.lost), (0, 1));
    // Once.
    let renewed = s.shared().renew(&me, from_ref(&first.place)).await.unwrap();
    assert_eq!((renewed.gone.len(), renewed.lost), (1, 0));
    let (second, _) = s.running(&worker("dead")).await;
    s.delete(&second.place);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let swept = s.sweep(&s.partition, &me, &look(Duration::from_millis(1), 9)).await.unwrap();
    assert_eq!((swept.entries.len(), swept.lost), (0, 1));
    assert_eq!(s.depth(&s.partition).await.unwrap().lost_entries, 2);
}

pub async fn entries_deleted_under_a_worker_are_not_given_to_it_again(s: &Subject) {
    let me = worker("a");
    for question in ["stays", "goes", "goes, too"] {
        s.add(job(question)).await;
    }
    let entries = s.claim_all(Lane::Normal, &me).await;
    if !entries[1..].iter().all(|entry| s.delete(&entry.place)) {
        return;
    }
    // One that a renewal has found is not counted again.
    assert_eq!(s.shared().renew(&me, from_ref(&entries[1].place)).await.unwrap().lost, 1);
    for _ in 0..2 {
        let mut reader = s.reader(&me).await;
        let pending = reader.pending().await.unwrap();
        assert_eq!((pending.len(), &pending[0].place), (1, &entries[0].place));
        assert_eq!(s.depth(&s.partition).await.unwrap().lost_entries, 2);
    }
    assert_eq!(s.depth(&s.partition).await.unwrap().lanes[1].pending, 1);
}

pub async fn a_lane_refused_on_one_queue_stops_no_takeover_on_others(s: &Subject) {
    let key = |keys: &Keys| keys.lane(&s.second, Lane::Low);
    if s.ask("DEL KEY", key).is_none() {
        return;
    }
    let (me, dead, lease) = (worker("a"), worker("dead"), Duration::from_millis(100));
    let of_second = async || s.sweep(&s.second, &me, &look(lease, 9)).await;
    s.add(job("of a worker that dies")).await;
    let entry = s.claim(&dead).await;
    begun(s.begin(&entry, &dead).await.unwrap());
    s.ask("XADD KEY * job {}", |keys| keys.lane(&s.second, Lane::Normal));
    let mut reader = s.claimer(&s.second, &dead).await.unwrap();
    assert_eq!(reader.read(Lane::Normal, 9).await.unwrap().len(), 1);
    calm(s).await;
    // Both leases run out, and the server is not young any more.
    tokio::time::sleep(lease * 2).await;
    s.ask("SET KEY meddled", key);
    let mut reader = s.claimer(&s.second, &me).await.unwrap();
    let refused = [reader.read(Lane::Low, 1).await.unwrap_err(), of_second().await.unwrap_err()];
    assert!(refused.iter().all(|error| !error.is_transient()), "{refused:?}");
    let taken = sweep(s, &me, lease, 9).await;
    assert_eq!(taken.len(), 1, "the other queue waits for a calm");
    assert!(taken[0].crashed, "its worker died in no outage");

    // Where it was refused no lease was renewed: from there on everybody has a whole one.
    let until = std::time::Instant::now() + lease;
    s.ask("DEL KEY", key);
    s.ask("XGROUP CREATE KEY workers 0 MKSTREAM", key);
    let late = async {
        while of_second().await.unwrap().entries.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, late).await.expect("nothing was taken over");
    assert!(std::time::Instant::now() >= until, "it was taken at once");
}

pub async fn workers_that_hold_nothing_are_forgotten(s: &Subject) {
    let (idle, holding, leaving) = (worker("idle"), worker("holding"), worker("leaving"));
    for reader in [&holding, &idle, &leaving] {
        s.add(job("held")).await;
        let entry = s.claim(reader).await;
        if *reader != holding {
            s.remove(&[Spent::from(&entry)]).await.unwrap();
        }
    }
    let names = async || -> Vec<String> {
        let workers = s.workers(&s.partition).await.unwrap();
        workers.into_iter().map(|worker| worker.id).collect()
    };
    assert_eq!(s.retire(&s.partition, Some(&leaving), NEVER).await.unwrap(), 1);
    assert_eq!(s.retire(&s.partition, Some(&holding), NEVER).await.unwrap(), 0);
    assert_eq!(names().await.len(), 2);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(s.retire(&s.partition, None, Duration::from_millis(1)).await.unwrap(), 1);
    assert_eq!(names().await, [holding.to_string()]);
    // Its entry is still there to be taken over.
    assert_eq!(swept(s, &worker("heir"), SOON, 1).await.len(), 1);
}

/// Guards against a live worker that is forgotten, or counts as none, because it has had nothing to do.
pub async fn a_worker_that_listens_lives_however_long_it_is_idle(s: &Subject) {
    let (idle, gone) = (worker("idle"), worker("gone"));
    let listening = s.listen(&[Topic::Worker(idle.clone())]).await;
    for reader in [&idle, &gone] {
        s.reader(reader).await.pending().await.unwrap();
        s.reader(reader).await.read(Lane::Normal, 1).await.unwrap();
    }
    let seen = async || -> Vec<(String, bool)> {
        let workers = s.workers(&s.partition).await.unwrap();
        workers.into_iter().map(|worker| (worker.id, worker.listens)).collect()
    };
    assert_eq!(seen().await.len(), 2);
    let long = Duration::from_millis(1);
    tokio::time::sleep(long * 5).await;
    assert_eq!(s.retire(&s.partition, None, long).await.unwrap(), 1);
    assert_eq!(seen().await, [(idle.to_string(), true)]);
    // One that leaves is forgotten though it still listens, and so is one that has died.
    assert_eq!(s.retire(&s.partition, Some(&idle), NEVER).await.unwrap(), 1);
    s.reader(&idle).await.pending().await.unwrap();
    s.reader(&idle).await.read(Lane::Normal, 1).await.unwrap();
    drop(listening);
    soon(async {
        while seen().await != [(idle.to_string(), false)] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    tokio::time::sleep(long * 5).await;
    assert_eq!(s.retire(&s.partition, None, long).await.unwrap(), 1);
}

pub async fn a_kept_job_has_its_whole_time_again(s: &Subject) {
    let (entry, _) = s.running(&worker("a")).await;
    for key in [|keys: &Keys, id| keys.job(id), |keys: &Keys, id| keys.log(id)] {
        let key = |keys: &Keys| key(keys, entry.id);
        if s.ask("PEXPIRE KEY 5000", key).is_none() {
            break;
        }
    }
    s.keep(&[entry.id]).await.unwrap();
    for key in [|keys: &Keys, id| keys.job(id), |keys: &Keys, id| keys.log(id)] {
        let left = s.ask("PTTL KEY", |keys: &Keys| key(keys, entry.id));
        assert!(left.is_none_or(|left| left.parse::<u64>().unwrap() > 5000));
    }
    assert!(s.job(entry.id).await.unwrap().is_some());
}

/// Guards against a week for what is over: a worker that keeps it, or a producer that writes its record,
/// a moment too late.
pub async fn a_job_that_is_over_keeps_the_time_of_its_end(s: &Subject) {
    let limits = Limits { max_jobs: 1000, ..Limits::default() };
    for s in [s, &s.limited(limits).await] {
        let me = worker("a");
        let submission = s.submission(job("late"));
        let again = std::slice::from_ref(&submission);
        assert!(!s.enqueue(again).await.remove(0).unwrap().duplicate);
        let entry = s.claim(&me).await;
        let attempt = begun(s.begin(&entry, &me).await.unwrap());
        assert_eq!(s.finish(&attempt, 1).await, Written::Yes);
        s.keep(&[entry.id]).await.unwrap();
        s.remove(&[Spent::from(&entry)]).await.unwrap();
        s.enqueue(again).await.remove(0).unwrap();
        assert!(s.ttl(entry.id).await.unwrap().unwrap() <= DAY);
        let log = s.ask("PTTL KEY", |keys: &Keys| keys.log(entry.id));
        assert!(log.is_none_or(|left| left.parse::<u128>().unwrap() <= DAY.as_millis()));
        let entry = s.claim(&me).await;
        s.remove(&[Spent::from(&entry)]).await.unwrap();
    }
}

/// Guards against a giving back whose first sending arrives behind its own repeat, when the same worker has taken
/// the entry again and runs it: another would start it a second time.
pub async fn a_giving_back_that_arrives_late_takes_nothing(s: &Subject) {
    let me = worker("a");
    s.add(job("late")).await;
    let entry = s.claim(&me).await;
    let lane = |keys: &Keys| {
        let lane = keys.lane(&s.partition, entry.place.lane);
        [lane.clone(), lane]
    };
    let script = include_str!("../../../src/broker/redis/lua/hand_back.lua");
    let give_back = |made_at: Timestamp| {
        let latest = made_at.0.to_string();
        s.run(script, lane, &[me.as_str(), &entry.place.entry, "315360000000", "wake", &latest])
    };
    let now = Timestamp::now();
    if let Some(answer) = give_back(Timestamp(now.0 - 5_000)) {
        assert_eq!(answer, "0");
    }
    let places = std::slice::from_ref(&entry.place);
    assert!(s.renew(&me, places).await.unwrap().is_empty(), "it was taken from its worker");
    for _ in 0..2 {
        if let Some(answer) = give_back(now.after(Duration::from_mins(1))) {
            assert_eq!(answer, "1");
            assert_eq!(s.renew(&me, places).await.unwrap().len(), 1);
        }
    }
    // Once the clock of the server is known, too, an entry is given back at once.
    let lease = Duration::from_hours(1);
    let look = Sweep { lease, most: 9, ask: false, deliveries: 9 };
    s.sweep(&s.partition, &worker("b"), &look).await.unwrap();
    let (entry, attempt) = s.running(&me).await;
    assert!(s.release(&me, &entry.place, Some(&attempt)).await.unwrap());
}
