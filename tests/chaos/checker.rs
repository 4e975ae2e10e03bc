//! Judges a history: what clients were promised and shown against what Redis holds in the end.
//!
//! It knows nothing of how the system works, only what it promises: the first four invariants of
//! the design. A job that nobody was promised may be missing; once it exists it must be as sound as
//! any other.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use millstream::{event::EventId, job::JobId};

use crate::history::{Asked, Fate, Finals, Kept, Kind, Reader, Step};

/// What a history can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// An acknowledged job has no record or no log.
    Lost,
    /// One enqueue made two jobs.
    EnqueuedTwice,
    /// A job that nobody asked for.
    Stranger,
    /// A run without a terminal event.
    Unfinished,
    /// A run with two.
    SecondTerminal,
    /// An event behind the terminal one that opens no new run.
    AfterTerminal,
    /// An event ID that does not rise within its fence.
    OutOfOrder,
    /// An event under a lower fence than the one before it.
    StaleFence,
    /// A sequence that does not count 0, 1, 2, ….
    Hole,
    /// An event that its place does not allow, such as text before `started`.
    OutOfTurn,
    /// Text that the model does not give.
    WrongText,
    /// `done` for a job that cannot be done.
    WrongEnd,
    /// A requeue that was acknowledged and is not in the log.
    RequeueLost,
    /// A requeue that nobody asked for.
    RequeueUnasked,
    /// A cancellation that was acknowledged, of a job that ended otherwise.
    CancelLost,
    /// A cancellation that nobody asked for.
    CancelUnasked,
    /// The record's state or fence is not that of the log's last event.
    RecordDisagrees,
    /// A reader was told that an acknowledged job does not exist.
    ReaderNotFound,
    /// A reader saw an event again.
    ReaderRepeated,
    /// A reader missed an event.
    ReaderSkipped,
    /// A reader saw what the log does not hold, or otherwise.
    ReaderDiffers,
    /// A reader was shown the job's end, and its text is not the model's.
    ReaderMisread,
    /// A reader's stream ended before the terminal event.
    ReaderCutShort,
    /// A reader still waits for events that the log has.
    ReaderStuck,
    /// A failed job without a dead letter.
    DeadLetterMissing,
    /// A dead letter without a failed job, or a second one.
    DeadLetterUnfounded,
    /// An entry that is left though its job is over.
    Unsettled,
}

/// One breach, with where it was met.
#[derive(Debug, Clone)]
pub struct Violation {
    pub breach: Breach,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.breach, self.detail)
    }
}

/// Judges the whole history. Nothing returned means that all invariants hold.
pub fn check(asked: &[Asked], finals: &Finals) -> Vec<Violation> {
    let mut checker = Checker::default();
    let mut by_name: HashMap<&str, Vec<JobId>> = HashMap::new();
    for (id, kept) in &finals.jobs {
        by_name.entry(&kept.name).or_default().push(*id);
    }
    let mut known = BTreeSet::new();
    for job in asked {
        let found = by_name.get(job.name.as_str()).map_or(&[][..], Vec::as_slice);
        known.extend(found.iter().copied());
        checker.job(job, found, finals);
    }
    for (id, kept) in finals.jobs.iter().filter(|(id, _)| !known.contains(id)) {
        checker.report(Breach::Stranger, format!("job {id}, custom_id `{}`", kept.name));
    }
    checker.dead_letters(finals);
    if finals.unsettled > 0 {
        checker.report(Breach::Unsettled, format!("{} entries", finals.unsettled));
    }
    checker.violations
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    /// No attempt writes.
    Open,
    /// The attempt under this fence writes.
    Writing(u64),
    /// It has come to its end.
    Over,
}

/// What a walk through a log knows so far.
struct Walk<'a> {
    name: &'a str,
    asked: &'a Asked,
    stage: Stage,
    /// The attempt's text.
    text: String,
    requeued: usize,
}

