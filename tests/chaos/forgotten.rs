//! What a server that forgets its last moments may take back.
//!
//! A promise that was made, and an event that was shown, in a span of time that the server has
//! forgotten binds nobody (`docs/LIFECYCLE.md`). Everything else does: this module takes from the
//! history only what such a span may have undone, and the checker judges the rest as ever.

use std::{collections::BTreeSet, fmt};

use millstream::{event::EventId, job::JobId};

use crate::history::{Asked, Fate, Finals, Reader, Repeats, Session, Span};

/// Longest time for an event to reach its reader, through a link that is held still, and for a worker to
/// write a job again after the server has come back without it.
const ON_ITS_WAY: u64 = 15_000;

/// How much was taken from the history.
#[derive(Debug, Default)]
pub struct Excused {
    spans: usize,
    enqueues: usize,
    missing: usize,
    unfinished: usize,
    /// Readers that wait for a job which nothing carries on.
    pub waiting: usize,
    operations: usize,
    events: usize,
    ends: usize,
}

impl fmt::Display for Excused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spans, enqueues, missing, unfinished, waiting, operations, events, ends } = self;
        write!(
            f,
            "{spans} spans; in them {enqueues} enqueues acknowledged, of which {missing} are missing \
             and {unfinished} have no entry and no end; {waiting} readers wait for these; {operations} cancels and requeues; {events} events shown that are in no log, {ends} of \
             them ends"
        )
    }
}

/// Takes from the history what was undone in these spans.
pub fn excuse(asked: &mut [Asked], finals: &mut Finals, spans: &[Span]) -> Excused {
    let spans: Vec<Span> = spans.iter().copied().filter(|span| span.from < span.until).collect();
    let mut excused = Excused { spans: spans.len(), ..Excused::default() };
    let touched = |when: &Span| spans.iter().any(|span| span.meets(when));
    for job in asked {
        let ids: Vec<JobId> = match &job.fate {
            Fate::Acknowledged(ids) => ids.clone(),
            Fate::Unknown => Vec::new(),
        };
        for reader in &mut job.readers {
            let log = ids.first().and_then(|id| finals.jobs.get(id)).map(|kept| &kept.log);
            let kept = log.into_iter().flatten().map(|step| step.id).collect();
            excused.read(reader, &kept, &spans);
            if reader.not_found.is_some_and(|when| was_gone(&job.promised, when, &spans)) {
                reader.not_found = None;
                reader.misled = true;
            }
        }
        excused.operations += take_back(&mut job.cancels, touched);
        let undone = take_back(&mut job.requeues, touched);
        excused.operations += undone;
        for reader in &mut job.readers {
            let follows = |session: &Session| session.after.seq == u64::MAX;
            reader.undone = undone > 0 && reader.sessions.first().is_some_and(follows);
        }
        if ids.is_empty() || !job.promised.iter().all(touched) {
            continue;
        }
        excused.enqueues += 1;
        job.fate = Fate::Unknown;
        // An idempotent enqueue writes the record before the entry: the entry is what was forgotten.
        // A worker may have run the job all the same and died; nothing carries it to an end then.
        let log = |id: &JobId| finals.jobs.get(id).map_or(&[][..], |kept| &kept.log);
        let ended = |id: &JobId| log(id).last().is_some_and(|step| step.kind.is_terminal());
        if !ids.iter().any(ended) {
            let begun = ids.iter().any(|id| !log(id).is_empty());
            *(if begun { &mut excused.unfinished } else { &mut excused.missing }) += 1;
            let waits =
                |reader: &&Reader| !reader.ended && !reader.misled && reader.not_found.is_none();
            excused.waiting += job.readers.iter().filter(waits).count();
            job.readers.clear();
            for id in &ids {
                finals.jobs.remove(id);
            }
        }
    }
    excused
}

/// Whether a reader could find no job at this time: all that was promised by then is forgotten, and whoever
/// remembers the job may not have written it again.
fn was_gone(promised: &[Span], when: u64, spans: &[Span]) -> bool {
    let recent = |span: &&Span| span.from <= when && when <= span.until + ON_ITS_WAY;
    let recent: Vec<&Span> = spans.iter().filter(recent).collect();
    let mut before = promised.iter().filter(|promise| promise.until <= when);
    !recent.is_empty() && before.all(|promise| recent.iter().any(|span| span.meets(promise)))
}

/// An operation that may have been undone is one of which nobody knows whether it was done.
fn take_back(operations: &mut Repeats, touched: impl Fn(&Span) -> bool) -> usize {
    let undone = operations.when.iter().filter(|when| touched(when)).count();
    operations.acknowledged -= undone;
    operations.unknown += undone;
    undone
}

