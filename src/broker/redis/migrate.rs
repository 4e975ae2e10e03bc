//! Migrations of the key layout.
//!
//! A migration is a Lua script that runs once for each partition, atomically within its slot. What
//! was applied stands in the schema hash: `m:NNNN` holds a migration's name, checksum and kind from
//! the moment it starts, `p:QUEUE:INDEX` the number that a partition has reached. The script and
//! that number live in different slots, so a crash between the two runs the script again: every
//! migration must bear a replay.

use std::{collections::BTreeMap, time::Duration};

use redis::Script;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Redis, codec, millis};
use crate::{
    broker::{Error, Partition, Result},
    job::Timestamp,
    retry::Backoff,
};

/// One step of the key layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its place in the order, from 1.
    pub number: u32,
    /// What it does, in a word.
    pub name: String,
    /// The Lua script; its first line is `-- breaking: yes` or `-- breaking: no`.
    pub source: String,
}

impl Migration {
    /// The migrations of this binary, in order.
    pub fn embedded() -> Vec<Self> {
        [(1, "lanes", include_str!("../../../migrations/0001_lanes.lua"))]
            .map(|(number, name, source)| Self {
                number,
                name: name.to_owned(),
                source: source.to_owned(),
            })
            .into()
    }

    /// Whether older binaries must stop.
    pub fn breaking(&self) -> bool {
        self.source.lines().next().is_some_and(|line| line.trim() == "-- breaking: yes")
    }

    /// SHA-256 of the script, in hexadecimal.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.source.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A migration as the schema remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    name: String,
    checksum: String,
    breaking: bool,
    at: Timestamp,
}

/// What the schema hash says.
#[derive(Debug, Default)]
struct Schema {
    migrations: BTreeMap<u32, Recorded>,
    partitions: BTreeMap<Partition, u32>,
}

/// A migration that was applied to a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Where.
    pub partition: Partition,
}

/// How far a migration has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MigrationStatus {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The checksum of this binary's script, or the recorded one of a newer migration.
    pub checksum: String,
    /// Whether older binaries must stop.
    pub breaking: bool,
    /// Whether this binary has it.
    pub known: bool,
    /// When it was first applied.
    pub at: Option<Timestamp>,
    /// The partitions that have it, and those that do not.
    pub partitions: Vec<(Partition, bool)>,
}

/// How long the lock outlives a migrator that died.
const LOCK: Duration = Duration::from_secs(10);

/// Sets the lock's time again, or frees it: only for its holder.
const HELD: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
    if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end \
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// Creates the lanes and groups of a partition again, after the server has lost them.
pub(super) async fn create_lanes(redis: &Redis, partition: &Partition) -> Result<()> {
    for migration in Migration::embedded().iter().filter(|m| m.number == 1) {
        redis.run_migration(migration, partition).await?;
    }
    Ok(())
}

impl Redis {
    /// Applies what is missing, under the lock, to these partitions and to every other one that
    /// the schema knows.
    ///
    /// # Errors
    /// [`Error::Schema`] where a checksum differs or a newer, breaking migration is recorded.
    pub async fn migrate(&self, partitions: &[Partition]) -> Result<Vec<Applied>> {
        self.migrate_with(&Migration::embedded(), partitions).await
    }

    /// As [`Redis::migrate`], with migrations of one's own.
    pub async fn migrate_with(
        &self,
        migrations: &[Migration],
        partitions: &[Partition],
    ) -> Result<Vec<Applied>> {
        let schema = self.schema().await?;
        check(&schema, migrations)?;
        if missing(&schema, migrations, partitions).is_empty() {
            return Ok(Vec::new());
        }
        let token = uuid::Uuid::new_v4().to_string();
        self.lock(&token).await?;
        let result = self.apply(&token, migrations, partitions).await;
        let freed = self.hold(&token, Duration::ZERO).await;
        let applied = result?;
        freed?;
        Ok(applied)
    }

