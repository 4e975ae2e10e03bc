//! Says, from time to time, that jobs wait in a queue that no worker serves.

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::{job::QueueName, producer::Producer};

/// The longest pause between two warnings.
const RAREST: Duration = Duration::from_secs(600);

/// When to look next whether queues are served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vigil {
    next: Instant,
    first: Duration,
    pause: Duration,
}

impl Vigil {
    /// A first look that is due now; the next one `first` later, and then each after twice the time.
    pub(super) fn new(first: Duration) -> Self {
        let first = first.clamp(Duration::from_millis(1), RAREST);
        Self { next: Instant::now(), first, pause: first }
    }

    /// Ends when the next look is due.
    pub(super) async fn due(&self) {
        sleep_until(self.next).await;
    }

    /// Looks, and warns of each of these queues that no worker serves. A broker that is away is no
    /// reason to warn.
    pub(super) async fn look(
        &mut self,
        producer: &Producer,
        queues: impl IntoIterator<Item = &QueueName>,
        mut warn: impl FnMut(&dyn fmt::Display),
    ) {
        let mut unserved = false;
        for queue in queues {
            if producer.live_workers(queue).await.is_ok_and(|workers| workers == 0) {
                unserved = true;
                warn(&format_args!(
                    "no live worker serves queue `{queue}`; jobs wait until one does \
                     (millstream-worker --queues {queue})"
                ));
            }
        }
        self.next = Instant::now() + self.pause;
        self.pause = if unserved { (self.pause * 2).min(RAREST) } else { self.first };
    }
}
