//! A Chat Completions server that needs no model: the upstream of tests, and of `millstream dev`
//! and `millstream ask` when no other is configured.
//!
//! What it says is a pure function of the request, so a test knows the whole answer beforehand; how
//! fast it says it, and what goes wrong on the way, each request chooses by itself.
//!
//! # Routes
//!
//! | route | answer |
//! |---|---|
//! | `POST /v1/chat/completions` | a `chat.completion`, or chunks with `"stream": true` |
//! | `GET /v1/models` | one model; every name is accepted in a request |
//! | `GET /healthz` | `ok` |
//! | `GET /stats` | [`Stats`] as JSON |
//!
//! # The text rule
//!
//! `tests/oracle.py` implements the same rule independently, as a module and as a command. Integers
//! are unsigned, of 64 bits, and wrap.
//!
//! 1. *canonical* = the model's name up to its first `?`, a line feed, and for each message
//!    `role:text` and a line feed. The text is the content where that is a string, the concatenated
//!    `text` fields of its parts where it is an array, and empty otherwise.
//! 2. *seed* = the first 8 bytes, big-endian, of the SHA-256 of *canonical* in UTF-8. With
//!    [`Options::vary`]: + *attempt* × `0x9E3779B97F4A7C15`, where *attempt* counts, from 1, how
//!    often this simulator was asked the same *canonical*. For choice *c*: + *c* ×
//!    `0xD1B54A32D192ED03`.
//! 3. Token *i*, from 0, is `WORDS[splitmix64(seed + i) mod 64]`; tokens are joined by one space.
//!    `WORDS` stands in `simulator/text.rs`.
//! 4. The number of tokens is the directive `tokens`, else `max_completion_tokens`, else
//!    `max_tokens`, else [`Options::tokens`]. Where one of the `max_` fields decides,
//!    `finish_reason` is `length`, else `stop`.
//!
//! A request with a function in `tools` (unless `tool_choice` is `none`, or a tool message follows
//! the last message of the user) is answered by one call of the first function, or of the one that
//! `tool_choice` names. Its arguments are `{"input": "<text>"}`, its ID is `call_` and the first 8
//! hexadecimal digits of the seed, and `finish_reason` is `tool_calls`.
//!
//! `usage` counts the words of *canonical*, separated by white space, and the tokens of all
//! choices.
//!
//! # Directives
//!
//! `key=value,key=value` in the header `x-simulator`, or behind the model's name and a `?`
//! (`any-model?tokens=9,fault=drop:4`); the header is the stronger one, key by key. Anything else
//! is refused with status 400.
//!
//! | directive | meaning |
//! |---|---|
//! | `tokens=N` | the answer's length, per choice |
//! | `rate=F` | tokens per second, 0 for as fast as possible |
//! | `ttft=MS` | milliseconds until the first token |
//! | `burst=N` | tokens per chunk, 1 without it |
//! | `fault=SPEC` | what goes wrong, see [`Fault`] |
//! | `alias=1` | the answer comes from `NAME-0`, as where a model's name stands for its newest version |
//! | `extra=1` | vendor fields: `x_vendor` on every chunk, `reasoning_content` before the text |
//!
//! # Pace
//!
//! The response's head leaves at once and the first token after `ttft`. Token *i* is due
//! *i* ÷ `rate` seconds later by the same clock, so that lateness does not add up. What does not
//! stream leaves when the token behind its last one would be due.

mod answer;
mod chat;
mod directives;
mod fault;
mod request;
mod script;
mod tally;
mod text;
mod wire;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use fault::Fault;
pub use tally::{Meter, Stats};

/// The largest request body, in bytes.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// How long answers in progress may go on after shutdown began.
const GRACE: Duration = Duration::from_secs(3);

/// How long broken connections get to close.
const CLOSING: Duration = Duration::from_millis(500);

