//! `millstream migrate`: the layout of the keys.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Context, Error, Exit,
    args::{Common, Output, Queues},
    audit,
    logging::{self, Level},
    parts, tables,
};
use crate::broker::redis::{Redis, migrate::MigrationStatus};

/// What to do with migrations.
#[derive(Debug, Subcommand)]
pub(super) enum Migrate {
    /// Apply what is missing, to these queues and all that are known
    Up(Scope),
    /// Show every migration and the partitions that have it
    Status(Scope),
}

/// Where, and how it is told.
#[derive(Debug, Args)]
pub(super) struct Scope {
    #[command(flatten)]
    queues: Queues,

    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Applies migrations, or shows them.
pub(super) async fn run(what: Migrate, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let config = common.load(Vec::new(), cx)?.config;
    logging::start(&config.log, Level::Warn)?;
    parts::needs_redis(&config)?;
    let redis = cx.unless_interrupted(Redis::connect(config.redis.clone()), "").await??;
    match what {
        Migrate::Up(scope) => {
            let queues = scope.queues.or(&config.worker.queues);
            up(&redis, &parts::partitions(&queues), scope.output, cx).await?;
        }
        Migrate::Status(scope) => {
            for row in redis.migration_status().await? {
                match scope.output {
                    Output::Json => cx.terminal.json(&row)?,
                    Output::Text => status(&row, cx)?,
                }
            }
        }
    }
    Ok(Exit::Ok)
}

async fn up(
    redis: &Redis,
    partitions: &[crate::broker::Partition],
    output: Output,
    cx: &mut Context,
) -> Result<(), Error> {
    let remedy = "run it again: it goes on where it stopped";
    let applied = cx.unless_interrupted(redis.migrate(partitions), remedy).await??;
    for row in &applied {
        audit::other("migrate", &row.partition);
        match output {
            Output::Json => cx.terminal.json(&json!(row))?,
            Output::Text => cx.terminal.line(format_args!(
                "applied {:04}_{} to {}",
                row.number, row.name, row.partition
            ))?,
        }
    }
    if applied.is_empty() {
        cx.terminal.say("nothing to apply");
    }
    Ok(())
}

fn status(row: &MigrationStatus, cx: &mut Context) -> Result<(), Error> {
    let names = |has: bool| {
        let of = row.partitions.iter().filter(|(_, state)| *state == has);
        of.map(|(partition, _)| partition.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (has, lacks) = (names(true), names(false));
    let since = row.at.map_or("not applied".to_owned(), |at| format!("applied {at}"));
    let breaking = if row.breaking { ", breaking" } else { "" };
    let newer = if row.known { "" } else { ", newer than this binary" };
    let checksum = row.checksum.get(..12).unwrap_or(&row.checksum);
    cx.terminal.line(format_args!(
        "{:04}_{} ({checksum}{breaking}{newer}): {since}",
        row.number, row.name
    ))?;
    tables::named(&mut cx.terminal, "  on", &has)?;
    tables::named(&mut cx.terminal, "  missing on", &lacks)?;
    Ok(())
}
