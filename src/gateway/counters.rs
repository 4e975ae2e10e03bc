//! What a gateway counts.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    saved_us: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) sockets: AtomicU64,
    pub(super) diverged: AtomicU64,
    pub(super) panics: AtomicU64,
}

impl Counters {
    pub(super) fn cache_hit(&self, saved: Duration) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        let saved = u64::try_from(saved.as_micros()).unwrap_or(u64::MAX);
        self.saved_us.fetch_add(saved, Ordering::Relaxed);
    }

    pub(super) fn cache_miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Answers that came from the cache.
    pub fn cache_hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Answers that had to be found out.
    pub fn cache_misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Time that the hits would have taken otherwise.
    pub fn cache_saved(&self) -> Duration {
        Duration::from_micros(self.saved_us.load(Ordering::Relaxed))
    }

    /// Connections that are open; one that became a WebSocket counts as such instead.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// WebSockets that are open.
    pub fn sockets(&self) -> u64 {
        self.sockets.load(Ordering::Relaxed)
    }

    /// Chat completions that broke off because a later attempt said something else.
    pub fn diverged(&self) -> u64 {
        self.diverged.load(Ordering::Relaxed)
    }

    /// Requests that met a fault of the gateway itself.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }
}
