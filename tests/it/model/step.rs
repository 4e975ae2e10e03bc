//! Random cases.

use millstream::{error::Code, job::Lane};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::terms::{End, Profile, When};

/// Jobs of a case.
pub const JOBS: usize = 3;
/// Workers of a case.
pub const WORKERS: usize = 3;

/// A case: what the jobs ask for, and what happens.
#[derive(Debug, Clone)]
pub struct Case {
    pub profiles: Vec<Profile>,
    pub steps: Vec<Step>,
}

/// Something that somebody does, and what becomes of the call.
#[derive(Debug, Clone)]
pub struct Step {
    pub action: Action,
    pub fate: Fate,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives, and so does its reply.
    Plain,
    /// Its reply is lost: the caller learns nothing.
    Lost,
    /// Its reply is lost, and it is made again at once.
    Twice,
    /// It is on its way until something delivers it; nobody hears the reply.
    Late,
    /// As `Plain`, and a second copy is late.
    Copied,
}

/// What somebody does. An `Index` picks among what there is then.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    Enqueue {
        job: usize,
        conflicting: bool,
    },
    Promote,
    /// A worker reads one of the lanes where something is unread.
    Read {
        worker: usize,
        lane: Index,
        most: usize,
    },
    Pending {
        worker: usize,
    },
    Sweep {
        worker: usize,
        ran_out: bool,
    },
    Renew {
        worker: usize,
    },
    /// A worker goes on with an entry in its hands: it begins, or speaks, or ends, or settles. Where
    /// no worker has one something brings work.
    Work {
        pick: Index,
        word: Word,
    },
    Release {
        pick: Index,
    },
    /// A worker dies with all that it knows; another takes its name.
    Crash {
        worker: usize,
    },
    Cancel {
        job: usize,
    },
    Unpark {
        pick: Index,
    },
    Reopen {
        pick: Index,
    },
    Requeue {
        pick: Index,
    },
    Purge {
        pick: Index,
    },
    /// A late call arrives.
    Deliver {
        pick: Index,
    },
}

/// What a worker has in mind, where it has a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Say(u64),
    Heal,
    End(End),
    /// Refuses the job where no attempt of it runs by this worker.
    Refuse(Code),
}

fn profile(no: usize) -> impl Strategy<Value = Profile> {
    const LANES: &[Lane] = &[Lane::High, Lane::Normal];
    // Times of a real clock are compared with no others: what begins soon has a lane of its own.
    let soon = no == JOBS - 1;
    let lane = if soon { Just(Lane::Low).boxed() } else { prop::sample::select(LANES).boxed() };
    let when = if soon { When::Soon } else { When::Far };
    let when = prop_oneof![4 => Just(When::Now), 1 => Just(when)];
    (lane, any::<bool>(), when, prop::bool::weighted(0.1)).prop_map(|(lane, keyed, when, late)| {
        // Nothing is accepted that may begin only after its time is over.
        Profile { lane, keyed, when, expired: late && when == When::Now }
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        2 => Just(End::Done),
        5 => Just(End::Failed),
        5 => Just(End::Retry { far: false }),
        1 => Just(End::Retry { far: true }),
        1 => Just(End::Cancelled),
    ]
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        4 => (1..3_u64).prop_map(Word::Say),
        1 => Just(Word::Heal),
        5 => end().prop_map(Word::End),
        1 => Just(Word::Refuse(Code::InvalidJob)),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    let pick = any::<Index>;
    let (job, worker) = (0..JOBS, 0..WORKERS);
    prop_oneof![
        4 => (job.clone(), prop::bool::weighted(0.1))
            .prop_map(|(job, conflicting)| Enqueue { job, conflicting }),
        2 => Just(Promote),
        8 => (worker.clone(), pick(), 1..4_usize)
            .prop_map(|(worker, lane, most)| Read { worker, lane, most }),
        1 => worker.clone().prop_map(|worker| Pending { worker }),
        5 => (worker.clone(), any::<bool>())
            .prop_map(|(worker, ran_out)| Sweep { worker, ran_out }),
        1 => worker.clone().prop_map(|worker| Renew { worker }),
        40 => (pick(), word()).prop_map(|(pick, word)| Work { pick, word }),
        4 => pick().prop_map(|pick| Release { pick }),
        2 => worker.prop_map(|worker| Crash { worker }),
        1 => job.prop_map(|job| Cancel { job }),
        1 => pick().prop_map(|pick| Unpark { pick }),
        4 => pick().prop_map(|pick| Reopen { pick }),
        5 => pick().prop_map(|pick| Requeue { pick }),
        1 => pick().prop_map(|pick| Purge { pick }),
        6 => pick().prop_map(|pick| Deliver { pick }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        12 => Just(Fate::Plain),
        2 => Just(Fate::Lost),
        2 => Just(Fate::Twice),
        2 => Just(Fate::Late),
        2 => Just(Fate::Copied),
    ];
    (action(), fate).prop_map(|(action, fate)| Step { action, fate })
}

/// A case of at most so many steps.
pub fn case(most: usize) -> impl Strategy<Value = Case> {
    let profiles: Vec<_> = (0..JOBS).map(profile).collect();
    (profiles, vec(step(), 1..most)).prop_map(|(profiles, steps)| Case { profiles, steps })
}
