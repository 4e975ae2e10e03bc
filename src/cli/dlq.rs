//! `millstream dlq`: dead letters, and what becomes of them.

#![expect(clippy::doc_markdown, reason = "the comments of arguments are the text of --help")]

use std::{io::IsTerminal, time::Duration};

use clap::{Args, Subcommand};
use comfy_table::Table;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{
    Context, Error, Exit,
    args::{self, Common, Output, Queues},
    parts::Broker,
    tables::{self, finish, table, with_queue},
};
use crate::{
    admin::{Admin, Filter, Requeued},
    broker::{DeadLetter, Partition},
    error::Code,
    job::{JobId, Tenant, Timestamp},
};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Letters {
    /// List them, the oldest first
    List {
        #[command(flatten)]
        which: Which,

        /// Most letters of a queue
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        limit: usize,
    },
    /// Show all that is kept of some: reason, history and payload, as JSON
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Put them back: each job begins a new run under its old ID, with a new budget of attempts
    ///
    /// Repeating it after an interruption is harmless. The exit code is 6 where one was left alone, or a
    /// job was named that has none.
    Requeue {
        #[command(flatten)]
        which: Which,

        /// All that the filters leave; required where no job is named
        #[arg(long)]
        all: bool,

        /// Only tell which
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete them for good
    Purge {
        #[command(flatten)]
        which: Which,

        /// All that the filters leave; required where no job is named
        #[arg(long)]
        all: bool,

        /// Only tell which
        #[arg(long)]
        dry_run: bool,

        /// Do not ask; required where standard input is no terminal
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Those of these jobs
    ids: Vec<JobId>,

    /// Those that failed for this reason, such as poison or rate_limited
    #[arg(long, value_name = "CODE", value_parser = reason)]
    reason: Option<Code>,

    /// Those that were buried at least so long ago
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    older_than: Option<Duration>,

    /// Those that ask for this model
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Those of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,

    #[command(flatten)]
    queues: Queues,

    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

fn reason(text: &str) -> Result<Code, String> {
    let known: Vec<&str> = Code::all().map(Code::as_str).collect();
    let found = Code::all().find(|code| code.as_str() == text);
    found.ok_or_else(|| format!("unknown reason `{text}`; allowed: {}", known.join(", ")))
}

/// Runs the command.
pub(super) async fn run(what: Letters, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    match what {
        Letters::List { which, limit } => list(which, limit, common, cx).await,
        Letters::Show { which } => show(which, common, cx).await,
        Letters::Requeue { which, all, dry_run } => {
            needs_all(&which, all)?;
            let found = find(which, usize::MAX, common, cx).await?;
            if dry_run {
                return print(&found, cx);
            }
            requeue(&found, cx).await
        }
        Letters::Purge { which, all, dry_run, yes } => {
            needs_all(&which, all)?;
            let found = find(which, usize::MAX, common, cx).await?;
            if dry_run {
                return print(&found, cx);
            }
            let count = found.letters.len();
            if !yes && count > 0 && !confirmed(count, cx).await? {
                cx.terminal.say("nothing deleted");
                return Ok(Exit::Ok);
            }
            purge(&found, cx).await
        }
    }
}

/// A command that acts on everything says so.
fn needs_all(which: &Which, all: bool) -> Result<(), Error> {
    if all || !which.ids.is_empty() {
        return Ok(());
    }
    let remedy = "name jobs, or say --all (with --reason, --older-than, --model, --tenant as \
                  filters); --dry-run shows which";
    Err(Error::new(Exit::Usage, "no dead letters named", remedy))
}

/// What was found, and how to tell it.
struct Found {
    admin: Admin,
    /// Dead letters, and where they lie.
    letters: Vec<(Partition, DeadLetter)>,
    /// Jobs that were named and have none.
    missing: Vec<JobId>,
    output: Output,
}

impl Found {
    /// Tells which jobs were named in vain. The others are not held up by them.
    fn end(&self, left: usize, cx: &mut Context) -> Exit {
        for id in &self.missing {
            cx.terminal.say(format_args!(
                "{id} has no dead letter here, or the filters leave it out; `millstream dlq list` \
                 shows them"
            ));
        }
        if self.missing.is_empty() && left == 0 { Exit::Ok } else { Exit::Job }
    }
}

/// Reads the letters that are meant, up to `most` of each queue.
async fn find(
    which: Which,
    most: usize,
    common: &Common,
    cx: &mut Context,
) -> Result<Found, Error> {
    let Which { ids, reason, older_than, model, tenant, queues, output } = which;
    let filter = Filter { jobs: ids, reason, older_than, model, tenant };
    let (Broker { shared, .. }, partitions, _) = tables::open(queues, common, cx).await?;
    let admin = Admin::new(shared);
    let now = Timestamp::now();
    let mut found = Vec::new();
    for partition in partitions {
        let (mut letters, mut left) = (admin.dead_letters(&partition), most);
        while left > 0
            && let Some(letter) = cx.unless_interrupted(letters.next(), "").await?
        {
            let letter = letter?;
            if filter.means(&letter, now) {
                found.push((partition.clone(), letter));
                left -= 1;
            }
        }
    }
    let lacks = |id: &JobId| !found.iter().any(|(_, letter)| letter.id == *id);
    let missing = filter.jobs.into_iter().filter(lacks).collect();
    Ok(Found { admin, letters: found, missing, output })
}

async fn list(
    which: Which,
    limit: usize,
    common: &Common,
    cx: &mut Context,
) -> Result<Exit, Error> {
    print(&find(which, limit, common, cx).await?, cx)
}

fn print(found: &Found, cx: &mut Context) -> Result<Exit, Error> {
    let mut table: Table = table(&["queue", "job", "buried", "lane", "attempts", "reason"], 0);
    for (partition, letter) in &found.letters {
        match found.output {
            Output::Json => cx.terminal.json(&with_queue(partition, &described(letter)))?,
            Output::Text => {
                table.add_row([
                    partition.queue.to_string(),
                    letter.id.to_string(),
                    letter.buried_at().to_string(),
                    letter.lane.to_string(),
                    letter.attempts.to_string(),
                    letter.error.to_string(),
                ]);
            }
        }
    }
    finish(&table, found.output, &mut cx.terminal)?;
    Ok(found.end(0, cx))
}

/// A letter without its payload.
fn described(letter: &DeadLetter) -> Value {
    let mut object = json!(letter);
    object["buried_at"] = json!(letter.buried_at());
    object
}

async fn show(which: Which, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let found = find(which, usize::MAX, common, cx).await?;
    for (partition, letter) in &found.letters {
        let mut object = with_queue(partition, &described(letter));
        let fields = letter.fields.iter().map(|(name, value)| {
            let name = String::from_utf8_lossy(name).into_owned();
            let value = serde_json::from_slice(value)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(value).into_owned()));
            (name, value)
        });
        object["entry"] = fields.collect::<serde_json::Map<_, _>>().into();
        let text = serde_json::to_string_pretty(&object).unwrap_or_default();
        cx.terminal.line(text)?;
    }
    Ok(found.end(0, cx))
}

async fn requeue(found: &Found, cx: &mut Context) -> Result<Exit, Error> {
    let Found { admin, letters, output, .. } = found;
    let mut back = 0;
    for (partition, letter) in letters {
        let again = "the same command goes on where it stopped";
        let requeued = cx.unless_interrupted(admin.requeue(partition, letter), again).await??;
        back += usize::from(matches!(requeued, Requeued::Requeued { .. }));
        let (id, what) = (
            letter.id,
            match requeued {
                Requeued::Requeued { run } => format!("requeued, run {run}"),
                Requeued::Gone => "gone: somebody else has put it back or deleted it".to_owned(),
                Requeued::Alive { state } => format!("left alone: the job is {state}"),
            },
        );
        match output {
            Output::Json => {
                let mut object = json!(requeued);
                object["id"] = json!(id);
                cx.terminal.json(&object)?;
            }
            Output::Text => cx.terminal.line(format_args!("{id} {what}"))?,
        }
    }
    cx.terminal.say(format_args!("{back} of {} dead letters put back", letters.len()));
    Ok(found.end(letters.len() - back, cx))
}

async fn purge(found: &Found, cx: &mut Context) -> Result<Exit, Error> {
    let Found { admin, letters, output, .. } = found;
    let mut purged = 0;
    let mut partitions: Vec<&Partition> = letters.iter().map(|(partition, _)| partition).collect();
    partitions.dedup();
    for partition in partitions {
        let of_partition = letters.iter().filter(|(p, _)| p == partition);
        let named: Vec<DeadLetter> = of_partition.map(|(_, letter)| letter.clone()).collect();
        purged += admin.purge(partition, &named).await?;
    }
    match output {
        Output::Json => cx.terminal.json(&json!({ "purged": purged }))?,
        Output::Text => cx.terminal.line(format_args!("{purged} dead letters deleted"))?,
    }
    Ok(found.end(0, cx))
}

/// Asks the person at the terminal.
async fn confirmed(count: usize, cx: &mut Context) -> Result<bool, Error> {
    if !std::io::stdin().is_terminal() {
        let cause = format!("{count} dead letters would be deleted for good");
        return Err(Error::new(Exit::Usage, cause, "say --yes, or --dry-run to see which"));
    }
    cx.terminal.say(format_args!("delete {count} dead letters for good? type yes:"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = cx.unless_interrupted(answer, "nothing deleted").await?;
    Ok(matches!(line, Ok(Ok(line)) if line.trim() == "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_of_the_codes() {
        assert_eq!(reason("poison"), Ok(Code::Poison));
        let refused = reason("plague").unwrap_err();
        assert!(refused.contains("`plague`") && refused.contains("rate_limited"), "{refused}");
    }
}
