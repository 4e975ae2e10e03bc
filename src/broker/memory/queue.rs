//! One partition: its lanes, its parked jobs, its dead letters, its workers.

mod shelf;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ops::Bound,
    time::{Duration, Instant},
};

use super::admit::Ledger;
use crate::{
    broker::{DeadLetter, Depth, LaneDepth, Load, Place, WorkerId, WorkerSeen, entry::LOAD},
    job::{JobId, Lane, Tenant, Timestamp},
};

pub(super) use shelf::Parked;

/// An entry's fields, in order.
pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry's ID as Redis makes it: milliseconds, then a sequence within them.
type StreamId = (u64, u64);

/// Most bytes copied under the lock by one call, or a little more: about 5 ms.
pub(super) const STEP_BYTES: usize = 16 << 20;

/// The distance between the numbers of two takings: room for the attempts that one worker asks for.
const TAKING: u64 = 1_000;

/// Most workers remembered; incarnations come and go with every deploy.
const MOST_WORKERS: usize = 1_000;

#[derive(Debug)]
struct Held {
    fields: Fields,
    owner: Option<WorkerId>,
    /// When the owner's lease was last renewed; `None` once it was given back.
    leased: Option<Instant>,
    /// How often it was given to a worker that did not renew it.
    deliveries: u32,
}

/// An entry whose lease has run out, or that was given back.
#[derive(Debug)]
pub(super) struct Overdue {
    pub(super) lane: Lane,
    pub(super) entry: String,
    pub(super) fields: Fields,
    /// How often it had been delivered before.
    pub(super) deliveries: u32,
    pub(super) given_back: bool,
    /// The number of this taking.
    pub(super) taking: u64,
}

/// A lane: a stream with one group. What lies beyond `read` is unread; the rest is pending.
#[derive(Debug, Default)]
struct Stream {
    entries: BTreeMap<StreamId, Held>,
    top: StreamId,
    read: StreamId,
    pending: usize,
}

/// A partition.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: [Stream; 3],
    parked: HashMap<JobId, Parked>,
    by_due: BTreeSet<(Timestamp, JobId)>,
    dead: VecDeque<DeadLetter>,
    /// The name of the newest dead letter.
    top_letter: StreamId,
    /// Dead letters dropped so far.
    dropped: u64,
    workers: HashMap<WorkerId, Instant>,
    /// How long their leases last.
    leases: HashMap<WorkerId, Duration>,
    /// How many entries of each job are in the lanes, by the `id` that they say.
    carried: HashMap<Vec<u8>, usize>,
    /// The number of the last taking that was not an entry's first.
    takings: u64,
    /// Bytes of entries, parked payloads and dead letters.
    pub(super) bytes: usize,
    /// What counts against the limits.
    pub(super) ledger: Ledger,
}

/// The fields of an entry that Millstream writes; `mark` is the tenant for which it counts.
pub(super) fn fields(
    id: JobId,
    payload: &[u8],
    at: Timestamp,
    (attempt, run): (u32, u32),
    mark: Option<&Tenant>,
) -> Fields {
    let field = |name: &str, value: Vec<u8>| (name.as_bytes().to_vec(), value);
    let mut fields = vec![
        field("job", payload.to_vec()),
        field("id", id.to_string().into_bytes()),
        field("at", at.0.to_string().into_bytes()),
        field("attempt", attempt.to_string().into_bytes()),
    ];
    if run > 1 {
        fields.push(field("run", run.to_string().into_bytes()));
    }
    fields.extend(mark.map(|tenant| field(LOAD, tenant.to_string().into_bytes())));
    fields
}

