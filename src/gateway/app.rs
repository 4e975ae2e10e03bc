//! What the handlers share.

use std::{fmt, time::Duration};

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Error, Options, auth::Keys, bodies::Bodies, breaker::Breaker, cache::Cache, counters::Counters,
    error::Refusal, latest::Latest, models::Catalogue, presence::Presence, rates::Rates,
    slots::Slots, turns::Turns,
};
use crate::{
    admin::Admin,
    broker::{self, Shared},
    job::JobId,
    listener::Listener,
    producer::{self, Producer},
};

/// How long what `/readyz` was told holds: whoever asks needs no key.
const READY: Duration = Duration::from_secs(1);

/// Most answers that are put together at a time: each may be as large as a log, many times over.
const ASSEMBLING: usize = 16;

/// How many of them may be one tenant's.
const ASSEMBLING_EACH: usize = 4;

pub(super) struct App {
    pub(super) options: Options,
    pub(super) broker: Shared,
    pub(super) producer: Producer,
    pub(super) listener: Listener,
    pub(super) admin: Admin,
    pub(super) keys: Keys,
    pub(super) breaker: Breaker,
    /// Whether the broker takes jobs, as `/readyz` was last told.
    pub(super) ready: Latest<Result<(), Refusal>>,
    pub(super) presence: Presence,
    pub(super) cache: Cache,
    pub(super) slots: Slots,
    pub(super) rates: Rates,
    pub(super) bodies: Bodies,
    /// Answers that are put together from their logs at a time.
    pub(super) assembling: Turns,
    pub(super) counters: Counters,
    pub(super) models: Catalogue,
    /// The gateway is about to close: whoever chooses among gateways is to choose another one.
    pub(super) leaving: CancellationToken,
    /// Event streams end, with a hint to come back.
    pub(super) closing: CancellationToken,
    /// Every answer ends, whole or not.
    pub(super) cutoff: CancellationToken,
    /// WebSockets, which outlive the connections that they came from.
    pub(super) sockets: TaskTracker,
    /// Jobs whose clients went away.
    pub(super) abandoned: mpsc::Sender<JobId>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("options", &self.options).finish_non_exhaustive()
    }
}

impl App {
    pub(super) fn new(
        broker: Shared,
        listener: Listener,
        producer: producer::Options,
        options: Options,
        abandoned: mpsc::Sender<JobId>,
    ) -> Result<Self, Error> {
        Ok(Self {
            abandoned,
            cutoff: CancellationToken::new(),
            sockets: TaskTracker::new(),
            keys: Keys::load(&options)?,
            breaker: Breaker::default(),
            ready: Latest::new(READY),
            presence: Presence::default(),
            cache: Cache::new(options.cache_bytes),
            slots: Slots::new(&options.limits),
            rates: Rates::default(),
            assembling: Turns::new(ASSEMBLING, ASSEMBLING_EACH),
            counters: Counters::default(),
            models: Catalogue::default(),
            bodies: Bodies::new(options.limits.max_bodies),
            leaving: CancellationToken::new(),
            closing: CancellationToken::new(),
            producer: Producer::new(broker.clone(), producer),
            admin: Admin::new(broker.clone()),
            broker,
            listener,
            options,
        })
    }

    /// How a client names a route: below the public address, where one is configured, else where the request for
    /// the path `asked` has found this gateway.
    pub(super) fn link(&self, asked: &str, route: &str) -> String {
        let public = self.options.public_url.trim_end_matches('/');
        if !public.is_empty() {
            return format!("{public}{route}");
        }
        // Wherever an application has put these routes.
        let before = asked.rfind("/v1/jobs").map_or("", |at| &asked[..at]);
        format!("{before}{route}")
    }

    /// The result of a call of the broker, noticed by the breaker where it cannot be reached.
    pub(super) fn noticed<T, E: Into<Refusal> + Transient>(
        &self,
        result: Result<T, E>,
    ) -> Result<T, Refusal> {
        result.map_err(|error| {
            if error.is_away() {
                self.breaker.suspect();
            }
            error.into()
        })
    }
}

/// An error that may mean that the broker is away.
pub(super) trait Transient {
    fn is_away(&self) -> bool;
}

impl Transient for broker::Error {
    fn is_away(&self) -> bool {
        self.is_transient() && !matches!(self, Self::Full { .. })
    }
}

impl Transient for producer::Error {
    fn is_away(&self) -> bool {
        matches!(self, Self::Broker(error) if error.is_away())
    }
}

impl Transient for crate::listener::Error {
    fn is_away(&self) -> bool {
        matches!(self, Self::Broker(error) if error.is_away())
    }
}
