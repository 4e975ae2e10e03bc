//! How a job ended, for one who waits for it.

use std::io;

use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};

use super::{
    Error, Exit, Terminal,
    answer::{job_failed, resume},
};
use crate::{
    broker::Record,
    error::Code,
    event::{Body, Done, Event, Failed},
    job::{JobId, Labels, Timestamp},
    listener::{self, Listen},
    retry::Backoff,
};

/// The state of a job that the broker has lost.
pub(super) const FORGOTTEN: &str = "forgotten";

/// A job's end, as one JSON object on one line.
#[derive(Debug, serde::Serialize)]
#[expect(clippy::struct_field_names, reason = "they are the names of the object")]
pub(super) struct Ended {
    pub(super) id: JobId,
    /// Its place in the input, from 1.
    pub(super) line: u64,
    /// How it ended, or where it stands; `forgotten` where the broker has lost it, `unknown` where nothing could
    /// be learnt.
    pub(super) state: &'static str,
    pub(super) custom_id: Option<String>,
    pub(super) labels: Labels,
    /// The model that answered, as it names itself; else the one that was asked.
    pub(super) model: Option<String>,
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Option<Value>,
    pub(super) attempts: u32,
    pub(super) enqueued_at: Option<Timestamp>,
    /// When the last attempt began.
    pub(super) began_at: Option<Timestamp>,
    pub(super) ended_at: Option<Timestamp>,
    /// Time from begin to the first delta, and to the end of the answer.
    pub(super) ttft_ms: Option<u64>,
    pub(super) run_ms: Option<u64>,
    /// The failure: code, message, and what else is known.
    pub(super) error: Option<Value>,
    /// Whether the broker has acknowledged it: without a record it is forgotten, and not unknown.
    #[serde(skip)]
    pub(super) was_there: bool,
    /// How the one who waits fares by it.
    #[serde(skip)]
    pub(super) fault: Option<Error>,
}

impl Ended {
    /// A job of which nothing is known yet.
    pub(super) fn unknown(id: JobId, line: u64) -> Self {
        Self {
            id,
            line,
            state: "unknown",
            custom_id: None,
            labels: Labels::default(),
            model: None,
            text: String::new(),
            finish_reason: None,
            usage: None,
            attempts: 0,
            enqueued_at: None,
            began_at: None,
            ended_at: None,
            ttft_ms: None,
            run_ms: None,
            error: None,
            was_there: false,
            fault: None,
        }
    }

    /// Waits for the end of a job.
    pub(super) async fn wait(mut self, listen: Listen) -> Self {
        match self.follow(listen).await {
            Ok(Some(outcome)) => self.with(outcome),
            Ok(None) | Err(listener::Error::Expired(_)) => self.expired(),
            Err(listener::Error::NotFound(id)) if self.was_there => {
                self.broken(listener::Error::Forgotten(id))
            }
            Err(error) => self.broken(error),
        }
    }

    /// Reads the events; how the last run ended.
    async fn follow(
        &mut self,
        listen: Listen,
    ) -> Result<Option<Result<Done, Failed>>, listener::Error> {
        let mut backoff = Backoff::connecting();
        let following = loop {
            match listen.clone().open().await {
                Err(listener::Error::Broker(error)) if error.is_transient() => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                opened => break opened?,
            }
        };
        if let Some(record) = following.record() {
            self.stands(record);
        }
        self.read(following.events()).await
    }

    async fn read(
        &mut self,
        mut events: impl Stream<Item = Result<Event, listener::Error>> + Unpin,
    ) -> Result<Option<Result<Done, Failed>>, listener::Error> {
        let mut outcome = None;
        while let Some(event) = events.next().await {
            let Event { id, body } = event?;
            match body {
                Body::Started(started) => {
                    self.text.clear();
                    self.attempts = started.attempt;
                    // A fence is the server's time in ms.
                    self.began_at = Some(Timestamp(id.fence));
                }
                Body::Delta(chunk) => self.text.push_str(&chunk.text()),
                Body::Done(done) => outcome = Some(Ok(done)),
                Body::Failed(failed) => outcome = Some(Err(failed)),
                Body::Cancelled(cancelled) => {
                    self.usage.clone_from(&cancelled.usage);
                    outcome = Some(Err(cancelled.into()));
                }
                Body::Requeued(_) => (self.began_at, self.ended_at) = (None, None),
                Body::Retrying(_) | Body::Unknown { .. } => {}
            }
        }
        Ok(outcome)
    }

