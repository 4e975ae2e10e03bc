//! `millstream queues`: how much is where, what counts against the limits, and counting it again.

use clap::{Args, Subcommand};
use comfy_table::Table;
use serde_json::json;

use super::{
    Context, Error, Exit,
    args::{self, Common, Output},
    audit,
    tables::{self, View},
};
use crate::{
    broker::{Depth, Limits, Partition},
    job::{Lane, QueueName},
};

/// What to do with queues; without a command they are shown.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Overview {
    #[command(subcommand)]
    what: Option<What>,

    #[command(flatten)]
    view: View,
}

/// What to do with queues.
#[derive(Debug, Subcommand)]
enum What {
    /// Count again what queues hold, and set right what is counted against the limits
    ///
    /// Every job that a queue holds is read, in steps that hold Redis up for a few milliseconds each: about a second
    /// in all for 100,000 jobs of 1 KB. Only something other than Millstream that deletes entries or changes
    /// counters makes it necessary, and workers do it by themselves, as they start and then hourly, where
    /// more jobs are counted than there are entries. What they cannot see, such as counters that are too
    /// low, is set right by this alone.
    Reconcile {
        /// The queues [default: the worker's, worker.queues]
        #[arg(value_name = "QUEUE")]
        queues: Vec<QueueName>,

        /// How it is written
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// The columns of the table.
const HEADER: [&str; 8] =
    ["queue", "lane", "waiting", "in hands", "parked", "dead", "jobs counted", "bytes counted"];

/// Shows queues, or does something with them.
pub(super) async fn run(args: Overview, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    match args.what {
        None => show(args.view, common, cx).await,
        Some(What::Reconcile { queues, output }) => {
            reconcile(View { queues: args::Queues::of(queues), output }, common, cx).await
        }
    }
}

async fn show(view: View, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let (broker, partitions, config) = tables::open(view.queues, common, cx).await?;
    let limits = config.redis.limits;
    let mut table = tables::table(&HEADER, 2);
    for partition in partitions {
        let depth = broker.shared.depth(&partition).await?;
        match view.output {
            Output::Json => cx.terminal.json(&json!({
                "queue": partition.queue, "partition": partition.index,
                "lanes": lanes(&depth), "parked": depth.parked, "dead": depth.dead,
                "dropped": depth.dropped, "lost_entries": depth.lost_entries,
                "load": depth.load, "limits": limits,
            }))?,
            Output::Text => depth_rows(&mut table, &partition, &depth, &limits),
        }
        warn(&partition, &depth, cx);
    }
    tables::finish(&table, view.output, &mut cx.terminal)
}

/// What an operator must know beside the numbers.
fn warn(partition: &Partition, depth: &Depth, cx: &mut Context) {
    if depth.dropped > 0 {
        cx.terminal.warn(format_args!(
            "queue {}: {} dead letters were dropped for newer ones or for their age; redis.dead_max \
             and redis.dead_ttl bound them",
            partition.queue, depth.dropped
        ));
    }
    if depth.lost_entries > 0 {
        cx.terminal.warn(format_args!(
            "queue {}: {} entries were deleted by a stranger while workers held them; jobs of theirs \
             that were to be retried may never end",
            partition.queue, depth.lost_entries
        ));
    }
}

async fn reconcile(view: View, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let (broker, partitions, _) = tables::open(view.queues, common, cx).await?;
    for partition in partitions {
        let correction = broker.shared.reconcile(&partition).await?;
        let queue = &partition.queue;
        audit::other("reconcile", queue);
        match view.output {
            Output::Json => {
                let object = tables::with_queue(&partition, &json!({"corrected": correction}));
                cx.terminal.json(&object)?;
            }
            Output::Text if correction.is_none() => {
                cx.terminal.line(format_args!("{queue}: nothing to correct"))?;
            }
            Output::Text => cx.terminal.line(format_args!("{queue}: corrected {correction}"))?,
        }
    }
    Ok(Exit::Ok)
}

fn lanes(depth: &Depth) -> serde_json::Map<String, serde_json::Value> {
    let lanes = Lane::ALL.iter().zip(&depth.lanes);
    lanes.map(|(lane, depth)| (lane.to_string(), json!(depth))).collect()
}

fn depth_rows(table: &mut Table, partition: &Partition, depth: &Depth, limits: &Limits) {
    let of = |count: u64, most: u64| match most {
        0 => count.to_string(),
        most => format!("{count}/{most}"),
    };
    for (lane, d) in Lane::ALL.into_iter().zip(&depth.lanes) {
        let first = lane.index() == 0;
        let once = |text: String| if first { text } else { String::new() };
        tables::row(
            table,
            [
                once(partition.queue.to_string()),
                lane.to_string(),
                d.waiting.to_string(),
                d.pending.to_string(),
                once(depth.parked.to_string()),
                once(depth.dead.to_string()),
                once(of(depth.load.jobs, limits.max_jobs)),
                once(of(depth.load.bytes, limits.max_bytes)),
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Counted;

    #[test]
    fn a_depth_has_a_row_for_each_lane() {
        let load = Counted { jobs: 16, bytes: 900, corrected: 0 };
        let mut depth = Depth { parked: 4, load, ..Depth::default() };
        depth.lanes[1].waiting = 12;
        let mut table = tables::table(&HEADER, 2);
        let limits = Limits { max_jobs: 20, ..Limits::default() };
        depth_rows(&mut table, &Partition::first(QueueName::default()), &depth, &limits);
        let text = table.trim_fmt();
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["default", "high", "0", "0", "4", "0", "16/20", "900"]);
        assert_eq!(rows[2], ["normal", "12", "0"]);
        assert_eq!(lanes(&depth)["normal"]["waiting"], 12);
    }
}
