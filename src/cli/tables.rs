//! `millstream workers`: what is where, and the tables in which it is shown.

use std::io;

use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use humantime_serde::re::humantime::format_duration;
use serde_json::json;

use super::{
    Context, Error, Exit, Terminal,
    args::{Common, Output, Queues},
    audit, clean,
    logging::{self, Level},
    parts::{self, Broker},
};
use crate::{
    admin::Admin,
    broker::{Partition, Record, WorkerId, WorkerSeen},
    config::Config,
};

/// Which queues, and how they are shown.
#[derive(Debug, Args)]
pub(super) struct View {
    #[command(flatten)]
    pub(super) queues: Queues,

    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// Opens Redis, and says which partitions to look at.
pub(super) async fn open(
    queues: Queues,
    common: &Common,
    cx: &mut Context,
) -> Result<(Broker, Vec<Partition>, Config), Error> {
    let config = common.load(Vec::new(), cx)?.config;
    logging::start(&config.log, Level::Warn)?;
    let (broker, _) = cx.unless_interrupted(Broker::open_shared(&config), "").await??;
    let partitions = parts::partitions(&queues.or(&config.worker.queues));
    Ok((broker, partitions, config))
}

/// What to do with workers.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Workers {
    #[command(subcommand)]
    what: Option<Order>,

    #[command(flatten)]
    view: View,
}

#[derive(Debug, Subcommand)]
enum Order {
    /// Tell a worker to claim nothing more, to end what it can, and to stop
    ///
    /// It does what SIGTERM would make it do. The exit code is 4 where no such worker listens.
    Drain {
        /// The worker's ID, as `millstream workers` shows it
        id: WorkerId,
    },
}

/// Shows workers, or tells one to drain.
pub(super) async fn workers(
    args: Workers,
    common: &Common,
    cx: &mut Context,
) -> Result<Exit, Error> {
    match args.what {
        None => seen(args.view, common, cx).await,
        Some(Order::Drain { id }) => {
            let (broker, _, _) = open(args.view.queues, common, cx).await?;
            if !Admin::new(broker.shared).drain(&id).await? {
                let cause = format!("no worker {id} listens");
                let remedy = "`millstream workers` shows those that live";
                return Err(Error::new(Exit::Broker, cause, remedy));
            }
            audit::other("drain_worker", &id);
            cx.terminal.line(format_args!("{id} drains"))?;
            Ok(Exit::Ok)
        }
    }
}

/// Shows the workers that have read the queues.
async fn seen(view: View, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let (broker, partitions, _) = open(view.queues, common, cx).await?;
    let mut table = table(&["queue", "worker", "in hands", "idle", "live"], 2);
    for partition in partitions {
        for worker in broker.shared.workers(&partition).await? {
            match view.output {
                Output::Json => cx.terminal.json(&with_queue(&partition, &json!(worker)))?,
                Output::Text => {
                    row(&mut table, worker_row(&partition, &worker));
                }
            }
        }
    }
    finish(&table, view.output, &mut cx.terminal)
}

fn worker_row(partition: &Partition, worker: &WorkerSeen) -> [String; 5] {
    let idle = std::time::Duration::from_millis(
        u64::try_from(worker.idle.as_millis()).unwrap_or(u64::MAX),
    );
    [
        partition.queue.to_string(),
        worker.id.clone(),
        worker.pending.to_string(),
        format_duration(idle).to_string(),
        if worker.is_live() { "yes" } else { "no" }.to_owned(),
    ]
}

pub(super) fn with_queue(partition: &Partition, value: &serde_json::Value) -> serde_json::Value {
    let mut object = json!({"queue": partition.queue, "partition": partition.index});
    if let (Some(object), Some(fields)) = (object.as_object_mut(), value.as_object()) {
        object.extend(fields.clone());
    }
    object
}

/// A job's record, one field on a line; what is not known is left out.
pub(super) fn record(record: &Record, terminal: &mut Terminal) -> io::Result<()> {
    let serde_json::Value::Object(fields) = json!(record) else { return Ok(()) };
    for (name, value) in fields {
        let text = match (name.as_str(), value) {
            ("partition", _) => record.partition.as_ref().map(ToString::to_string),
            ("enqueued_at", _) => record.enqueued_at.map(|at| at.to_string()),
            ("due", _) => record.due.map(|at| at.to_string()),
            ("began_at", _) => record.began_at.map(|at| at.to_string()),
            ("ended_at", _) => record.ended_at.map(|at| at.to_string()),
            ("error", _) => record.error.as_ref().map(ToString::to_string),
            (_, serde_json::Value::Null) => None,
            (_, serde_json::Value::Object(map)) if map.is_empty() => None,
            (_, serde_json::Value::String(text)) => Some(text),
            (_, other) => Some(other.to_string()),
        };
        named(terminal, &format!("{name:<14}"), &text.unwrap_or_default())?;
    }
    Ok(())
}

/// `name text` on a line, unless there is no text.
pub(super) fn named(terminal: &mut Terminal, name: &str, text: &str) -> io::Result<()> {
    if text.is_empty() { Ok(()) } else { terminal.line(format_args!("{name} {text}")) }
}

/// An empty table. Columns from `numbers` on are aligned to the right; 0 means none.
pub(super) fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| Cell::new(name.to_uppercase())));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers > 0 && index >= numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Adds a row. A cell is one line, whatever its text holds.
pub(super) fn row<const N: usize>(table: &mut Table, cells: [String; N]) {
    table.add_row(cells.map(|cell| clean::one_line(&cell)));
}

/// Writes a table that has rows, and says so where it has none.
pub(super) fn finish(
    table: &Table,
    output: Output,
    terminal: &mut Terminal,
) -> Result<Exit, Error> {
    match output {
        Output::Json => {}
        Output::Text if table.is_empty() => terminal.say("none"),
        Output::Text => terminal.lines(&table.trim_fmt())?,
    }
    Ok(Exit::Ok)
}
