//! The end of a run: waiting until nothing moves any more, and reading what Redis holds.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use millstream::{
    broker::Inspect as _,
    event::{Event, EventId},
    job::JobId,
};
use redis::{Value, aio::MultiplexedConnection, streams::StreamRangeReply};
use tokio::time::Instant;

use crate::{
    history::{Dead, Finals, Kept, Step},
    server::Server,
    world::{World, partition},
};

/// How long nothing at all may move before the wait is given up: longer than a lease with sweep and
/// grace, than any delay of a retry, and than it takes to find out that a connection is stranded.
const STILL: Duration = Duration::from_secs(60);

/// Records read in one round trip.
const PAGE: usize = 200;

/// Waits until every entry is settled and every reader has come to its end, or until nothing moves. How
/// many readers still wait; none where it is not the readers alone that have not come to rest.
pub async fn settle(world: &Arc<World>) -> Option<usize> {
    let mut before = (0, 0, 0, 0);
    let mut moved = Instant::now();
    loop {
        let seen = world.seen.load(Ordering::Relaxed);
        let now = match world.redis.depth(&partition()).await {
            Ok(depth) => {
                let waiting: u64 = depth.lanes.iter().map(|lane| lane.waiting).sum();
                let pending: u64 = depth.lanes.iter().map(|lane| lane.pending).sum();
                (waiting, pending + depth.parked, world.tasks.len(), seen)
            }
            // Not known: as it was.
            Err(_) => (before.0, before.1.max(1), world.tasks.len(), seen),
        };
        if (now.0, now.1, now.2) == (0, 0, 0) {
            return Some(0);
        }
        if now != before {
            (before, moved) = (now, Instant::now());
        }
        if moved.elapsed() > STILL {
            println!("nothing moves: waiting, in flight, tasks, seen = {now:?}");
            return ((now.0, now.1) == (0, 0)).then_some(now.2);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Reads every record, log and dead letter, past the proxies.
pub async fn finals(world: &World, server: &Server) -> Finals {
    let mut connection = server.connection().await.unwrap();
    let mut jobs = BTreeMap::new();
    let ids = ids(world, &mut connection).await;
    for page in ids.chunks(PAGE) {
        let mut pipe = redis::pipe();
        for id in page {
            pipe.cmd("HGETALL").arg(world.keys().job(*id));
            pipe.cmd("XRANGE").arg(world.keys().log(*id)).arg("-").arg("+");
        }
        let replies: Vec<Value> = pipe.query_async(&mut connection).await.unwrap();
        for (id, reply) in page.iter().zip(replies.chunks_exact(2)) {
            jobs.insert(*id, kept(&reply[0], &reply[1]));
        }
    }
    let depth = world.redis.depth(&partition()).await.unwrap();
    let lanes = depth.lanes.iter().map(|lane| lane.waiting + lane.pending).sum::<u64>();
    let mut letters = redis::cmd("XRANGE");
    letters.arg(world.keys().dead(&partition())).arg("-").arg("+");
    let letters: StreamRangeReply = letters.query_async(&mut connection).await.unwrap();
    let dead = letters.ids.iter().map(|letter| Dead {
        id: letter.get::<String>("id").unwrap().parse().unwrap(),
        fence: letter.get("fence").unwrap(),
    });
    Finals { jobs, dead: dead.collect(), unsettled: lanes + depth.parked }
}

/// Every job that has a record.
async fn ids(world: &World, connection: &mut MultiplexedConnection) -> Vec<JobId> {
    let any = JobId::new();
    let pattern = world.keys().job(any).replace(&any.to_string(), "*");
    let (before, after) = pattern.split_once('*').unwrap();
    let mut found: Vec<JobId> = Vec::new();
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
        let (next, keys): (u64, Vec<String>) = scan.query_async(connection).await.unwrap();
        let id =
            |key: &String| key.strip_prefix(before)?.strip_suffix(after)?.parse::<JobId>().ok();
        found.extend(keys.iter().filter_map(id));
        cursor = next;
        if cursor == 0 {
            found.sort();
            found.dedup();
            return found;
        }
    }
}

fn kept(record: &Value, log: &Value) -> Kept {
    let fields: BTreeMap<String, String> = redis::from_redis_value_ref(record).unwrap();
    let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
    let log: StreamRangeReply = redis::from_redis_value_ref(log).unwrap();
    let step = |entry: redis::streams::StreamId| {
        let id: EventId = entry.id.parse().unwrap();
        let (kind, payload) = entry.map.iter().next().unwrap();
        let payload: Vec<u8> = redis::from_redis_value_ref(payload).unwrap();
        Step::of(&Event::decode(id, kind, &payload).unwrap())
    };
    Kept {
        name: field("custom_id"),
        state: field("state"),
        fence: field("fence").parse().unwrap_or_default(),
        log: log.ids.into_iter().map(step).collect(),
    }
}
