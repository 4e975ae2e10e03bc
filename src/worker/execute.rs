//! Runs one entry: begin, generate, settle.
//!
//! The order of effects is fixed. The record and the log come first, under the fence; then the
//! entry is removed, parked or buried. A worker that dies between the two leaves an entry whose
//! next begin says which second step is owed; so does one that cannot tell whether the broker still
//! knows of the first.

use std::sync::Arc;

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    Context, attempt,
    hands::Hold,
    owed::{Owed, Step, settle},
    slots::Slot,
};
use crate::{
    broker::{self, Attempt, Begin, Crashes, Entry, Refusal, Refused},
    error::{Code, Failure},
    event::{Body, Cancelled, Failed, Frame},
    retry::Backoff,
};

/// How often the broker is asked at once what an entry is owed; from then on there are pauses.
const AT_ONCE: u32 = 4;

/// An entry on its way to its end.
struct Case<'a> {
    context: &'a Context,
    entry: Entry,
    hold: Hold<'a>,
    slot: Option<Slot>,
    running: Option<Attempt>,
    /// Held until the end by a job that may be what its workers died of.
    alone: Option<OwnedSemaphorePermit>,
    /// The entry has named a job that is another's, and has the ID of its place since.
    disowned: bool,
    /// How often the broker was asked.
    asked: u32,
    backoff: Backoff,
}

/// Runs an entry to its end in this slot.
pub(super) async fn run(context: &Context, entry: Entry, slot: Slot) {
    let hold = context.hands.hold(&entry.place);
    let mut case = Case {
        context,
        entry,
        hold,
        slot: Some(slot),
        running: None,
        alone: None,
        disowned: false,
        asked: 0,
        backoff: Backoff::connecting(),
    };
    loop {
        match case.ask().await {
            Owed::Again => case.entry.anew(),
            Owed::Nothing => return,
            Owed::Asked => {}
            Owed::Step(step, session) => {
                if settle(context, &case.entry, step, session).await {
                    return;
                }
                tracing::warn!(job = %case.entry.id, "asking again what the entry is owed");
                case.entry.anew();
                case.hold.doubt();
            }
            Owed::Unfinished => {
                let Case { entry, hold, running, slot, .. } = case;
                // First, lest a renewal undoes it.
                drop(hold);
                context.release(&entry.place, entry.id, running.as_ref()).await;
                return drop(slot);
            }
        }
    }
}

impl Case<'_> {
    /// Asks the broker what the entry is owed, and runs its attempt where one opens. Each answer after which
    /// it asks again comes once or twice; whatever makes it come more often must neither turn without a
    /// pause nor outlive the worker.
    async fn ask(&mut self) -> Owed {
        let context = self.context;
        self.asked += 1;
        if self.asked > AT_ONCE {
            tokio::select! {
                () = tokio::time::sleep(self.backoff.next_delay()) => {}
                () = context.abandon.cancelled() => return Owed::Unfinished,
            }
        }
        let open = || open(context, &self.entry, &self.hold, self.alone.is_some());
        let (verdict, session) = match persist(context, "begin", open).await {
            None => return Owed::Unfinished,
            Some(None) => return Owed::Nothing,
            Some(Some(told)) => told,
        };
        match verdict {
            Begin::Alone => match only_suspect(context, &mut self.slot).await {
                Ok(permit) => self.alone = Some(permit),
                Err(owed) => return owed,
            },
            Begin::Foreign if self.disowned => return Owed::Step(Step::BuryAlone, session),
            Begin::Foreign => {
                self.entry.disown();
                self.disowned = true;
            }
            Begin::Stale => match still_held(context, &self.entry, &self.hold).await {
                Ok(session) => self.entry.session = session,
                Err(owed) => return owed,
            },
            Begin::Newer { state } => return leave(context, &self.entry, &state).await,
            Begin::Begun(attempt) => {
                let Ok(job) = &self.entry.job else { return Owed::Unfinished };
                self.hold.begun(attempt.fence);
                self.running = Some(attempt.clone());
                return attempt::run(context, &self.entry, job, &self.hold, attempt).await;
            }
            verdict => return Owed::told(verdict, session),
        }
        Owed::Asked
    }
}

/// Leaves an entry to workers that know the state of its job: its lease runs out. It is renewed once, so
/// that workers which do not know the state do not come to deliver it too often.
async fn leave(context: &Context, entry: &Entry, state: &str) -> Owed {
    tracing::warn!(job = %entry.id, state, "its state is of a newer version; upgrade this worker");
    let renewed = context.broker.renew(&context.id, std::slice::from_ref(&entry.place));
    if let Ok(Err(error)) = tokio::time::timeout(context.options.renewal, renewed).await {
        tracing::debug!(job = %entry.id, %error, "left as it is");
    }
    Owed::Nothing
}

/// A job that was lost with its workers more than once runs with no other such job beside it: the
/// guilty one dies alone, and the others are not held to have done it. It waits for its turn without a
/// slot, and after a lease leaves it to whichever worker takes it over: given back, it would lose the
/// mark that its last worker died with it. Of those that wait, as many as there are slots go without.
async fn only_suspect(
    context: &Context,
    slot: &mut Option<Slot>,
) -> Result<OwnedSemaphorePermit, Owed> {
    let turn = async {
        let free = Arc::clone(&context.suspect).try_acquire_owned().ok();
        if free.is_some() {
            return free;
        }
        let room = Arc::clone(&context.suspects).try_acquire_owned();
        if room.is_ok() {
            *slot = None;
        }
        let permit = Arc::clone(&context.suspect).acquire_owned().await.ok();
        if slot.is_none() {
            let mut taken = context.slots.take().await;
            taken.run();
            *slot = Some(taken);
        }
        permit
    };
    tokio::select! {
        biased;
        permit = tokio::time::timeout(context.options.lease, turn) => {
            permit.ok().flatten().ok_or(Owed::Nothing)
        }
        () = context.stop.cancelled() => Err(Owed::Unfinished),
        () = context.abandon.cancelled() => Err(Owed::Unfinished),
    }
}

