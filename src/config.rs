//! The configuration: every component's options, read from flags, environment, file and defaults,
//! in this order of precedence.
//!
//! A key is `section.key`. In the file it stands in a table, in the environment as
//! `MILLSTREAM_SECTION__KEY`, behind the flag `--set` as `section.key=value`. Three variables have
//! plain names as well, which the long ones overrule: `REDIS_URL`, `OPENAI_BASE_URL` and
//! `OPENAI_API_KEY`.
//!
//! Nothing is passed over: an unknown key or variable, a value of the wrong type, one out of range
//! and two that contradict each other are refused with the key, the value, where it was set and
//! what is allowed. Secrets do not appear in these messages.

mod layers;
mod mask;
mod nearest;
mod ranges;

use std::{fmt, path::PathBuf};

pub use layers::{Flag, Layers, environment, variables};
pub use mask::printed;

pub use crate::mask::url as masked_url;
use serde::{Deserialize, Serialize};

use crate::{broker, gateway, listener, producer, simulator, upstream, worker};

/// Everything that can be configured, by section.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The shared broker. Without an address the embedded one serves.
    pub redis: broker::redis::Options,
    /// The embedded broker.
    pub embedded: broker::memory::Options,
    /// How jobs are added.
    pub producer: producer::Options,
    /// How jobs are followed.
    pub listener: listener::Options,
    /// How jobs are served to the web.
    pub gateway: gateway::Options,
    /// How jobs are run.
    pub worker: worker::Options,
    /// The model's endpoint. Without address and key the simulator answers.
    pub upstream: upstream::openai::Options,
    /// The simulated model.
    pub simulator: simulator::Options,
    /// What is logged, and how.
    pub log: Log,
}

/// What is logged, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// Directives of `tracing-subscriber`, such as `info` or `millstream=debug,warn`. Empty means
    /// `info` for what runs until it is stopped and `warn` for everything else. Other crates log at `debug` at
    /// most, whatever stands here: at `trace` they print content.
    pub filter: String,
    /// A file of its own for the audit trail, as JSON lines. Empty: it goes to the log.
    pub audit_file: PathBuf,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// A configuration, and the file it was read from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file, where there was one.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Whether the broker is the embedded one.
    pub fn is_embedded(&self) -> bool {
        self.redis.url.is_empty()
    }

    /// Whether a model's endpoint is configured.
    pub fn has_upstream(&self) -> bool {
        !self.upstream.base_url.is_empty() || !self.upstream.api_key.is_empty()
    }
}

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// By a flag.
    Flag(String),
    /// By an environment variable.
    Variable(String),
    /// In the file.
    File(PathBuf),
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "set by {name}"),
            Self::Variable(name) => write!(f, "set by the variable {name}"),
            Self::File(path) => write!(f, "set in {}", path.display()),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not TOML, line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser met.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` ({origin}); {meant}allowed: {allowed}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// The one that was probably meant, in words, or nothing.
        meant: String,
        /// The keys that exist there.
        allowed: String,
    },
    /// A `MILLSTREAM_` variable that names no key.
    #[error("unknown variable {name}; {hint}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// What is allowed, or what was probably meant.
        hint: String,
    },
    /// A value of the wrong type, out of range, or in contradiction to another.
    #[error("{key} is `{met}` ({origin}); allowed: {allowed}")]
    Value {
        /// The key.
        key: String,
        /// The value, masked where it is a secret.
        met: String,
        /// Where it was set.
        origin: Origin,
        /// What is allowed.
        allowed: String,
    },
    /// The layers do not fit together.
    #[error("the configuration cannot be put together")]
    Layers(#[source] config::ConfigError),
}

impl Error {
    /// Whether a flag is at fault, rather than what surrounds the command.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::UnknownKey { origin: Origin::Flag(_), .. }
                | Self::Value { origin: Origin::Flag(_), .. }
        )
    }
}

#[cfg(test)]
mod tests;