    /// Applies migrations where that is configured, else checks that none is missing.
    pub async fn ensure_schema(&self, partitions: &[Partition]) -> Result<()> {
        if !self.options.auto_migrate {
            return self.check_schema(partitions).await;
        }
        for Applied { number, name, partition } in self.migrate(partitions).await? {
            tracing::info!(number, name, %partition, "migration applied");
        }
        Ok(())
    }

    /// Checks that these partitions have every migration.
    pub async fn check_schema(&self, partitions: &[Partition]) -> Result<()> {
        let schema = self.schema().await?;
        let migrations = Migration::embedded();
        check(&schema, &migrations)?;
        match missing(&schema, &migrations, partitions).first() {
            None => Ok(()),
            Some((migration, partition)) => Err(Error::Schema(format!(
                "migration {:04}_{} is not applied to partition {partition}; run `millstream \
                 migrate up`, or set redis.auto_migrate = true",
                migration.number, migration.name
            ))),
        }
    }

    /// Every migration that this binary has or the schema knows.
    pub async fn migration_status(&self) -> Result<Vec<MigrationStatus>> {
        let schema = self.schema().await?;
        let mut rows: BTreeMap<u32, MigrationStatus> = BTreeMap::new();
        let reached = |number: u32| {
            schema.partitions.iter().map(|(p, level)| (p.clone(), *level >= number)).collect()
        };
        for (number, r) in &schema.migrations {
            rows.insert(
                *number,
                MigrationStatus {
                    number: *number,
                    name: r.name.clone(),
                    checksum: r.checksum.clone(),
                    breaking: r.breaking,
                    known: false,
                    at: Some(r.at),
                    partitions: reached(*number),
                },
            );
        }
        for migration in Migration::embedded() {
            let row = rows.entry(migration.number).or_insert_with(|| MigrationStatus {
                number: migration.number,
                name: migration.name.clone(),
                checksum: migration.checksum(),
                breaking: migration.breaking(),
                known: true,
                at: None,
                partitions: reached(migration.number),
            });
            row.known = true;
        }
        Ok(rows.into_values().collect())
    }

    async fn schema(&self) -> Result<Schema> {
        let reply = self.pool.command(redis::cmd("HGETALL").arg(self.keys.schema())).await?;
        let fields: BTreeMap<String, String> = codec::read(reply, "schema")?;
        let mut schema = Schema::default();
        for (field, value) in fields {
            let broken =
                || Error::Schema(format!("schema field `{field}` cannot be read: {value}"));
            if let Some(number) = field.strip_prefix("m:") {
                let number = number.parse().map_err(|_| broken())?;
                let recorded = serde_json::from_str(&value).map_err(|_| broken())?;
                schema.migrations.insert(number, recorded);
            } else if let Some((queue, index)) =
                field.strip_prefix("p:").and_then(|name| name.rsplit_once(':'))
            {
                let queue = queue.parse().map_err(|_| broken())?;
                let index = index.parse().map_err(|_| broken())?;
                let level = value.parse().map_err(|_| broken())?;
                schema.partitions.insert(Partition { queue, index }, level);
            }
        }
        Ok(schema)
    }

