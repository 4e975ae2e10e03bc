//! The states of a job and the one table of its transitions.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In a lane, to be claimed. A record without a state means this.
    Waiting,
    /// Waiting for a time: scheduled, or between two attempts.
    Parked,
    /// An attempt holds the fence.
    Running,
    /// The answer is whole. Terminal.
    Done,
    /// It will not be tried again. Terminal.
    Failed,
    /// Its owner does not want it any more. Terminal.
    Cancelled,
}

/// What moves a job from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transition {
    /// A producer adds it to a lane.
    Enqueue,
    /// A producer parks it until its time.
    Schedule,
    /// Its time has come: it goes to its lane.
    Promote,
    /// A worker starts an attempt.
    Begin,
    /// The attempt failed and another follows.
    Retry,
    /// The worker gives the job back unfinished.
    Release,
    /// The answer is whole.
    Finish,
    /// The attempt failed and none follows.
    Fail,
    /// It cannot be run, or may not be run any more: it fails without another attempt.
    Refuse,
    /// Its owner does not want it any more.
    Cancel,
    /// An operator opens a new run from its dead letter.
    Requeue,
}

/// Every transition there is: from, what happens, to. `None` is a job that does not exist yet.
pub const TRANSITIONS: [(Option<State>, Transition, State); 17] = [
    (None, Transition::Enqueue, State::Waiting),
    (None, Transition::Schedule, State::Parked),
    (Some(State::Parked), Transition::Promote, State::Waiting),
    (Some(State::Waiting), Transition::Begin, State::Running),
    (Some(State::Running), Transition::Begin, State::Running),
    (Some(State::Running), Transition::Retry, State::Parked),
    (Some(State::Running), Transition::Release, State::Waiting),
    (Some(State::Running), Transition::Finish, State::Done),
    (Some(State::Running), Transition::Fail, State::Failed),
    (Some(State::Waiting), Transition::Refuse, State::Failed),
    (Some(State::Running), Transition::Refuse, State::Failed),
    (Some(State::Waiting), Transition::Cancel, State::Cancelled),
    (Some(State::Parked), Transition::Cancel, State::Cancelled),
    (Some(State::Running), Transition::Cancel, State::Cancelled),
    (Some(State::Failed), Transition::Requeue, State::Waiting),
    (Some(State::Cancelled), Transition::Requeue, State::Waiting),
    (None, Transition::Requeue, State::Waiting),
];

/// Where `transition` leads from `from`, if it may happen there.
pub fn next(from: Option<State>, transition: Transition) -> Option<State> {
    TRANSITIONS.iter().find(|row| row.0 == from && row.1 == transition).map(|row| row.2)
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Waiting, Self::Parked, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// The name in lower case, as it stands in the record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Parked => "parked",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the job's run is over.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown state `{0}`; allowed: waiting, parked, running, done, failed, cancelled")]
pub struct StateError(String);

impl FromStr for State {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StateError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_run_leads_out_of_a_terminal_state() {
        for (from, transition, _) in TRANSITIONS {
            let out = from.is_some_and(State::is_terminal);
            assert!(!out || transition == Transition::Requeue, "{from:?} {transition:?}");
        }
    }

    #[test]
    fn no_transition_stands_twice_from_the_same_state() {
        for (index, row) in TRANSITIONS.iter().enumerate() {
            let same =
                |other: &&(Option<State>, Transition, State)| other.0 == row.0 && other.1 == row.1;
            assert_eq!(TRANSITIONS.iter().position(|other| same(&other)), Some(index));
        }
        assert_eq!(next(Some(State::Done), Transition::Begin), None);
    }

    #[test]
    fn every_state_is_reached_and_named() {
        for state in State::ALL {
            assert!(TRANSITIONS.iter().any(|row| row.2 == state), "{state}");
            assert_eq!(state.as_str().parse::<State>().unwrap(), state);
        }
    }
}
