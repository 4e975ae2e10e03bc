//! The reference: a queue as plain lists and counters.
//!
//! It knows no streams, no scripts and no clocks. What a call is answered, and what it leaves, is
//! said here once more and independently of both brokers. This file holds the queue's slot, where
//! entries are; `record.rs` holds the job's.

use std::collections::BTreeMap;

use millstream::{job::Lane, state::State};

use super::terms::{
    Answer, AttemptNo, Call, Delivery, Due, EntryNo, Event, JobNo, LetterNo, Profile, When,
    WorkerNo,
};

/// What is known of one job.
#[derive(Debug, Clone)]
pub struct Job {
    pub known: bool,
    /// A promoted job stays parked until it begins: its time is over, that is all.
    pub state: State,
    pub due: Option<Due>,
    pub run: u32,
    pub fence: u32,
    pub attempt: u32,
    pub failures: u32,
    pub crashes: u32,
    pub place: Option<EntryNo>,
    /// The taking of that entry.
    pub taking: u32,
    pub worker: Option<WorkerNo>,
    pub cancel: bool,
    pub letter: Option<LetterNo>,
    pub began: bool,
    pub error: Option<millstream::error::Code>,
    pub history: Vec<(u32, millstream::error::Code)>,
    pub log: Vec<Event>,
    /// The last run of which somebody was told that it will end.
    pub promised: u32,
}

/// An entry, in its lane or gone.
#[derive(Debug, Clone)]
pub struct Entry {
    pub job: JobNo,
    pub lane: Lane,
    /// Attempts made before it was added.
    pub attempt: u32,
    pub run: u32,
    pub held: Option<Held>,
    /// How often it was given to a worker again.
    pub takings: u32,
}

/// Who has an entry.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub worker: WorkerNo,
    pub given_back: bool,
}

/// A job that waits for its time.
#[derive(Debug, Clone)]
pub struct Parked {
    pub due: Due,
    pub lane: Lane,
    pub attempt: u32,
    pub run: u32,
}

/// A dead letter, there or purged.
#[derive(Debug, Clone)]
pub struct Letter {
    pub job: JobNo,
    pub lane: Lane,
    pub run: u32,
    pub fence: u32,
    pub attempts: u32,
}

/// An attempt, running or over.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    pub job: JobNo,
    pub entry: EntryNo,
    pub worker: WorkerNo,
    pub fence: u32,
    pub number: u32,
    pub failures: u32,
}

/// The whole queue.
#[derive(Debug)]
pub struct Reference {
    pub profiles: Vec<Profile>,
    /// The order of the jobs' IDs, which decides between equal times.
    ranks: Vec<usize>,
    pub jobs: Vec<Job>,
    pub entries: Vec<Entry>,
    pub lanes: [Vec<EntryNo>; 3],
    pub parked: BTreeMap<JobNo, Parked>,
    pub letters: Vec<Letter>,
    pub dead: Vec<LetterNo>,
    pub attempts: Vec<Attempt>,
    ticks: u64,
}

impl Reference {
    pub fn new(profiles: &[Profile], ranks: Vec<usize>) -> Self {
        let job = Job {
            known: false,
            state: State::Waiting,
            due: None,
            run: 1,
            fence: 0,
            attempt: 0,
            failures: 0,
            crashes: 0,
            place: None,
            taking: 0,
            worker: None,
            cancel: false,
            letter: None,
            began: false,
            error: None,
            history: Vec::new(),
            log: Vec::new(),
            promised: 0,
        };
        Self {
            profiles: profiles.to_vec(),
            ranks,
            jobs: vec![job; profiles.len()],
            entries: Vec::new(),
            lanes: Default::default(),
            parked: BTreeMap::new(),
            letters: Vec::new(),
            dead: Vec::new(),
            attempts: Vec::new(),
            ticks: 0,
        }
    }

