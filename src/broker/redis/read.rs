//! A worker's reader of one partition.

use std::{pin::Pin, time::Duration};

use async_trait::async_trait;
use redis::{Value, aio::MultiplexedConnection};
use tokio_util::sync::CancellationToken;

use super::{Redis, claim::number, codec, keys::GROUP, migrate::create_lanes, millis, pool::Pool};
use crate::{
    broker::{Claimer, Entry, Error, Partition, Place, Result, WorkerId},
    job::Lane,
};

/// A reader's own connection, and its ID on the server, where that tells.
struct Link {
    connection: MultiplexedConnection,
    id: Option<i64>,
}

/// Reads one partition. Replies are matched in order, so nothing else uses the connection.
pub(super) struct RedisClaimer {
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

/// How long a read that was ended may take to return before it is ended again, and how often that is
/// tried.
const UNBLOCK_AGAIN: Duration = Duration::from_millis(20);
const UNBLOCK_MOST: u32 = 50;

impl RedisClaimer {
    /// Opens the connection.
    pub(super) async fn open(redis: Redis, partition: Partition, worker: WorkerId) -> Result<Self> {
        let lanes = redis.keys.lanes(&partition);
        let mut claimer = Self { redis, partition, worker, lanes, link: None };
        claimer.link().await?;
        Ok(claimer)
    }

    async fn link(&mut self) -> Result<&mut Link> {
        let link = match self.link.take() {
            Some(link) => link,
            None => {
                let connector = self.redis.pool.connector();
                let mut connection = connector.dedicated(LONGEST_BLOCK).await?;
                let mut command = redis::cmd("CLIENT");
                let id = command.arg("ID").query_async(&mut connection);
                let id = match tokio::time::timeout(self.response_timeout(), id).await {
                    Ok(id) => id.map_err(|e| connector.classify(e)),
                    Err(_) => return Err(connector.silent()),
                };
                let id = match id {
                    Err(error) if error.is_transient() => return Err(error),
                    // An ACL that denies it, or a host that does not offer it.
                    id => id.ok(),
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

/// Ends a blocking read and waits for its reply. Dropping the read would not undo it on the server: an
/// entry could still be given to a connection that nobody reads. It may not have arrived there yet, so it
/// is ended again until it has. `None` where the server does not let a read be ended.
async fn unblock(
    pool: &Pool,
    id: Option<i64>,
    mut read: Pin<&mut impl Future<Output = Result<Value>>>,
) -> Option<Result<Value>> {
    let command = redis::cmd("CLIENT").arg("UNBLOCK").arg(id?).clone();
    for _ in 0..UNBLOCK_MOST {
        match pool.command(&command).await {
            Err(error) if !error.is_transient() => {
                tracing::debug!(%error, "blocking reads cannot be ended; closing the connection");
                return None;
            }
            Err(error) => tracing::debug!(%error, "blocking read not ended"),
            Ok(_) => {}
        }
        if let Ok(reply) = tokio::time::timeout(UNBLOCK_AGAIN, read.as_mut()).await {
            return Some(reply);
        }
    }
    None
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
                reply = &mut read => Some(reply),
                () = stop.cancelled() => unblock(&pool, id, read).await,
            }
        };
        if let Some(reply) = reply {
            return self.entries(reply?);
        }
        // The connection ends with the read. What was given to it by then is asked for on another.
        self.link = None;
        self.pending().await
    }

    async fn pending(&mut self) -> Result<Vec<Entry>> {
        let mut command = self.command();
        command.arg("STREAMS").arg(&self.lanes).arg("0").arg("0").arg("0");
        let reply = self.run(&command, self.response_timeout()).await?;
        let (mut entries, deleted) = self.split(reply)?;
        if !entries.is_empty() {
            let call = self.redis.scripts.retake.key(self.redis.keys.load(&self.partition));
            let taking: String = codec::read(self.redis.pool.script(&call).await?, "retake")?;
            let taking = number(&taking, "retake")?;
            for entry in &mut entries {
                entry.taking = taking;
            }
        }
        for lane in Lane::ALL {
            let ids = deleted.iter().filter(|place| place.lane == lane).map(|place| &*place.entry);
            self.let_go(lane, &ids.collect::<Vec<_>>()).await?;
        }
        Ok(entries)
    }
}
