//! An answer that is shared by all who ask within a while: however many ask, the broker is asked once.
//!
//! All of them drive the one question. Those who are not asked for their own answer any more, such as a stream whose
//! client reads nothing, hold nobody up.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::time::Instant;

/// A question, driven by all who wait for it.
type Question<T> = Shared<BoxFuture<'static, T>>;

/// The latest question, and when it was asked.
#[derive(Debug)]
pub(super) struct Latest<T: Clone> {
    kept: Duration,
    question: Mutex<Option<(Instant, Question<T>)>>,
}

impl<T: Clone + Send + 'static> Latest<T> {
    /// Keeps each question that long.
    pub(super) fn new(kept: Duration) -> Self {
        Self { kept, question: Mutex::default() }
    }

    /// The answer of `find`, or the one of the latest question. Those who come while another waits wait for the same.
    pub(super) async fn get(&self, find: impl Future<Output = T> + Send + 'static) -> T {
        let question = {
            let mut latest = self.question.lock().unwrap_or_else(PoisonError::into_inner);
            match &*latest {
                Some((at, question)) if at.elapsed() < self.kept => question.clone(),
                _ => latest.insert((Instant::now(), find.boxed().shared())).1.clone(),
            }
        };
        question.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// Takes a tenth of a second, and tells how many were asked before.
    async fn find(asked: Arc<AtomicU32>) -> u32 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        asked.fetch_add(1, Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_together_ask_once_and_later_ones_again() {
        let (latest, asked) = (Latest::new(Duration::from_secs(1)), Arc::default());
        let ask = || latest.get(find(Arc::clone(&asked)));
        let (a, b) = tokio::join!(ask(), ask());
        assert_eq!((a, b, asked.load(Ordering::Relaxed)), (0, 0, 1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ask().await, 1);
    }

    /// Other tenants' requests hung: a stream that was not read any more had the lock under which it asked.
    #[tokio::test(start_paused = true)]
    async fn those_who_wait_no_more_hold_nobody_up() {
        let (latest, asked) = (Latest::new(Duration::from_secs(1)), Arc::default());
        let mut left = Box::pin(latest.get(find(Arc::clone(&asked))));
        assert_eq!(left.as_mut().now_or_never(), None);
        assert_eq!(latest.get(find(Arc::clone(&asked))).await, 0);
        assert_eq!(left.await, 0);
    }
}
