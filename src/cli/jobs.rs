//! `millstream jobs`: one job's record, its events, its end.

mod wait;

use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::StreamExt;
use serde_json::json;

use super::{
    Context, Error, Exit, answer,
    args::{Common, Output},
    audit,
    logging::{self, Level},
    parts::Broker,
    tables,
};
use crate::{
    admin::{Admin, Cancelled},
    config::Config,
    event::{Body, Event, EventId, Failed},
    job::JobId,
    listener::{self, Listener},
};

/// What to learn of jobs.
#[derive(Debug, Subcommand)]
pub(super) enum Jobs {
    /// Show a job's record, and its answer where it is over
    Show(Show),
    /// Follow a job's events, from the first or after a given one
    Tail(Tail),
    /// Wait until jobs are over; the exit code is 6 where one failed
    Wait(wait::Wait),
    /// Cancel jobs, whether they wait, are parked or run
    ///
    /// What was written by then stays readable. The exit code is 6 where a job was over already, and
    /// 2 where there is none.
    Cancel(Cancel),
}

/// Which record.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The job
    id: JobId,

    /// How it is written
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Which events.
#[derive(Debug, Args)]
pub(super) struct Tail {
    /// The job
    id: JobId,

    /// Start after this event, the last one that was seen
    #[arg(long, value_name = "EVENT")]
    after: Option<EventId>,

    /// How they are written; as JSON each event is an object {"id", "event", "data"}
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Which jobs are not wanted any more.
#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// The jobs
    #[arg(required = true)]
    ids: Vec<JobId>,

    /// How the result is written
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Tells of jobs.
pub(super) async fn run(what: Jobs, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let config = common.load(Vec::new(), cx)?.config;
    logging::start(&config.log, Level::Warn)?;
    let (broker, _) = cx.unless_interrupted(Broker::open_shared(&config), "").await??;
    match what {
        Jobs::Show(args) => show(args, &config, &broker, cx).await,
        Jobs::Tail(args) => tail(args, &config, &broker, cx).await,
        Jobs::Wait(args) => wait::run(args, &config, &broker, cx).await,
        Jobs::Cancel(args) => cancel(args, &broker, cx).await,
    }
}

async fn show(
    args: Show,
    config: &Config,
    broker: &Broker,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let record = broker.shared.job(args.id).await?.ok_or(listener::Error::NotFound(args.id))?;
    let mut text = None;
    if record.state.is_terminal() {
        let listener = Listener::new(broker.shared.clone(), config.listener.clone());
        // The log may have expired, or lack the end, where the record is still there.
        let limit = config.redis.response_timeout;
        match listener.listen(args.id).timeout(limit).answer().await {
            Ok(answer) => text = Some(answer.text),
            Err(listener::Error::Expired(id)) => cx.terminal.warn(format_args!(
                "the answer of job {id} is not kept any more (redis.result_ttl)"
            )),
            Err(_) => {}
        }
    }
    match args.output {
        Output::Json => {
            let mut object = json!(record);
            object["text"] = json!(text);
            cx.terminal.json(&object)?;
        }
        Output::Text => {
            tables::record(&record, &mut cx.terminal)?;
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                cx.terminal.lines(&format!("\n{text}"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

async fn tail(
    args: Tail,
    config: &Config,
    broker: &Broker,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let listener = Listener::new(broker.shared.clone(), config.listener.clone());
    let mut last = args.after.unwrap_or(EventId::START);
    let mut events = listener.listen(args.id).after(last).events();
    let mut ended: Option<Failed> = None;
    loop {
        let resume = format!("`millstream jobs tail {} --after {last}` goes on", args.id);
        let Some(event) = cx.unless_interrupted(events.next(), resume).await? else {
            // A run that failed may have another behind it: the last one counts.
            return ended.map_or(Ok(Exit::Ok), |f| Err(answer::job_failed(args.id, &f)));
        };
        let event = event?;
        last = event.id;
        match args.output {
            Output::Json => cx.terminal.json(&event)?,
            Output::Text => cx.terminal.line(readable(&event))?,
        }
        ended = match event.body {
            Body::Failed(failed) => Some(failed),
            Body::Cancelled(cancelled) => Some(cancelled.into()),
            _ => None,
        };
    }
}

async fn cancel(args: Cancel, broker: &Broker, cx: &mut Context) -> Result<Exit, Error> {
    let admin = Admin::new(broker.shared.clone());
    let (mut over, mut unknown) = (0, None);
    for id in args.ids {
        let cancelled = cx.unless_interrupted(admin.cancel(id), "").await??;
        let is_changed = matches!(cancelled, Cancelled::Cancelled | Cancelled::Asked { .. });
        audit::job("cancel_job", id, is_changed);
        over += u32::from(matches!(cancelled, Cancelled::Over { .. }));
        if cancelled == Cancelled::Unknown {
            unknown.get_or_insert(id);
        }
        let line = match &cancelled {
            Cancelled::Cancelled => format!("{id} cancelled"),
            Cancelled::Asked { worker, again: false } => format!("{id} cancelling on {worker}"),
            Cancelled::Asked { worker, again: true } => {
                format!("{id} cancelling on {worker}, as asked before")
            }
            Cancelled::Over { state } => format!("{id} was {state} already; nothing changed"),
            Cancelled::Unknown => format!("{id} is not known"),
        };
        match args.output {
            Output::Json => {
                let mut object = json!(cancelled);
                object["id"] = json!(id);
                cx.terminal.json(&object)?;
            }
            Output::Text => cx.terminal.line(line)?,
        }
    }
    match unknown {
        Some(id) => Err(listener::Error::NotFound(id).into()),
        None => Ok(if over > 0 { Exit::Job } else { Exit::Ok }),
    }
}

/// An event on one line.
fn readable(event: &Event) -> String {
    let what = match &event.body {
        Body::Started(data) => format!("attempt {} on {}", data.attempt, data.worker),
        Body::Delta(chunk) => {
            let text = chunk.text();
            if text.is_empty() { json!(chunk).to_string() } else { format!("{text:?}") }
        }
        Body::Retrying(data) => {
            let delay = Duration::from_millis(data.delay_ms).as_secs_f64();
            format!("attempt {} failed ({}); next in {delay:.1} s", data.attempt, data.error)
        }
        Body::Done(data) => {
            let reason = data.finish_reason.as_deref().unwrap_or("-");
            let usage = data.usage.as_ref().map(|usage| format!(", usage {usage}"));
            format!("{reason} in {} ms{}", data.run_ms, usage.unwrap_or_default())
        }
        Body::Failed(data) => format!("after {} attempts: {}", data.attempts, data.error),
        Body::Cancelled(data) => format!("after {} attempts", data.attempts),
        Body::Requeued(data) => format!("run {} begins", data.run),
        Body::Unknown { .. } => "of a newer version".to_owned(),
    };
    format!("{} {:<8} {what}", event.id, event.body.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    #[test]
    fn an_event_is_readable_on_one_line() {
        let error = Failure::new(crate::error::Code::Timeout, "slow");
        let body = Body::Failed(Failed {
            error,
            attempts: 3,
            custom_id: None,
            labels: crate::job::Labels::default(),
        });
        let line = readable(&Event { id: EventId { fence: 7, seq: 2 }, body });
        assert_eq!(line, "7-2 failed   after 3 attempts: timeout: slow");
    }
}
