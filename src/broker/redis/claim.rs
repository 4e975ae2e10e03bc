//! Claiming entries, opening attempts, and promoting parked jobs.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use redis::{Value, aio::MultiplexedConnection};
use tokio_util::sync::CancellationToken;

use super::{Redis, codec, enqueue::record_fields, keys::GROUP, migrate::create_lanes, millis};
use crate::{
    broker::{
        Attempt, Begin, Claim, Claimer, Crashes, Entry, Error, Partition, Place, Promoted, Refused,
        Renewed, Result, Sweep, Swept, Wake, WorkerId,
    },
    error::{Code, Failure},
    job::{JobId, Lane, Timestamp},
};

/// The record's note of which entry carries a job.
fn place_text(place: &Place) -> String {
    format!("{} {}", place.lane, place.entry)
}

/// What a record says of its job for ever, as far as the entry tells it; on demand with what makes an
/// idempotency key known again, which takes as long as the request is large.
pub(super) fn described(entry: &Entry, with_key: bool) -> Vec<(&'static str, String)> {
    let Place { partition, lane, entry: entry_id } = &entry.place;
    let Ok(job) = &entry.job else {
        let mut fields = vec![
            ("queue", partition.to_string()),
            ("lane", lane.to_string()),
            ("at", entry.at.0.to_string()),
        ];
        // Whose job it is stands in what cannot be read, unless it was counted.
        fields.extend(entry.load.as_ref().map(|load| ("tenant", load.tenant.to_string())));
        return fields;
    };
    let mut fields = record_fields(partition, *lane, entry.at, job);
    if with_key && job.idempotency_key.is_some() {
        fields.push(("fp", job.request.fingerprint()));
        fields.push(("added", entry_id.clone()));
    }
    fields
}

/// A failure as the record and the dead letters hold it.
pub(super) fn failure_text(error: &Failure) -> String {
    serde_json::to_string(error).unwrap_or_default()
}

/// The failure in a record, whatever wrote it.
pub(super) fn read_failure(text: &str) -> Failure {
    serde_json::from_str(text).unwrap_or_else(|_| Failure::new(Code::Unknown, text))
}

impl Redis {
    /// Runs `begin.lua` for `started`, `failed` or `cancelled`; `None` where the entry's session is over.
    pub(super) async fn open_fence(
        &self,
        entry: &Entry,
        (event, payload): (&str, &[u8]),
        (worker, crashes): (&str, Crashes),
        failure: &str,
    ) -> Result<Option<Verdict>> {
        // A job that has begun once, or was put back by an operator, does not expire.
        let fresh = entry.attempt == 0 && entry.run == 1;
        let expires = entry.job.as_ref().ok().and_then(|job| job.expires_at).filter(|_| fresh);
        let mut call = self.scripts.begin.prepare_invoke();
        call.key(self.keys.job(entry.id))
            .key(self.keys.log(entry.id))
            .arg(event)
            .arg(payload)
            .arg(worker)
            .arg(place_text(&entry.place))
            .arg(entry.attempt)
            .arg(entry.run)
            .arg(if entry.crashed { 1 } else { 2 * u8::from(entry.begun_before) })
            .arg(millis(self.options.job_ttl))
            .arg(crashes.most)
            .arg(u8::from(crashes.alone))
            .arg(expires.map_or(0, |at| at.0))
            .arg(failure);
        for (field, value) in described(entry, false) {
            call.arg(field).arg(value);
        }
        let Some(reply) = self.pool.script_within(entry.session, &call).await? else {
            return Ok(None);
        };
        let (verdict, fence, attempt, failures, due, error): (_, String, _, _, String, _) =
            codec::read(reply, "begin")?;
        let number = |text: &str| {
            text.parse().map_err(|_| Error::Protocol(format!("begin: `{text}` is not a number")))
        };
        Ok(Some((verdict, number(&fence)?, attempt, failures, number(&due)?, error)))
    }
}

/// What `begin.lua` returns: verdict, fence, attempt, failures, due or crashes, error.
pub(super) type Verdict = (String, u64, u32, u32, u64, String);

