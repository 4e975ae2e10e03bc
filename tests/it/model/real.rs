//! A real broker behind the words of a case: makes calls, and reads answers, records and logs back
//! into numbers.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use millstream::{
    broker::{
        self, Attempt, Begin, Cancel, Claimer, Crashes, DeadLetter, Entry, Partition, Reopened,
        Run, Shared, Spent, Submission, Sweep, Window, WorkerId,
    },
    error::{Code, Failure},
    event::{Body, Codec, Event, EventId, Frame},
    job::{ChatRequest, JobId, Timestamp},
};

use super::{
    frames,
    reference::{Letter, Reference},
    terms::{
        Answer, AttemptNo, Call, Delivery, Deltas, Due, End, EntryNo, JobNo, Profile, When,
        WorkerNo, text,
    },
};
use crate::support::subject;

/// How long after its enqueue a job may begin that is to begin soon.
const SOON: Duration = Duration::from_millis(20);
/// Longer than the resolution of every clock.
const TICK: Duration = Duration::from_millis(2);

/// Why a case ends early.
#[derive(Debug)]
pub enum Halt {
    /// The broker or the reference is wrong.
    Wrong(String),
    /// The machine was so slow that a time came before its turn: nothing is said of the broker.
    TooSlow,
}

impl From<broker::Error> for Halt {
    fn from(error: broker::Error) -> Self {
        Self::Wrong(format!("the broker fails: {error}"))
    }
}

/// The broker, and what it has called things so far.
pub struct Real {
    pub broker: Shared,
    pub partition: Partition,
    profiles: Vec<Profile>,
    submissions: Vec<Submission>,
    workers: Vec<WorkerId>,
    readers: HashMap<WorkerNo, Box<dyn Claimer>>,
    entries: BTreeMap<EntryNo, Entry>,
    /// The broker's number of each taking.
    takings: HashMap<(EntryNo, u32), u64>,
    attempts: BTreeMap<AttemptNo, Attempt>,
    pub letters: Vec<DeadLetter>,
    /// The fences of each job in the order in which they rose, as its log shows them.
    pub fences: Vec<Vec<u64>>,
    /// Fences that answers have named, to be found in the logs.
    pub named: Vec<(JobNo, u32, u64)>,
}

impl Real {
    pub fn new(broker: Shared, profiles: &[Profile], submissions: Vec<Submission>) -> Self {
        Self {
            broker,
            partition: submissions[0].partition.clone(),
            profiles: profiles.to_vec(),
            fences: vec![Vec::new(); submissions.len()],
            submissions,
            workers: Vec::new(),
            readers: HashMap::new(),
            entries: BTreeMap::new(),
            takings: HashMap::new(),
            attempts: BTreeMap::new(),
            letters: Vec::new(),
            named: Vec::new(),
        }
    }

    pub fn id(&self, job: JobNo) -> JobId {
        self.submissions[job].id
    }

    /// A new incarnation.
    pub fn hire(&mut self) -> WorkerNo {
        self.workers.push(WorkerId::new("w"));
        self.workers.len() - 1
    }

    /// The reader of a worker that died goes with it.
    pub fn bury_reader(&mut self, worker: WorkerNo) {
        self.readers.remove(&worker);
    }

    fn worker_called(&self, name: &str) -> WorkerNo {
        self.workers.iter().position(|id| id.as_str() == name).unwrap_or(usize::MAX)
    }

    /// The attempt, as its worker holds it just after it has looked at the log.
    fn attempt(&self, no: AttemptNo) -> Attempt {
        Attempt { session: self.broker.session(), ..self.attempts[&no].clone() }
    }

    fn entry(&self, Delivery { entry, crashed, taking }: Delivery) -> Entry {
        Entry { crashed, taking: self.takings[&(entry, taking)], ..self.entries[&entry].clone() }
    }

