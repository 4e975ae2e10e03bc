//! `millstream dlq`: dead letters, and what becomes of them.

#![expect(clippy::doc_markdown, reason = "the comments of arguments are the text of --help")]

use std::{collections::HashSet, io::IsTerminal, time::Duration};

use clap::{Args, Subcommand};
use comfy_table::Table;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};

use super::{
    Context, Error, Exit,
    args::{self, Common, Output, Queues},
    audit,
    parts::Broker,
    tables::{self, finish, table, with_queue},
};
use crate::{
    admin::{Admin, Filter, PAGE, Purged, Requeued},
    broker::{self, DeadLetter, Partition},
    error::Code,
    job::{JobId, Tenant, Timestamp},
    state::State,
};

/// What to do about an interruption.
const AGAIN: &str = "the same command goes on where it stopped";

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
    ///
    /// One that a requeue has begun to put back is left, for its job waits for it; the exit code is then 6,
    /// as where a job was named that has none.
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
        Letters::List { which, limit } => {
            print(&mut Search::open(which, common, cx).await?, limit, cx).await
        }
        Letters::Show { which } => show(&mut Search::open(which, common, cx).await?, cx).await,
        Letters::Requeue { which, all, dry_run } => {
            needs_all(&which, all)?;
            let mut search = Search::open(which, common, cx).await?;
            if dry_run {
                return print(&mut search, usize::MAX, cx).await;
            }
            requeue(&mut search, cx).await
        }
        Letters::Purge { which, all, dry_run, yes } => {
            needs_all(&which, all)?;
            let mut search = Search::open(which, common, cx).await?;
            if dry_run {
                return print(&mut search, usize::MAX, cx).await;
            }
            let mut most = vec![usize::MAX; search.partitions.len()];
            if !yes {
                most = search.count(cx).await?;
                let count = most.iter().sum();
                if count > 0 && !confirmed(count, cx).await? {
                    cx.terminal.say("nothing deleted");
                    return Ok(Exit::Ok);
                }
            }
            purge(&mut search, &most, cx).await
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

/// Which letters are looked for, and how they are told. They are read in pages: each has its payload,
/// and there may be many.
struct Search {
    admin: Admin,
    broker: broker::Shared,
    partitions: Vec<Partition>,
    filter: Filter,
    now: Timestamp,
    output: Output,
    /// Jobs that were named and have a letter.
    found: HashSet<JobId>,
}

impl Search {
    async fn open(which: Which, common: &Common, cx: &mut Context) -> Result<Self, Error> {
        let Which { ids, reason, older_than, model, tenant, queues, output } = which;
        let filter = Filter { jobs: ids, reason, older_than, model, tenant };
        let (Broker { shared, .. }, partitions, _) = tables::open(queues, common, cx).await?;
        let (admin, now) = (Admin::new(shared.clone()), Timestamp::now());
        Ok(Self { admin, broker: shared, partitions, filter, now, output, found: HashSet::new() })
    }

    /// The next of these letters that is meant.
    async fn next(
        &mut self,
        letters: &mut (impl Stream<Item = broker::Result<DeadLetter>> + Unpin),
        cx: &Context,
    ) -> Result<Option<DeadLetter>, Error> {
        while let Some(letter) = cx.unless_interrupted(letters.next(), AGAIN).await? {
            let letter = letter?;
            if self.filter.means(&letter, self.now) {
                if self.filter.jobs.contains(&letter.id) {
                    self.found.insert(letter.id);
                }
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    /// How many letters of each partition are meant.
    async fn count(&mut self, cx: &Context) -> Result<Vec<usize>, Error> {
        let mut counts = Vec::new();
        for partition in self.partitions.clone() {
            let (mut letters, mut count) = (self.admin.dead_letters(&partition), 0);
            while self.next(&mut letters, cx).await?.is_some() {
                count += 1;
            }
            counts.push(count);
        }
        Ok(counts)
    }

    /// Tells which jobs were named in vain, and why. The others are not held up by them.
    async fn end(&self, left: usize, cx: &mut Context) -> Result<Exit, Error> {
        let missing: Vec<JobId> =
            self.filter.jobs.iter().filter(|id| !self.found.contains(id)).copied().collect();
        for id in &missing {
            let record = cx.unless_interrupted(self.broker.job(*id), AGAIN).await??;
            let failed = record.filter(|record| record.state == State::Failed);
            match failed.and_then(|record| record.error) {
                Some(error) => cx.terminal.say(format_args!(
                    "{id} failed ({}) and has no dead letter here: its request was answered with the error, \
                     another filter leaves it out, or the letter is gone; enqueue it again, or see \
                     `millstream jobs show {id}`",
                    error.code
                )),
                None => cx.terminal.say(format_args!(
                    "{id} has no dead letter here, or the filters leave it out; `millstream dlq list` \
                     shows them"
                )),
            }
        }
        Ok(if missing.is_empty() && left == 0 { Exit::Ok } else { Exit::Job })
    }
}

/// Tells of up to `most` letters of each queue.
async fn print(search: &mut Search, most: usize, cx: &mut Context) -> Result<Exit, Error> {
    let mut table: Table = table(&["queue", "job", "buried", "lane", "attempts", "reason"], 0);
    for partition in search.partitions.clone() {
        let (mut letters, mut left) = (search.admin.dead_letters(&partition), most);
        while left > 0
            && let Some(letter) = search.next(&mut letters, cx).await?
        {
            left -= 1;
            match search.output {
                Output::Json => cx.terminal.json(&with_queue(&partition, &described(&letter)))?,
                Output::Text => {
                    tables::row(
                        &mut table,
                        [
                            partition.queue.to_string(),
                            letter.id.to_string(),
                            letter.buried_at().to_string(),
                            letter.lane.to_string(),
                            letter.attempts.to_string(),
                            letter.error.to_string(),
                        ],
                    );
                }
            }
        }
    }
    finish(&table, search.output, &mut cx.terminal)?;
    search.end(0, cx).await
}

/// A letter without its payload.
fn described(letter: &DeadLetter) -> Value {
    let mut object = json!(letter);
    object["buried_at"] = json!(letter.buried_at());
    object
}

async fn show(search: &mut Search, cx: &mut Context) -> Result<Exit, Error> {
    for partition in search.partitions.clone() {
        let mut letters = search.admin.dead_letters(&partition);
        while let Some(letter) = search.next(&mut letters, cx).await? {
            let mut object = with_queue(&partition, &described(&letter));
            let fields = letter.fields.iter().map(|(name, value)| {
                let name = String::from_utf8_lossy(name).into_owned();
                let value = serde_json::from_slice(value)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(value).into_owned()));
                (name, value)
            });
            object["entry"] = fields.collect::<serde_json::Map<_, _>>().into();
            cx.terminal.pretty_json(&object)?;
        }
    }
    search.end(0, cx).await
}

async fn requeue(search: &mut Search, cx: &mut Context) -> Result<Exit, Error> {
    let (mut back, mut all) = (0, 0);
    for partition in search.partitions.clone() {
        let mut letters = search.admin.dead_letters(&partition);
        while let Some(letter) = search.next(&mut letters, cx).await? {
            let requeued = search.admin.requeue(&partition, &letter);
            let requeued = cx.unless_interrupted(requeued, AGAIN).await??;
            all += 1;
            let is_back = matches!(requeued, Requeued::Requeued { .. });
            audit::job("requeue", letter.id, is_back);
            back += usize::from(is_back);
            let (id, what) = (
                letter.id,
                match requeued {
                    Requeued::Requeued { run } => format!("requeued, run {run}"),
                    Requeued::Gone => {
                        "gone: somebody else has put it back or deleted it".to_owned()
                    }
                    Requeued::Alive { state } => format!("left alone: the job is {state}"),
                },
            );
            match search.output {
                Output::Json => {
                    let mut object = json!(requeued);
                    object["id"] = json!(id);
                    cx.terminal.json(&object)?;
                }
                Output::Text => cx.terminal.line(format_args!("{id} {what}"))?,
            }
        }
    }
    cx.terminal.say(format_args!("{back} of {all} dead letters put back"));
    search.end(all - back, cx).await
}

/// Deletes up to so `many` letters of each partition.
async fn purge(search: &mut Search, many: &[usize], cx: &mut Context) -> Result<Exit, Error> {
    let mut all = Purged::default();
    for (partition, most) in search.partitions.clone().iter().zip(many) {
        let (mut letters, mut left) = (search.admin.dead_letters(partition), *most);
        while left > 0 {
            let mut page = Vec::new();
            while page.len() < PAGE.min(left)
                && let Some(letter) = search.next(&mut letters, cx).await?
            {
                page.push(letter);
            }
            if page.is_empty() {
                break;
            }
            left -= page.len();
            let purged = search.admin.purge(partition, &page);
            let purged = cx.unless_interrupted(purged, AGAIN).await??;
            for letter in &page {
                audit::job("purge", letter.id, !purged.left.contains(&letter.id));
            }
            all.purged += purged.purged;
            all.left.extend(purged.left);
        }
    }
    for id in &all.left {
        cx.terminal.say(format_args!(
            "{id} left alone: a requeue of it has begun and is not over; `millstream dlq requeue \
             {id}` ends it"
        ));
    }
    match search.output {
        Output::Json => cx.terminal.json(&all)?,
        Output::Text => cx.terminal.line(format_args!("{} dead letters deleted", all.purged))?,
    }
    search.end(all.left.len(), cx).await
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