#[derive(Default)]
struct Checker {
    violations: Vec<Violation>,
}

impl Checker {
    fn report(&mut self, breach: Breach, detail: impl Into<String>) {
        self.violations.push(Violation { breach, detail: detail.into() });
    }

    fn job(&mut self, job: &Asked, found: &[JobId], finals: &Finals) {
        let name = &job.name;
        let promised: BTreeSet<JobId> = match &job.fate {
            Fate::Unknown => BTreeSet::new(),
            Fate::Acknowledged(ids) => ids.iter().copied().collect(),
        };
        let all: BTreeSet<JobId> = promised.iter().chain(found).copied().collect();
        if all.len() > 1 {
            self.report(Breach::EnqueuedTwice, format!("{name}: {all:?}"));
        }
        for id in &promised {
            if finals.jobs.get(id).is_none_or(|kept| kept.log.is_empty() || kept.name != *name) {
                self.report(Breach::Lost, format!("{name}: acknowledged as {id}"));
            }
        }
        for kept in found.iter().filter_map(|id| finals.jobs.get(id)) {
            self.order(name, &kept.log);
            self.runs(job, &kept.log);
            self.record(name, kept);
        }
        let log = all.first().and_then(|id| finals.jobs.get(id)).map_or(&[][..], |kept| &kept.log);
        for reader in &job.readers {
            self.reader(name, reader, log);
            self.text(job, reader);
        }
    }

    /// One writer at a time: IDs rise, and each fence counts from 0.
    fn order(&mut self, name: &str, log: &[Step]) {
        let mut before: Option<EventId> = None;
        for Step { id, kind, .. } in log {
            let expected = match before {
                Some(last) if last.fence == id.fence => last.seq + 1,
                _ => 0,
            };
            let breach = match before {
                Some(last) if id.fence < last.fence => Some(Breach::StaleFence),
                Some(last) if *id <= last => Some(Breach::OutOfOrder),
                _ if id.seq != expected => Some(Breach::Hole),
                _ => None,
            };
            if let Some(breach) = breach {
                let last = before.unwrap_or_default();
                self.report(breach, format!("{name}: {} {id} follows {last}", kind.name()));
            }
            before = Some(*id);
        }
    }

    /// Each run has one terminal event, nothing follows it, and every attempt says what the model
    /// says.
    fn runs(&mut self, job: &Asked, log: &[Step]) {
        let (stage, text) = (Stage::Open, String::new());
        let mut walk = Walk { name: &job.name, asked: job, stage, text, requeued: 0 };
        for step in log {
            let Some((breach, detail)) = walk.step(step) else { continue };
            self.report(breach, format!("{}: {} {}{detail}", job.name, step.kind.name(), step.id));
        }
        if walk.stage != Stage::Over {
            let last = log.last().map_or("nothing", |step| step.kind.name());
            self.report(Breach::Unfinished, format!("{}: ends in {last}", job.name));
        }
        let ends_cancelled = log.last().is_some_and(|step| step.kind == Kind::Cancelled);
        if job.cancels.acknowledged > 0 && !ends_cancelled {
            self.report(Breach::CancelLost, job.name.clone());
        }
        let asked = &job.requeues;
        let detail = format!("{}: {} requeued, asked for {asked:?}", job.name, walk.requeued);
        if walk.requeued < asked.acknowledged {
            self.report(Breach::RequeueLost, detail);
        } else if walk.requeued > asked.acknowledged + asked.unknown {
            self.report(Breach::RequeueUnasked, detail);
        }
    }

    fn record(&mut self, name: &str, kept: &Kept) {
        let Some(last) = kept.log.iter().rfind(|step| step.kind.is_terminal()) else { return };
        let fence = kept.log.last().map_or(0, |step| step.id.fence);
        if kept.state != last.kind.name() || kept.fence != fence {
            let (state, met) = (&kept.state, kept.fence);
            let detail =
                format!("{name}: `{state}` under {met}; log: {} {}", last.kind.name(), last.id);
            self.report(Breach::RecordDisagrees, detail);
        }
    }

