//! Arguments that several commands take, and how their values are read.

#![expect(clippy::doc_markdown, reason = "the comments of arguments are the text of --help")]

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum};
use humantime_serde::re::humantime::parse_duration;
use serde_json::{Value, json, value::RawValue};

use super::{Context, Error, Exit, logging};
use crate::{
    config::{self, Flag, Layers, Loaded},
    job::{ChatRequest, Invalid, QueueName},
};

/// The model of a question that names none.
pub(super) const MODEL: &str = "gpt-4o-mini";

/// The least time between two lines for people.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct Common {
    /// Configuration file; otherwise MILLSTREAM_CONFIG, or config.toml where there is one
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,

    /// Address of Redis, such as redis://user:password@host:6379/0; overrules REDIS_URL. Other users
    /// of the machine can see a password given here
    #[arg(long, global = true, value_name = "URL")]
    redis_url: Option<String>,

    /// Any key of the configuration, such as worker.block=5s; can be repeated
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE", value_parser = pair)]
    settings: Vec<(String, String)>,

    /// Log more on standard error; twice for everything. RUST_LOG or log.filter say it in detail
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Nothing on standard error but errors
    #[arg(short, long, global = true)]
    quiet: bool,
}

impl Common {
    /// The configuration; `flags` are what the command's own flags set. From here on lines for people
    /// are written as the log is.
    pub(super) fn load(&self, flags: Vec<Flag>, cx: &mut Context) -> Result<Loaded, Error> {
        let filter = match (self.quiet, self.verbose) {
            (true, _) => Some(("--quiet", "error")),
            (false, 0) => None,
            (false, 1) => Some(("--verbose", "info,millstream=debug")),
            (false, _) => Some(("--verbose", "debug,millstream=trace")),
        };
        let filter = filter.map(|(name, filter)| Flag::new(name, "log.filter", filter));
        let settings = self.settings.iter().map(|(key, value)| Flag::new("--set", key, value));
        let url = self.redis_url.iter().map(|url| Flag::new("--redis-url", "redis.url", url));
        let layers = Layers {
            file: self.config.clone(),
            directory: PathBuf::new(),
            environment: config::environment(),
            flags: filter.into_iter().chain(settings).chain(url).chain(flags).collect(),
        };
        let format = layers.log_format();
        cx.terminal.speak(format, self.quiet);
        logging::tell_panics(format);
        Ok(layers.load()?)
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// One JSON object on a line
    Json,
}

/// The queues a command looks at.
#[derive(Debug, Clone, Args)]
pub(super) struct Queues {
    /// The queue; can be repeated [default: the worker's, worker.queues]
    #[arg(long = "queue", value_name = "NAME")]
    names: Vec<QueueName>,
}

impl Queues {
    /// Those of this name; none means those of the configuration.
    pub(super) fn of(names: Vec<QueueName>) -> Self {
        Self { names }
    }

    /// The queues that are named, or those of the configuration.
    pub(super) fn or(self, configured: &[QueueName]) -> Vec<QueueName> {
        if self.names.is_empty() { configured.to_vec() } else { self.names }
    }
}

/// A field of the request: its name, and its value as JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Param {
    name: String,
    json: String,
}

impl Param {
    /// Sets the field.
    pub(super) fn set(&self, request: &mut ChatRequest) -> Result<(), Invalid> {
        request.set_raw(&self.name, &self.json)
    }
}

/// `NAME=VALUE`, the value JSON where it is, to the byte, and otherwise text.
pub(super) fn param(text: &str) -> Result<Param, String> {
    let (name, value) = pair(text)?;
    if let "model" | "messages" = name.as_str() {
        return Err(format!("`{name}` has a flag of its own"));
    }
    let is_json = serde_json::from_str::<&RawValue>(&value).is_ok();
    let json = if is_json { value } else { Value::from(value).to_string() };
    Ok(Param { name, json })
}

/// `NAME=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

/// A duration such as `5m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .map_err(|_| format!("`{text}` is no duration; allowed: such as 100ms, 30s, 5m, 2h, 7d"))
}

/// A duration between two lines for people: more often than that nobody reads them.
pub(super) fn pause(text: &str) -> Result<Duration, String> {
    let pause = duration(text)?;
    if pause < LEAST_PAUSE {
        return Err(format!("`{text}` is too short; allowed: 100ms or longer"));
    }
    Ok(pause)
}

/// A duration as the configuration takes it.
pub(super) fn span(text: &str) -> Result<String, String> {
    duration(text).map(|_| text.to_owned())
}

/// A chat request from flags.
pub(super) fn request(
    model: &str,
    system: Option<&str>,
    messages: Vec<Value>,
    user: Option<&str>,
    params: &[Param],
) -> Result<ChatRequest, Error> {
    let mut all = Vec::with_capacity(messages.len() + 2);
    all.extend(system.map(|text| json!({"role": "system", "content": text})));
    all.extend(messages);
    all.extend(user.map(|text| json!({"role": "user", "content": text})));
    let mut request = ChatRequest::empty();
    request.set("model", model);
    request.set("messages", &all);
    for param in params {
        param.set(&mut request).map_err(|e| Error::new(Exit::Usage, e, ""))?;
    }
    request.check().map_err(|e| Error::new(Exit::Usage, e, "see --help"))?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_json_where_it_can_be() {
        let json = |text| param(text).unwrap().json;
        assert_eq!(json("temperature=0.20"), "0.20");
        assert_eq!(json("stop=[\"a=b\"]"), "[\"a=b\"]");
        assert_eq!(json("tool_choice=auto"), "\"auto\"");
        assert_eq!(json("user=\"7\""), "\"7\"");
        assert_eq!(json("x="), "\"\"");
        assert_eq!(json("seed=123456789012345678901234567890"), "123456789012345678901234567890");
        for bad in ["temperature", "=1", "model=x", "messages=[]"] {
            assert!(param(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_has_its_messages_in_order() {
        let params = [param("temperature=0.20").unwrap(), param("n=2").unwrap()];
        let messages = vec![json!({"role": "assistant", "content": "b"})];
        let request = request("m", Some("a"), messages, Some("c"), &params).unwrap();
        assert_eq!(
            serde_json::to_string(&request).unwrap(),
            r#"{"model":"m","messages":[{"role":"system","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],"temperature":0.20,"n":2}"#
        );
    }

    #[test]
    fn a_request_without_messages_is_refused() {
        let error = request("m", None, vec![], None, &[]).unwrap_err();
        assert!(error.to_string().contains("messages"), "{error}");
        assert_eq!(error.exit(), Exit::Usage);
    }

    #[test]
    fn a_duration_is_read_with_its_unit() {
        assert_eq!(duration("5m").unwrap().as_secs(), 300);
        assert!(duration("5").is_err() && duration("soon").is_err());
    }
}