    /// Makes a call.
    pub fn apply(&mut self, call: &Call) -> Answer {
        match *call {
            Call::Enqueue { job, conflicting } => self.enqueue(job, conflicting),
            Call::Promote => self.promote(),
            Call::Read { worker, lane, most } => self.read(worker, lane, most),
            Call::Pending { worker } => self.pending(worker),
            Call::Sweep { worker, ran_out } => self.sweep(worker, ran_out),
            Call::Renew { worker, ref entries } => {
                let mine = |entry: &EntryNo| self.holds(worker, *entry, false);
                Answer::Gone(entries.iter().copied().filter(|entry| !mine(entry)).collect())
            }
            Call::Begin { worker, delivery } => self.begin(worker, delivery),
            Call::Append { attempt, deltas } => Answer::Written(self.append(attempt, deltas, None)),
            Call::Heal { attempt, deltas } => Answer::Written(self.heal(attempt, deltas)),
            Call::Conclude { attempt, deltas, end } => {
                Answer::Written(self.conclude(attempt, deltas, end))
            }
            Call::Refuse { delivery, how } => self.refuse(delivery, how),
            Call::Remove { entry } => {
                self.take_out(entry);
                Answer::Settled(true)
            }
            Call::Park { entry, attempt, due } => Answer::Settled(self.park(entry, attempt, due)),
            Call::Bury { entry, attempts, fence } => {
                Answer::Settled(self.bury(entry, attempts, fence))
            }
            Call::Release { worker, entry, attempt } => self.release(worker, entry, attempt),
            Call::Cancel { job } => self.cancel(job),
            Call::Unpark { job, run } => Answer::Settled(self.unpark(job, run)),
            Call::Reopen { letter } => self.reopen(letter),
            Call::Requeue { letter, run, fresh } => self.requeue(letter, run, fresh),
            Call::Purge { letter } => Answer::Purged(u64::from(self.unbury(letter))),
        }
    }

    /// The next time that has come.
    pub fn tick(&mut self) -> Due {
        self.ticks += 1;
        Due::Passed(self.ticks)
    }

    fn add(&mut self, job: JobNo, lane: Lane, (attempt, run): (u32, u32)) {
        self.entries.push(Entry { job, lane, attempt, run, held: None, takings: 0 });
        self.lanes[lane.index()].push(self.entries.len() - 1);
    }

    pub fn is_there(&self, entry: EntryNo) -> bool {
        self.lanes[self.entries[entry].lane.index()].contains(&entry)
    }

    fn take_out(&mut self, entry: EntryNo) -> bool {
        let there = self.is_there(entry);
        self.lanes[self.entries[entry].lane.index()].retain(|other| *other != entry);
        there
    }

    /// Whether an entry is in this worker's hands, perhaps `even_given_back`.
    pub fn holds(&self, worker: WorkerNo, entry: EntryNo, even_given_back: bool) -> bool {
        let held = self.entries[entry].held.filter(|held| held.worker == worker);
        self.is_there(entry) && held.is_some_and(|held| even_given_back || !held.given_back)
    }

    fn enqueue(&mut self, no: JobNo, conflicting: bool) -> Answer {
        let Profile { lane, keyed, when, .. } = self.profiles[no];
        let first = !self.jobs[no].known;
        if keyed && !first {
            let parked = self.shown(no).state == State::Parked;
            let duplicate = Answer::Accepted { parked, duplicate: true };
            return if conflicting { Answer::Conflict } else { duplicate };
        }
        let due = match when {
            When::Far => Some(Due::Far),
            When::Soon if first => Some(self.tick()),
            _ => None,
        };
        if let Some(due) = due {
            let parked = Parked { due, lane, attempt: 0, run: 1 };
            self.parked.entry(no).or_insert(parked);
        } else {
            self.add(no, lane, (0, 1));
        }
        let job = &mut self.jobs[no];
        if first {
            job.known = true;
            job.due = due;
            job.state = due.map_or(State::Waiting, |_| State::Parked);
        }
        job.promised = job.promised.max(1);
        Answer::Accepted { parked: due.is_some(), duplicate: false }
    }

    fn promote(&mut self) -> Answer {
        let mut due: Vec<(Due, usize, JobNo)> = self
            .parked
            .iter()
            .filter(|(_, parked)| parked.due != Due::Far)
            .map(|(job, parked)| (parked.due, self.ranks[*job], *job))
            .collect();
        due.sort_unstable();
        for (_, _, job) in &due {
            if let Some(Parked { lane, attempt, run, .. }) = self.parked.remove(job) {
                self.add(*job, lane, (attempt, run));
            }
        }
        Answer::Promoted { count: due.len(), more: !self.parked.is_empty() }
    }

