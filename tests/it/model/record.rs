//! The reference's other half: the job's slot, where record and log are.

use millstream::{
    broker::{Refused, Written},
    error::Code,
    state::State,
};

use super::{
    reference::{Attempt, Entry, Job, Letter, Reference},
    terms::{
        Answer, AttemptNo, Delivery, Deltas, Due, End, EntryNo, Event, JobNo, LetterNo, Record,
        Refusal, WorkerNo, text,
    },
};

/// Attempts that a job may lose with their workers.
pub const MOST_CRASHES: u32 = 2;

/// What an entry is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Attempt,
    Removal,
    Parking,
    Burial,
}

impl Job {
    fn is_over(&self) -> bool {
        self.state.is_terminal()
    }

    fn top(&self) -> (u32, u64) {
        self.log.last().map_or((0, 0), |event| (event.fence, event.seq))
    }

    fn say(&mut self, seq: u64, kind: &'static str, note: String) {
        self.log.push(Event { fence: self.fence, seq, kind, note });
    }

    /// Opens a fence with its first event.
    fn raise(&mut self, kind: &'static str, note: String) {
        self.fence += 1;
        self.say(0, kind, note);
    }
}

impl Reference {
    /// What an entry of this attempt and run is owed, being the one at `place` or another. Of
    /// several entries one carries the job, and what is owed to the others never changes: somebody
    /// may be about to settle them.
    fn owed(&self, no: JobNo, place: Option<EntryNo>, (attempt, run): (u32, u32)) -> Owed {
        let job = &self.jobs[no];
        let here = place.is_some() && job.place == place;
        let carried_elsewhere = match job.state {
            State::Done | State::Cancelled => true,
            // A job that was given back is carried by the entry that it ran on.
            State::Running | State::Failed => !here,
            State::Waiting => !here && (job.place.is_some() || attempt < job.attempt),
            State::Parked => !here && attempt < job.attempt,
        };
        match job.state {
            _ if carried_elsewhere || run < job.run => Owed::Removal,
            State::Failed => Owed::Burial,
            State::Parked if here => Owed::Parking,
            _ => Owed::Attempt,
        }
    }

    fn owed_to(&self, no: EntryNo) -> Owed {
        let Entry { job, attempt, run, .. } = self.entries[no];
        self.owed(job, Some(no), (attempt, run))
    }

    fn tell(&self, no: JobNo, owed: Owed) -> Answer {
        let Job { attempt, due, fence, error, .. } = self.jobs[no];
        match owed {
            Owed::Parking => Answer::Park { attempt, due: due.unwrap_or(Due::Passed(0)) },
            Owed::Burial => {
                Answer::Bury { attempts: attempt, fence, code: error.unwrap_or(Code::Unknown) }
            }
            Owed::Removal | Owed::Attempt => Answer::Remove,
        }
    }

    /// Whether an attempt runs that is lost: another's, or one that crashed; and the crashes with it.
    fn lost(&self, delivery: Delivery, worker: Option<WorkerNo>) -> (bool, u32) {
        let job = &self.jobs[self.entries[delivery.entry].job];
        let lost = job.state == State::Running && (job.worker != worker || delivery.crashed);
        (lost, job.crashes + u32::from(lost && delivery.crashed))
    }

    /// What a new fence leaves, whoever opens it for an entry.
    fn carry(&mut self, delivery: Delivery, worker: Option<WorkerNo>) -> &mut Job {
        let (lost, crashes) = self.lost(delivery, worker);
        let entry = &self.entries[delivery.entry];
        let job = &mut self.jobs[entry.job];
        if lost {
            job.crashes = crashes;
            job.history.push((job.attempt, Code::WorkerLost));
        }
        job.run = job.run.max(entry.run);
        job.place = Some(delivery.entry);
        job.taking = delivery.taking;
        job.due = None;
        job
    }