    /// Makes a call whose answer is foretold: new names in the answer belong to what is foretold.
    pub async fn call(
        &mut self,
        call: &Call,
        after: &Reference,
        foretold: &Answer,
    ) -> Result<Answer, Halt> {
        Ok(match *call {
            Call::Enqueue { job, conflicting } => self.enqueue(job, conflicting).await?,
            Call::Promote => {
                let promoted = self.broker.promote(&self.partition, 1_000).await?;
                Answer::Promoted { count: promoted.count, more: promoted.next_in.is_some() }
            }
            Call::Read { worker, lane, most } => {
                let given = self.reader(worker).await?.read(lane, most).await?;
                self.given(given, None, after, foretold)
            }
            Call::Pending { worker } => {
                let given = self.reader(worker).await?.pending().await?;
                self.given(given, None, after, foretold)
            }
            Call::Sweep { worker, ran_out } => self.sweep(worker, ran_out, after, foretold).await?,
            Call::Renew { worker, ref entries } => {
                let place = |no: &EntryNo| self.entries[no].place.clone();
                let places: Vec<_> = entries.iter().map(place).collect();
                let gone = self.broker.renew(&self.workers[worker], &places).await?.gone;
                let is_gone = |no: &&EntryNo| gone.contains(&self.entries[no].place);
                Answer::Gone(entries.iter().filter(is_gone).copied().collect())
            }
            Call::Begin { worker, delivery } => {
                let most = super::record::MOST_CRASHES;
                let entry = self.entry(delivery);
                let crashes = Crashes { most, alone: true };
                let answer = self.broker.begin(&entry, &self.workers[worker], crashes).await?;
                self.begun(answer, delivery, after, foretold)
            }
            Call::Refuse { delivery, how } => {
                let (refusal, frame) = frames::refused(how);
                let answer = self.broker.refuse(&self.entry(delivery), &refusal, &frame).await?;
                self.begun(answer, delivery, after, foretold)
            }
            Call::Append { attempt, deltas } => {
                let frames = deltas_of(attempt, deltas, after);
                Answer::Written(self.broker.append(&self.attempt(attempt), &frames).await?)
            }
            Call::Heal { attempt, deltas } => {
                let attempt_of = self.attempt(attempt);
                let entry = &self.entries[&after.attempts[attempt].entry];
                let mut frames = vec![subject::started(&attempt_of)];
                frames.extend(deltas_of(attempt, deltas, after));
                Answer::Written(self.broker.heal(&attempt_of, entry, &frames).await?)
            }
            Call::Conclude { attempt, deltas, end } => {
                self.conclude(attempt, deltas, end, after).await?
            }
            _ => self.settle_or_control(call, after).await?,
        })
    }

    async fn settle_or_control(&self, call: &Call, after: &Reference) -> Result<Answer, Halt> {
        let broker = &self.broker;
        Ok(match *call {
            Call::Remove { entry } => {
                broker.remove(&[Spent::from(&self.entries[&entry])], u64::MAX).await?;
                Answer::Settled(true)
            }
            Call::Park { entry, attempt, due } => {
                let due = match due {
                    Due::Far => subject::far(),
                    // The order of times that have come is the order of the numbers.
                    Due::Passed(number) => Timestamp(number),
                };
                let parked = broker.park(&self.entries[&entry], attempt, due, u64::MAX).await?;
                Answer::Settled(subject::was_there(parked))
            }
            Call::Bury { entry, attempts, fence } => {
                let job = after.entries[entry].job;
                let fence = self.fences[job][fence as usize - 1];
                let error = Failure::new(Code::UpstreamError, "buried");
                let letter = DeadLetter::new(&self.entries[&entry], error, attempts, fence);
                let buried = broker.bury(&self.entries[&entry], &letter, false, u64::MAX).await?;
                Answer::Settled(subject::was_there(buried))
            }
            Call::Release { worker, entry, attempt } => {
                let attempt = attempt.map(|no| self.attempt(no));
                let (worker, place) = (&self.workers[worker], &self.entries[&entry].place);
                Answer::Settled(broker.release(worker, place, attempt.as_ref()).await?)
            }
            Call::Cancel { job } => match broker.cancel(self.id(job)).await? {
                Cancel::Cancelled { run, again, .. } => Answer::Cancelled { run, again },
                Cancel::Asked { worker, again } => {
                    Answer::Asked { worker: self.worker_called(&worker), again }
                }
                Cancel::Over(state) => Answer::Over(state),
                Cancel::Unknown => Answer::Unknown,
            },
            Call::Unpark { job, run } => {
                let unparked = broker.unpark(&self.partition, self.id(job), run, u64::MAX).await?;
                Answer::Settled(subject::was_there(unparked))
            }
            Call::Reopen { letter } => {
                match broker.reopen(&self.partition, &self.letters[letter]).await? {
                    Reopened::Yes(Run { number, fresh }) => Answer::Opened { run: number, fresh },
                    Reopened::No(state) => Answer::NotDead(state),
                }
            }
            Call::Requeue { letter, run, fresh } => {
                let (letter, run) = (&self.letters[letter], Run { number: run, fresh });
                Answer::Settled(broker.requeue(&self.partition, letter, run).await?)
            }
            Call::Purge { letter } => {
                let name = self.letters[letter].letter.clone();
                Answer::Purged(broker.purge(&self.partition, &[name]).await?)
            }
            ref other => Answer::Strange(format!("{other:?} is not made here")),
        })
    }

