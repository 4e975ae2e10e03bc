//! The log on standard error.

use std::io::{self, IsTerminal};

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