    /// A reader saw what the log holds from its start on, each event once, up to the end of a run.
    fn reader(&mut self, name: &str, reader: &Reader, log: &[Step]) {
        if reader.not_found.is_some() {
            self.report(Breach::ReaderNotFound, name);
        }
        let Some(first) = reader.sessions.first() else { return };
        let begin =
            log.partition_point(|step| step.id <= first.after && first.after != EventId::START);
        // Behind an event that the server forgot, lower ones are in the log that it was not shown.
        let hidden = |steps: &[Step]| {
            steps.iter().all(|step| reader.forgotten.is_some_and(|last| step.id <= last))
        };
        let mut at = begin;
        // Each kind once: where a log is lost everything seen of it is wrong.
        let mut told = BTreeSet::new();
        let mut earliest = begin;
        for (lost, step) in reader.steps() {
            if log.get(at) == Some(step) {
                at += 1;
                continue;
            }
            let place = log.iter().position(|kept| kept.id == step.id);
            let sound = place.filter(|place| log[*place] == *step);
            if let Some(place) = sound
                && place > at
                && hidden(&log[at..place])
            {
                at = place + 1;
                continue;
            }
            let goes_back =
                lost.last().is_some_and(|lost| is_set_back(&log[place.unwrap_or(0)..], lost));
            let is_undone =
                reader.undone && step.kind.is_terminal() && step.id.fence == first.after.fence;
            if let Some(place) = sound.filter(|_| goes_back || is_undone) {
                earliest = earliest.min(place);
                at = place + 1;
                continue;
            }
            let breach = match place {
                Some(place) if log[place] != *step => Breach::ReaderDiffers,
                Some(place) if place < at => Breach::ReaderRepeated,
                Some(_) => Breach::ReaderSkipped,
                None => Breach::ReaderDiffers,
            };
            if told.insert(breach) {
                let expected = log.get(at).map(|step| step.id);
                self.report(breach, format!("{name}: saw {step:?}, expected {expected:?}"));
            }
            at = place.map_or(at, |place| place + 1);
        }
        let last = at.checked_sub(1).filter(|at| *at >= earliest).and_then(|at| log.get(at));
        let finished = last.is_some_and(|step| step.kind.is_terminal());
        if reader.misled || log.get(at..).is_none_or(hidden) {
            return;
        }
        if reader.ended && !finished && at < log.len() {
            self.report(Breach::ReaderCutShort, format!("{name}: after {last:?}"));
        } else if !reader.ended && reader.not_found.is_none() && at < log.len() {
            self.report(Breach::ReaderStuck, format!("{name}: after {last:?}"));
        }
    }

    /// A reader that is shown the end of a job has the text that the model gives, whatever else it was shown:
    /// it discards what it has where an attempt begins, and nowhere else.
    fn text(&mut self, asked: &Asked, reader: &Reader) {
        let mut text: Option<String> = None;
        for (lost, step) in reader.steps() {
            for step in lost.iter().chain([step]) {
                match (step.kind, &mut text) {
                    (Kind::Started, text) => *text = Some(String::new()),
                    (Kind::Delta, Some(text)) => text.push_str(&step.says),
                    _ => {}
                }
            }
            let is_whole = text.as_ref().is_none_or(|text| *text == asked.text);
            if step.kind == Kind::Done && !is_whole {
                self.report(Breach::ReaderMisread, format!("{}: `{text:?}`", asked.name));
            }
        }
    }

