//! Every kind of breach, fed to the checker as a history that is broken in one place.

use super::*;
use crate::history::{Dead, Repeats, Session};

fn step(fence: u64, seq: u64, kind: Kind, says: &str) -> Step {
    Step { id: EventId { fence, seq }, kind, says: says.into() }
}

/// An attempt that says `words`, and how it ends.
fn attempt(fence: u64, words: &[&str], end: Option<Kind>) -> Vec<Step> {
    let mut steps = vec![step(fence, 0, Kind::Started, "w")];
    for word in words {
        steps.push(step(fence, steps.len() as u64, Kind::Delta, word));
    }
    steps.extend(end.map(|end| step(fence, steps.len() as u64, end, "")));
    steps
}

struct Case {
    asked: Vec<Asked>,
    finals: Finals,
}

impl Case {
    /// A job whose first worker died, whose second attempt failed and whose third is whole, with a
    /// reader that was connected twice, and a job that failed, was requeued, and failed again.
    fn sound() -> Self {
        let (whole, failing) = (JobId::new(), JobId::new());
        let log = [
            attempt(10, &["one "], None),
            attempt(20, &["one ", "two"], Some(Kind::Retrying)),
            attempt(30, &["one ", "two ", "three"], Some(Kind::Done)),
        ]
        .concat();
        let sessions = vec![
            Session { seen: log[..4].to_vec(), ..Session::default() },
            Session { after: log[3].id, seen: log[4..].to_vec(), ..Session::default() },
        ];
        let reader = Reader { sessions, ended: true, ..Reader::default() };
        let runs = [
            attempt(40, &["one "], Some(Kind::Failed)),
            vec![step(50, 0, Kind::Requeued, "")],
            attempt(60, &[], Some(Kind::Failed)),
        ]
        .concat();
        let asked = |name: &str, id, hopeless| Asked {
            name: name.to_owned(),
            fate: Fate::Acknowledged(vec![id, id]),
            text: "one two three".to_owned(),
            hopeless,
            ..Asked::default()
        };
        let kept = |name: &str, state: &str, log: &[Step]| Kept {
            name: name.to_owned(),
            state: state.to_owned(),
            fence: log.last().unwrap().id.fence,
            log: log.to_vec(),
        };
        let requeues = Repeats { acknowledged: 1, ..Repeats::default() };
        Self {
            asked: vec![
                Asked { readers: vec![reader], ..asked("whole", whole, false) },
                Asked { requeues, ..asked("failing", failing, true) },
                Asked { name: "never sent".to_owned(), ..Asked::default() },
            ],
            finals: Finals {
                jobs: [
                    (whole, kept("whole", "done", &log)),
                    (failing, kept("failing", "failed", &runs)),
                ]
                .into(),
                dead: vec![Dead { id: failing, fence: 60 }],
                unsettled: 0,
            },
        }
    }

    fn id(&self, name: &str) -> JobId {
        *self.finals.jobs.iter().find(|(_, kept)| kept.name == name).unwrap().0
    }

    fn kept(&mut self, name: &str) -> &mut Kept {
        self.finals.jobs.values_mut().find(|kept| kept.name == name).unwrap()
    }

    fn log(&mut self, name: &str) -> &mut Vec<Step> {
        &mut self.kept(name).log
    }

    fn reader(&mut self) -> &mut Reader {
        &mut self.asked[0].readers[0]
    }

    fn breaches(&self) -> BTreeSet<Breach> {
        check(&self.asked, &self.finals).into_iter().map(|violation| violation.breach).collect()
    }
}

/// The history without a reader, broken by `harm`, is reported as `breach`.
#[track_caller]
fn broken(breach: Breach, harm: impl FnOnce(&mut Case)) {
    let mut case = Case::sound();
    case.asked[0].readers.clear();
    harm(&mut case);
    assert!(case.breaches().contains(&breach), "{breach:?}: {:?}", case.breaches());
}