    /// Takes over what a record tells.
    pub(super) fn stands(&mut self, record: &Record) {
        self.state = record.state.as_str();
        self.custom_id = record.custom_id.clone().or(self.custom_id.take());
        if !record.labels.is_empty() {
            self.labels = record.labels.clone();
        }
        self.model = Some(record.model.clone()).filter(|model| !model.is_empty());
        self.attempts = record.attempt;
        self.enqueued_at = record.enqueued_at;
        self.began_at = record.began_at;
        self.ended_at = record.ended_at;
    }

    fn with(self, outcome: Result<Done, Failed>) -> Self {
        let own = (self.custom_id.clone(), self.labels.clone());
        let or_own = |custom_id: Option<String>, labels: Labels| {
            (custom_id.or(own.0), if labels.is_empty() { own.1 } else { labels })
        };
        match outcome {
            Ok(done) => {
                let (custom_id, labels) = or_own(done.custom_id, done.labels);
                let run = std::time::Duration::from_millis(done.run_ms);
                Self {
                    state: "done",
                    custom_id,
                    labels,
                    model: done.model.or(self.model),
                    finish_reason: done.finish_reason,
                    usage: done.usage,
                    attempts: done.attempts,
                    enqueued_at: Some(done.enqueued_at).filter(|at| at.0 > 0).or(self.enqueued_at),
                    ended_at: self.ended_at.or(self.began_at.map(|at| at.after(run))),
                    ttft_ms: done.ttft_ms,
                    run_ms: Some(done.run_ms),
                    ..self
                }
            }
            Err(failed) => {
                let (fault, error) = (job_failed(self.id, &failed), json!(failed.error));
                let (custom_id, labels) = or_own(failed.custom_id, failed.labels);
                Self {
                    state: if failed.error.code == Code::Cancelled {
                        "cancelled"
                    } else {
                        "failed"
                    },
                    custom_id,
                    labels,
                    attempts: failed.attempts,
                    // This one has waited for it: it is over just now.
                    ended_at: self.ended_at.or(Some(Timestamp::now())),
                    error: Some(error),
                    fault: Some(fault),
                    ..self
                }
            }
        }
    }

    /// The record says how the job ended, and the events are not kept any more.
    fn expired(self) -> Self {
        let Self { id, state, .. } = self;
        let cause = format!("job {id} is {state}, and its answer is not kept any more");
        let remedy =
            "answers are kept for redis.result_ttl; another idempotency key (or prefix) asks again";
        let told = json!({"code": "events_expired", "message": cause});
        let fault = Error::new(Exit::Job, cause, remedy);
        Self { error: Some(told), fault: Some(fault), ..self }
    }

    /// The job was not over within this time; what is parked is `due` then.
    pub(super) fn late(self, limit: std::time::Duration, due: Option<Timestamp>) -> Self {
        let Self { id, state, .. } = self;
        let stands = match (state, due) {
            ("unknown", _) => String::new(),
            (state, Some(due)) => format!(": it is {state} until {due}"),
            (state, None) => format!(": it is {state}"),
        };
        let cause = format!("job {id} is not over after {} s{stands}", limit.as_secs_f64());
        let told = json!({"code": "listen_timeout", "message": cause});
        let fault = Error::new(Exit::Job, cause, resume(id));
        Self { error: Some(told), fault: Some(fault), ..self }
    }

