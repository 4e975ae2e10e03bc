//! Plays a case: workers, owners and operators who do only what they may, each knowing only what
//! it was told, over a network that loses, repeats and delays.

use std::collections::BTreeMap;

use millstream::{broker::Written, job::Lane, state::State};
use proptest::sample::Index;

use super::{
    check,
    hand::{Hand, Next, Sent, next},
    pick,
    real::{Halt, Real},
    reference::{Entry, Reference},
    step::{Action, Fate, Step, WORKERS, Word},
    terms::{
        Answer, AttemptNo, Call, Deltas, Due, End, EntryNo, JobNo, LetterNo, Refusal, WorkerNo,
    },
};

/// A worker's incarnation.
#[derive(Debug)]
struct Worker {
    no: WorkerNo,
    hands: BTreeMap<EntryNo, Hand>,
}

/// A case in progress on one broker.
pub struct Play {
    pub real: Real,
    pub told: Reference,
    workers: Vec<Worker>,
    sent: BTreeMap<AttemptNo, Sent>,
    late: Vec<Call>,
    /// Cancelled runs of jobs that whoever cancelled them has still to unpark.
    unparks: Vec<(JobNo, u32)>,
    /// Runs that operators have opened.
    opened: Vec<(LetterNo, u32, bool)>,
    /// Every call with its answer.
    pub story: Vec<(Call, Answer)>,
}

impl Play {
    pub fn new(mut real: Real, told: Reference) -> Self {
        let hire = |_| Worker { no: real.hire(), hands: BTreeMap::new() };
        let workers = (0..WORKERS).map(hire).collect();
        let (sent, late, unparks, opened, story) = Default::default();
        Self { real, told, workers, sent, late, unparks, opened, story }
    }

    pub async fn step(&mut self, step: &Step) -> Result<(), Halt> {
        if let Action::Crash { worker } = step.action {
            self.crash(worker);
            return Ok(());
        }
        if let Action::Deliver { pick } = step.action {
            if !self.late.is_empty() {
                let call = self.late.remove(pick.index(self.late.len()));
                self.deliver(&call).await?;
            }
            return Ok(());
        }
        let action = match step.action {
            Action::Work { pick, .. } if self.hand(pick).is_none() => self.idle(pick),
            action => action,
        };
        let Some((by, call)) = self.call(action) else { return Ok(()) };
        self.say(&call);
        if matches!(step.fate, Fate::Late | Fate::Copied) {
            self.late.push(call.clone());
        }
        if step.fate == Fate::Late {
            return Ok(());
        }
        let mut answer = self.make(&call).await?;
        if step.fate == Fate::Twice {
            answer = self.make(&call).await?;
        }
        if step.fate != Fate::Lost {
            self.learn(by, &call, &answer);
        }
        Ok(())
    }

    /// A late call arrives; nobody hears its reply.
    pub async fn deliver(&mut self, call: &Call) -> Result<(), Halt> {
        // On Redis reading what one has takes back what one has given back.
        if matches!(call, Call::Pending { worker } if self.stops(*worker)) {
            return Ok(());
        }
        self.make(call).await.map(drop)
    }

    fn crash(&mut self, worker: usize) {
        self.real.bury_reader(self.workers[worker].no);
        let no = self.real.hire();
        self.workers[worker] = Worker { no, hands: BTreeMap::new() };
    }

    /// Makes a call on both, and compares all that can be seen.
    pub async fn make(&mut self, call: &Call) -> Result<Answer, Halt> {
        let told = self.told.apply(call);
        let met = self.real.call(call, &self.told, &told).await;
        let met = met.map_err(|halt| self.at(call, halt))?;
        if met != told {
            let text = format!("answer\n  broker    {met:?}\n  reference {told:?}");
            return Err(self.at(call, Halt::Wrong(text)));
        }
        self.story.push((call.clone(), told.clone()));
        let seen = check::all(&mut self.real, &self.told).await;
        seen.map_err(|halt| self.at(call, halt)).map(|()| told)
    }

    /// Says after which calls something went wrong.
    fn at(&self, call: &Call, halt: Halt) -> Halt {
        match halt {
            Halt::Wrong(text) => {
                let mut story: Vec<_> = self
                    .story
                    .iter()
                    .map(|(call, answer)| format!("  {call:?} → {answer:?}"))
                    .collect();
                story.push(format!("  {call:?}"));
                Halt::Wrong(format!("{text}\nafter\n{}", story.join("\n")))
            }
            Halt::TooSlow => Halt::TooSlow,
        }
    }

