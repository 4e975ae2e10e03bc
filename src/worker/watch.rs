//! Sees that the worker's own tasks go on. A worker that lacks one of them looks alive and is deaf, so
//! it stops instead, and whoever started it can start another.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

/// A task of a worker. Of all but `Lease` and `Control` it has one for each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Reads a partition's lanes.
    Reader,
    /// Takes over what ran out of lease.
    Sweeper,
    /// Moves parked jobs to their lanes.
    Promoter,
    /// Forgets workers that are gone.
    Janitor,
    /// Renews what is held.
    Lease,
    /// Hears what the worker is told.
    Control,
    /// Acknowledges entries whose jobs are over.
    Settle,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reader => "reader",
            Self::Sweeper => "sweeper",
            Self::Promoter => "promoter",
            Self::Janitor => "janitor",
            Self::Lease => "lease",
            Self::Control => "control",
            Self::Settle => "settle",
        })
    }
}

/// What happens when a task ends before its time.
#[derive(Debug)]
pub(super) struct Watch {
    ended: OnceLock<Task>,
    stop: CancellationToken,
    abandon: CancellationToken,
    cut: CancellationToken,
}

impl Watch {
    /// `stop` ends the worker in peace, `abandon` at once, and `cut` in the middle of a call.
    pub(super) fn new(
        stop: CancellationToken,
        abandon: CancellationToken,
        cut: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { ended: OnceLock::new(), stop, abandon, cut })
    }

    /// The first task that ended early.
    pub(super) fn ended(&self) -> Option<Task> {
        self.ended.get().copied()
    }

    /// Runs a task that has to go on until `until`. Where it returns or panics before, the worker
    /// stops.
    pub(super) async fn over(
        self: Arc<Self>,
        task: Task,
        until: CancellationToken,
        run: impl Future<Output = ()>,
    ) {
        let run = self.cut.run_until_cancelled(AssertUnwindSafe(run).catch_unwind());
        let run = run.await.unwrap_or(Ok(()));
        if until.is_cancelled() && run.is_ok() {
            return;
        }
        tracing::error!(%task, "a task of the worker ended early: the worker stops");
        let _ = self.ended.set(task);
        self.stop.cancel();
        if task == Task::Lease {
            // What is not renewed goes to other workers; sooner is better than twice.
            self.abandon.cancel();
        }
    }
}
