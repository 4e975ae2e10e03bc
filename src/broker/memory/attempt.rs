//! Attempts: how they open, and how they end.

use super::{
    run::Run,
    state::State,
    verdict::{Verdict, verdict},
};
use crate::{
    broker::{
        Attempt, Begin, Crashes, Entry, Error, Outcome, Record, Refusal, Refused, Result, WorkerId,
        Written,
    },
    error::{Code, Failure},
    event::{Body, Codec, Frame, Started},
    job::{JobId, Timestamp},
    state::State as JobState,
};

impl State {
    /// What an entry is owed where no attempt may open; the answer of `begin` and `refuse` alike.
    fn owed(&self, entry: &Entry, verdict: Verdict) -> Begin {
        let Some(Run { record, .. }) = self.runs.get(&entry.id) else { return Begin::Remove };
        match verdict {
            Verdict::Park => {
                let due = record.due.unwrap_or_default();
                Begin::Park { attempt: record.attempt, due }
            }
            Verdict::Bury => {
                let unknown = || Failure::new(Code::Unknown, "the reason was not kept");
                let error = record.error.clone().unwrap_or_else(unknown);
                Begin::Bury { error, attempts: record.attempt, fence: record.fence }
            }
            Verdict::Late => Begin::Late,
            Verdict::Open | Verdict::Again | Verdict::Remove => Begin::Remove,
        }
    }

    /// Why an attempt that could open may not.
    fn refused(
        &self,
        entry: &Entry,
        worker: &WorkerId,
        (most, alone): (u32, bool),
        now: Timestamp,
    ) -> Option<Begin> {
        let run = self.runs.get(&entry.id);
        let attempts = run.map_or(0, |run| run.record.attempt);
        let (crashes, lost) = run.map_or((0, None), |run| run.crashes(entry, Some(worker)));
        let begun = run.is_some_and(|run| run.record.began_at.is_some());
        // A job that has begun once, or was put back by an operator, does not expire.
        let fresh = entry.attempt == 0 && entry.run == 1 && !begun;
        let job = entry.job.as_ref().ok().filter(|_| fresh);
        let expires = job.and_then(|job| job.expires_at);
        let begins = job.and_then(|job| job.not_before).map(|due| due.min(Timestamp::MAX));
        let why = if run.is_some_and(|run| run.cancel) {
            Refused::Cancelled
        } else if crashes >= most {
            Refused::Poison { crashes }
        } else if lost.is_some() && crashes >= 2 && !alone {
            return Some(Begin::Alone);
        } else if expires.is_some_and(|at| now > at) {
            Refused::Expired
        } else if let Some(due) = begins.filter(|due| *due > now) {
            return Some(Begin::Park { attempt: attempts, due });
        } else {
            return None;
        };
        Some(Begin::Refuse { why, attempts })
    }

    pub(super) fn begin(
        &mut self,
        entry: &Entry,
        worker: &WorkerId,
        Crashes { most, alone }: Crashes,
        now: Timestamp,
    ) -> Result<Begin> {
        let run = self.runs.get(&entry.id);
        if run.is_some_and(|run| run.is_strange_to(entry)) {
            return Ok(Begin::Foreign);
        }
        let verdict = verdict(run, entry, Some(worker));
        let attempt = match verdict {
            Verdict::Again => return Ok(Begin::Begun(self.run_of(entry).attempt(entry, worker))),
            Verdict::Open => {
                if let Some(refused) = self.refused(entry, worker, (most, alone), now) {
                    if let Begin::Park { due, .. } = refused {
                        // Whoever asks for the job, or cancels it, finds it parked.
                        self.run_of(entry).schedule(due);
                    }
                    return Ok(refused);
                }
                self.run_of(entry).open(entry, worker, now)
            }
            Verdict::Remove | Verdict::Park | Verdict::Bury | Verdict::Late => {
                return Ok(self.owed(entry, verdict));
            }
        };
        let started = Started { attempt: attempt.number, worker: worker.to_string() };
        let frame = Frame::new(0, &Body::Started(started), Codec::Json)
            .map_err(|e| Error::Protocol(e.to_string()))?;
        self.write(attempt.job, attempt.fence, &[frame]);
        Ok(Begin::Begun(attempt))
    }