    pub fn begin(&mut self, worker: WorkerNo, delivery: Delivery) -> Answer {
        let no = self.entries[delivery.entry].job;
        let job = &self.jobs[no];
        let placed = job.place == Some(delivery.entry);
        let repeat = placed && job.worker == Some(worker) && job.taking == delivery.taking;
        if repeat && job.state == State::Running {
            let open = |open: &Attempt| open.job == no && open.fence == job.fence;
            return Answer::Begun(self.attempts.iter().position(open).unwrap_or(usize::MAX));
        }
        let owed = self.owed_to(delivery.entry);
        if owed != Owed::Attempt {
            return self.tell(no, owed);
        }
        if repeat || (placed && delivery.taking < job.taking) {
            return Answer::Late;
        }
        let (_, crashes) = self.lost(delivery, Some(worker));
        let entry = &self.entries[delivery.entry];
        let fresh = entry.attempt == 0 && entry.run == 1 && !job.began;
        let why = if job.cancel {
            Some(Refused::Cancelled)
        } else if crashes >= MOST_CRASHES {
            Some(Refused::Poison { crashes })
        } else {
            (self.profiles[no].expired && fresh).then_some(Refused::Expired)
        };
        if let Some(why) = why {
            return Answer::Refuse { why, attempts: job.attempt };
        }
        let job = self.carry(delivery, Some(worker));
        job.state = State::Running;
        job.attempt += 1;
        job.worker = Some(worker);
        job.began = true;
        let note = format!("{} by {worker}", job.attempt);
        job.raise("started", note);
        let Job { fence, attempt: number, failures, .. } = *job;
        let entry = delivery.entry;
        self.attempts.push(Attempt { job: no, entry, worker, fence, number, failures });
        Answer::Begun(self.attempts.len() - 1)
    }

    pub fn refuse(&mut self, delivery: Delivery, how: Refusal) -> Answer {
        let no = self.entries[delivery.entry].job;
        let owed = self.owed_to(delivery.entry);
        if owed != Owed::Attempt {
            return self.tell(no, owed);
        }
        let job = &self.jobs[no];
        if job.place == Some(delivery.entry) && delivery.taking < job.taking {
            return Answer::Late;
        }
        if self.jobs[no].cancel && how != Refusal::Cancelled {
            return Answer::Refuse { why: Refused::Cancelled, attempts: self.jobs[no].attempt };
        }
        let job = self.carry(delivery, None);
        match how {
            Refusal::Failed(code) => {
                job.state = State::Failed;
                job.error = Some(code);
                job.raise("failed", "0".to_owned());
                self.tell(no, Owed::Burial)
            }
            Refusal::Cancelled => {
                job.state = State::Cancelled;
                job.raise("cancelled", "0".to_owned());
                Answer::Remove
            }
        }
    }