    /// The call that an action comes to, and the worker that makes it, if anyone is in a position
    /// to do it.
    fn call(&self, action: Action) -> Option<(Option<usize>, Call)> {
        let call = match action {
            Action::Enqueue { job, conflicting } => {
                // Only a key is held by a request.
                let held = self.told.jobs[job].known && self.told.profiles[job].keyed;
                Call::Enqueue { job, conflicting: conflicting && held }
            }
            Action::Promote => Call::Promote,
            Action::Cancel { job } => Call::Cancel { job },
            Action::Unpark { pick: at } => {
                let (job, run) = *pick(at, &self.unparks)?;
                Call::Unpark { job, run }
            }
            Action::Reopen { pick: at } => Call::Reopen { letter: *pick(at, &self.told.dead)? },
            Action::Requeue { pick: at } => {
                let (letter, run, fresh) = *pick(at, &self.opened)?;
                Call::Requeue { letter, run, fresh }
            }
            Action::Purge { pick: at } => Call::Purge { letter: *pick(at, &self.told.dead)? },
            _ => {
                let (worker, call) = self.call_of_worker(action)?;
                return Some((Some(worker), call));
            }
        };
        Some((None, call))
    }

    fn call_of_worker(&self, action: Action) -> Option<(usize, Call)> {
        let by = |worker: usize| self.workers[worker].no;
        Some(match action {
            Action::Read { worker, lane, most } => {
                let lane = *pick(lane, &self.unread())?;
                (worker, Call::Read { worker: by(worker), lane, most })
            }
            Action::Pending { worker } => {
                let call = Call::Pending { worker: by(worker) };
                (worker, (!self.stops(by(worker))).then_some(call)?)
            }
            Action::Sweep { worker, ran_out } => {
                (worker, Call::Sweep { worker: by(worker), ran_out })
            }
            Action::Renew { worker } => {
                let entries = self.workers[worker].hands.keys().copied().collect();
                (worker, Call::Renew { worker: by(worker), entries })
            }
            Action::Work { pick, word } => {
                let (worker, hand) = self.hand(pick)?;
                (worker, self.work(by(worker), hand, word)?)
            }
            Action::Release { pick } => {
                let (worker, Hand { delivery, next }) = self.hand(pick)?;
                let attempt = if let Next::Run(attempt) = next { Some(*attempt) } else { None };
                (worker, Call::Release { worker: by(worker), entry: delivery.entry, attempt })
            }
            _ => return None,
        })
    }

    /// Lanes where something is unread.
    fn unread(&self) -> Vec<Lane> {
        let unread = |lane: &Lane| {
            let entries = &self.told.lanes[lane.index()];
            entries.iter().any(|entry| self.told.entries[*entry].held.is_none())
        };
        Lane::ALL.into_iter().filter(unread).collect()
    }

    /// Whether a worker has given something back: it is about to stop, and does not ask again.
    fn stops(&self, worker: WorkerNo) -> bool {
        let given_back =
            |entry: &Entry| entry.held.is_some_and(|held| held.worker == worker && held.given_back);
        self.told.entries.iter().any(given_back)
    }

    /// An entry in somebody's hands.
    fn hand(&self, at: Index) -> Option<(usize, &Hand)> {
        let workers = self.workers.iter().enumerate();
        let hands: Vec<_> =
            workers.flat_map(|(no, w)| w.hands.values().map(move |hand| (no, hand))).collect();
        pick(at, &hands).copied()
    }

    /// What brings work where no worker has any.
    fn idle(&self, pick: Index) -> Action {
        if !self.unread().is_empty() {
            return Action::Read { worker: pick.index(WORKERS), lane: pick, most: 1 };
        }
        if self.told.parked.values().any(|parked| parked.due != Due::Far) {
            return Action::Promote;
        }
        if self.opened.is_empty() { Action::Reopen { pick } } else { Action::Requeue { pick } }
    }