/// How a simulator listens, and what it does where a request's directives say nothing.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Time to the first token.
    #[serde(with = "humantime_serde")]
    pub ttft: Duration,
    /// Tokens per second; 0 for as fast as possible.
    pub rate: f64,
    /// Tokens per choice.
    pub tokens: u32,
    /// Whether the same request gets another text at each attempt.
    pub vary: bool,
    /// What goes wrong with every request.
    pub fault: Option<Fault>,
    /// The Bearer key that `/v1` asks for; open when `None`. Never shown by `Debug`.
    pub api_key: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8099)),
            ttft: Duration::from_millis(200),
            rate: 50.0,
            tokens: 64,
            vary: false,
            fault: None,
            api_key: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("ttft", &self.ttft)
            .field("rate", &self.rate)
            .field("tokens", &self.tokens)
            .field("vary", &self.vary)
            .field("fault", &self.fault)
            .field("api_key", &self.api_key.as_ref().map(|_| "…"))
            .finish()
    }
}

/// Why a simulator cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error(
        "the simulator cannot listen on {addr}; free the port or choose another `listen` address"
    )]
    Bind {
        /// The address of the options.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A rate that is negative or not a number.
    #[error("the simulator's rate is {rate}; allowed are tokens per second, or 0 for no limit")]
    Rate {
        /// The rate of the options.
        rate: f64,
    },
    /// More tokens than one answer may have.
    #[error("the simulator's answers have {tokens} tokens; allowed are at most {allowed}")]
    Tokens {
        /// The number of the options.
        tokens: u32,
        /// The most that is allowed.
        allowed: u32,
    },
    /// A fault in a form that does not exist.
    #[error("unknown fault `{value}`; allowed are {allowed}")]
    Fault {
        /// What was to be parsed.
        value: String,
        /// The forms that exist.
        allowed: &'static str,
    },
}

impl Error {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "simulator_bind",
            Self::Rate { .. } => "simulator_rate",
            Self::Tokens { .. } => "simulator_tokens",
            Self::Fault { .. } => "simulator_fault",
        }
    }
}

/// A simulator that listens; [`run`](Self::run) makes it answer. Connections made in between wait.
#[derive(Debug)]
pub struct Simulator {
    listener: TcpListener,
    addr: SocketAddr,
    options: Options,
    tally: Arc<tally::Tally>,
}

impl Simulator {
    /// Checks the options and starts to listen.
    ///
    /// # Errors
    ///
    /// [`Error::Rate`] and [`Error::Tokens`] for options out of range, [`Error::Bind`] when the
    /// address is taken or not this machine's.
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let Options { listen, rate, tokens, .. } = options;
        if !rate.is_finite() || rate < 0.0 {
            return Err(Error::Rate { rate });
        }
        if tokens > directives::MAX_TOKENS {
            return Err(Error::Tokens { tokens, allowed: directives::MAX_TOKENS });
        }
        let refused = |source| Error::Bind { addr: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let addr = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, addr, options, tally: Arc::default() })
    }

    /// The address it listens on, with the port that was really taken.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What a client library takes as its base URL: `http://127.0.0.1:8099/v1`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// Looks at its counters, while it runs and afterwards.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.tally))
    }

    /// Answers until `shutdown`, and returns what was counted.
    ///
    /// After `shutdown` no connection is accepted. Silent answers break off at once, the others
    /// have 3 seconds to reach their end before their connections are broken.
    pub async fn run(self, shutdown: CancellationToken) -> Stats {
        let tally = self.tally;
        let halt = CancellationToken::new();
        let shared = Arc::new(chat::Shared {
            options: self.options,
            tally: Arc::clone(&tally),
            attempts: tally::Attempts::default(),
            shutdown: shutdown.clone(),
            halt: halt.clone(),
        });
        // Without it a p99 of 40 ms appears: Nagle's algorithm waits for a delayed acknowledgement.
        let listener = self.listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "a connection of the simulator keeps Nagle's algorithm");
            }
        });
        let serving = axum::serve(listener, chat::router(shared))
            .with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let deadline = async {
            shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
            halt.cancel();
            tokio::time::sleep(CLOSING).await;
        };
        tokio::select! {
            // Accept errors are retried inside, so this ends by shutdown only.
            _ = serving => {}
            () = deadline => {}
        }
        tally.stats()
    }
}
