//! A worker's hand on an entry: what the library's worker does with it, one call at a time.
//!
//! It begins, writes its answer, ends the attempt and settles the entry. Where the server may have
//! forgotten, it looks at the log and goes on, heals or gives up; a second step shows the session of
//! the first, and where that is over the hand asks again what the entry is owed.

use std::time::Duration;

use millstream::{
    broker::{
        Attempt, Begin, Claim as _, Crashes, DeadLetter, Entry, Inspect as _, Log as _, Outcome,
        Refusal, Refused, Settle as _, Settled, Spent, WorkerId, Written, redis::Redis,
    },
    error::{Code, Failure},
    event::{Body, Cancelled, Codec, Failed, Frame},
    job::Timestamp,
};

use super::{
    Verdict,
    step::{End, Word},
    through,
};
use crate::support::subject::{delta, done, failed, failure, retrying, started};

/// Where an entry goes.
#[derive(Debug, Clone)]
enum Step {
    Remove,
    Park { attempt: u32, due: Timestamp },
    Bury { error: Failure, attempts: u32, fence: u64, told: bool },
}

/// An attempt that is under way.
struct Running {
    attempt: Attempt,
    entry: Entry,
    /// Every frame that was made, from `started`.
    frames: Vec<Frame>,
    /// Frames below this sequence are in the log.
    acknowledged: u64,
    /// It has to end as cancelled.
    cancelled: bool,
}

enum Next {
    Begin,
    Run(Box<Running>),
    Settle(Step, u64),
}

/// An entry in a worker's hands.
pub struct Hand {
    entry: Entry,
    next: Next,
}

/// A second step that is on its way, with the session that it shows.
pub struct Late {
    entry: Entry,
    step: Step,
    session: u64,
}

impl Late {
    /// It arrives; nobody hears the answer.
    pub async fn arrive(&self, redis: &Redis) -> Verdict {
        settle(redis, &self.entry, &self.step, self.session).await.map(drop)
    }
}

/// Takes a second step; `false` where its session is over.
async fn settle(redis: &Redis, entry: &Entry, step: &Step, session: u64) -> Verdict<bool> {
    let settled = match step {
        Step::Remove => {
            let spent = [Spent::from(entry)];
            return through(async || redis.remove(&spent, session).await).await;
        }
        Step::Park { attempt, due } => {
            through(async || redis.park(entry, *attempt, *due, session).await).await?
        }
        Step::Bury { error, attempts, fence, told } => {
            let letter = DeadLetter::new(entry, error.clone(), *attempts, *fence);
            through(async || redis.bury(entry, &letter, *told, session).await).await?
        }
    };
    Ok(settled != Settled::Stale)
}

impl Hand {
    pub fn new(entry: Entry) -> Self {
        Self { entry, next: Next::Begin }
    }

    /// Makes the next call. Whether the entry is still in hand, and what is late of it.
    pub async fn go_on(
        &mut self,
        redis: &Redis,
        worker: &WorkerId,
        word: Word,
    ) -> Verdict<(bool, Option<Late>)> {
        let next = match std::mem::replace(&mut self.next, Next::Begin) {
            Next::Begin => self.begin(redis, worker).await?,
            Next::Run(running) => self.run(redis, running, word).await?,
            Next::Settle(step, session) => {
                let late = matches!(word, Word::Repeat).then(|| Late {
                    entry: self.entry.clone(),
                    step: step.clone(),
                    session,
                });
                if settle(redis, &self.entry, &step, session).await? {
                    return Ok((false, late));
                }
                // What the step rests on may be forgotten.
                self.entry.anew();
                return Ok((true, late));
            }
        };
        let is_left = next.is_some();
        self.next = next.unwrap_or(Next::Begin);
        Ok((is_left, None))
    }

    async fn begin(&mut self, redis: &Redis, worker: &WorkerId) -> Verdict<Option<Next>> {
        let session = redis.session();
        let crashes = Crashes { most: 1_000, alone: true };
        let mut answer = through(async || redis.begin(&self.entry, worker, crashes).await).await?;
        while let Begin::Refuse { why, attempts } = answer {
            answer = self.refuse(redis, why, attempts).await?;
        }
        if answer == Begin::Stale {
            return self.renew(redis, worker).await;
        }
        // It is told once that the last attempt crashed.
        self.entry.crashed = false;
        let step = match answer {
            Begin::Begun(attempt) => {
                let (frames, acknowledged) = (vec![started(&attempt)], 1);
                let entry = self.entry.clone();
                let running = Running { attempt, entry, frames, acknowledged, cancelled: false };
                return Ok(Some(Next::Run(Box::new(running))));
            }
            Begin::Late => return Ok(None),
            Begin::Remove => Step::Remove,
            Begin::Park { attempt, due } => Step::Park { attempt, due },
            Begin::Bury { error, attempts, fence } => {
                Step::Bury { error, attempts, fence, told: true }
            }
            Begin::Alone
            | Begin::Foreign
            | Begin::Newer { .. }
            | Begin::Stale
            | Begin::Refuse { .. } => {
                return Err(format!("begin: {answer:?}"));
            }
        };
        Ok(Some(Next::Settle(step, session)))
    }

    /// Sees whether the entry is still there.
    async fn renew(&mut self, redis: &Redis, worker: &WorkerId) -> Verdict<Option<Next>> {
        let places = std::slice::from_ref(&self.entry.place);
        let renew = async || {
            let session = redis.session();
            let gone = !redis.renew(worker, places).await?.gone.is_empty();
            Ok((!gone).then_some(session))
        };
        let Some(session) = through(renew).await? else { return Ok(None) };
        self.entry.session = session;
        Ok(Some(Next::Begin))
    }

