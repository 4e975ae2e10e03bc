//! An answer on the terminal, while it comes.

use std::{future::pending, io, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::{Context, Error, Exit, Terminal, unserved::Vigil};
use crate::{
    error::{Code, Failure},
    event::{Body, Done, Event, Failed},
    job::{JobId, QueueName},
    listener::{self, Listener},
    producer::Producer,
};

/// How an answer is followed.
#[derive(Debug, Default)]
pub(super) struct Follow<'a> {
    /// How long a worker may take to begin. It waits for ever without a limit.
    pub(super) begin: Option<Duration>,
    /// How long the next event may take. It waits for ever without a limit.
    pub(super) idle: Option<Duration>,
    /// How long the whole answer may take. It waits for ever without a limit.
    pub(super) within: Option<Duration>,
    /// Says from time to time that no worker serves the job's queue, until one begins.
    pub(super) unserved: Option<(Vigil, &'a Producer, &'a QueueName)>,
    /// Whether the job goes on without this process.
    pub(super) durable: bool,
}

/// Shows a job's answer on standard output as it comes. What people should know beside it, such as
/// an attempt that starts over, stands on standard error.
pub(super) async fn show(
    mut follow: Follow<'_>,
    listener: &Listener,
    job: JobId,
    cx: &mut Context,
) -> Result<Done, Error> {
    let listen = listener.listen(job).idle_timeout(follow.idle).timeout(follow.within);
    let mut events = listen.events();
    let mut page = Page::default();
    let mut limit =
        follow.begin.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
    loop {
        let resume = if follow.durable { resume(job) } else { String::new() };
        let step = step(&mut events, limit, follow.unserved.as_ref());
        let event = match cx.unless_interrupted(step, resume).await {
            Ok(Step::Event(Some(event))) => event.map_err(|error| broken_off(job, error))?,
            Ok(Step::Event(None)) => {
                return Err(Error::new(Exit::Unexpected, "the events ended early", ""));
            }
            Ok(Step::NobodyBegan(limit)) => return Err(nobody_began(job, limit)),
            Ok(Step::Look) => {
                if let Some((vigil, producer, queue)) = &mut follow.unserved {
                    vigil.look(producer, [*queue], |warning| cx.terminal.warn(warning)).await;
                }
                continue;
            }
            Err(interrupted) => {
                page.end(&mut cx.terminal)?;
                return Err(interrupted);
            }
        };
        limit = None;
        follow.unserved = None;
        match page.event(event, &mut cx.terminal)? {
            Some(Ok(done)) => return Ok(done),
            Some(Err(failed)) => return Err(job_failed(job, &failed)),
            None => {}
        }
    }
}

/// What comes first.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, and not for long")]
enum Step {
    Event(Option<Result<Event, listener::Error>>),
    /// No worker has begun within this time.
    NobodyBegan(Duration),
    /// It is time to look whether the queue is served.
    Look,
}

async fn step(
    events: &mut (impl Stream<Item = Result<Event, listener::Error>> + Unpin),
    limit: Option<(Instant, Duration)>,
    unserved: Option<&(Vigil, &Producer, &QueueName)>,
) -> Step {
    let nobody_began = async {
        match limit {
            Some((at, limit)) => {
                sleep_until(at).await;
                limit
            }
            None => pending().await,
        }
    };
    let look = async {
        match unserved {
            Some((vigil, ..)) => vigil.due().await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        event = events.next() => Step::Event(event),
        limit = nobody_began => Step::NobodyBegan(limit),
        () = look => Step::Look,
    }
}

/// The error of one who follows a job and gives up before its end.
fn broken_off(job: JobId, error: listener::Error) -> Error {
    match error {
        listener::Error::Timeout(limit) => {
            let cause = format!("job {job} is not over after {} s", limit.as_secs_f64());
            Error::new(Exit::Job, cause, resume(job))
        }
        // It was there a moment ago.
        listener::Error::NotFound(job) => listener::Error::Forgotten(job).into(),
        listener::Error::Idle(limit) => {
            let cause = format!("no event of job {job} for {} s", limit.as_secs_f64());
            Error::new(Exit::Broker, cause, "`millstream workers` shows whether any is alive")
        }
        error => error.into(),
    }
}

fn nobody_began(job: JobId, limit: Duration) -> Error {
    let cause = format!("no worker took job {job} within {} s", limit.as_secs_f64());
    Error::new(Exit::Broker, cause, "start one with `millstream-worker`, then ask again")
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
        _ => format!("job {job} failed after {attempts} {times}: {error}{}", named(error)),
    };
    Error::new(Exit::of(error), cause, remedy(error))
}

/// The endpoint's own names for what is wrong with the request.
fn named(failure: &Failure) -> String {
    let names = [("code", &failure.reason), ("type", &failure.kind), ("param", &failure.param)];
    let names = names.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
    let names: Vec<String> = names.map(|(name, value)| format!("{name} {value}")).collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

fn remedy(failure: &Failure) -> &'static str {
    match failure.code {
        Code::UpstreamAuth => "correct OPENAI_API_KEY (upstream.api_key) of the worker",
        Code::UpstreamConnection | Code::UpstreamRedirect => {
            "correct OPENAI_BASE_URL (upstream.base_url) of the worker"
        }
        Code::InsufficientQuota => {
            "give the endpoint's account credit, then `millstream dlq requeue` tries again"
        }
        Code::AnswerTooLarge => "ask for less, or raise upstream.max_answer_bytes of the worker",
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

    /// Agents compact their prompt by the code, which a person did not read.
    #[test]
    fn a_refused_request_is_named_as_its_endpoint_names_it() {
        let mut failure = Failure::new(Code::InvalidRequest, "too long");
        assert_eq!(named(&failure), "");
        failure.reason = Some("context_length_exceeded".to_owned());
        failure.param = Some("messages".to_owned());
        assert_eq!(named(&failure), " (code context_length_exceeded, param messages)");
    }

    /// Guards against an answer that steers the terminal on which it is shown.
    #[test]
    fn an_answer_does_not_reach_the_terminal_raw() {
        let (mut terminal, out, err) = paper();
        let mut page = Page::default();
        let evil = "a\u{1b}[2J\n\tb\u{9b}c\r";
        let error = Failure::new(Code::UpstreamError, evil);
        for body in [delta(evil), Body::Retrying(Retrying { error, attempt: 1, delay_ms: 1 })] {
            let event = Event { id: EventId::START, body };
            page.event(event, &mut terminal).unwrap();
        }
        assert_eq!(out.text(), "a\\u{1b}[2J\n\tb\\u{9b}c\\r\n");
        assert!(err.text().contains(r"a\u{1b}[2J\n\tb\u{9b}c\r"), "{}", err.text());
        assert_eq!(err.text().lines().count(), 1);
    }
}