    /// A worker's next call for an entry.
    fn work(&self, worker: WorkerNo, hand: &Hand, word: Word) -> Option<Call> {
        let (delivery, entry) = (hand.delivery, hand.delivery.entry);
        Some(match hand.next {
            Next::Begin => match word {
                Word::Refuse(code) => Call::Refuse { delivery, how: Refusal::Failed(code) },
                _ => Call::Begin { worker, delivery },
            },
            Next::Refuse(how) => Call::Refuse { delivery, how },
            Next::Run(attempt) => return self.run(attempt, word),
            Next::Remove => Call::Remove { entry },
            Next::Park { attempt, due } => {
                let job = &self.told.jobs[self.told.entries[entry].job];
                let recorded = job.due.filter(|_| job.state == State::Parked);
                let due = due.or(recorded).unwrap_or(Due::Passed(0));
                Call::Park { entry, attempt, due }
            }
            Next::Bury { attempts, fence } => Call::Bury { entry, attempts, fence },
        })
    }

    /// What the worker of an attempt says next. One write is in flight: what was not acknowledged
    /// is sent again, and nothing new.
    fn run(&self, attempt: AttemptNo, word: Word) -> Option<Call> {
        let Sent { acked, made, end } = self.sent[&attempt];
        let first = acked;
        Some(match (end, word) {
            // Once it was to be cancelled it can end in no other way.
            (Some(end), _) => Call::Conclude { attempt, deltas: Deltas { first, end: made }, end },
            (None, Word::Say(count)) => {
                let end = if acked < made { made } else { made + count };
                Call::Append { attempt, deltas: Deltas { first, end } }
            }
            (None, Word::Heal) => Call::Heal { attempt, deltas: Deltas { first: 1, end: made } },
            (None, Word::End(end)) => {
                Call::Conclude { attempt, deltas: Deltas { first, end: made }, end }
            }
            (None, Word::Refuse(_)) => return None,
        })
    }

    /// The calls that are still on their way, which are so no longer.
    pub fn no_longer_late(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.late)
    }

    /// Notes what goes out, whatever becomes of it.
    fn say(&mut self, call: &Call) {
        match *call {
            Call::Append { attempt, deltas } => {
                self.sent.entry(attempt).and_modify(|sent| sent.made = deltas.end);
            }
            Call::Conclude { attempt, end, .. } => {
                self.sent.entry(attempt).and_modify(|sent| sent.end = Some(end));
            }
            _ => {}
        }
    }

    /// What the caller makes of an answer.
    fn learn(&mut self, by: Option<usize>, call: &Call, answer: &Answer) {
        match (call, answer) {
            (Call::Cancel { job }, Answer::Cancelled { run, .. }) => {
                self.unparks.push((*job, *run));
            }
            (Call::Unpark { job, run }, _) => self.unparks.retain(|owed| *owed != (*job, *run)),
            (Call::Reopen { letter }, Answer::Opened { run, fresh }) => {
                self.opened.push((*letter, *run, *fresh));
            }
            (Call::Requeue { letter, run, fresh }, _) => {
                self.opened.retain(|opened| *opened != (*letter, *run, *fresh));
            }
            (Call::Begin { .. }, Answer::Begun(attempt)) => {
                let fresh = Sent { acked: 1, made: 1, end: None };
                self.sent.entry(*attempt).or_insert(fresh);
            }
            (Call::Conclude { attempt, .. }, Answer::Written(Written::Cancelled)) => {
                let end = Some(End::Cancelled);
                self.sent.entry(*attempt).and_modify(|sent| sent.end = end);
            }
            (
                Call::Append { attempt, .. }
                | Call::Heal { attempt, .. }
                | Call::Conclude { attempt, .. },
                _,
            ) => self.look(*attempt),
            _ => {}
        }
        let Some(by) = by else { return };
        let hands = &mut self.workers[by].hands;
        match answer {
            Answer::Given { deliveries, .. } => {
                for delivery in deliveries {
                    // What is in its hands already goes on as it was.
                    let hand = Hand { delivery: *delivery, next: Next::Begin };
                    hands.entry(delivery.entry).or_insert(hand);
                }
            }
            Answer::Gone(gone) => hands.retain(|entry, _| !gone.contains(entry)),
            _ => match next(&self.told, call, answer) {
                Some((entry, Some(next))) => {
                    hands.entry(entry).and_modify(|hand| hand.next = next);
                }
                Some((entry, None)) => drop(hands.remove(&entry)),
                None => {}
            },
        }
    }

    /// Reads the log's last ID: what lies below it under the attempt's own fence was written.
    fn look(&mut self, attempt: AttemptNo) {
        let told = self.told.attempts[attempt];
        let top = self.told.jobs[told.job].log.last();
        if let Some(top) = top.filter(|top| top.fence == told.fence) {
            self.sent.entry(attempt).and_modify(|sent| {
                sent.acked = sent.made.min(top.seq + 1);
            });
        }
    }
}