    async fn lock(&self, token: &str) -> Result<()> {
        let mut command = redis::cmd("SET");
        command.arg(self.keys.schema_lock()).arg(token).arg("NX").arg("PX").arg(millis(LOCK));
        let mut backoff = Backoff::reading();
        let patience = tokio::time::Instant::now() + LOCK * 6;
        while self.pool.command(&command).await? == redis::Value::Nil {
            if tokio::time::Instant::now() > patience {
                return Err(Error::Schema(
                    "another process has been migrating for a minute; wait for it, then try again"
                        .to_owned(),
                ));
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
        Ok(())
    }

    /// Holds the lock for another while, or frees it with a time of zero.
    async fn hold(&self, token: &str, time: Duration) -> Result<()> {
        let script = Script::new(HELD);
        let mut call = script.key(self.keys.schema_lock());
        call.arg(token).arg(millis(time));
        let held: bool = codec::read(self.pool.script(&call).await?, "lock")?;
        if held {
            return Ok(());
        }
        Err(Error::Schema(
            "the migration lock was lost to another process; run `millstream migrate up` again"
                .to_owned(),
        ))
    }

    async fn apply(
        &self,
        token: &str,
        migrations: &[Migration],
        partitions: &[Partition],
    ) -> Result<Vec<Applied>> {
        let schema = self.schema().await?;
        check(&schema, migrations)?;
        let mut applied = Vec::new();
        for (migration, partition) in missing(&schema, migrations, partitions) {
            self.record(migration).await?;
            self.run_migration(migration, &partition).await?;
            self.hold(token, LOCK).await?;
            let mut reached = redis::cmd("HSET");
            reached.arg(self.keys.schema()).arg(format!("p:{partition}")).arg(migration.number);
            self.pool.command(&reached).await?;
            let Migration { number, name, .. } = migration.clone();
            applied.push(Applied { number, name, partition });
        }
        Ok(applied)
    }

    /// Notes a migration before it runs, so that a binary for which it is too new stops at once.
    async fn record(&self, migration: &Migration) -> Result<()> {
        let recorded = Recorded {
            name: migration.name.clone(),
            checksum: migration.checksum(),
            breaking: migration.breaking(),
            at: Timestamp::now(),
        };
        let value = serde_json::to_string(&recorded).map_err(|e| Error::Schema(e.to_string()))?;
        let mut command = redis::cmd("HSETNX");
        command.arg(self.keys.schema()).arg(format!("m:{:04}", migration.number)).arg(value);
        self.pool.command(&command).await.map(drop)
    }

    async fn run_migration(&self, migration: &Migration, partition: &Partition) -> Result<()> {
        let script = Script::new(&migration.source);
        let mut call = script.prepare_invoke();
        for lane in self.keys.lanes(partition) {
            call.key(lane);
        }
        call.key(self.keys.parked(partition))
            .key(self.keys.parked_jobs(partition))
            .key(self.keys.dead(partition));
        self.pool.script(&call).await.map(drop)
    }
}

/// Refuses a schema that these migrations do not fit.
fn check(schema: &Schema, migrations: &[Migration]) -> Result<()> {
    for (number, recorded) in &schema.migrations {
        match migrations.iter().find(|migration| migration.number == *number) {
            Some(own) if own.checksum() != recorded.checksum => {
                return Err(Error::Schema(format!(
                    "migration {number:04}_{} was applied with checksum {:.12}, this binary has \
                     {:.12}; run the binary that applied it, or a newer one",
                    recorded.name,
                    recorded.checksum,
                    own.checksum()
                )));
            }
            None if recorded.breaking => {
                return Err(Error::Schema(format!(
                    "the key layout has migration {number:04}_{}, which this binary does not \
                     know and must not ignore; upgrade this binary",
                    recorded.name
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is to be applied, in order: migration by migration, partition by partition.
fn missing<'a>(
    schema: &Schema,
    migrations: &'a [Migration],
    partitions: &[Partition],
) -> Vec<(&'a Migration, Partition)> {
    let mut levels = schema.partitions.clone();
    for partition in partitions {
        levels.entry(partition.clone()).or_insert(0);
    }
    migrations
        .iter()
        .flat_map(|migration| {
            levels
                .iter()
                .filter(|(_, level)| **level < migration.number)
                .map(move |(partition, _)| (migration, partition.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_every_script_says_whether_it_breaks() {
        let mut last = 0;
        for migration in Migration::embedded() {
            assert_eq!(migration.number, last + 1);
            last = migration.number;
            let first = migration.source.lines().next().unwrap_or_default();
            assert!(["-- breaking: yes", "-- breaking: no"].contains(&first), "{first}");
        }
    }
}