    async fn refuse(&self, redis: &Redis, why: Refused, attempts: u32) -> Verdict<Begin> {
        let (custom_id, labels) = Default::default();
        let (refusal, body) = match why {
            Refused::Cancelled => {
                let data = Cancelled { attempts, usage: None, custom_id, labels };
                (Refusal::Cancelled, Body::Cancelled(data))
            }
            _ => {
                let error = Failure::new(Code::Expired, "over");
                let data = Failed { error: error.clone(), attempts, custom_id, labels };
                (Refusal::Failed(error), Body::Failed(data))
            }
        };
        let frame = Frame::new(0, &body, Codec::Json).unwrap();
        through(async || redis.refuse(&self.entry, &refusal, &frame).await).await
    }

    async fn run(
        &mut self,
        redis: &Redis,
        mut running: Box<Running>,
        word: Word,
    ) -> Verdict<Option<Next>> {
        if let Word::Say = word
            && !running.cancelled
        {
            return Ok(running.say(redis).await?.then_some(Next::Run(running)));
        }
        let end = if let Word::End(end) = word { end } else { End::Done };
        let written = running.end(redis, end).await?;
        let Running { attempt, .. } = &*running;
        Ok(match written {
            Ended::Over => None,
            Ended::NotYet => Some(Next::Run(running)),
            Ended::Yes if running.cancelled => Some(Next::Settle(Step::Remove, attempt.session)),
            Ended::Yes => {
                let step = match end {
                    End::Done => Step::Remove,
                    End::Failed => Step::Bury {
                        error: failure("no"),
                        attempts: attempt.number,
                        fence: attempt.fence,
                        told: false,
                    },
                    End::Retry => {
                        let record = through(async || redis.job(attempt.job).await).await?;
                        let due = record.and_then(|record| record.due).unwrap_or_default();
                        Step::Park { attempt: attempt.number, due }
                    }
                };
                Some(Next::Settle(step, attempt.session))
            }
        })
    }
}

/// What a try to end an attempt came to.
enum Ended {
    Yes,
    /// The attempt is over without it.
    Over,
    /// To be tried again.
    NotYet,
}

impl Running {
    fn made(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Appends a delta, or what is not acknowledged. Whether the attempt goes on.
    async fn say(&mut self, redis: &Redis) -> Verdict<bool> {
        if self.acknowledged == self.made() {
            let words = format!("{}/{} ", self.attempt.fence, self.made());
            self.frames.push(delta(self.made(), &words, Codec::Json));
        }
        let first = usize::try_from(self.acknowledged).unwrap();
        // The publisher looks at the log after an error, and makes no call twice.
        let frames = &self.frames[first..];
        match redis.append(&self.attempt, frames).await {
            Ok(Written::Yes) => {
                self.acknowledged = self.made();
                Ok(true)
            }
            _ => self.verify(redis).await,
        }
    }

    /// Finds out what is in the log. Whether the attempt goes on.
    async fn verify(&mut self, redis: &Redis) -> Verdict<bool> {
        let session = redis.session();
        let fence = self.attempt.fence;
        match through(async || redis.last(self.attempt.job).await).await? {
            Some(id) if id.fence > fence => return Ok(false),
            Some(id) if id.fence == fence && id.seq + 1 >= self.acknowledged => {
                if id.seq >= self.made() {
                    return Ok(false);
                }
                self.acknowledged = id.seq + 1;
            }
            _ => {
                if !self.heal(redis).await? {
                    return Ok(false);
                }
            }
        }
        self.attempt.session = session;
        Ok(true)
    }

    async fn heal(&self, redis: &Redis) -> Verdict<bool> {
        let frames = &self.frames[..usize::try_from(self.acknowledged).unwrap()];
        let healed = through(async || redis.heal(&self.attempt, &self.entry, frames).await).await?;
        Ok(healed == Written::Yes)
    }

    async fn end(&mut self, redis: &Redis, end: End) -> Verdict<Ended> {
        if self.acknowledged < self.made() {
            let goes_on = self.say(redis).await?;
            return Ok(if goes_on { Ended::NotYet } else { Ended::Over });
        }
        let seq = self.made();
        let (frame, outcome) = match end {
            _ if self.cancelled => {
                let data = Cancelled {
                    attempts: self.attempt.number,
                    usage: None,
                    custom_id: None,
                    labels: Default::default(),
                };
                let frame = Frame::new(seq, &Body::Cancelled(data), Codec::Json).unwrap();
                (frame, Outcome::Cancelled { usage: None })
            }
            End::Done => (done(seq), Outcome::Done { finish_reason: None, usage: None }),
            End::Failed => (failed(seq, failure("no")), Outcome::Failed(failure("no"))),
            End::Retry => {
                let outcome = Outcome::Retry { error: failure("again"), delay: Duration::ZERO };
                (retrying(seq, &self.attempt), outcome)
            }
        };
        let frames = [frame];
        let written =
            through(async || redis.conclude(&self.attempt, &frames, &outcome).await).await?;
        Ok(match written {
            Written::Yes => Ended::Yes,
            Written::Cancelled => {
                self.cancelled = true;
                Ended::NotYet
            }
            Written::Fenced => {
                let last = through(async || redis.last(self.attempt.job).await).await?;
                let goes_on = last.is_none_or(|id| id.fence <= self.attempt.fence)
                    && self.heal(redis).await?;
                if goes_on { Ended::NotYet } else { Ended::Over }
            }
            Written::Behind | Written::Missing => {
                if self.verify(redis).await? {
                    Ended::NotYet
                } else {
                    Ended::Over
                }
            }
        })
    }
}