/// The history with its reader, broken by `harm`, is reported as `breach` and nothing else but a wrong text.
#[track_caller]
fn misread(breach: Breach, harm: impl FnOnce(&mut Case)) {
    let mut case = Case::sound();
    harm(&mut case);
    let mut breaches = case.breaches();
    assert!(breaches.remove(&breach), "{breach:?}: {breaches:?}");
    breaches.remove(&Breach::ReaderMisread);
    assert_eq!(breaches, [].into());
}

#[test]
fn a_sound_history_passes() {
    let case = Case::sound();
    assert!(check(&case.asked, &case.finals).is_empty(), "{:?}", case.breaches());
}

#[test]
fn a_job_is_lost_doubled_or_strange() {
    broken(Breach::Lost, |case| {
        let id = case.id("whole");
        case.finals.jobs.remove(&id);
    });
    broken(Breach::Lost, |case| case.log("whole").clear());
    broken(Breach::EnqueuedTwice, |case| {
        let kept = case.kept("whole").clone();
        case.finals.jobs.insert(JobId::new(), kept);
    });
    broken(Breach::EnqueuedTwice, |case| {
        let ids = vec![case.id("whole"), JobId::new()];
        case.asked[0].fate = Fate::Acknowledged(ids);
    });
    broken(Breach::Stranger, |case| {
        let kept = Kept { name: "nobody's".to_owned(), ..case.kept("whole").clone() };
        case.finals.jobs.insert(JobId::new(), kept);
    });
}

#[test]
fn a_job_that_nobody_was_promised_may_be_missing_but_not_broken() {
    let mut case = Case::sound();
    case.asked[0].readers.clear();
    case.asked[0].fate = Fate::Unknown;
    assert!(case.breaches().is_empty());
    case.log("whole").pop();
    assert!(case.breaches().contains(&Breach::Unfinished));
    let id = case.id("whole");
    case.finals.jobs.remove(&id);
    assert!(case.breaches().is_empty());
}

#[test]
fn a_run_ends_once() {
    broken(Breach::Unfinished, |case| drop(case.log("whole").pop()));
    broken(Breach::Unfinished, |case| case.log("failing").truncate(4));
    broken(Breach::SecondTerminal, |case| {
        case.log("whole").push(step(30, 5, Kind::Failed, ""));
    });
    broken(Breach::SecondTerminal, |case| {
        case.log("whole").push(step(35, 0, Kind::Cancelled, ""));
    });
    broken(Breach::AfterTerminal, |case| {
        case.log("whole").push(step(35, 0, Kind::Started, "w"));
    });
    broken(Breach::AfterTerminal, |case| {
        case.log("whole").push(step(30, 5, Kind::Delta, "more"));
    });
}

#[test]
fn one_attempt_at_a_time_writes() {
    broken(Breach::StaleFence, |case| {
        case.log("whole").insert(7, step(20, 4, Kind::Delta, "late"));
    });
    broken(Breach::OutOfOrder, |case| case.log("whole").swap(6, 7));
    broken(Breach::OutOfOrder, |case| {
        let again = case.log("whole")[7].clone();
        case.log("whole").insert(7, again);
    });
    broken(Breach::Hole, |case| drop(case.log("whole").remove(7)));
    broken(Breach::Hole, |case| drop(case.log("whole").remove(2)));
    broken(Breach::OutOfTurn, |case| case.log("whole")[0].kind = Kind::Delta);
    broken(Breach::OutOfTurn, |case| {
        case.log("whole").insert(6, step(20, 4, Kind::Delta, "after retrying"));
    });
    broken(Breach::OutOfTurn, |case| case.log("whole")[4].kind = Kind::Started);
    broken(Breach::OutOfTurn, |case| {
        case.log("whole").insert(2, step(15, 0, Kind::Requeued, ""));
    });
}

#[test]
fn the_text_is_the_models() {
    broken(Breach::WrongText, |case| case.log("whole")[8].says = "two two ".into());
    broken(Breach::WrongText, |case| case.log("whole")[9].says = "".into());
    broken(Breach::WrongText, |case| case.log("failing")[1].says = "eleven".into());
    broken(Breach::WrongEnd, |case| case.asked[0].hopeless = true);
}