impl Excused {
    /// Takes from a reader the events that are in no log any more, where a span explains it.
    fn read(&mut self, reader: &mut Reader, kept: &BTreeSet<EventId>, spans: &[Span]) {
        let gone = |id: EventId, when: u64| {
            let explains = |span: &Span| {
                id.fence <= span.until && span.from <= when && when <= span.until + ON_ITS_WAY
            };
            !kept.contains(&id) && spans.iter().any(explains)
        };
        let mut lost = Vec::new();
        for session in &mut reader.sessions {
            let seen = std::mem::take(&mut session.seen).into_iter().zip(session.when.clone());
            for (step, when) in seen {
                if !gone(step.id, when) {
                    if !lost.is_empty() {
                        session.lost.insert(session.seen.len(), std::mem::take(&mut lost));
                    }
                    session.seen.push(step);
                    continue;
                }
                self.events += 1;
                reader.forgotten = reader.forgotten.max(Some(step.id));
                if step.kind.is_terminal() {
                    self.ends += 1;
                    reader.misled = true;
                }
                lost.push(step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{self, Breach},
        history::{Kept, Kind, Step},
    };

    const SPAN: Span = Span { from: 100, until: 200 };

    fn step(fence: u64, seq: u64, kind: Kind, says: &str) -> Step {
        Step { id: EventId { fence, seq }, kind, says: says.into() }
    }

    /// A job whose first end was shown to its reader at 150 and forgotten, and that was done again.
    struct Case {
        asked: Asked,
        finals: Finals,
        id: JobId,
    }

    impl Case {
        fn new() -> Self {
            let id = JobId::new();
            let words = |fence| {
                vec![
                    step(fence, 0, Kind::Started, "w"),
                    step(fence, 1, Kind::Delta, "one"),
                    step(fence, 2, Kind::Done, ""),
                ]
            };
            let session = Session { seen: words(120), when: vec![150; 3], ..Session::default() };
            let reader = Reader { sessions: vec![session], ended: true, ..Reader::default() };
            let kept = Kept {
                name: "job".to_owned(),
                state: "done".to_owned(),
                fence: 300,
                log: words(300),
            };
            let asked = Asked {
                name: "job".to_owned(),
                fate: Fate::Acknowledged(vec![id]),
                promised: vec![Span { from: 90, until: 99 }],
                text: "one".to_owned(),
                readers: vec![reader],
                ..Asked::default()
            };
            let finals = Finals { jobs: [(id, kept)].into(), ..Finals::default() };
            Self { asked, finals, id }
        }

        fn breaches(mut self, spans: &[Span]) -> BTreeSet<Breach> {
            let mut asked = [self.asked];
            excuse(&mut asked, &mut self.finals, spans);
            checker::check(&asked, &self.finals).into_iter().map(|found| found.breach).collect()
        }
    }

    #[test]
    fn what_was_shown_in_a_forgotten_moment_may_be_gone_and_at_no_other_time() {
        assert_eq!(Case::new().breaches(&[SPAN]), [].into());
        assert!(Case::new().breaches(&[]).contains(&Breach::ReaderDiffers));
        let mut late = Case::new();
        late.asked.readers[0].sessions[0].when = vec![SPAN.until + ON_ITS_WAY + 1; 3];
        assert!(late.breaches(&[SPAN]).contains(&Breach::ReaderDiffers));
        // A fence that was opened behind the span was not forgotten in it.
        let mut opened = Case::new();
        for seen in &mut opened.asked.readers[0].sessions[0].seen {
            seen.id.fence = SPAN.until + 1;
        }
        assert!(opened.breaches(&[SPAN]).contains(&Breach::ReaderDiffers));
    }

    #[test]
    fn an_event_that_is_there_in_other_words_is_never_excused() {
        let mut case = Case::new();
        let mut log = case.finals.jobs[&case.id].log.clone();
        log[1].says = "two".into();
        case.asked.readers[0].sessions[0].seen = log;
        case.asked.readers[0].sessions[0].when = vec![150; 3];
        assert_eq!(case.breaches(&[SPAN]), [Breach::ReaderDiffers, Breach::ReaderMisread].into());
    }

    /// A job whose reader has seen the attempt under 110 and the one under 120, which the server has
    /// forgotten, and that goes on under 110; then the reader sees what `later` takes from the log.
    fn set_back(later: impl FnOnce(&[Step]) -> Vec<Step>) -> Case {
        let mut case = Case::new();
        let kept = case.finals.jobs.get_mut(&case.id).unwrap();
        for (seq, step) in kept.log.iter_mut().enumerate() {
            step.id = EventId { fence: 110, seq: seq as u64 };
        }
        let mut before = kept.log.clone();
        before.splice(0..0, [step(105, 0, Kind::Started, "w")]);
        kept.log.clone_from(&before);
        kept.fence = 110;
        let lost = [step(120, 0, Kind::Started, "w"), step(120, 1, Kind::Delta, "two")];
        let later = later(&before);
        let seen: Vec<Step> = before[..3].iter().chain(&lost).chain(&later).cloned().collect();
        case.asked.readers[0].sessions[0].when = vec![150; seen.len()];
        case.asked.readers[0].sessions[0].seen = seen;
        case
    }

    #[test]
    fn a_reader_of_a_forgotten_attempt_is_shown_the_one_before_it_from_its_start() {
        assert_eq!(set_back(|log| log[1..].to_vec()).breaches(&[SPAN]), [].into());
        // Neither its middle, nor that of an attempt before it, nor twice.
        let repeated = [Breach::ReaderRepeated].into();
        let middle = set_back(|log| log[2..].to_vec());
        assert!(middle.breaches(&[SPAN]).contains(&Breach::ReaderRepeated));
        assert_eq!(set_back(<[Step]>::to_vec).breaches(&[SPAN]), repeated);
        let twice = set_back(|log| [&log[1..3], &log[1..]].concat());
        assert_eq!(twice.breaches(&[SPAN]), repeated);
        // What follows without a beginning is mixed with what was forgotten.
        let mixed = set_back(|log| log[3..].to_vec());
        assert_eq!(mixed.breaches(&[SPAN]), [Breach::ReaderMisread].into());
        // At another time it is no excuse.
        assert!(set_back(|log| log[1..].to_vec()).breaches(&[]).contains(&Breach::ReaderRepeated));
    }

    /// A reader of a requeue, which was under way at that time, that is told the end of the run before.
    fn told_the_end_again(when: Span, seen: Step) -> BTreeSet<Breach> {
        let mut case = Case::new();
        let after = EventId { fence: 300, seq: u64::MAX };
        case.asked.readers[0].sessions =
            vec![Session { after, seen: vec![seen], when: vec![150], ..Session::default() }];
        case.asked.requeues = Repeats { acknowledged: 1, when: vec![when], ..Repeats::default() };
        let mut breaches = case.breaches(&[SPAN]);
        breaches.remove(&Breach::RequeueLost);
        breaches
    }

    #[test]
    fn a_reader_of_a_requeue_that_is_undone_is_told_the_end_that_stands() {
        let inside = Span { from: 150, until: 160 };
        let done = step(300, 2, Kind::Done, "");
        assert_eq!(told_the_end_again(inside, done.clone()), [].into());
        let outside = Span { from: 250, until: 260 };
        assert!(told_the_end_again(outside, done).contains(&Breach::ReaderRepeated));
        let word = step(300, 1, Kind::Delta, "one");
        assert!(told_the_end_again(inside, word).contains(&Breach::ReaderRepeated));
    }

    #[test]
    fn a_reader_is_told_of_no_job_while_it_is_forgotten_and_at_no_other_time() {
        let told = |when, promised| {
            let mut case = Case::new();
            case.asked.promised = vec![promised];
            case.asked.readers[0] = Reader { not_found: Some(when), ..Reader::default() };
            case.breaches(&[SPAN])
        };
        let inside = Span { from: 150, until: 160 };
        assert_eq!(told(SPAN.until + ON_ITS_WAY, inside), [].into());
        let breach: BTreeSet<_> = [Breach::ReaderNotFound].into();
        assert_eq!(told(SPAN.until + ON_ITS_WAY + 1, inside), breach);
        assert_eq!(told(170, Span { from: 90, until: 99 }), breach);
        assert_eq!(told(99, inside), breach);
    }

    #[test]
    fn events_below_a_forgotten_one_are_not_missed_but_those_above_are() {
        // The attempt under 110 goes on where the server has forgotten the one under 120.
        let mut case = Case::new();
        let kept = case.finals.jobs.get_mut(&case.id).unwrap();
        for (seq, step) in kept.log.iter_mut().enumerate() {
            step.id = EventId { fence: 110, seq: seq as u64 };
        }
        kept.fence = 110;
        let seen = &mut case.asked.readers[0].sessions[0];
        seen.seen = vec![kept.log[0].clone(), step(120, 0, Kind::Started, "w")];
        seen.when = vec![150; 2];
        assert_eq!(case.breaches(&[SPAN]), [].into());
        let mut above = Case::new();
        let seen = &mut above.asked.readers[0].sessions[0];
        seen.seen = vec![step(120, 0, Kind::Started, "w")];
        seen.when = vec![150];
        above.asked.readers[0].ended = false;
        assert_eq!(above.breaches(&[SPAN]), [Breach::ReaderStuck].into());
    }

    #[test]
    fn a_promise_of_a_forgotten_moment_binds_nobody_and_one_outside_does() {
        let lost = |promised: Vec<Span>| {
            let mut case = Case::new();
            case.asked.readers.clear();
            case.asked.promised = promised;
            case.finals.jobs.clear();
            case.breaches(&[SPAN])
        };
        let inside = Span { from: 150, until: 160 };
        let across = Span { from: 90, until: 101 };
        let outside = Span { from: 201, until: 210 };
        assert_eq!(lost(vec![inside]), [].into());
        assert_eq!(lost(vec![across]), [].into());
        assert_eq!(lost(vec![outside]), [Breach::Lost].into());
        assert_eq!(lost(vec![inside, outside]), [Breach::Lost].into());
    }

    #[test]
    fn an_operation_of_a_forgotten_moment_may_be_undone() {
        let cancelled = |when: Span| {
            let mut case = Case::new();
            case.asked.cancels =
                Repeats { acknowledged: 1, when: vec![when], ..Repeats::default() };
            case.breaches(&[SPAN])
        };
        assert_eq!(cancelled(Span { from: 150, until: 160 }), [].into());
        assert_eq!(cancelled(Span { from: 250, until: 260 }), [Breach::CancelLost].into());
    }
}
