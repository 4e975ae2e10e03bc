//! The log on standard error.

use std::{
    any::Any,
    fmt::Display,
    io::{self, IsTerminal, Write as _},
};

use serde_json::json;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// How much is logged where the configuration does not say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {
    /// For what runs until it is stopped.
    Info,
    /// For what answers and ends.
    Warn,
    /// For a worker inside a command that tells people itself what becomes of a job.
    Quiet,
}

/// Starts logging. A second start changes nothing.
pub(super) fn start(log: &Log, level: Level) {
    let default = match level {
        // async-openai logs what it cannot decode, which may be the answer itself.
        Level::Info => "info,async_openai=off",
        Level::Warn => "warn,async_openai=off",
        Level::Quiet => "warn,millstream::worker=error,async_openai=off",
    };
    let filter = if log.filter.is_empty() { default } else { &log.filter };
    let builder = fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// A line of the log that comes from no part of the library, as the log writes JSON.
pub(super) fn json_line(level: &str, message: impl Display) -> String {
    let time = jiff::Timestamp::now();
    let fields = json!({"message": message.to_string()});
    let line = json!({"timestamp": format!("{time:.6}"), "level": level, "fields": fields, "target": "millstream"});
    format!("{line}\n")
}

/// Tells panics in the format of the log: whatever reads it can read them too.
pub(super) fn tell_panics(format: LogFormat) {
    if format == LogFormat::Text {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let text = said(panic.payload());
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let line = json_line("ERROR", format_args!("panicked at {place}: {text}"));
        // Nobody listens where it cannot be written.
        let _ = io::stderr().write_all(line.as_bytes());
    }));
}

/// The words of a panic.
fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_its_own_looks_as_those_of_the_log() {
        let line = json_line("WARN", "a \"b\"\nc");
        let read: serde_json::Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!((line.lines().count(), &read["level"]), (1, &json!("WARN")));
        assert_eq!(read["fields"]["message"], "a \"b\"\nc");
        assert!(read["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    /// What `panics_are_told_as_the_log_is` runs in a process of its own.
    #[test]
    #[ignore = "it panics"]
    fn panics_in_json() {
        tell_panics(LogFormat::Json);
        panic!("a \"fault\"");
    }

    /// Guards against a panic that breaks a log of JSON lines.
    #[test]
    fn panics_are_told_as_the_log_is() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "cli::logging::tests::panics_in_json", "--ignored", "--nocapture"]);
        let said = String::from_utf8(child.output().unwrap().stderr).unwrap();
        let lines: Vec<serde_json::Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let message = lines[0]["fields"]["message"].as_str().unwrap();
        assert!(message.contains("a \"fault\"") && message.contains("logging.rs"), "{said}");
        assert_eq!((lines.len(), &lines[0]["level"]), (1, &json!("ERROR")), "{said}");
    }

    #[test]
    fn a_panic_says_what_it_was_given() {
        assert_eq!([said(&"a"), said(&"b".to_owned()), said(&7)], ["a", "b", "unknown"]);
    }
}
