//! What an entry is owed: the one decision that `begin` and `refuse` share.

use super::run::Run;
use crate::{
    broker::{Entry, WorkerId},
    state::State,
};

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A new attempt may open.
    Open,
    /// The attempt of this taking is open already: the reply was lost, or the call comes late.
    Again,
    /// The entry was taken again since, or the attempt of this taking is over.
    Late,
    /// The run is over, or another entry carries it.
    Remove,
    /// The retry is written and the entry is not parked.
    Park,
    /// The failure is written and the entry is not buried.
    Bury,
}

/// Decides from the job's run, the entry and the worker that holds it. Nothing else counts.
#[expect(clippy::match_same_arms, reason = "a table: one state after the other")]
pub(super) fn verdict(run: Option<&Run>, entry: &Entry, worker: Option<&WorkerId>) -> Verdict {
    let Some(run) = run else { return Verdict::Open };
    let placed = run.place.as_ref() == Some(&entry.place);
    // Without a place (just reopened, or healed) any entry is the one; of a parked job its attempts
    // tell the entry that is to be parked from the one that came of it.
    let parked = run.record.state == State::Parked;
    let unplaced = run.place.is_none() && !(parked && entry.attempt >= run.record.attempt);
    let here = placed || unplaced;
    // Only where it is surely the same entry: two tasks of a worker must not share a fence.
    let by_me = worker.is_some_and(|id| run.record.worker.as_deref() == Some(id.as_str()));
    let mine = placed && by_me && entry.taking == run.taking;
    let late = placed && entry.taking < run.taking;
    // A waiting job that has a place was given back, and is carried by the entry that it ran on:
    // whoever was told to remove another may be about to do so.
    let given_back = run.record.state == State::Waiting && run.place.is_some();
    let behind = entry.attempt < run.record.attempt || given_back;
    // An entry of an earlier run is nobody's any more.
    if entry.run < run.record.run {
        return Verdict::Remove;
    }
    match (run.record.state, here, mine, behind) {
        // state             here   mine   behind
        (State::Running, true, true, _) => Verdict::Again,
        (State::Running | State::Waiting, true, _, _) if late => Verdict::Late,
        (State::Running, true, false, _) => Verdict::Open,
        (State::Waiting, true, true, _) => Verdict::Late,
        (State::Running, false, _, _) => Verdict::Remove,
        (State::Parked, true, _, _) => Verdict::Park,
        (State::Parked | State::Waiting, false, _, true) => Verdict::Remove,
        (State::Parked | State::Waiting, _, _, _) => Verdict::Open,
        (State::Failed, true, _, _) => Verdict::Bury,
        (State::Failed, false, _, _) | (State::Done | State::Cancelled, _, _, _) => Verdict::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::{Partition, Place},
        event::{EventId, Frame},
        job::{JobId, Lane, QueueName, Timestamp},
    };

    fn place(entry: &str) -> Place {
        let partition = Partition::first(QueueName::default());
        Place { partition, lane: Lane::Normal, entry: entry.to_owned() }
    }

    #[test]
    fn every_row() {
        use State::{Cancelled, Done, Failed, Parked, Running, Waiting};
        use Verdict::{Again, Bury, Open, Park, Remove};
        let (me, other) = (WorkerId::new("me"), WorkerId::new("other"));
        // state, same place, same worker, the entry's attempt (the record's is 1) → verdict
        let rows = [
            (Waiting, true, false, 0, Open),
            (Waiting, false, false, 0, Remove),
            (Waiting, false, false, 1, Remove),
            (Parked, true, true, 0, Park),
            (Parked, true, false, 0, Park),
            (Parked, false, false, 0, Remove),
            (Parked, false, false, 1, Open),
            (Running, true, true, 0, Again),
            (Running, true, false, 0, Open),
            (Running, false, true, 0, Remove),
            (Running, false, false, 1, Remove),
            (Done, true, true, 0, Remove),
            (Done, false, false, 1, Remove),
            (Cancelled, true, true, 0, Remove),
            (Failed, true, false, 0, Bury),
            (Failed, false, false, 1, Remove),
        ];
        for (state, here, mine, attempt, expected) in rows {
            let mut run = Run::new(JobId::new(), Timestamp(1));
            run.record.state = state;
            run.record.attempt = 1;
            run.record.worker = Some(if mine { &me } else { &other }.to_string());
            let frame = Frame { seq: 0, kind: "started", bytes: Vec::new() };
            run.log = Some(vec![(EventId { fence: run.record.fence, seq: 0 }, frame)]);
            run.place = Some(place(if here { "1-0" } else { "2-0" }));
            let mut entry = Entry::read(place("1-0"), "key", Vec::new());
            entry.attempt = attempt;
            let met = verdict(Some(&run), &entry, Some(&me));
            assert_eq!(met, expected, "{state} here={here} mine={mine} attempt={attempt}");
        }
    }

    #[test]
    fn without_a_place_any_entry_is_the_one() {
        use State::{Cancelled, Done, Failed, Parked, Running, Waiting};
        use Verdict::{Bury, Open, Park, Remove};
        let me = WorkerId::new("me");
        // state, the entry's attempt (the record's is 1) → verdict
        let rows = [
            (Waiting, 0, Open),
            (Parked, 0, Park),
            (Parked, 1, Open),
            (Running, 0, Open),
            (Done, 0, Remove),
            (Cancelled, 0, Remove),
            (Failed, 0, Bury),
        ];
        for (state, attempt, expected) in rows {
            let mut run = Run::new(JobId::new(), Timestamp(1));
            run.record.state = state;
            run.record.attempt = 1;
            run.record.worker = Some(me.to_string());
            let mut entry = Entry::read(place("1-0"), "key", Vec::new());
            entry.attempt = attempt;
            let met = verdict(Some(&run), &entry, Some(&me));
            assert_eq!(met, expected, "{state} attempt={attempt}");
        }
    }

    #[test]
    fn what_was_never_heard_of_may_begin() {
        let entry = Entry::read(place("1-0"), "key", Vec::new());
        assert_eq!(verdict(None, &entry, None), Verdict::Open);
    }
}