    async fn enqueue(&mut self, no: JobNo, conflicting: bool) -> Result<Answer, Halt> {
        let mut submission = self.submissions[no].clone();
        let soon = self.profiles[no].when == When::Soon;
        let first = soon && submission.job.not_before.is_none();
        if first {
            submission.job.not_before = Some(Timestamp::now().after(SOON));
            submission.payload = serde_json::to_vec(&submission.job).unwrap();
            self.submissions[no] = submission.clone();
        }
        if conflicting {
            submission.job.request = ChatRequest::ask("model", "another question");
        }
        let receipt = self.broker.enqueue(&[submission]).await.remove(0);
        if first {
            if receipt.as_ref().is_ok_and(|receipt| !receipt.parked) {
                return Err(Halt::TooSlow);
            }
            tokio::time::sleep(SOON + TICK).await;
        }
        match receipt {
            Ok(receipt) if receipt.id == self.id(no) => {
                Ok(Answer::Accepted { parked: receipt.parked, duplicate: receipt.duplicate })
            }
            Ok(receipt) => Ok(Answer::Strange(format!("{receipt:?}"))),
            Err(broker::Error::Conflict { .. }) => Ok(Answer::Conflict),
            Err(error) => Err(error.into()),
        }
    }

    async fn reader(&mut self, worker: WorkerNo) -> Result<&mut Box<dyn Claimer>, Halt> {
        if !self.readers.contains_key(&worker) {
            let reader = self.broker.claimer(&self.partition, &self.workers[worker]).await?;
            self.readers.insert(worker, reader);
        }
        self.readers.get_mut(&worker).ok_or_else(|| Halt::Wrong("no reader".to_owned()))
    }

    async fn sweep(
        &mut self,
        worker: WorkerNo,
        ran_out: bool,
        after: &Reference,
        foretold: &Answer,
    ) -> Result<Answer, Halt> {
        // Every lease has run out, or none: then only what was given back is taken.
        let lease = if ran_out { Duration::ZERO } else { Duration::from_hours(1) };
        let sweep = Sweep { lease, most: 1_000, ask: true, deliveries: 1_000 };
        let swept = self.broker.sweep(&self.partition, &self.workers[worker], &sweep).await?;
        Ok(self.given(swept.entries, swept.in_flight, after, foretold))
    }

    /// Entries as they were foretold; an entry that is seen for the first time gets its number.
    fn given(
        &mut self,
        given: Vec<Entry>,
        in_flight: Option<bool>,
        after: &Reference,
        foretold: &Answer,
    ) -> Answer {
        let Answer::Given { deliveries, .. } = foretold else {
            return Answer::Strange(format!("{given:?}"));
        };
        let mut told = Vec::new();
        for (index, entry) in given.into_iter().enumerate() {
            let known = self.entries.iter().find(|(_, known)| known.place == entry.place);
            let foretold = deliveries.get(index).map(|delivery| delivery.entry);
            let no = known.map(|(no, _)| *no).or(foretold).unwrap_or(EntryNo::MAX);
            let fits = after.entries.get(no).is_some_and(|e| {
                (e.attempt, e.run, e.lane) == (entry.attempt, entry.run, entry.place.lane)
                    && self.id(e.job) == entry.id
                    && self.submissions[e.job].payload == entry.payload()
            });
            if !fits {
                return Answer::Strange(format!("entry {no}: {entry:?}"));
            }
            let taking = deliveries.get(index).map_or(u32::MAX, |delivery| delivery.taking);
            let before = taking.checked_sub(1).and_then(|before| self.takings.get(&(no, before)));
            if before.is_some_and(|before| *before >= entry.taking) {
                return Answer::Strange(format!("entry {no}: taking {}", entry.taking));
            }
            self.takings.insert((no, taking), entry.taking);
            told.push(Delivery { entry: no, crashed: entry.crashed, taking });
            self.entries.entry(no).or_insert(entry);
        }
        Answer::Given { deliveries: told, in_flight }
    }