/// The bytes that fields count.
pub(super) fn weight(fields: &Fields) -> usize {
    fields.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// The job's ID as fields say it.
fn said(fields: &Fields) -> Option<&[u8]> {
    fields.iter().find(|(name, _)| name == b"id").map(|(_, id)| id.as_slice())
}

/// `None` for text that no entry of this broker has as its ID.
fn parse(entry: &str) -> Option<StreamId> {
    let (ms, seq) = entry.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}

/// The next ID: the clock, or the one after the last where the clock has not moved on.
fn following((ms, seq): StreamId, now: Timestamp) -> StreamId {
    if now.0 > ms { (now.0, 0) } else { (ms, seq + 1) }
}

fn text((ms, seq): StreamId) -> String {
    format!("{ms}-{seq}")
}

impl Queue {
    /// Adds an entry under the next ID.
    pub(super) fn add(&mut self, lane: Lane, fields: Fields, now: Timestamp) -> String {
        self.bytes += weight(&fields);
        if let Some(id) = said(&fields) {
            *self.carried.entry(id.to_vec()).or_default() += 1;
        }
        let stream = &mut self.lanes[lane.index()];
        stream.top = following(stream.top, now);
        let held = Held { fields, owner: None, leased: None, deliveries: 0 };
        stream.entries.insert(stream.top, held);
        text(stream.top)
    }

    /// Gives a worker up to `most` unread entries of a lane, and no more bytes than are copied at once.
    pub(super) fn take(
        &mut self,
        lane: Lane,
        most: usize,
        worker: &WorkerId,
    ) -> Vec<(String, Fields)> {
        self.see(worker);
        let stream = &mut self.lanes[lane.index()];
        let unread = (Bound::Excluded(stream.read), Bound::Unbounded);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for (id, held) in stream.entries.range_mut(unread).take(most) {
            if bytes >= STEP_BYTES {
                break;
            }
            bytes += weight(&held.fields);
            held.owner = Some(worker.clone());
            held.leased = Some(Instant::now());
            held.deliveries = 1;
            stream.read = *id;
            stream.pending += 1;
            taken.push((text(*id), held.fields.clone()));
        }
        taken
    }

    /// Notes that a worker has read; beyond the bound the one that was silent longest and holds
    /// nothing is forgotten.
    fn see(&mut self, worker: &WorkerId) {
        self.workers.insert(worker.clone(), Instant::now());
        if self.workers.len() > MOST_WORKERS {
            let held = self.held_by_worker();
            let idle = self.workers.iter().filter(|(id, _)| !held.contains_key(*id));
            let oldest = idle.min_by_key(|(_, seen)| **seen).map(|(id, _)| id.clone());
            if let Some(id) = oldest {
                self.workers.remove(&id);
            }
        }
    }

    /// Notes how long a worker's leases last.
    pub(super) fn announce(&mut self, worker: &WorkerId, lease: Duration) {
        if self.leases.len() >= MOST_WORKERS {
            let held = self.held_by_worker();
            self.leases.retain(|id, _| held.contains_key(id) || self.workers.contains_key(id));
        }
        self.leases.insert(worker.clone(), lease);
    }

    fn held_by_worker(&self) -> HashMap<WorkerId, u64> {
        let mut held = HashMap::new();
        for stream in &self.lanes {
            for entry in stream.entries.range(..=stream.read).map(|(_, entry)| entry) {
                if let Some(owner) = &entry.owner {
                    *held.entry(owner.clone()).or_default() += 1;
                }
            }
        }
        held
    }

    /// What a worker was given and has not settled, lane by lane in order.
    pub(super) fn pending_of(&mut self, worker: &WorkerId) -> (Vec<(Lane, String, Fields)>, u64) {
        self.takings += TAKING;
        (self.given_to(worker), self.takings)
    }

    fn given_to(&self, worker: &WorkerId) -> Vec<(Lane, String, Fields)> {
        let of_lane = |lane: Lane| {
            let stream = &self.lanes[lane.index()];
            let mine = stream.entries.range(..=stream.read);
            mine.filter(|(_, held)| held.owner.as_ref() == Some(worker))
                .map(move |(id, held)| (lane, text(*id), held.fields.clone()))
        };
        Lane::ALL.into_iter().flat_map(of_lane).collect()
    }

    fn held(&mut self, place: &Place) -> Option<&mut Held> {
        self.lanes[place.lane.index()].entries.get_mut(&parse(&place.entry)?)
    }

    /// Renews a worker's lease; `false` when the entry is not its own.
    pub(super) fn renew(&mut self, worker: &WorkerId, place: &Place) -> bool {
        let held = self.held(place).filter(|held| held.owner.as_ref() == Some(worker));
        held.filter(|held| held.leased.is_some())
            .map(|held| {
                held.leased = Some(Instant::now());
                held.deliveries = 1;
            })
            .is_some()
    }

    /// Ends a worker's lease; `false` when the entry is not its own.
    pub(super) fn release(&mut self, worker: &WorkerId, place: &Place) -> bool {
        let held = self.held(place).filter(|held| held.owner.as_ref() == Some(worker));
        held.map(|held| {
            held.leased = None;
            held.deliveries = 0;
        })
        .is_some()
    }

    /// Gives a worker up to `most` entries whose lease has run out.
    pub(super) fn take_over(
        &mut self,
        worker: &WorkerId,
        lease: Duration,
        (most, deliveries): (usize, u32),
    ) -> Vec<Overdue> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        self.takings += TAKING;
        for lane in Lane::ALL {
            let stream = &mut self.lanes[lane.index()];
            let before = taken.len();
            for (id, held) in stream.entries.range_mut(..=stream.read) {
                let announced = held.owner.as_ref().and_then(|owner| self.leases.get(owner));
                let lease = announced.map_or(lease, |announced| lease.max(*announced));
                let expired = held.leased.is_none_or(|since| since.elapsed() >= lease);
                if bytes >= STEP_BYTES {
                    return taken;
                }
                if taken.len() < most && held.owner.is_some() && expired {
                    bytes += weight(&held.fields);
                    let suspect = held.deliveries >= (deliveries / 2).max(1);
                    if suspect && taken.len() > before {
                        break;
                    }
                    taken.push(Overdue {
                        lane,
                        entry: text(*id),
                        fields: held.fields.clone(),
                        deliveries: held.deliveries,
                        given_back: held.leased.is_none(),
                        taking: self.takings,
                    });
                    held.owner = Some(worker.clone());
                    held.leased = Some(Instant::now());
                    held.deliveries += 1;
                    if suspect {
                        break;
                    }
                }
            }
        }
        taken
    }

    /// Whether any entry is in a worker's hands.
    pub(super) fn in_flight(&self) -> bool {
        self.lanes.iter().any(|stream| stream.pending > 0)
    }

    /// Whether an entry is still in its lane.
    pub(super) fn holds(&self, place: &Place) -> bool {
        parse(&place.entry)
            .is_some_and(|id| self.lanes[place.lane.index()].entries.contains_key(&id))
    }

    /// Whether any entry is of this job, as far as entries say it.
    pub(super) fn carries(&self, job: JobId) -> bool {
        self.carried.contains_key(job.to_string().as_bytes())
    }

    /// Takes an entry out of its lane; `false` when it is not there, and then nothing else may be
    /// done with it.
    pub(super) fn remove(&mut self, place: &Place) -> bool {
        let stream = &mut self.lanes[place.lane.index()];
        let Some(held) = parse(&place.entry).and_then(|id| stream.entries.remove(&id)) else {
            return false;
        };
        self.bytes -= weight(&held.fields);
        stream.pending -= usize::from(held.owner.is_some());
        if let Some(id) = said(&held.fields)
            && let Some(entries) = self.carried.get_mut(id)
        {
            *entries -= 1;
            if *entries == 0 {
                self.carried.remove(id);
            }
        }
        true
    }

    /// Forgets workers that hold nothing: the one that leaves, or else all that were silent for so long and
    /// are not `listening`.
    pub(super) fn retire(
        &mut self,
        worker: Option<&WorkerId>,
        idle: Duration,
        listening: &HashSet<WorkerId>,
    ) -> u64 {
        let (held, before) = (self.held_by_worker(), self.workers.len());
        self.workers.retain(|id, seen| {
            let silent = || seen.elapsed() > idle && !listening.contains(id);
            let leaves = worker.map_or_else(silent, |worker| worker == id);
            held.contains_key(id) || !leaves
        });
        self.leases.retain(|id, _| held.contains_key(id) || self.workers.contains_key(id));
        (before - self.workers.len()) as u64
    }

    /// Jobs that are not over, as far as this partition knows.
    pub(super) fn jobs(&self) -> usize {
        self.parked.len() + self.lanes.iter().map(|stream| stream.entries.len()).sum::<usize>()
    }

    /// What everything that counts counts.
    pub(super) fn loads(&self) -> impl Iterator<Item = Load> {
        let entries = self.lanes.iter().flat_map(|stream| stream.entries.values());
        let parked = self.parked.values().filter_map(Parked::load);
        entries.filter_map(|held| Load::read(&held.fields)).chain(parked)
    }

    pub(super) fn depth(&self) -> Depth {
        let lane = |stream: &Stream| LaneDepth {
            waiting: (stream.entries.len() - stream.pending) as u64,
            pending: stream.pending as u64,
        };
        Depth {
            lanes: [lane(&self.lanes[0]), lane(&self.lanes[1]), lane(&self.lanes[2])],
            parked: self.parked.len() as u64,
            dead: self.dead.len() as u64,
            dropped: self.dropped,
            lost_entries: 0,
            load: self.ledger.counted(),
        }
    }

    pub(super) fn workers(&self, listening: &HashSet<WorkerId>) -> Vec<WorkerSeen> {
        let held = self.held_by_worker();
        let seen = |(id, at): (&WorkerId, &Instant)| WorkerSeen {
            id: id.to_string(),
            pending: held.get(id).copied().unwrap_or_default(),
            idle: at.elapsed(),
            listens: listening.contains(id),
        };
        let mut workers: Vec<_> = self.workers.iter().map(seen).collect();
        workers.sort_by_key(|worker| worker.idle);
        workers
    }

    pub(super) fn dead_letters(&self, after: Option<&str>, most: usize) -> Vec<DeadLetter> {
        let after = after.and_then(parse);
        let first = self.dead.partition_point(|dead| parse(&dead.letter) <= after);
        self.dead.iter().skip(first).take(most).cloned().collect()
    }
}
