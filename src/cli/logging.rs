//! The log on standard error.
//!
//! Whatever filter is asked for, a ceiling stands above it: libraries print frames, commands and bodies at `trace`,
//! and some of them content at any level. They are of no use to an operator, and hold prompts, answers and keys.

use std::{
    any::Any,
    fmt::{Debug, Display, Write as _},
    io::{self, IsTerminal, Write},
};

use serde_json::json;
use tracing::field::Field;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    field::MakeExt,
    filter::{FilterExt as _, LevelFilter, Targets},
    fmt,
    fmt::{MakeWriter, format},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::{
    Error, Exit,
    audit::{Appended, Line},
    clean::{self, OneLine},
};
use crate::{
    config::{Log, LogFormat},
    gateway::AUDIT,
};

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

/// The most that other crates log, whatever the filter says: `debug`, because at `trace` they print what passes
/// through them, and less for those that print content at lower levels as well.
const CEILING: [(&str, LevelFilter); 4] = [
    // This program's own events are made without content.
    ("millstream", LevelFilter::TRACE),
    // What it cannot decode, which may be the answer itself, as an error.
    ("async_openai", LevelFilter::OFF),
    // A client's words in close frames.
    ("tungstenite", LevelFilter::INFO),
    ("tokio_tungstenite", LevelFilter::INFO),
];

fn ceiling() -> Targets {
    Targets::new().with_default(LevelFilter::DEBUG).with_targets(CEILING)
}

/// Starts logging. A second start changes nothing.
///
/// # Errors
/// A file for the audit trail that cannot be written.
pub(super) fn start(log: &Log, level: Level) -> Result<(), Error> {
    let default = match level {
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Quiet => "warn,millstream::worker=error",
    };
    let filter = if log.filter.is_empty() { default } else { &log.filter };
    let lines = match log.format {
        LogFormat::Text => fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .fmt_fields(format::debug_fn(field).delimited(" "))
            .boxed(),
        LogFormat::Json => fmt::layer().with_writer(|| JsonLines(io::stderr())).json().boxed(),
    };
    let filter = EnvFilter::new(filter);
    let mut layers = Vec::new();
    if log.audit_file.as_os_str().is_empty() {
        layers.push(lines.with_filter(filter).boxed());
    } else {
        let path = &log.audit_file;
        let file = Appended::open(path).map_err(|error| {
            let cause = format!("cannot write log.audit_file, {}: {error}", path.display());
            Error::new(Exit::Configuration, cause, "name a file that can be written")
        })?;
        let trail = fmt::layer().json().with_writer(Trail(file));
        layers
            .push(trail.with_filter(Targets::new().with_target(AUDIT, LevelFilter::DEBUG)).boxed());
        let others = Targets::new().with_default(LevelFilter::TRACE);
        let others = others.with_target(AUDIT, LevelFilter::OFF);
        layers.push(lines.with_filter(filter.and(others)).boxed());
    }
    let _ = tracing_subscriber::registry().with(layers).with(ceiling()).try_init();
    Ok(())
}

/// A line of the log that comes from no part of the library, as the log writes JSON.
pub(super) fn json_line(level: &str, message: impl Display) -> String {
    let time = jiff::Timestamp::now();
    let fields = json!({"message": message.to_string()});
    let line = json!({"timestamp": format!("{time:.6}"), "level": level, "fields": fields, "target": "millstream"});
    format!("{}\n", clean::json(&line.to_string()))
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

/// Writes a field. Values may be what others wrote: they can neither forge a line nor reach the terminal raw.
fn field(writer: &mut format::Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    if field.name() == "message" {
        return write!(OneLine(writer), "{value:?}");
    }
    let (italic, end) = if writer.has_ansi_escapes() { ("\x1b[3m", "\x1b[0m") } else { ("", "") };
    write!(writer, "{italic}{}{end}=", field.name())?;
    write!(OneLine(writer), "{value:?}")
}

/// The file of the audit trail, which takes lines of JSON.
struct Trail(Appended);

impl<'a> MakeWriter<'a> for Trail {
    type Writer = JsonLines<Line<'a>>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonLines(self.0.make_writer())
    }
}

/// Takes whole lines of JSON.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(line) => self.0.write_all(clean::json(line).as_bytes())?,
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

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

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Guards against an error text of an upstream that forges lines of the log, or steers a terminal.
    #[test]
    fn foreign_text_stays_on_its_line_of_the_log() {
        let sink = Sink::default();
        let writer = {
            let sink = sink.clone();
            move || sink.clone()
        };
        let subscriber = fmt()
            .with_writer(writer)
            .with_ansi(false)
            .fmt_fields(format::debug_fn(field).delimited(" "))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let evil = "x\x1b[2J\nERROR forged";
            let error = io::Error::other(evil);
            tracing::warn!(%error, text = evil, "attempt of {evil} failed");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(
            text.contains(r"attempt of x\u{1b}[2J\nERROR forged failed error=x\u{1b}[2J"),
            "{text}"
        );
    }
}