    fn begun(
        &mut self,
        answer: Begin,
        delivery: Delivery,
        after: &Reference,
        foretold: &Answer,
    ) -> Answer {
        let job = after.entries[delivery.entry].job;
        match (answer, foretold) {
            (Begin::Begun(met), Answer::Begun(no)) => {
                let told = &after.attempts[*no];
                self.named.push((job, told.fence, met.fence));
                let known = self.attempts.entry(*no).or_insert_with(|| met.clone());
                let fits = *known == met
                    && (met.number, met.failures) == (told.number, told.failures)
                    && met.worker == self.workers[told.worker]
                    && met.place == self.entries[&told.entry].place;
                if fits { Answer::Begun(*no) } else { Answer::Strange(format!("{met:?}")) }
            }
            (Begin::Begun(met), _) => Answer::Strange(format!("{met:?}")),
            (Begin::Late, _) => Answer::Late,
            (Begin::Remove, _) => Answer::Remove,
            (Begin::Park { attempt, due }, foretold) => {
                let far = due > Timestamp::now().after(Duration::from_mins(1));
                // A time that has come is any such time.
                let due = match foretold {
                    Answer::Park { due, .. } if (*due == Due::Far) == far => *due,
                    _ if far => Due::Far,
                    _ => Due::Passed(0),
                };
                Answer::Park { attempt, due }
            }
            (Begin::Bury { error, attempts, fence }, foretold) => {
                let Answer::Bury { fence: told, .. } = *foretold else {
                    return Answer::Strange(format!("bury: {error}"));
                };
                self.named.push((job, told, fence));
                Answer::Bury { attempts, fence: told, code: error.code }
            }
            (Begin::Refuse { why, attempts }, _) => Answer::Refuse { why, attempts },
            (Begin::Alone, _) => panic!("asked to run alone, and says so"),
            (Begin::Newer { state }, _) => panic!("unknown state `{state}`"),
            (Begin::Foreign, _) => panic!("every entry is of its own tenant's job"),
            (Begin::Stale, _) => panic!("begun in whatever session"),
        }
    }

    async fn conclude(
        &self,
        no: AttemptNo,
        deltas: Deltas,
        end: End,
        after: &Reference,
    ) -> Result<Answer, Halt> {
        let attempt = self.attempt(no);
        let (outcome, frame) = frames::ended(&attempt, deltas.end, end);
        let mut frames = deltas_of(no, deltas, after);
        frames.push(frame);
        Ok(Answer::Written(self.broker.conclude(&attempt, &frames, &outcome).await?))
    }

    /// A job's record and whole log; events as they are, and their worker as its number.
    pub async fn look(&self, job: JobNo) -> Result<(Option<broker::Record>, Vec<Event>), Halt> {
        let opened = self.broker.open(self.id(job), EventId::START, Window::of(10_000)).await?;
        Ok((opened.record, opened.page.decode()))
    }

    pub fn worker_of(&self, record: &broker::Record) -> Option<WorkerNo> {
        record.worker.as_deref().map(|name| self.worker_called(name))
    }

    /// What an event says beside its kind, as the reference notes it.
    pub fn note(&self, body: &Body) -> String {
        frames::note(body, |name| self.worker_called(name))
    }

    /// Whether a letter is the one that the reference buried.
    pub fn is_letter(&self, letter: &DeadLetter, told: &Letter) -> bool {
        let fence = self.fences[told.job].get(told.fence as usize - 1);
        letter.id == self.id(told.job)
            && (letter.lane, letter.run, letter.attempts) == (told.lane, told.run, told.attempts)
            && Some(&letter.fence) == fence
            && letter.job().as_ref() == Some(&self.submissions[told.job].job)
    }
}

fn deltas_of(no: AttemptNo, Deltas { first, end }: Deltas, told: &Reference) -> Vec<Frame> {
    let attempt = &told.attempts[no];
    let say = |seq| subject::delta(seq, &text(attempt.job, attempt.fence, seq), Codec::Json);
    (first..end).map(say).collect()
}