#[test]
fn operations_are_done_as_often_as_asked_for() {
    broken(Breach::RequeueLost, |case| case.asked[1].requeues.acknowledged = 2);
    broken(Breach::RequeueUnasked, |case| case.asked[1].requeues.acknowledged = 0);
    broken(Breach::CancelLost, |case| case.asked[0].cancels.acknowledged = 1);
    broken(Breach::CancelUnasked, |case| {
        case.log("failing").last_mut().unwrap().kind = Kind::Cancelled;
    });
    let mut case = Case::sound();
    case.asked[1].requeues = Repeats { unknown: 3, ..Repeats::default() };
    assert!(case.breaches().is_empty(), "whether it was done is not known");
}

#[test]
fn the_record_agrees_with_the_log() {
    broken(Breach::RecordDisagrees, |case| case.kept("whole").state = "running".to_owned());
    broken(Breach::RecordDisagrees, |case| case.kept("whole").fence = 31);
}

#[test]
fn a_reader_sees_every_event_once_and_as_it_is() {
    misread(Breach::ReaderNotFound, |case| case.reader().not_found = Some(1));
    misread(Breach::ReaderRepeated, |case| {
        let again = case.reader().sessions[0].seen[3].clone();
        case.reader().sessions[1].seen.insert(0, again);
    });
    misread(Breach::ReaderSkipped, |case| drop(case.reader().sessions[1].seen.remove(0)));
    misread(Breach::ReaderSkipped, |case| drop(case.reader().sessions[0].seen.remove(0)));
    misread(Breach::ReaderDiffers, |case| case.reader().sessions[1].seen[4].says = "no".into());
    misread(Breach::ReaderDiffers, |case| {
        case.reader().sessions[1].seen.insert(1, step(20, 9, Kind::Delta, "nowhere"));
    });
    misread(Breach::ReaderMisread, |case| {
        let lost = vec![step(25, 0, Kind::Started, "w"), step(25, 1, Kind::Delta, "one ")];
        case.reader().sessions[1].lost.insert(3, lost);
    });
    misread(Breach::ReaderCutShort, |case| drop(case.reader().sessions[1].seen.pop()));
    misread(Breach::ReaderStuck, |case| {
        case.reader().sessions.pop();
        case.reader().ended = false;
    });
}

#[test]
fn a_reader_may_begin_in_the_middle_and_end_with_its_run() {
    let mut case = Case::sound();
    let after = case.reader().sessions[1].after;
    assert_ne!(after, EventId::START);
    case.reader().sessions.remove(0);
    assert!(case.breaches().is_empty());
    let runs = case.log("failing").clone();
    let first = Session { seen: runs[..3].to_vec(), ..Session::default() };
    case.asked[1].readers =
        vec![Reader { sessions: vec![first], ended: true, ..Reader::default() }];
    assert!(case.breaches().is_empty(), "{:?}", case.breaches());
}

#[test]
fn dead_letters_are_the_failed_jobs() {
    broken(Breach::DeadLetterMissing, |case| case.finals.dead.clear());
    broken(Breach::DeadLetterUnfounded, |case| {
        let id = case.id("whole");
        case.finals.dead.push(Dead { id, fence: 30 });
    });
    broken(Breach::DeadLetterUnfounded, |case| {
        let again = case.finals.dead[0].clone();
        case.finals.dead.push(again);
    });
    broken(Breach::DeadLetterUnfounded, |case| case.finals.dead[0].fence = 40);
    broken(Breach::DeadLetterUnfounded, |case| {
        case.finals.dead.push(Dead { id: JobId::new(), fence: 1 });
    });
}

#[test]
fn entries_of_jobs_that_are_over_are_gone() {
    broken(Breach::Unsettled, |case| case.finals.unsettled = 1);
}