    fn give(&mut self, worker: WorkerNo, entries: &[EntryNo]) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for &entry in entries {
            let held = Held { worker, given_back: false };
            let before = self.entries[entry].held.replace(held);
            let crashed = before.is_some_and(|before| !before.given_back);
            self.entries[entry].takings += u32::from(before.is_some());
            deliveries.push(Delivery { entry, crashed, taking: self.entries[entry].takings });
        }
        deliveries
    }

    fn read(&mut self, worker: WorkerNo, lane: Lane, most: usize) -> Answer {
        let unread = |entry: &&EntryNo| self.entries[**entry].held.is_none();
        let lane = &self.lanes[lane.index()];
        let taken: Vec<EntryNo> = lane.iter().filter(unread).take(most).copied().collect();
        Answer::Given { deliveries: self.give(worker, &taken), in_flight: None }
    }

    fn pending(&mut self, worker: WorkerNo) -> Answer {
        let of = |entry: &&EntryNo| self.holds(worker, **entry, true);
        let held: Vec<EntryNo> = self.lanes.iter().flatten().filter(of).copied().collect();
        let mut again = |entry: EntryNo| {
            self.entries[entry].takings += 1;
            Delivery { entry, crashed: false, taking: self.entries[entry].takings }
        };
        let deliveries = held.into_iter().map(&mut again).collect();
        Answer::Given { deliveries, in_flight: None }
    }

    fn sweep(&mut self, worker: WorkerNo, ran_out: bool) -> Answer {
        let held = |entry: &EntryNo| self.entries[*entry].held;
        let in_flight = self.lanes.iter().flatten().any(|entry| held(entry).is_some());
        let over = |entry: &&EntryNo| held(entry).is_some_and(|held| held.given_back || ran_out);
        let taken: Vec<EntryNo> = self.lanes.iter().flatten().filter(over).copied().collect();
        Answer::Given { deliveries: self.give(worker, &taken), in_flight: Some(in_flight) }
    }

    fn park(&mut self, entry: EntryNo, attempt: u32, due: Due) -> bool {
        let there = self.take_out(entry);
        if there {
            let Entry { job, lane, run, .. } = self.entries[entry];
            self.parked.insert(job, Parked { due, lane, attempt, run });
        }
        there
    }

    fn unpark(&mut self, job: JobNo, run: u32) -> bool {
        let there = self.parked.get(&job).is_some_and(|parked| parked.run <= run);
        if there {
            self.parked.remove(&job);
        }
        there
    }

    fn bury(&mut self, entry: EntryNo, attempts: u32, fence: u32) -> bool {
        let there = self.take_out(entry);
        if there {
            let Entry { job, lane, run, .. } = self.entries[entry];
            self.letters.push(Letter { job, lane, run, fence, attempts });
            self.dead.push(self.letters.len() - 1);
        }
        there
    }

    fn unbury(&mut self, letter: LetterNo) -> bool {
        let there = self.dead.contains(&letter);
        self.dead.retain(|other| *other != letter);
        there
    }

    fn requeue(&mut self, letter: LetterNo, run: u32, fresh: bool) -> Answer {
        let added = self.unbury(letter) || fresh;
        if added {
            let Letter { job, lane, .. } = self.letters[letter];
            self.add(job, lane, (0, run));
            if self.jobs[job].run == run {
                self.jobs[job].promised = run;
            }
        }
        Answer::Settled(added)
    }

    /// Gives an entry back; and its attempt, where that still runs.
    fn release(&mut self, worker: WorkerNo, entry: EntryNo, attempt: Option<AttemptNo>) -> Answer {
        if let Some(attempt) = attempt {
            self.give_up(attempt);
        }
        let mine = self.holds(worker, entry, true);
        if mine {
            self.entries[entry].held = Some(Held { worker, given_back: true });
        }
        Answer::Settled(mine)
    }
}
