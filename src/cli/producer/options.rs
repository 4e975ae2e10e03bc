//! What flags say of one job, and of every job.

use std::{path::PathBuf, time::Duration};

use serde_json::{json, value::RawValue};

use crate::{
    cli::{
        Error, Exit,
        args::{self, Param},
    },
    job::{ChatRequest, Invalid, Job, Labels, Lane, QueueName, Tenant, Timestamp},
};

/// The request: of one job, or what is set in those of all lines.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "The request (with --file, of every line)")]
pub(super) struct Request {
    /// The model
    #[arg(long, value_name = "NAME", required_unless_present = "file")]
    model: Option<String>,

    /// What the model is told before everything else; with --file, in place of a system message that
    /// a line begins with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// A field of the request, such as temperature=0.2; JSON where it can be read as such,
    /// otherwise text; can be repeated
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = args::param)]
    params: Vec<Param>,
}

/// One job from flags.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "One job")]
pub(super) struct One {
    /// What the user says
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    #[arg(required_unless_present_any = ["messages_file", "file"])]
    user: Option<String>,

    /// A file with a JSON array of messages, which stand before what the user says
    #[arg(long, value_name = "PATH", conflicts_with = "file")]
    messages_file: Option<PathBuf>,

    /// Your own name for the job, echoed in its result
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    custom_id: Option<String>,

    /// The same tenant and key give the same job, however often it is enqueued
    #[arg(long, value_name = "KEY", conflicts_with = "file")]
    idempotency_key: Option<String>,
}

/// Where and how jobs run.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Every job")]
pub(super) struct Options {
    /// The queue [default: default]
    #[arg(long, value_name = "NAME")]
    pub(super) queue: Option<QueueName>,

    /// The priority: high, normal or low [default: normal]
    #[arg(long, value_name = "LANE")]
    pub(super) lane: Option<Lane>,

    /// Who owns the job [default: default]
    #[arg(long, value_name = "NAME")]
    pub(super) tenant: Option<Tenant>,

    /// A label, echoed in the result; can be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = args::pair)]
    pub(super) labels: Vec<(String, String)>,

    /// Begin no sooner than after this time
    #[arg(long, value_name = "DURATION", value_parser = args::duration, conflicts_with = "at")]
    pub(super) delay: Option<Duration>,

    /// Begin no sooner than at this time, RFC 3339 such as 2026-11-21T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = future)]
    pub(super) at: Option<Timestamp>,

    /// Fail the job as expired unless it has begun by then, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = future, conflicts_with = "expires_in")]
    pub(super) expires_at: Option<Timestamp>,

    /// Fail the job as expired unless it has begun within this time
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    pub(super) expires_in: Option<Duration>,

    /// Most attempts that may fail, 1 to 100 [default: the worker's]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) max_attempts: Option<u32>,

    /// Publish the answer whole instead of while it is generated
    #[arg(long)]
    pub(super) no_stream: bool,

    /// Longest time one attempt may take
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    pub(super) deadline: Option<Duration>,
}

pub(super) fn prefix(text: &str) -> Result<String, String> {
    if (1..=128).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("allowed: 1 to 128 bytes".to_owned())
    }
}

fn future(text: &str) -> Result<Timestamp, String> {
    let time: Timestamp = text.parse().map_err(|e: crate::job::Invalid| e.to_string())?;
    let now = Timestamp::now();
    if time < now {
        return Err(format!("{time} has passed (it is {now}); leave it out to run at once"));
    }
    Ok(time)
}

