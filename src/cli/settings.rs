//! `millstream config`: what is configured.

use clap::Subcommand;

use super::{Context, Error, Exit, args::Common};
use crate::config;

/// What to tell of the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Settings {
    /// Check it, and say which file was read
    Check,
    /// Print every key with its value; secrets are masked
    Print,
}

/// Reads the configuration as every command does, and tells of it.
pub(super) fn run(what: &Settings, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let loaded = common.load(Vec::new(), cx)?;
    let config = &loaded.config;
    match what {
        Settings::Print => write!(cx.terminal.out(), "{}", config::printed(config))?,
        Settings::Check => {
            let file = loaded.file.map_or("no file, environment and defaults".to_owned(), |path| {
                path.display().to_string()
            });
            let broker = if config.is_embedded() {
                "embedded".to_owned()
            } else {
                config::masked_url(&config.redis.url)
            };
            let model = match (&config.upstream.base_url, config.has_upstream()) {
                (_, false) => "none; the simulator answers `ask` and `dev`".to_owned(),
                (url, true) if url.is_empty() => "OpenAI".to_owned(),
                (url, true) => config::masked_url(url),
            };
            cx.terminal.line(format_args!("ok: {file}"))?;
            cx.terminal.line(format_args!("broker: {broker}"))?;
            cx.terminal.line(format_args!("model: {model}"))?;
        }
    }
    Ok(Exit::Ok)
}