/// Renews the lease of an entry that the broker may have forgotten since this worker was given it; the
/// session in which it was there. One that is not there was never acknowledged, or has been deleted, or is
/// read again by whoever comes first: begun all the same, its job would run without an entry, and nothing
/// would bring it to its end.
async fn still_held(context: &Context, entry: &Entry, hold: &Hold<'_>) -> Result<u64, Owed> {
    let places = std::slice::from_ref(&entry.place);
    let renew = async || {
        let (at, session) = (Instant::now(), context.broker.session());
        let gone = !context.broker.renew(&context.id, places).await?.gone.is_empty();
        Ok((!gone).then_some((at, session)))
    };
    match persist(context, "renew", renew).await {
        Some(Some((at, session))) => {
            hold.renewed(at);
            Ok(session)
        }
        Some(None) => {
            tracing::warn!(job = %entry.id, "the broker has forgotten the entry, or given it away");
            Err(Owed::Nothing)
        }
        None => Err(Owed::Unfinished),
    }
}

/// Opens an attempt of an entry that is this worker's; `None` where it is another's by now. The answer
/// comes with the session under which it was given.
async fn open(
    context: &Context,
    entry: &Entry,
    hold: &Hold<'_>,
    alone: bool,
) -> broker::Result<Option<(Begin, u64)>> {
    // It has waited for its turn, or for the broker: beginning what somebody else has taken over
    // would end that one's attempt.
    if hold.age() > context.options.lease / 2 {
        let at = Instant::now();
        let places = std::slice::from_ref(&entry.place);
        if !context.broker.renew(&context.id, places).await?.gone.is_empty() {
            tracing::warn!(job = %entry.id, "lease ran out before the job began");
            return Ok(None);
        }
        hold.renewed(at);
    }
    let session = context.broker.session();
    Ok(Some((begin(context, entry, alone).await?, session)))
}

/// Begins a job, or ends one that cannot or may not be run.
async fn begin(context: &Context, entry: &Entry, alone: bool) -> broker::Result<Begin> {
    let crashes = Crashes { most: context.options.retry.max_crashes, alone };
    let mut answer = match &entry.job {
        Ok(_) => context.broker.begin(entry, &context.id, crashes).await?,
        Err(error) => {
            // The decoder's words may quote the prompt: they go to the job's own history only.
            tracing::warn!(job = %entry.id, code = %error.code, "entry becomes a dead letter");
            // A parked job that cannot be read does not tell how often it was tried.
            let attempts = if entry.was_parked() {
                context.broker.job(entry.id).await?.map_or(0, |record| record.attempt)
            } else {
                entry.attempt
            };
            refuse(context, entry, Refusal::Failed(error.clone()), attempts).await?
        }
    };
    while let Begin::Refuse { why, attempts } = answer {
        answer = refuse(context, entry, refusal(why), attempts).await?;
    }
    Ok(answer)
}

fn refusal(why: Refused) -> Refusal {
    Refusal::Failed(match why {
        Refused::Cancelled => return Refusal::Cancelled,
        Refused::Expired => {
            Failure::new(Code::Expired, "it had not begun when its time was over (expires_at)")
        }
        Refused::Poison { crashes } => Failure::new(
            Code::Poison,
            format!("{crashes} attempts were lost with their workers (worker.retry.max_crashes)"),
        ),
    })
}

/// Ends a job without an attempt.
async fn refuse(
    context: &Context,
    entry: &Entry,
    refusal: Refusal,
    attempts: u32,
) -> broker::Result<Begin> {
    let job = entry.job.as_ref().ok();
    let custom_id = job.and_then(|job| job.custom_id.clone());
    let labels = job.map(|job| job.labels.clone()).unwrap_or_default();
    let body = match &refusal {
        Refusal::Failed(error) => {
            Body::Failed(Failed { error: error.clone(), attempts, custom_id, labels })
        }
        Refusal::Cancelled => {
            Body::Cancelled(Cancelled { attempts, usage: None, custom_id, labels })
        }
    };
    let frame = Frame::new(0, &body, context.options.codec)
        .map_err(|e| broker::Error::Protocol(e.to_string()))?;
    context.broker.refuse(entry, &refusal, &frame).await
}

/// Repeats a step until the broker takes it; `None` when the worker stops first. One that the
/// broker refuses for good keeps its slot: a worker that cannot settle must not claim the queue dry.
pub(super) async fn persist<T, F>(context: &Context, step: &str, call: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = broker::Result<T>>,
{
    let mut backoff = Backoff::connecting();
    loop {
        match call().await {
            Ok(value) => return Some(value),
            Err(error) if error.is_transient() => {
                tracing::warn!(step, %error, "trying again");
            }
            Err(error) => tracing::error!(step, %error, "the broker refuses a step; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = context.abandon.cancelled() => return None,
        }
    }
}
