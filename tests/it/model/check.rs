//! What must hold after every call: the broker shows what the reference says, and the invariants
//! hold of the logs as they are.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use millstream::{
    broker::{self, DeadLetter},
    event::Event,
    job::Lane,
};

use super::{
    real::{Halt, Real},
    reference::Reference,
    terms::{self, JobNo, Record},
};

/// Wrong, unless two things are the same.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, met: &T, told: &T) -> Result<(), Halt> {
    if met == told {
        return Ok(());
    }
    Err(Halt::Wrong(format!("{what}\n  broker    {met:?}\n  reference {told:?}")))
}

/// Compares everything that can be seen.
pub async fn all(real: &mut Real, told: &Reference) -> Result<(), Halt> {
    let seen = {
        let looks = join_all((0..told.jobs.len()).map(|no| real.look(no)));
        let dead = real.broker.dead_letters(&real.partition, None, 1_000);
        tokio::join!(looks, real.broker.depth(&real.partition), dead)
    };
    for (no, look) in seen.0.into_iter().enumerate() {
        job(real, told, no, look?)?;
    }
    for (no, ordinal, fence) in std::mem::take(&mut real.named) {
        let known = real.fences[no].get(ordinal as usize - 1).copied();
        same(&format!("fence {ordinal} of job {no}"), &known, &Some(fence))?;
    }
    queue(real, told, (&seen.1?, seen.2?))
}

fn queue(
    real: &mut Real,
    told: &Reference,
    (depth, mut dead): (&broker::Depth, Vec<DeadLetter>),
) -> Result<(), Halt> {
    let lane = |lane: Lane| {
        let all = &told.lanes[lane.index()];
        let pending = all.iter().filter(|entry| told.entries[**entry].held.is_some()).count();
        broker::LaneDepth { waiting: (all.len() - pending) as u64, pending: pending as u64 }
    };
    let expected = broker::Depth {
        lanes: Lane::ALL.map(lane),
        parked: told.parked.len() as u64,
        dead: told.dead.len() as u64,
        dropped: 0,
        lost_entries: 0,
        load: broker::Counted::default(),
    };
    same("depth", depth, &expected)?;
    // The newest letter comes last: where one is new, that is its name.
    if real.letters.len() + 1 == told.letters.len()
        && let Some(newest) = dead.last()
    {
        real.letters.push(newest.clone());
    }
    for no in told.dead.iter().rev() {
        let (met, told) = (dead.pop(), &told.letters[*no]);
        let is_it = met.as_ref().is_some_and(|met| *met == real.letters[*no]);
        if !is_it || !real.is_letter(&real.letters[*no], told) {
            return Err(Halt::Wrong(format!("letter {no}: {met:?} is not {told:?}")));
        }
    }
    Ok(())
}

fn job(
    real: &mut Real,
    told: &Reference,
    no: JobNo,
    (record, log): (Option<broker::Record>, Vec<Event>),
) -> Result<(), Halt> {
    holds(&log).map_err(|rule| Halt::Wrong(format!("job {no}: {rule}\n  {log:?}")))?;
    let mut fences: Vec<u64> = log.iter().map(|event| event.id.fence).collect();
    fences.dedup();
    if !fences.starts_with(&real.fences[no]) {
        return Err(Halt::Wrong(format!("job {no}: fences were {:?}: {log:?}", real.fences[no])));
    }
    let ordinal = |fence: u64| {
        u32::try_from(fences.iter().position(|f| *f == fence).map_or(0, |at| at + 1)).unwrap_or(0)
    };
    let event = |event: &Event| terms::Event {
        fence: ordinal(event.id.fence),
        seq: event.id.seq,
        kind: KINDS.into_iter().find(|kind| *kind == event.body.kind()).unwrap_or("unknown"),
        note: real.note(&event.body),
    };
    same(&format!("log of job {no}"), &log.iter().map(event).collect(), &told.jobs[no].log)?;
    let met = record.map(|record| shown(real, &record, ordinal(record.fence)));
    let expected = told.jobs[no].known.then(|| told.shown(no));
    same(&format!("record of job {no}"), &met, &expected)?;
    real.fences[no] = fences;
    // Of a run that nobody was promised only this much is said: it is not shown as over.
    if told.jobs[no].promised == told.jobs[no].run && !told.is_carried(no) {
        return Err(Halt::Wrong(format!("job {no} is lost: nothing carries it to its end")));
    }
    Ok(())
}

const KINDS: [&str; 7] =
    ["started", "delta", "retrying", "done", "failed", "cancelled", "requeued"];

fn shown(real: &Real, record: &broker::Record, fence: u32) -> Record {
    let now = millstream::job::Timestamp::now();
    Record {
        state: record.state,
        run: record.run,
        fence,
        attempt: record.attempt,
        failures: record.failures,
        crashes: record.crashes,
        worker: real.worker_of(record),
        cancelling: record.cancelling,
        due: record.due.map(|due| due > now),
        began: record.began_at.is_some(),
        ended: record.ended_at.is_some(),
        error: record.error.as_ref().map(|error| error.code),
        history: record.history.iter().map(|back| (back.attempt, back.error.code)).collect(),
    }
}

/// The invariants of a log, read from nothing but the log.
pub fn holds(log: &[Event]) -> Result<(), String> {
    let (mut over, mut next) = (false, BTreeMap::new());
    for pair in log.windows(2) {
        if pair[0].id >= pair[1].id {
            return Err(format!("{} comes before {}", pair[0].id, pair[1].id));
        }
    }
    for event in log {
        let kind = event.body.kind();
        let seq = next.entry(event.id.fence).or_insert(0);
        if event.id.seq != *seq {
            return Err(format!("{} where {seq} was to follow", event.id));
        }
        *seq += 1;
        let opens = ["started", "requeued", "failed", "cancelled"].contains(&kind);
        if event.id.seq == 0 && !opens {
            return Err(format!("{} opens its fence with `{kind}`", event.id));
        }
        if kind == "requeued" && !over || kind != "requeued" && over {
            return Err(format!("{} is `{kind}`, and the run {}", event.id, state(over)));
        }
        over = event.body.is_terminal();
    }
    Ok(())
}

fn state(over: bool) -> &'static str {
    if over { "is over" } else { "is not" }
}

/// Terminal events of each run, in order; the last run may be open.
pub fn ends(log: &[Event]) -> Vec<usize> {
    let runs = log.split(|event| event.body.kind() == "requeued");
    runs.map(|run| run.iter().filter(|event| event.body.is_terminal()).count()).collect()
}
