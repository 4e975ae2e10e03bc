//! An answer that is shared by all who ask within a while: however many ask, the broker is asked once.

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

/// The latest answer, and when it was given.
#[derive(Debug)]
pub(super) struct Latest<T> {
    kept: Duration,
    answer: Mutex<Option<(Instant, T)>>,
}

impl<T: Clone> Latest<T> {
    /// Keeps each answer that long.
    pub(super) fn new(kept: Duration) -> Self {
        Self { kept, answer: Mutex::default() }
    }

    /// The answer of `find`, or the latest one. Who comes while another asks waits for that answer.
    pub(super) async fn get(&self, find: impl Future<Output = T>) -> T {
        let mut answer = self.answer.lock().await;
        if let Some((at, latest)) = &*answer
            && at.elapsed() < self.kept
        {
            return latest.clone();
        }
        let found = find.await;
        *answer = Some((Instant::now(), found.clone()));
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_together_ask_once_and_later_ones_again() {
        let (latest, asked) = (Latest::new(Duration::from_secs(1)), AtomicU32::new(0));
        let find = async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            asked.fetch_add(1, Ordering::Relaxed)
        };
        let (a, b) = tokio::join!(latest.get(find()), latest.get(find()));
        assert_eq!((a, b, asked.load(Ordering::Relaxed)), (0, 0, 1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(latest.get(find()).await, 1);
    }
}
