//! Records, depths, workers and dead letters, as operators see them.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use redis::Value;

use super::{Redis, claim::read_failure, codec, keys::GROUP, settle::PACKED_FIELDS, short};
use crate::{
    broker::{
        Counted, DeadLetter, Depth, Error, Inspect, LaneDepth, Partition, Record, Result, Setback,
        Window, WorkerSeen,
    },
    error::{Code, Failure},
    job::{JobId, Labels, Lane, Tenant, Timestamp},
    state::State,
};

/// Reads a record; `None` where there is none.
pub(super) fn record(id: JobId, value: Value) -> Result<Option<Record>> {
    let fields: HashMap<String, String> = codec::read(value, "record")?;
    // An ID that is reserved for a job which may never be added is no job.
    if !fields.contains_key("queue") && !fields.contains_key("state") {
        return Ok(None);
    }
    let text = |name: &str| short::get(&fields, name);
    let number = |name: &str| fields.get(name).and_then(|value| value.parse::<u64>().ok());
    let time = |name: &str| number(name).map(Timestamp);
    let small = |name: &str| number(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let stored = text("state").map(|state| state.parse::<State>());
    // Its schedule before the first attempt, the time of the next one between two.
    let due = match stored {
        None => time("not_before"),
        Some(Ok(State::Parked)) => time("due"),
        Some(_) => None,
    };
    let state = match stored {
        Some(Ok(State::Parked)) | None => match due {
            Some(due) if due > Timestamp::now() => State::Parked,
            _ => State::Waiting,
        },
        Some(Ok(state)) => state,
        Some(Err(error)) => return Err(Error::Protocol(format!("record of {id}: {error}"))),
    };
    Ok(Some(Record {
        id,
        state,
        partition: text("queue").and_then(|text| partition(&text)),
        lane: text("lane").and_then(|lane| lane.parse().ok()).unwrap_or_default(),
        tenant: text("tenant").and_then(|name| name.parse().ok()),
        model: text("model").unwrap_or_default(),
        custom_id: text("custom_id"),
        labels: text("labels")
            .and_then(|json| serde_json::from_str::<Labels>(&json).ok())
            .unwrap_or_default(),
        attempt: small("attempt"),
        failures: small("failures"),
        crashes: small("crashes"),
        run: small("run").max(1),
        fence: number("fence").unwrap_or(0),
        worker: text("worker"),
        enqueued_at: time("at"),
        due,
        began_at: time("began"),
        cancelling: state == State::Running && fields.contains_key("cancel"),
        ended_at: time("ended").filter(|_| state.is_terminal()),
        finish_reason: text("finish_reason"),
        usage: short::get_usage(&fields),
        error: text("error").map(|error| read_failure(&error)),
        history: text("history").map(|lines| setbacks(&lines)).unwrap_or_default(),
    }))
}

/// Setbacks, a line each; what cannot be read is passed over.
fn setbacks(lines: &str) -> Vec<Setback> {
    lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

pub(super) fn partition(text: &str) -> Option<Partition> {
    let (queue, index) = text.rsplit_once(':')?;
    Some(Partition { queue: queue.parse().ok()?, index: index.parse().ok()? })
}

/// A dead letter's fields.
pub(super) fn dead_letter(letter: String, fields: &codec::Fields) -> DeadLetter {
    let text = |name: &str| {
        let found = fields.iter().find(|(field, _)| field == name.as_bytes());
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    let number = |name: &str| text(name).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let history = text("history").and_then(|json| serde_json::from_str(&json).ok());
    DeadLetter {
        letter,
        id: text("id").and_then(|id| id.parse().ok()).unwrap_or(JobId::from_entry("", "")),
        error: text("error")
            .map_or_else(|| Failure::new(Code::Unknown, "no reason given"), |e| read_failure(&e)),
        detail: text("detail"),
        attempts: u32::try_from(number("attempts")).unwrap_or(u32::MAX),
        fence: number("fence"),
        at: Timestamp(number("at")),
        lane: text("lane").and_then(|lane| lane.parse().ok()).unwrap_or_default(),
        run: u32::try_from(number("run")).unwrap_or(u32::MAX).max(1),
        history: history.unwrap_or_default(),
        fields: fields
            .iter()
            .flat_map(|(name, value)| match name.strip_prefix(b"entry:") {
                Some(name) => vec![(name.to_vec(), value.clone())],
                None if name == PACKED_FIELDS.as_bytes() => codec::unpack(value),
                None => Vec::new(),
            })
            .collect(),
    }
}

/// Dead letters, as they are read from their stream.
pub(super) fn letters(value: Value) -> Result<Vec<DeadLetter>> {
    let read = |(letter, fields): codec::RawEntry| dead_letter(letter, &fields.unwrap_or_default());
    Ok(codec::entries(value)?.into_iter().map(read).collect())
}

impl Redis {
    /// Notes which workers hear their channels. Where the server does not say, as under an ACL, they are
    /// judged by what they have read.
    async fn ask_who_listens(&self, workers: &mut [WorkerSeen]) {
        if workers.is_empty() {
            return;
        }
        let mut command = redis::cmd("PUBSUB");
        command.arg("NUMSUB");
        for worker in &*workers {
            command.arg(format!("{}{}", self.keys.workers(), worker.id));
        }
        let heard = self.pool.command(&command).await;
        match heard.and_then(|reply| codec::read::<Vec<(String, u64)>>(reply, "PUBSUB NUMSUB")) {
            Ok(heard) => {
                for (worker, (_, count)) in workers.iter_mut().zip(heard) {
                    worker.listens = count > 0;
                }
            }
            Err(error) => tracing::debug!(%error, "not told which workers listen"),
        }
    }
}

/// A missing key is an empty one; every other error stands.
fn absent_is_empty(reply: redis::RedisResult<Value>) -> redis::RedisResult<Value> {
    match reply {
        Err(error)
            if error.code() == Some("NOGROUP") || error.to_string().contains("no such key") =>
        {
            Ok(Value::Nil)
        }
        other => other,
    }
}

#[async_trait]
impl Inspect for Redis {
    async fn ready(&self) -> Result<()> {
        // It is refused as every write is (a full memory, a replica, a disk), and adds nothing: there
        // is no such log, and nobody hears of it.
        let nobody = JobId::new();
        let mut pipe = redis::pipe();
        let write = pipe.cmd("XADD").arg(self.keys.log(nobody));
        write.arg("NOMKSTREAM").arg("*").arg("ready").arg(1);
        pipe.publish(self.keys.events(nobody), "");
        for reply in self.pool.pipeline(&mut pipe).await? {
            reply.map_err(|error| self.pool.connector().classify(error))?;
        }
        Ok(())
    }

    async fn job(&self, id: JobId) -> Result<Option<Record>> {
        record(id, self.pool.command(redis::cmd("HGETALL").arg(self.keys.job(id))).await?)
    }

    async fn job_for(&self, tenant: &Tenant, id: JobId) -> Result<Option<Record>> {
        let opened = self.owned(tenant, id, "", Window::of(0)).await?;
        Ok(opened.and_then(|opened| opened.record))
    }

    async fn records(&self, jobs: &[JobId]) -> Result<Vec<Option<Record>>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for job in jobs {
            pipe.cmd("HGETALL").arg(self.keys.job(*job));
        }
        let replies = self.pool.pipeline(&mut pipe).await?;
        let read = |(job, reply): (&JobId, redis::RedisResult<Value>)| {
            let reply = reply.map_err(|e| self.pool.connector().classify(e));
            match reply.and_then(|value| record(*job, value)) {
                Err(error) if !error.is_transient() => {
                    tracing::warn!(%job, %error, "record passed over");
                    Ok(None)
                }
                read => read,
            }
        };
        jobs.iter().zip(replies).map(read).collect()
    }

    async fn ttl(&self, job: JobId) -> Result<Option<Duration>> {
        let mut pipe = redis::pipe();
        pipe.cmd("PTTL").arg(self.keys.job(job));
        pipe.cmd("PTTL").arg(self.keys.log(job));
        let mut left = Vec::new();
        for reply in self.pool.pipeline(&mut pipe).await? {
            let value = reply.map_err(|e| self.pool.connector().classify(e))?;
            // Below 0 it says that there is no such key, or no time.
            left.push(u64::try_from(codec::read::<i64>(value, "PTTL")?).ok());
        }
        // A job that is over goes with its log: the record only waits for the end of the entry.
        let [Some(record), log] = left[..] else { return Ok(None) };
        Ok(Some(Duration::from_millis(log.map_or(record, |log| log.min(record)))))
    }

    async fn depth(&self, partition: &Partition) -> Result<Depth> {
        let mut pipe = redis::pipe();
        for lane in self.keys.lanes(partition) {
            pipe.cmd("XLEN").arg(&lane);
            pipe.cmd("XPENDING").arg(&lane).arg(GROUP);
        }
        pipe.cmd("ZCARD").arg(self.keys.parked(partition));
        pipe.cmd("XLEN").arg(self.keys.dead(partition));
        let counters = ["jobs", "bytes", "corrected", "dropped", "lost_entries"];
        pipe.cmd("HMGET").arg(self.keys.load(partition)).arg(&counters);
        let mut replies = self.pool.pipeline(&mut pipe).await?;
        let load = replies.pop().unwrap_or(Ok(Value::Nil));
        let load = load.map_err(|e| self.pool.connector().classify(e))?;
        let counts: Vec<Option<u64>> = codec::read(load, "load")?;
        let count = |at: usize| counts.get(at).copied().flatten().unwrap_or_default();
        let load = Counted { jobs: count(0), bytes: count(1), corrected: count(2) };
        let (dropped, lost_entries) = (count(3), count(4));
        let mut numbers = Vec::with_capacity(8);
        for reply in replies {
            let value = absent_is_empty(reply).map_err(|e| self.pool.connector().classify(e))?;
            let count = match value {
                Value::Array(summary) => summary.into_iter().next().unwrap_or(Value::Int(0)),
                Value::Nil => Value::Int(0),
                count => count,
            };
            numbers.push(codec::read::<u64>(count, "depth")?);
        }
        let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
        let lanes = Lane::ALL.map(|lane| {
            let pending = number(lane.index() * 2 + 1);
            LaneDepth { waiting: number(lane.index() * 2).saturating_sub(pending), pending }
        });
        Ok(Depth { lanes, parked: number(6), dead: number(7), dropped, lost_entries, load })
    }

    async fn workers(&self, partition: &Partition) -> Result<Vec<WorkerSeen>> {
        let mut pipe = redis::pipe();
        for lane in self.keys.lanes(partition) {
            pipe.cmd("XINFO").arg("CONSUMERS").arg(lane).arg(GROUP);
        }
        let mut seen: HashMap<String, WorkerSeen> = HashMap::new();
        for reply in self.pool.pipeline(&mut pipe).await? {
            let value = absent_is_empty(reply).map_err(|e| self.pool.connector().classify(e))?;
            for consumer in codec::array(value, "XINFO CONSUMERS")? {
                let fields: HashMap<String, Value> = codec::named(consumer)?.into_iter().collect();
                let get = |name: &str| fields.get(name).cloned().unwrap_or(Value::Nil);
                let id: String = codec::read(get("name"), "consumer name")?;
                let pending: u64 = codec::read(get("pending"), "consumer pending")?;
                let idle = Duration::from_millis(codec::read(get("idle"), "consumer idle")?);
                let unheard = WorkerSeen { id: id.clone(), pending: 0, idle, listens: false };
                let worker = seen.entry(id).or_insert(unheard);
                worker.pending += pending;
                worker.idle = worker.idle.min(idle);
            }
        }
        let mut workers: Vec<WorkerSeen> = seen.into_values().collect();
        self.ask_who_listens(&mut workers).await;
        workers.sort_by(|a, b| a.idle.cmp(&b.idle).then_with(|| a.id.cmp(&b.id)));
        Ok(workers)
    }

    async fn dead_letters(
        &self,
        partition: &Partition,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<DeadLetter>> {
        let start = after.map_or("-".to_owned(), |letter| format!("({letter}"));
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.dead(partition)).arg(start).arg("+").arg("COUNT").arg(most);
        letters(self.pool.command(&command).await?)
    }
}
