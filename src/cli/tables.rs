//! `millstream queues`, `workers` and `dlq`: what is where.

use std::io;

use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use humantime_serde::re::humantime::format_duration;
use serde_json::json;

use super::{
    Context, Error, Exit, Terminal,
    args::{Common, Output, Queues},
    logging::{self, Level},
    parts::{self, Broker},
};
use crate::{
    broker::{DeadLetter, Depth, Partition, Record, WorkerSeen},
    job::Lane,
};

/// Which queues, and how they are shown.
#[derive(Debug, Args)]
pub(super) struct View {
    #[command(flatten)]
    queues: Queues,

    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Letters {
    /// List them, the oldest first
    List {
        #[command(flatten)]
        view: View,

        /// Most letters of a queue
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        limit: usize,
    },
}

/// Opens Redis, and says which partitions to look at.
async fn open(
    queues: Queues,
    common: &Common,
    cx: &mut Context,
) -> Result<(Broker, Vec<Partition>), Error> {
    let config = common.load(Vec::new())?.config;
    logging::start(&config.log, Level::Warn);
    let (broker, _) = cx.unless_interrupted(Broker::open_shared(&config), "").await??;
    Ok((broker, parts::partitions(&queues.or(&config.worker.queues))))
}

/// Shows how much waits, runs, is parked and is dead.
pub(super) async fn queues(view: View, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let (broker, partitions) = open(view.queues, common, cx).await?;
    let mut table = table(&["queue", "lane", "waiting", "in hands", "parked", "dead"], 2);
    for partition in partitions {
        let depth = broker.shared.depth(&partition).await?;
        match view.output {
            Output::Json => cx.terminal.json(&json!({
                "queue": partition.queue, "partition": partition.index,
                "lanes": lanes(&depth), "parked": depth.parked, "dead": depth.dead,
            }))?,
            Output::Text => depth_rows(&mut table, &partition, &depth),
        }
    }
    finish(&table, view.output, &mut cx.terminal)
}

fn lanes(depth: &Depth) -> serde_json::Map<String, serde_json::Value> {
    let lanes = Lane::ALL.iter().zip(&depth.lanes);
    lanes.map(|(lane, depth)| (lane.to_string(), json!(depth))).collect()
}

fn depth_rows(table: &mut Table, partition: &Partition, depth: &Depth) {
    for (lane, d) in Lane::ALL.into_iter().zip(&depth.lanes) {
        let first = lane.index() == 0;
        let once = |text: String| if first { text } else { String::new() };
        table.add_row([
            once(partition.queue.to_string()),
            lane.to_string(),
            d.waiting.to_string(),
            d.pending.to_string(),
            once(depth.parked.to_string()),
            once(depth.dead.to_string()),
        ]);
    }
}

/// Shows the workers that have read the queues.
pub(super) async fn workers(view: View, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let (broker, partitions) = open(view.queues, common, cx).await?;
    let mut table = table(&["queue", "worker", "in hands", "idle"], 2);
    for partition in partitions {
        for worker in broker.shared.workers(&partition).await? {
            match view.output {
                Output::Json => cx.terminal.json(&with_queue(&partition, &json!(worker)))?,
                Output::Text => {
                    table.add_row(worker_row(&partition, &worker));
                }
            }
        }
    }
    finish(&table, view.output, &mut cx.terminal)
}

fn worker_row(partition: &Partition, worker: &WorkerSeen) -> [String; 4] {
    let idle = std::time::Duration::from_millis(
        u64::try_from(worker.idle.as_millis()).unwrap_or(u64::MAX),
    );
    [
        partition.queue.to_string(),
        worker.id.clone(),
        worker.pending.to_string(),
        format_duration(idle).to_string(),
    ]
}

fn with_queue(partition: &Partition, value: &serde_json::Value) -> serde_json::Value {
    let mut object = json!({"queue": partition.queue, "partition": partition.index});
    if let (Some(object), Some(fields)) = (object.as_object_mut(), value.as_object()) {
        object.extend(fields.clone());
    }
    object
}

/// Lists dead letters.
pub(super) async fn letters(
    what: Letters,
    common: &Common,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let Letters::List { view, limit } = what;
    let (broker, partitions) = open(view.queues, common, cx).await?;
    let mut table = table(&["queue", "job", "enqueued", "lane", "attempts", "reason"], 0);
    for partition in partitions {
        for letter in broker.shared.dead_letters(&partition, limit).await? {
            match view.output {
                Output::Json => cx.terminal.json(&with_queue(&partition, &json!(letter)))?,
                Output::Text => {
                    table.add_row(letter_row(&partition, &letter));
                }
            }
        }
    }
    finish(&table, view.output, &mut cx.terminal)
}

fn letter_row(partition: &Partition, letter: &DeadLetter) -> [String; 6] {
    [
        partition.queue.to_string(),
        letter.id.to_string(),
        letter.at.to_string(),
        letter.lane.to_string(),
        letter.attempts.to_string(),
        letter.error.to_string(),
    ]
}

/// A job's record, one field on a line; what is not known is left out.
pub(super) fn record(record: &Record, terminal: &mut Terminal) -> io::Result<()> {
    let serde_json::Value::Object(fields) = json!(record) else { return Ok(()) };
    for (name, value) in fields {
        let text = match (name.as_str(), value) {
            ("partition", _) => record.partition.as_ref().map(ToString::to_string),
            ("enqueued_at", _) => Some(record.enqueued_at.to_string()),
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
fn table(header: &[&str], numbers: usize) -> Table {
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

/// Writes a table that has rows, and says so where it has none.
fn finish(table: &Table, output: Output, terminal: &mut Terminal) -> Result<Exit, Error> {
    match output {
        Output::Json => {}
        Output::Text if table.is_empty() => terminal.say("none"),
        Output::Text => terminal.line(table.trim_fmt())?,
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::QueueName;

    #[test]
    fn a_depth_has_a_row_for_each_lane() {
        let mut depth = Depth { parked: 4, ..Depth::default() };
        depth.lanes[1].waiting = 12;
        let mut table = table(&["queue", "lane", "waiting", "in hands", "parked", "dead"], 2);
        depth_rows(&mut table, &Partition::first(QueueName::default()), &depth);
        let text = table.trim_fmt();
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["default", "high", "0", "0", "4", "0"]);
        assert_eq!(rows[2], ["normal", "12", "0"]);
        assert_eq!(lanes(&depth)["normal"]["waiting"], 12);
    }
}
