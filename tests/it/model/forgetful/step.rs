//! Random cases.

use millstream::job::Lane;
use proptest::{collection::vec, prelude::*, sample::Index};

/// Jobs of a case.
pub const JOBS: usize = 3;
/// Workers of a case.
pub const WORKERS: usize = 3;

/// What a job asks for.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub lane: Lane,
    /// Whether it has an idempotency key.
    pub keyed: bool,
}

/// A case: what the jobs ask for, and what happens.
#[derive(Debug, Clone)]
pub struct Case {
    pub profiles: Vec<Profile>,
    pub steps: Vec<Action>,
}

/// What somebody does. An `Index` picks among what there is then.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    Enqueue {
        job: usize,
    },
    Promote,
    Read {
        worker: usize,
        lane: Lane,
    },
    Sweep {
        worker: usize,
        ran_out: bool,
    },
    /// A worker goes on with an entry in its hands.
    Work {
        pick: Index,
        word: Word,
    },
    /// A worker dies with all that it knows; another takes its place.
    Crash {
        worker: usize,
    },
    Cancel {
        job: usize,
    },
    Requeue {
        pick: Index,
    },
    /// A second step that was on its way arrives.
    Deliver {
        pick: Index,
    },
    /// The server writes its snapshot.
    Save,
    /// It is killed, and comes back from the snapshot.
    Forget,
}

/// What a worker has in mind, where it has a choice.
#[derive(Debug, Clone, Copy)]
pub enum Word {
    Say,
    End(End),
    /// As `End(End::Done)` where an attempt runs. A second step goes out twice, the second time late.
    Repeat,
}

/// How an attempt ends.
#[derive(Debug, Clone, Copy)]
pub enum End {
    Done,
    Failed,
    Retry,
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        4 => Just(Word::Say),
        2 => Just(Word::End(End::Done)),
        2 => Just(Word::End(End::Failed)),
        2 => Just(Word::End(End::Retry)),
        1 => Just(Word::Repeat),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    let pick = any::<Index>;
    let (job, worker) = (0..JOBS, 0..WORKERS);
    let lane = prop::sample::select(&[Lane::High, Lane::Normal]);
    prop_oneof![
        3 => job.clone().prop_map(|job| Enqueue { job }),
        2 => Just(Promote),
        6 => (worker.clone(), lane).prop_map(|(worker, lane)| Read { worker, lane }),
        3 => (worker.clone(), any::<bool>())
            .prop_map(|(worker, ran_out)| Sweep { worker, ran_out }),
        30 => (pick(), word()).prop_map(|(pick, word)| Work { pick, word }),
        1 => worker.prop_map(|worker| Crash { worker }),
        1 => job.prop_map(|job| Cancel { job }),
        3 => pick().prop_map(|pick| Requeue { pick }),
        2 => pick().prop_map(|pick| Deliver { pick }),
        4 => Just(Save),
        3 => Just(Forget),
    ]
}

fn profile() -> impl Strategy<Value = Profile> {
    let lane = prop::sample::select(&[Lane::High, Lane::Normal]);
    (lane, any::<bool>()).prop_map(|(lane, keyed)| Profile { lane, keyed })
}

/// A case of at most so many steps.
pub fn case(most: usize) -> impl Strategy<Value = Case> {
    (vec(profile(), JOBS), vec(action(), 1..most))
        .prop_map(|(profiles, steps)| Case { profiles, steps })
}