    /// Appends deltas and what `follows` them, where all lie above the top.
    pub fn append(
        &mut self,
        attempt: AttemptNo,
        Deltas { first, end }: Deltas,
        follows: Option<(&'static str, u32)>,
    ) -> Written {
        let Attempt { job: no, fence, .. } = self.attempts[attempt];
        let job = &mut self.jobs[no];
        if (fence, first) <= job.top() {
            return Written::Behind;
        }
        for seq in first..end {
            let note = text(no, fence, seq);
            job.log.push(Event { fence, seq, kind: "delta", note });
        }
        if let Some((kind, note)) = follows {
            job.log.push(Event { fence, seq: end, kind, note: note.to_string() });
        }
        Written::Yes
    }

    pub fn heal(&mut self, attempt: AttemptNo, Deltas { end, .. }: Deltas) -> Written {
        let Attempt { job, fence, .. } = self.attempts[attempt];
        if self.jobs[job].fence != fence || self.jobs[job].state != State::Running {
            return Written::Fenced;
        }
        let (_, top) = self.jobs[job].top();
        if top + 1 < end {
            self.append(attempt, Deltas { first: top + 1, end }, None);
        }
        Written::Yes
    }

    pub fn conclude(&mut self, attempt: AttemptNo, deltas: Deltas, end: End) -> Written {
        let Attempt { job: no, fence, number, .. } = self.attempts[attempt];
        let job = &self.jobs[no];
        let (state, kind, code) = match end {
            End::Done => (State::Done, "done", None),
            End::Failed => (State::Failed, "failed", Some(Code::UpstreamError)),
            End::Retry { .. } => (State::Parked, "retrying", Some(Code::UpstreamError)),
            End::Cancelled => (State::Cancelled, "cancelled", None),
        };
        if job.fence != fence {
            return Written::Fenced;
        }
        if job.state != State::Running {
            return if job.state == state { Written::Yes } else { Written::Fenced };
        }
        if job.cancel && end != End::Cancelled {
            return Written::Cancelled;
        }
        let written = self.append(attempt, deltas, Some((kind, number)));
        if written == Written::Yes {
            let due = match end {
                End::Retry { far: true } => Some(Due::Far),
                End::Retry { far: false } => Some(self.tick()),
                _ => None,
            };
            let job = &mut self.jobs[no];
            (job.state, job.due) = (state, due);
            if let Some(code) = code {
                job.failures += 1;
                job.error = Some(code);
                job.history.push((job.attempt, code));
            }
        }
        written
    }

    /// Gives back an attempt's budget, never its fence.
    pub fn give_up(&mut self, attempt: AttemptNo) {
        let Attempt { job, fence, .. } = self.attempts[attempt];
        let job = &mut self.jobs[job];
        if job.fence == fence && job.state == State::Running {
            job.state = State::Waiting;
            job.attempt -= 1;
        }
    }

    pub fn cancel(&mut self, no: JobNo) -> Answer {
        let job = &mut self.jobs[no];
        if !job.known {
            return Answer::Unknown;
        }
        if job.is_over() {
            let (run, over) = (job.run, Answer::Over(job.state));
            let cancelled = job.state == State::Cancelled;
            return if cancelled { Answer::Cancelled { run, again: true } } else { over };
        }
        if let (State::Running, Some(worker)) = (job.state, job.worker) {
            return Answer::Asked { worker, again: std::mem::replace(&mut job.cancel, true) };
        }
        job.state = State::Cancelled;
        job.due = None;
        job.raise("cancelled", job.attempt.to_string());
        Answer::Cancelled { run: job.run, again: false }
    }

    pub fn reopen(&mut self, no: LetterNo) -> Answer {
        let Letter { job, run, .. } = self.letters[no];
        let job = &mut self.jobs[job];
        let mine = job.letter == Some(no);
        let dead = match job.state {
            // The run that this letter opened came to its own end, and has its own letter.
            State::Failed => job.run == run,
            // The same where an entry of that run has begun.
            State::Cancelled => job.run == run || (mine && job.place.is_none()),
            State::Done => false,
            _ if mine => return Answer::Opened { run: job.run, fresh: false },
            _ => false,
        };
        if !dead {
            return Answer::NotDead(job.state);
        }
        *job = Job {
            known: true,
            state: State::Waiting,
            run: job.run + 1,
            fence: job.fence,
            letter: Some(no),
            log: std::mem::take(&mut job.log),
            promised: job.promised,
            due: None,
            attempt: 0,
            failures: 0,
            crashes: 0,
            place: None,
            taking: 0,
            worker: None,
            cancel: false,
            began: false,
            error: None,
            history: Vec::new(),
        };
        job.raise("requeued", job.run.to_string());
        Answer::Opened { run: job.run, fresh: true }
    }

    /// A job as operators see it.
    pub fn shown(&self, no: JobNo) -> Record {
        let job = &self.jobs[no];
        let parked = job.state == State::Parked;
        let waiting = parked && job.due != Some(Due::Far);
        Record {
            state: if waiting { State::Waiting } else { job.state },
            run: job.run,
            fence: job.fence,
            attempt: job.attempt,
            failures: job.failures,
            crashes: job.crashes,
            worker: job.worker,
            cancelling: job.cancel && job.state == State::Running,
            due: job.due.filter(|_| parked).map(|due| due == Due::Far),
            began: job.began,
            ended: job.is_over(),
            error: job.error,
            history: job.history.clone(),
        }
    }

    /// Whether something carries the job on to its end, or keeps it where it has failed.
    pub fn is_carried(&self, no: JobNo) -> bool {
        let job = &self.jobs[no];
        let there = self.lanes.iter().flatten().filter(|entry| self.entries[**entry].job == no);
        let mut owed = there.map(|entry| self.owed_to(*entry));
        let parked = self.parked.get(&no).map(|p| self.owed(no, None, (p.attempt, p.run)));
        match job.state {
            State::Done | State::Cancelled => true,
            State::Failed => {
                let of_run = |letter: &Letter| letter.job == no && letter.run == job.run;
                owed.any(|owed| owed == Owed::Burial) || self.letters.iter().any(of_run)
            }
            _ => owed.chain(parked).any(|owed| owed != Owed::Removal),
        }
    }
}
