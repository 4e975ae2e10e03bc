//! An answer on the terminal, while it comes.

use std::{io, time::Duration};

use futures_util::StreamExt;
use tokio::time::timeout;

use super::{Context, Error, Exit, Terminal};
use crate::{
    error::{Code, Failure},
    event::{Body, Done, Event, Failed},
    job::JobId,
    listener::{Listen, Listener},
};

/// How an answer is followed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Follow {
    /// How long a worker may take to begin. It waits for ever without a limit.
    pub(super) begin: Option<Duration>,
    /// How long the next event may take. It waits for ever without a limit.
    pub(super) idle: Option<Duration>,
    /// Whether the job goes on without this process.
    pub(super) durable: bool,
}

/// Shows a job's answer on standard output as it comes. What people should know beside it, such as
/// an attempt that starts over, stands on standard error.
pub(super) async fn show(
    follow: Follow,
    listener: &Listener,
    job: JobId,
    cx: &mut Context,
) -> Result<Done, Error> {
    let mut events = listener.listen(job).idle_timeout(follow.idle).events();
    let mut page = Page::default();
    let mut limit = follow.begin;
    loop {
        let next = async {
            match limit {
                Some(limit) => timeout(limit, events.next()).await.map_err(|_| limit),
                None => Ok(events.next().await),
            }
        };
        let resume = if follow.durable { resume(job) } else { String::new() };
        let event = match cx.unless_interrupted(next, resume).await {
            Ok(Ok(Some(event))) => event?,
            Ok(Ok(None)) => return Err(Error::new(Exit::Unexpected, "the events ended early", "")),
            Ok(Err(limit)) => return Err(nobody_began(job, limit)),
            Err(interrupted) => {
                page.end(&mut cx.terminal)?;
                return Err(interrupted);
            }
        };
        limit = None;
        match page.event(event, &mut cx.terminal)? {
            Some(Ok(done)) => return Ok(done),
            Some(Err(failed)) => return Err(job_failed(job, &failed)),
            None => {}
        }
    }
}

fn nobody_began(job: JobId, limit: Duration) -> Error {
    let cause = format!("no worker took job {job} within {} s", limit.as_secs_f64());
    let remedy = "start one with `millstream-worker`, then read the answer with `millstream jobs \
                  tail`; the job waits";
    Error::new(Exit::Broker, cause, remedy)
}

/// How to go on with a job that does not need this process.
pub(super) fn resume(job: JobId) -> String {
    format!("the job goes on, `millstream jobs tail {job}` follows it")
}

/// The error of one who waited for a job that failed.
pub(super) fn job_failed(job: JobId, failed: &Failed) -> Error {
    let Failed { error, attempts, .. } = failed;
    let times = if *attempts == 1 { "attempt" } else { "attempts" };
    let cause = match error.code {
        Code::Cancelled => format!("job {job} was cancelled"),
        _ => format!("job {job} failed after {attempts} {times}: {error}"),
    };
    Error::new(Exit::of(error), cause, remedy(error))
}

fn remedy(failure: &Failure) -> &'static str {
    match failure.code {
        Code::UpstreamAuth => "correct OPENAI_API_KEY (upstream.api_key) of the worker",
        Code::UpstreamConnection => "correct OPENAI_BASE_URL (upstream.base_url) of the worker",
        Code::InvalidJob | Code::InvalidRequest => "correct the request",
        Code::Cancelled => "",
        Code::Expired => "ask again with a later expires_at, or start more workers",
        Code::Poison => "look at the workers' logs, then `millstream dlq requeue` tries again",
        Code::Timeout => "raise the worker's timeouts or the job's deadline",
        _ => "ask again later",
    }
}

/// What stands on standard output.
#[derive(Debug, Default)]
struct Page {
    shown: bool,
    mid_line: bool,
}

impl Page {
    fn event(
        &mut self,
        event: Event,
        terminal: &mut Terminal,
    ) -> io::Result<Option<Result<Done, Failed>>> {
        match event.body {
            Body::Started(started) => {
                if std::mem::take(&mut self.shown) {
                    self.end(terminal)?;
                    terminal.say(format_args!(
                        "-- attempt {} starts over: the text above is void --",
                        started.attempt
                    ));
                }
            }
            Body::Delta(chunk) => self.text(&chunk.text(), terminal)?,
            Body::Retrying(data) => {
                self.end(terminal)?;
                let delay = Duration::from_millis(data.delay_ms).as_secs_f64();
                terminal.say(format_args!(
                    "-- attempt {} failed ({}); the next begins in {delay:.1} s --",
                    data.attempt, data.error
                ));
            }
            Body::Done(done) => {
                self.end(terminal)?;
                if let Some(reason) = done.finish_reason.as_deref().filter(|r| *r != "stop") {
                    terminal.say(format_args!("-- finish reason: {reason} --"));
                }
                return Ok(Some(Ok(done)));
            }
            Body::Failed(failed) => {
                self.end(terminal)?;
                return Ok(Some(Err(failed)));
            }
            Body::Cancelled(cancelled) => {
                self.end(terminal)?;
                return Ok(Some(Err(cancelled.into())));
            }
            Body::Requeued(_) | Body::Unknown { .. } => {}
        }
        Ok(None)
    }

    fn text(&mut self, text: &str, terminal: &mut Terminal) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.shown = true;
        self.mid_line = !text.ends_with('\n');
        terminal.show(text)
    }

    /// Ends a line that was begun.
    fn end(&mut self, terminal: &mut Terminal) -> io::Result<()> {
        if std::mem::take(&mut self.mid_line) { terminal.show("\n") } else { Ok(()) }
    }
}

