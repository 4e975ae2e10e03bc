//! The sockets that are there.

use std::sync::{Arc, atomic::Ordering};

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::super::app::App;

/// Counts a socket for as long as it is there; the gateway does not end before.
pub(super) struct Open(Arc<App>, #[expect(dead_code, reason = "held")] TaskTrackerToken);

impl Open {
    pub(super) fn new(app: &Arc<App>) -> Self {
        app.counters.sockets.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(app), app.sockets.token())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}