/// Turns the script's verdict into what the worker is to do.
pub(super) fn verdict(
    reply: Option<Verdict>,
    begun: impl FnOnce(u64, u32, u32) -> Attempt,
) -> Result<Begin> {
    let Some((verdict, fence, attempt, failures, due, error)) = reply else {
        return Ok(Begin::Stale);
    };
    Ok(match verdict.as_str() {
        "begun" => Begin::Begun(begun(fence, attempt, failures)),
        "remove" => Begin::Remove,
        "park" => Begin::Park { attempt, due: Timestamp(due) },
        "bury" => Begin::Bury { error: read_failure(&error), attempts: attempt, fence },
        "alone" => Begin::Alone,
        "cancel" => Begin::Refuse { why: Refused::Cancelled, attempts: attempt },
        "expired" => Begin::Refuse { why: Refused::Expired, attempts: attempt },
        "poison" => {
            let crashes = u32::try_from(due).unwrap_or(u32::MAX);
            Begin::Refuse { why: Refused::Poison { crashes }, attempts: attempt }
        }
        other => return Err(Error::Protocol(format!("begin: unknown verdict `{other}`"))),
    })
}

#[async_trait]
impl Claim for Redis {
    async fn claimer(&self, partition: &Partition, worker: &WorkerId) -> Result<Box<dyn Claimer>> {
        let mut claimer = RedisClaimer {
            redis: self.clone(),
            partition: partition.clone(),
            worker: worker.clone(),
            lanes: self.keys.lanes(partition),
            link: None,
        };
        claimer.link().await?;
        Ok(Box::new(claimer))
    }

    async fn begin(&self, entry: &Entry, worker: &WorkerId, crashes: Crashes) -> Result<Begin> {
        let session = self.pool.session();
        let payload = format!("\"worker\":\"{worker}\"}}");
        let (event, by) = (("started", payload.as_bytes()), (worker.as_str(), crashes));
        verdict(self.open_fence(entry, event, by, "").await?, |fence, number, failures| Attempt {
            job: entry.id,
            place: entry.place.clone(),
            worker: worker.clone(),
            fence,
            number,
            failures,
            run: entry.run,
            session,
        })
    }

    async fn promote(&self, partition: &Partition, most: usize) -> Result<Promoted> {
        self.move_due(partition, most).await
    }

    async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Renewed> {
        self.renew_leases(worker, places).await
    }

    async fn keep(&self, jobs: &[JobId]) -> Result<()> {
        try_join_all(jobs.iter().map(async |job| {
            let mut call = self.scripts.keep.key(self.keys.job(*job));
            call.key(self.keys.log(*job)).arg(millis(self.options.job_ttl));
            self.pool.script(&call).await
        }))
        .await
        .map(drop)
    }

    async fn sweep(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        sweep: &Sweep,
    ) -> Result<Swept> {
        self.take_over(partition, worker, sweep).await
    }

    async fn retire(
        &self,
        partition: &Partition,
        worker: Option<&WorkerId>,
        idle: Duration,
    ) -> Result<u64> {
        let mut call = self.scripts.retire.prepare_invoke();
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.arg(worker.map_or("", WorkerId::as_str)).arg(millis(idle)).arg(self.keys.workers());
        codec::read(self.pool.script(&call).await?, "retire")
    }

    async fn wake(&self, partition: &Partition, why: Wake) -> Result<()> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(self.keys.wake(partition)).arg(why.message());
        self.pool.command(&command).await.map(drop)
    }
}

/// A reader's own connection, and its ID on the server.
struct Link {
    connection: MultiplexedConnection,
    id: i64,
}

/// Reads one partition. Replies are matched in order, so nothing else uses the connection.
struct RedisClaimer {
    redis: Redis,
    partition: Partition,
    worker: WorkerId,
    lanes: [String; 3],
    link: Option<Link>,
}

/// Longest time a read may block; longer waits are cut by the caller.
const LONGEST_BLOCK: Duration = Duration::from_mins(5);

/// Most entries that one script lets go of, which takes only so many arguments.
const PAGE: usize = 1000;

/// How long a read that was ended may take to return before it is ended again.
const UNBLOCK_AGAIN: Duration = Duration::from_millis(20);

impl RedisClaimer {
    async fn link(&mut self) -> Result<&mut Link> {
        let link = match self.link.take() {
            Some(link) => link,
            None => {
                let connector = self.redis.pool.connector();
                let mut connection = connector.dedicated(LONGEST_BLOCK).await?;
                let mut command = redis::cmd("CLIENT");
                let id = command.arg("ID").query_async(&mut connection);
                let id = match tokio::time::timeout(self.response_timeout(), id).await {
                    Ok(id) => id.map_err(|e| connector.classify(e))?,
                    Err(_) => return Err(connector.silent()),
                };
                Link { connection, id }
            }
        };
        Ok(self.link.insert(link))
    }