impl Options {
    /// Sets what the flags say.
    pub(super) fn apply(&self, job: &mut Job) {
        let Self { queue, lane, tenant, labels, delay, at, .. } = self;
        let Self { expires_at, expires_in, max_attempts, no_stream, deadline, .. } = self;
        set(&mut job.queue, queue.as_ref());
        set(&mut job.lane, lane.as_ref());
        set(&mut job.tenant, tenant.as_ref());
        job.labels.0.extend(labels.iter().cloned());
        let due = delay.map(|delay| Timestamp::now().after(delay)).or(*at);
        job.not_before = due.or(job.not_before);
        let expires = expires_in.map(|time| Timestamp::now().after(time)).or(*expires_at);
        job.expires_at = expires.or(job.expires_at);
        job.max_attempts = max_attempts.or(job.max_attempts);
        job.stream &= !no_stream;
        let deadline = deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        job.deadline_ms = deadline.or(job.deadline_ms);
    }
}

fn set<T: Clone>(field: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}

impl Request {
    /// Sets, in the request of a line, what the flags say.
    pub(super) fn apply(&self, request: &mut ChatRequest) -> Result<(), Invalid> {
        if let Some(model) = &self.model {
            request.set("model", model);
        }
        if let Some(system) = &self.system {
            let first = json!({"role": "system", "content": system}).to_string();
            let first = RawValue::from_string(first)
                .map_err(|e| Invalid(format!("the system message cannot be written: {e}")))?;
            // What is no list of messages is refused as such when the job is checked.
            if let Some(mut messages) = request.get::<Vec<Box<RawValue>>>("messages") {
                match messages.first_mut() {
                    Some(message) if is_system(message) => *message = first,
                    _ => messages.insert(0, first),
                }
                request.set("messages", &messages);
            }
        }
        self.params.iter().try_for_each(|param| param.set(request))
    }
}

fn is_system(message: &RawValue) -> bool {
    let message: Option<serde_json::Value> = serde_json::from_str(message.get()).ok();
    let role = message.as_ref().and_then(|message| message.get("role")?.as_str());
    matches!(role, Some("system" | "developer"))
}

impl One {
    /// The job that the flags describe.
    pub(super) async fn job(&self, request: &Request, options: &Options) -> Result<Job, Error> {
        let mut messages = Vec::new();
        if let Some(path) = &self.messages_file {
            let cause = |e: &dyn std::fmt::Display| {
                let cause = format!("cannot read {}: {e}", path.display());
                Error::new(Exit::Usage, cause, "name a file with a JSON array of messages")
            };
            let bytes = tokio::fs::read(path).await.map_err(|e| cause(&e))?;
            messages = serde_json::from_slice(&bytes).map_err(|e| cause(&e))?;
        }
        let Request { model, system, params } = request;
        let model = model.as_deref().unwrap_or_default();
        let request =
            args::request(model, system.as_deref(), messages, self.user.as_deref(), params)?;
        let mut job = Job {
            custom_id: self.custom_id.clone(),
            idempotency_key: self.idempotency_key.clone(),
            labels: Labels::default(),
            ..Job::new(request)
        };
        options.apply(&mut job);
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(flags: &Request, request: &str) -> String {
        let mut request: ChatRequest = serde_json::from_str(request).unwrap();
        flags.apply(&mut request).unwrap();
        serde_json::to_string(&request).unwrap()
    }

    #[test]
    fn flags_complete_the_request_of_a_line_and_leave_the_rest_to_the_byte() {
        let flags = Request {
            model: Some("m".to_owned()),
            system: Some("s".to_owned()),
            params: vec![args::param("temperature=0.20").unwrap()],
        };
        assert_eq!(
            applied(&flags, r#"{"messages":[{"role": "user","content":"1e400"}],"x":1e400}"#),
            r#"{"messages":[{"role":"system","content":"s"},{"role": "user","content":"1e400"}],"x":1e400,"model":"m","temperature":0.20}"#
        );
        assert_eq!(
            applied(&flags, r#"{"model":"own","messages":[{"role":"developer","content":"own"}]}"#),
            r#"{"model":"m","messages":[{"role":"system","content":"s"}],"temperature":0.20}"#
        );
        let none = Request::default();
        let line = r#"{"model":"own","messages":[{"role":"user"}]}"#;
        assert_eq!(applied(&none, line), line);
    }
}
