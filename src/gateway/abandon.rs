//! Jobs whose clients went away: they are cancelled, and cost nothing more.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{app::App, audit};
use crate::{admin::Cancelled, job::JobId, retry::Backoff};

/// Cancellations under way at once, those that wait for another try included.
const AT_ONCE: usize = 1024;

/// How often a job that is not there is looked for again.
const LATE: u32 = 2;

/// How often a cancellation is tried while the broker is away, or does not know the job.
const TRIES: u32 = 8;

/// Cancels a job when it is dropped, unless it has been forgiven.
#[derive(Debug)]
pub(super) struct Abandon {
    app: Arc<App>,
    job: Option<JobId>,
}

impl Abandon {
    /// Watches over a job; `None` for one that goes on by itself.
    pub(super) fn new(app: &Arc<App>, job: Option<JobId>) -> Self {
        Self { app: Arc::clone(app), job }
    }

    /// The job is over, or may go on.
    pub(super) fn forgive(&mut self) {
        self.job = None;
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        // A client whose gateway closes has not gone away.
        if let Some(job) = self.job.take()
            && !self.app.closing.is_cancelled()
            && self.app.abandoned.try_send(job).is_err()
        {
            tracing::warn!(%job, "too many clients went away at once: this job goes on");
        }
    }
}

/// Cancels what was abandoned.
pub(super) async fn cancel(app: Arc<App>, abandoned: mpsc::Receiver<JobId>) {
    let jobs = futures_util::stream::unfold(abandoned, async |mut abandoned| {
        let job = abandoned.recv().await?;
        Some((job, abandoned))
    });
    jobs.for_each_concurrent(AT_ONCE, async |job| {
        let mut backoff = Backoff::connecting();
        let mut unknown = 0;
        for _ in 0..TRIES {
            match app.admin.cancel(job).await {
                // It may be on its way still, or was never sent.
                Ok(Cancelled::Unknown) if unknown == LATE => {
                    return tracing::debug!(%job, "client gone, and its job never came");
                }
                Ok(Cancelled::Unknown) => unknown += 1,
                Ok(_) => return audit::abandoned(job),
                Err(error) if error.is_transient() => {}
                Err(error) => return tracing::warn!(%job, %error, "client gone, job not cancelled"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
        tracing::warn!(%job, "client gone, job not cancelled: it or the broker is not there");
    })
    .await;
}