/// A job's end, as one JSON object on one line.
#[derive(Debug, serde::Serialize)]
pub(super) struct Ended {
    pub(super) id: JobId,
    /// Its place in the input, from 1.
    pub(super) line: u64,
    /// `done` or `failed`; `unknown` where the end could not be learnt.
    pub(super) state: &'static str,
    pub(super) custom_id: Option<String>,
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Option<serde_json::Value>,
    pub(super) attempts: u32,
    /// The failure: code, message, and what else is known.
    pub(super) error: Option<serde_json::Value>,
    /// How the one who waits fares by it.
    #[serde(skip)]
    pub(super) fault: Option<Error>,
}

impl Ended {
    /// Waits for the end of a job.
    pub(super) async fn of(
        listen: Listen,
        id: JobId,
        line: u64,
        custom_id: Option<String>,
    ) -> Self {
        let ended = Self {
            id,
            line,
            state: "unknown",
            custom_id,
            text: String::new(),
            finish_reason: None,
            usage: None,
            attempts: 0,
            error: None,
            fault: None,
        };
        match listen.answer().await {
            Ok(answer) => ended.with(answer.text, answer.outcome),
            Err(error) => Self {
                error: Some(
                    serde_json::json!({"code": error.code(), "message": error.to_string()}),
                ),
                fault: Some(error.into()),
                ..ended
            },
        }
    }

    fn with(self, text: String, outcome: Result<Done, Failed>) -> Self {
        let own = self.custom_id.clone();
        match outcome {
            Ok(done) => Self {
                state: "done",
                text,
                custom_id: done.custom_id.or(own),
                finish_reason: done.finish_reason,
                usage: done.usage,
                attempts: done.attempts,
                ..self
            },
            Err(failed) => Self {
                state: if failed.error.code == Code::Cancelled { "cancelled" } else { "failed" },
                text,
                fault: Some(job_failed(self.id, &failed)),
                error: serde_json::to_value(&failed.error).ok(),
                attempts: failed.attempts,
                custom_id: failed.custom_id.or(own),
                ..self
            },
        }
    }

    /// The end as text: a line of what is known, the answer, an empty line.
    pub(super) fn write(&self, terminal: &mut Terminal) -> io::Result<()> {
        let named = self.custom_id.as_ref().map(|id| format!(", {id}")).unwrap_or_default();
        terminal.line(format_args!("# line {}{named}: {} {}", self.line, self.id, self.state))?;
        if let Some(fault) = &self.fault {
            terminal.say(format_args!("line {}: {fault}", self.line));
        }
        terminal.line(format_args!("{}\n", self.text.trim_end_matches('\n')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::terminal::tests::paper,
        event::{Chunk, EventId, Retrying, Started},
    };

    fn delta(text: &str) -> Body {
        let mut chunk = Chunk::default();
        let piece = serde_json::json!({"index": 0, "delta": {"content": text}});
        chunk.push(serde_json::from_value(piece).unwrap());
        Body::Delta(chunk)
    }

    fn started(attempt: u32) -> Body {
        Body::Started(Started { attempt, worker: "w".to_owned() })
    }

    #[test]
    fn an_attempt_that_starts_over_is_marked() {
        let (mut terminal, out, err) = paper();
        let mut page = Page::default();
        let error = Failure::new(Code::Truncated, "cut");
        for body in [
            started(1),
            delta("Hel"),
            Body::Retrying(Retrying { error, attempt: 1, delay_ms: 1500 }),
            started(2),
            delta("Hello"),
            delta("!"),
        ] {
            let event = Event { id: EventId::START, body };
            assert!(page.event(event, &mut terminal).unwrap().is_none());
        }
        let done = Event { id: EventId::START, body: Body::Done(Done::default()) };
        assert!(matches!(page.event(done, &mut terminal).unwrap(), Some(Ok(_))));
        assert_eq!(out.text(), "Hel\nHello!\n");
        let notes = err.text();
        assert!(notes.contains("attempt 1 failed (truncated: cut); the next begins in 1.5 s"));
        assert!(notes.contains("attempt 2 starts over: the text above is void"), "{notes}");
    }

    #[test]
    fn an_end_is_an_object_of_nine_fields() {
        let ended = Ended {
            id: JobId::from_key(&crate::job::Tenant::default(), "k"),
            line: 3,
            state: "unknown",
            custom_id: None,
            text: String::new(),
            finish_reason: None,
            usage: None,
            attempts: 0,
            error: None,
            fault: None,
        };
        let failed = Failed {
            error: Failure::new(Code::UpstreamAuth, "no such key"),
            attempts: 1,
            custom_id: Some("c".to_owned()),
            labels: crate::job::Labels::default(),
        };
        let ended = ended.with("par".to_owned(), Err(failed));
        assert_eq!(ended.fault.as_ref().map(Error::exit), Some(Exit::Upstream));
        let object = serde_json::to_value(&ended).unwrap();
        let names: Vec<&String> = object.as_object().unwrap().keys().collect();
        assert_eq!(
            names,
            [
                "id",
                "line",
                "state",
                "custom_id",
                "text",
                "finish_reason",
                "usage",
                "attempts",
                "error"
            ]
        );
        assert_eq!(object["error"]["code"], "upstream_auth");
        assert_eq!(object["custom_id"], "c");
    }
}
