//! How late this process's own timers are while something is measured: what a busy machine adds to
//! every figure of a few milliseconds.

use std::time::{Duration, Instant};

use super::{Distribution, Figure};

/// How long each timer runs.
const TIMER: Duration = Duration::from_millis(5);

/// Does the work; beside it timers run one after the other, and tell how late they were.
pub(super) async fn beside<T>(work: impl Future<Output = T>) -> (T, Figure) {
    let mut late = Vec::new();
    tokio::pin!(work);
    let result = loop {
        let due = Instant::now() + TIMER;
        tokio::select! {
            result = &mut work => break result,
            () = tokio::time::sleep(TIMER) => late.push(due.elapsed()),
        }
    };
    let distribution = late.into_iter().collect::<Distribution>();
    (result, Figure { name: "timers of this process meanwhile", distribution, budgets: Vec::new() })
}