    /// Failed jobs and dead letters are the same jobs, under the same fences.
    fn dead_letters(&mut self, finals: &Finals) {
        let mut letters: BTreeMap<JobId, Vec<u64>> = BTreeMap::new();
        for letter in &finals.dead {
            letters.entry(letter.id).or_default().push(letter.fence);
        }
        for (id, kept) in &finals.jobs {
            let failed = kept.log.last().filter(|step| step.kind == Kind::Failed);
            let fences = letters.remove(id).unwrap_or_default();
            let name = &kept.name;
            match failed {
                Some(step) if fences.is_empty() => {
                    self.report(
                        Breach::DeadLetterMissing,
                        format!("{name}: failed at {}", step.id),
                    );
                }
                Some(step) if fences != [step.id.fence] => {
                    let detail = format!("{name}: failed at {}, letters of {fences:?}", step.id);
                    self.report(Breach::DeadLetterUnfounded, detail);
                }
                None if !fences.is_empty() => {
                    self.report(Breach::DeadLetterUnfounded, format!("{name}: has not failed"));
                }
                _ => {}
            }
        }
        for id in letters.keys() {
            self.report(Breach::DeadLetterUnfounded, format!("job {id} does not exist"));
        }
    }
}

/// Whether a log, from the place where a reader of an event that the server forgot reads on, begins with the
/// last attempt, or end, that was there before it.
fn is_set_back(log: &[Step], lost: &Step) -> bool {
    let mut before = log.iter().take_while(|step| step.id.fence < lost.id.fence);
    before.next().is_some_and(|first| {
        first.id.seq == 0 && before.all(|step| step.id.fence == first.id.fence)
    })
}

impl Walk<'_> {
    fn step(&mut self, step: &Step) -> Option<(Breach, String)> {
        if self.stage == Stage::Over {
            return self.behind_the_end(step);
        }
        let writing = self.stage == Stage::Writing(step.id.fence);
        match step.kind {
            Kind::Started if writing => return Some((Breach::OutOfTurn, String::new())),
            Kind::Started => {
                self.stage = Stage::Writing(step.id.fence);
                self.text.clear();
            }
            Kind::Delta | Kind::Retrying | Kind::Done if !writing => {
                let breach = Breach::OutOfTurn;
                self.stage = if step.kind == Kind::Done { Stage::Over } else { Stage::Open };
                return Some((breach, " of no attempt under way".to_owned()));
            }
            Kind::Delta => return self.delta(step),
            Kind::Retrying => self.stage = Stage::Open,
            Kind::Done => return self.done(),
            Kind::Failed => self.stage = Stage::Over,
            Kind::Cancelled => {
                self.stage = Stage::Over;
                let asked = &self.asked.cancels;
                if asked.acknowledged + asked.unknown == 0 {
                    return Some((Breach::CancelUnasked, String::new()));
                }
            }
            Kind::Requeued => return Some((Breach::OutOfTurn, " of a run under way".to_owned())),
            Kind::Other => {}
        }
        None
    }

    fn behind_the_end(&mut self, step: &Step) -> Option<(Breach, String)> {
        if step.kind == Kind::Requeued {
            self.stage = Stage::Open;
            self.requeued += 1;
            return None;
        }
        let second = step.kind.is_terminal();
        Some((if second { Breach::SecondTerminal } else { Breach::AfterTerminal }, String::new()))
    }

    fn delta(&mut self, step: &Step) -> Option<(Breach, String)> {
        self.text.push_str(&step.says);
        if self.asked.text.starts_with(&self.text) {
            return None;
        }
        let detail = format!(": `{}` of {}", self.text, self.name);
        // Once told is enough: what follows is wrong, too.
        self.text.clone_from(&self.asked.text);
        Some((Breach::WrongText, detail))
    }

    fn done(&mut self) -> Option<(Breach, String)> {
        self.stage = Stage::Over;
        if self.asked.hopeless {
            return Some((Breach::WrongEnd, String::new()));
        }
        let whole = self.text == self.asked.text;
        (!whole).then(|| (Breach::WrongText, format!(": only `{}`", self.text)))
    }
}