    pub(super) fn refuse(
        &mut self,
        entry: &Entry,
        refusal: &Refusal,
        frame: &Frame,
        now: Timestamp,
    ) -> Begin {
        let run = self.runs.get(&entry.id);
        if run.is_some_and(|run| run.is_strange_to(entry)) {
            return Begin::Foreign;
        }
        let verdict = verdict(run, entry, None);
        if verdict != Verdict::Open {
            return self.owed(entry, verdict);
        }
        let run = self.run_of(entry);
        let (state, owed) = match refusal {
            Refusal::Failed(_) if run.cancel => {
                let attempts = run.record.attempt;
                return Begin::Refuse { why: Refused::Cancelled, attempts };
            }
            Refusal::Failed(_) => (JobState::Failed, Verdict::Bury),
            Refusal::Cancelled => (JobState::Cancelled, Verdict::Remove),
        };
        let fence = run.refuse(entry, state, now);
        if let Refusal::Failed(error) = refusal {
            run.record.error = Some(error.clone());
        }
        self.write(entry.id, fence, std::slice::from_ref(frame));
        self.finished.push_back(entry.id);
        self.owed(entry, owed)
    }

    pub(super) fn conclude(
        &mut self,
        attempt: &Attempt,
        frames: &[Frame],
        outcome: &Outcome,
        now: Timestamp,
    ) -> Written {
        let run = self.runs.get(&attempt.job).filter(|run| run.record.fence == attempt.fence);
        let Some(run) = run else { return Written::Fenced };
        match (run.record.state, outcome) {
            (JobState::Running, Outcome::Cancelled { .. }) => {}
            (JobState::Running, _) if run.cancel => return Written::Cancelled,
            (JobState::Running, _) => {}
            // Written already.
            (JobState::Done, Outcome::Done { .. })
            | (JobState::Failed, Outcome::Failed(_))
            | (JobState::Cancelled, Outcome::Cancelled { .. })
            | (JobState::Parked, Outcome::Retry { .. }) => return Written::Yes,
            _ => return Written::Fenced,
        }
        let written = self.append(attempt.job, attempt.fence, frames);
        if written == Written::Yes {
            self.end(attempt.job, outcome, now);
        }
        written
    }

    /// Sets the state in which an attempt leaves its job.
    fn end(&mut self, job: JobId, outcome: &Outcome, now: Timestamp) {
        let Some(run) = self.runs.get_mut(&job) else { return };
        let read = |usage: &Option<String>| {
            usage.as_deref().and_then(|json| serde_json::from_str(json).ok())
        };
        if let Outcome::Failed(error) | Outcome::Retry { error, .. } = outcome {
            run.record.failures += 1;
            run.record.error = Some(error.clone());
            run.set_back(error.clone(), now);
        }
        let Record { state, usage: counted, finish_reason: reason, due, .. } = &mut run.record;
        match outcome {
            Outcome::Done { finish_reason, usage } => {
                *state = JobState::Done;
                reason.clone_from(finish_reason);
                *counted = read(usage);
            }
            Outcome::Cancelled { usage } => {
                *state = JobState::Cancelled;
                *counted = read(usage);
            }
            Outcome::Failed(_) => *state = JobState::Failed,
            Outcome::Retry { delay, .. } => {
                *state = JobState::Parked;
                *due = Some(now.after(*delay));
            }
        }
        if run.record.state.is_terminal() {
            run.record.cancelling = false;
            run.record.ended_at = Some(now);
            self.finished.push_back(job);
        }
    }
}