    /// Runs a read. After an error the connection is dropped: its reply may still be on the way.
    async fn run(&mut self, command: &redis::Cmd, limit: Duration) -> Result<Value> {
        let mut connection = self.link().await?.connection.clone();
        let reply = tokio::time::timeout(limit, command.query_async(&mut connection)).await;
        let error = match reply {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => redis::RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)),
        };
        if error.code() == Some("NOGROUP") {
            create_lanes(&self.redis, &self.partition).await?;
            return Ok(Value::Nil);
        }
        self.link = None;
        // Thrown out or refused, as where the server changes its role: then no lease was renewed.
        let connector = self.redis.pool.connector();
        let error = connector.classify(error);
        connector.failed(&self.partition, &error);
        Err(error)
    }

    fn entries(&self, reply: Value) -> Result<Vec<Entry>> {
        self.split(reply).map(|(entries, _)| entries)
    }

    /// Entries, and the places of those that were deleted while pending.
    fn split(&self, reply: Value) -> Result<(Vec<Entry>, Vec<Place>)> {
        let (mut found, mut deleted) = (Vec::new(), Vec::new());
        for (key, entries) in codec::streams(reply)? {
            let Some(at) = self.lanes.iter().position(|lane| *lane == key) else {
                return Err(Error::Protocol(format!("XREADGROUP: unknown stream `{key}`")));
            };
            for (entry, fields) in entries {
                let place = Place { partition: self.partition.clone(), lane: Lane::ALL[at], entry };
                match fields {
                    Some(fields) => found.push(Entry::read(place, &key, fields)),
                    None => deleted.push(place),
                }
            }
        }
        Ok((found, deleted))
    }

    /// Reports entries that a stranger has deleted under this worker.
    async fn let_go(&self, lane: Lane, ids: &[&str]) -> Result<()> {
        let Redis { pool, scripts, keys, .. } = &self.redis;
        for page in ids.chunks(PAGE) {
            let mut call = scripts.let_go.key(keys.lane(&self.partition, lane));
            call.key(keys.load(&self.partition)).arg(page);
            let lost: u64 = codec::read(pool.script(&call).await?, "let go")?;
            if lost > 0 {
                let partition = &self.partition;
                tracing::error!(%partition, lost, "entries deleted while a worker held them");
            }
        }
        Ok(())
    }

    fn command(&self) -> redis::Cmd {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(self.worker.as_str());
        command
    }

    fn response_timeout(&self) -> Duration {
        self.redis.options.response_timeout
    }
}

#[async_trait]
impl Claimer for RedisClaimer {
    async fn read(&mut self, lane: Lane, most: usize) -> Result<Vec<Entry>> {
        let mut command = self.command();
        command.arg("COUNT").arg(most).arg("STREAMS").arg(&self.lanes[lane.index()]).arg(">");
        let reply = self.run(&command, self.response_timeout()).await?;
        self.entries(reply)
    }

    async fn wait(&mut self, block: Duration, stop: &CancellationToken) -> Result<Vec<Entry>> {
        if stop.is_cancelled() {
            return Ok(Vec::new());
        }
        let block = block.min(LONGEST_BLOCK);
        let mut command = self.command();
        command.arg("COUNT").arg(1).arg("BLOCK").arg(millis(block).max(1)).arg("STREAMS");
        command.arg(&self.lanes).arg(">").arg(">").arg(">");
        let id = self.link().await?.id;
        let pool = self.redis.pool.clone();
        let limit = block + self.response_timeout();
        let reply = {
            let read = self.run(&command, limit);
            tokio::pin!(read);
            tokio::select! {
                reply = &mut read => reply,
                () = stop.cancelled() => {
                    // Dropping the read would not undo it on the server: an entry could still be
                    // given to a connection that nobody reads. It may not have arrived there yet,
                    // so it is ended again until it has.
                    loop {
                        let unblock = redis::cmd("CLIENT").arg("UNBLOCK").arg(id).clone();
                        if let Err(error) = pool.command(&unblock).await {
                            tracing::debug!(%error, "blocking read not ended");
                        }
                        if let Ok(reply) = tokio::time::timeout(UNBLOCK_AGAIN, &mut read).await {
                            break reply;
                        }
                    }
                }
            }
        };
        self.entries(reply?)
    }

    async fn pending(&mut self) -> Result<Vec<Entry>> {
        let mut command = self.command();
        command.arg("STREAMS").arg(&self.lanes).arg("0").arg("0").arg("0");
        let reply = self.run(&command, self.response_timeout()).await?;
        let (entries, deleted) = self.split(reply)?;
        for lane in Lane::ALL {
            let ids = deleted.iter().filter(|place| place.lane == lane).map(|place| &*place.entry);
            self.let_go(lane, &ids.collect::<Vec<_>>()).await?;
        }
        Ok(entries)
    }
}