    /// The end could not be learnt.
    fn broken(self, error: listener::Error) -> Self {
        let told = json!({"code": error.code(), "message": error.to_string()});
        let state =
            if matches!(error, listener::Error::Forgotten(_)) { FORGOTTEN } else { "unknown" };
        Self { state, error: Some(told), fault: Some(error.into()), ..self }
    }

    /// Tokens of the answer, as its model counted.
    pub(super) fn tokens(&self) -> u64 {
        let count = |name: &str| self.usage.as_ref()?.get(name)?.as_u64();
        let sum = || Some(count("prompt_tokens")? + count("completion_tokens")?);
        count("total_tokens").or_else(sum).unwrap_or(0)
    }

    /// The end as text: a line of what is known, the answer, an empty line.
    pub(super) fn write(&self, terminal: &mut Terminal) -> io::Result<()> {
        let named = self.custom_id.as_ref().map(|id| format!(", {id}")).unwrap_or_default();
        terminal.line(format_args!("# line {}{named}: {} {}", self.line, self.id, self.state))?;
        if let Some(fault) = &self.fault {
            terminal.say(format_args!("line {}: {fault}", self.line));
        }
        // A line of the answer is not to be taken for one that names the next job.
        let text = self.text.trim_end_matches('\n').replace("\n# line ", "\n # line ");
        let space = if text.starts_with("# line ") { " " } else { "" };
        terminal.lines(&format!("{space}{text}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Failure,
        event::{Chunk, EventId, Started},
        job::Tenant,
    };
    use futures_util::stream;

    fn job() -> Ended {
        Ended::unknown(JobId::from_key(&Tenant::default(), "k"), 3)
    }

    #[test]
    fn an_end_is_an_object_that_echoes_what_it_was_given() {
        let failed = Failed {
            error: Failure::new(Code::UpstreamAuth, "no such key"),
            attempts: 1,
            custom_id: Some("c".to_owned()),
            labels: Labels([("user".to_owned(), "u".to_owned())].into()),
        };
        let ended = Ended { text: "par".to_owned(), ..job() }.with(Err(failed));
        assert_eq!(ended.fault.as_ref().map(Error::exit), Some(Exit::Upstream));
        let object = json!(ended);
        let names: Vec<&String> = object.as_object().unwrap().keys().collect();
        let told = "id line state custom_id labels model text finish_reason usage attempts \
                    enqueued_at began_at ended_at ttft_ms run_ms error";
        assert_eq!(names, told.split_whitespace().collect::<Vec<_>>());
        assert_eq!(object["error"]["code"], "upstream_auth");
        assert_eq!((&object["custom_id"], &object["labels"]["user"]), (&"c".into(), &"u".into()));
        assert_eq!(object["text"], "par");
    }

    #[tokio::test]
    async fn the_last_attempt_counts_with_its_times() {
        let event = |fence, seq, body| Ok(Event { id: EventId { fence, seq }, body });
        let delta = |text: &str| {
            let mut chunk = Chunk::default();
            let piece = json!({"index": 0, "delta": {"content": text}});
            chunk.push(serde_json::from_value(piece).unwrap());
            Body::Delta(chunk)
        };
        let started = |attempt| Body::Started(Started { attempt, worker: "w".to_owned() });
        let done = Done {
            run_ms: 40,
            ttft_ms: Some(7),
            usage: Some(json!({"prompt_tokens": 3, "completion_tokens": 4})),
            ..Done::default()
        };
        let events = stream::iter([
            event(100, 0, started(1)),
            event(100, 1, delta("wrong")),
            event(200, 0, started(2)),
            event(200, 1, delta("right")),
            event(200, 2, Body::Done(done)),
        ]);
        let mut ended = job();
        let outcome = ended.read(events).await.unwrap().unwrap();
        let ended = ended.with(outcome);
        assert_eq!((ended.text.as_str(), ended.tokens()), ("right", 7));
        assert_eq!(ended.began_at, Some(Timestamp(200)));
        assert_eq!((ended.ended_at, ended.ttft_ms), (Some(Timestamp(240)), Some(7)));
    }
}
