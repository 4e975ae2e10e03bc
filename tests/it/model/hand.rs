//! What workers know, and what answers leave them to do.

use millstream::{
    broker::{Refused, Written},
    error::Code,
};

use super::{
    reference::{Attempt, Reference},
    terms::{Answer, AttemptNo, Call, Delivery, Due, End, EntryNo, Refusal},
};

/// What a worker knows of an entry in its hands.
#[derive(Debug, Clone)]
pub struct Hand {
    pub delivery: Delivery,
    pub next: Next,
}

/// What a worker is to do with an entry.
#[derive(Debug, Clone, Copy)]
pub enum Next {
    Begin,
    Refuse(Refusal),
    Run(AttemptNo),
    Remove,
    /// At this time, or at the one that the record tells.
    Park {
        attempt: u32,
        due: Option<Due>,
    },
    Bury {
        attempts: u32,
        fence: u32,
    },
}

/// What was sent of an attempt. It belongs to the attempt: a frame once sent never changes.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// The first frame of which it is not known that it was written.
    pub acked: u64,
    /// The first that does not exist yet.
    pub made: u64,
    /// How it ends, once that was said: nothing more is.
    pub end: Option<End>,
}

fn is_fenced(told: &Reference, attempt: AttemptNo) -> bool {
    let attempt = told.attempts[attempt];
    told.jobs[attempt.job].fence > attempt.fence
}

fn after_begin(answer: &Answer) -> Option<Next> {
    match *answer {
        Answer::Begun(attempt) => Some(Next::Run(attempt)),
        Answer::Remove => Some(Next::Remove),
        Answer::Park { attempt, due } => Some(Next::Park { attempt, due: Some(due) }),
        Answer::Bury { attempts, fence, .. } => Some(Next::Bury { attempts, fence }),
        Answer::Refuse { why, .. } => Some(Next::Refuse(match why {
            Refused::Cancelled => Refusal::Cancelled,
            Refused::Expired => Refusal::Failed(Code::Expired),
            Refused::Poison { .. } => Refusal::Failed(Code::Poison),
        })),
        _ => None,
    }
}

/// What a worker's call and its answer leave to do, and with which entry.
pub fn next(told: &Reference, call: &Call, answer: &Answer) -> Option<(EntryNo, Option<Next>)> {
    Some(match *call {
        Call::Begin { delivery, .. } | Call::Refuse { delivery, .. } => {
            (delivery.entry, after_begin(answer))
        }
        Call::Append { attempt, .. } | Call::Heal { attempt, .. } => {
            let over = is_fenced(told, attempt) || *answer == Answer::Written(Written::Fenced);
            (told.attempts[attempt].entry, (!over).then_some(Next::Run(attempt)))
        }
        Call::Conclude { attempt, end, .. } => {
            let Attempt { entry, number: attempts, fence, .. } = told.attempts[attempt];
            let Answer::Written(written) = answer else { return None };
            let next = match (written, end) {
                (Written::Yes, End::Done | End::Cancelled) => Some(Next::Remove),
                (Written::Yes, End::Failed) => Some(Next::Bury { attempts, fence }),
                (Written::Yes, End::Retry { .. }) => {
                    Some(Next::Park { attempt: attempts, due: None })
                }
                (Written::Cancelled, _) => Some(Next::Run(attempt)),
                (Written::Behind, _) if !is_fenced(told, attempt) => Some(Next::Run(attempt)),
                _ => None,
            };
            (entry, next)
        }
        Call::Remove { entry }
        | Call::Park { entry, .. }
        | Call::Bury { entry, .. }
        | Call::Release { entry, .. } => (entry, None),
        _ => return None,
    })
}
