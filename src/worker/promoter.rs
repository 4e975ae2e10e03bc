//! Moves parked jobs to their lanes when their time has come.
//!
//! It sleeps until the next one is due. Whoever changes which one that is tells every worker of the
//! partition ([`Next`]): a job that comes before all others, and each promotion. So nobody asks the
//! broker when the next is due, and of many workers that wait for it one promotes: each waits its own
//! turn, and hears of the one that was first.
//!
//! A message may be missing, where its sender may not publish, or be wrong. So a message may delay a look,
//! and never prevents it: while jobs are parked somebody looks every minute, and each looks once more after
//! it is told that nothing is parked any more.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Next, Partition, Shared, Topic, Wake},
    listener::{Heard, Hub, Link},
    retry::Backoff,
};

/// Most jobs moved by one script.
const BATCH: usize = 256;

/// How often it looks while wakes cannot reach it.
const BLIND: Duration = Duration::from_secs(5);

/// How long it believes what it was told of jobs that were parked.
const BELIEF: Duration = Duration::from_mins(1);

/// Jobs that come due so soon after others are moved together.
const GATHER: Duration = Duration::from_millis(10);

/// How much earlier than the second, on average, the first of many workers takes its turn: longer than
/// it takes to promote and to be heard.
const APART: Duration = Duration::from_millis(5);

/// Nobody waits longer for its turn.
const LONGEST_TURN: Duration = Duration::from_millis(30);

/// Where a sender says that it has parked a job, its next message says when the first is due. Senders of
/// an earlier version do not say it.
const MOMENT: Duration = Duration::from_millis(2);

/// How many take turns where the broker does not say it.
const UNKNOWN: u32 = 4;

/// When the promoter of one partition looks next.
struct Promoter {
    /// `None` while nothing is parked.
    at: Option<Instant>,
    /// It was told that nothing is parked, and is to see for itself.
    is_last: bool,
    /// When it last looked.
    looked: Instant,
    /// How many take turns.
    workers: u32,
}

pub(super) async fn run(broker: Shared, hub: Hub, partition: Partition, stop: CancellationToken) {
    let mut wakes = hub.subscribe(Topic::Wake(partition.clone()));
    let mut backoff = Backoff::connecting();
    // Connected first: a job that is parked from here on wakes the promoter.
    tokio::select! {
        _ = wakes.link() => {}
        () = stop.cancelled() => return,
    }
    let now = Instant::now();
    let mut promoter = Promoter { at: Some(now), is_last: false, looked: now, workers: 1 };
    while !stop.is_cancelled() {
        let link = wakes.current();
        // Messages first: one may say that another worker has just been here.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            heard = wakes.next() => promoter.hear(&heard),
            () = until(promoter.at, link) => {
                promoter.look(&broker, &partition, &mut backoff).await;
            }
        }
    }
}

impl Promoter {
    fn hear(&mut self, heard: &Heard) {
        let wake = match heard {
            Heard::Message(message) => Wake::read(message),
            // Something may have been missed.
            Heard::Lagged | Heard::Link(_) => Some(Wake::Parked),
        };
        match wake {
            Some(Wake::Next(Next { due_in, workers })) => {
                self.workers = if workers == 0 { UNKNOWN } else { workers };
                let soonest = self.looked + GATHER;
                if let Some(due) = due_in {
                    let at = (Instant::now() + due.min(BELIEF)).max(soonest);
                    (self.at, self.is_last) = (Some(at + self.turn()), false);
                } else if self.at.is_some() && !self.is_last {
                    // Each at its own time: of many some may have been told of jobs since.
                    let later = BELIEF + BELIEF.mul_f64(random() / 2.0);
                    (self.at, self.is_last) = (Some(Instant::now() + later), true);
                }
            }
            Some(Wake::Parked) => {
                let at = Instant::now() + self.turn().max(MOMENT);
                self.at = Some(self.at.map_or(at, |before| before.min(at)));
                self.is_last = false;
            }
            _ => {}
        }
    }

    async fn look(&mut self, broker: &Shared, partition: &Partition, backoff: &mut Backoff) {
        let promoted = broker.promote(partition, BATCH).await;
        (self.looked, self.is_last) = (Instant::now(), false);
        self.at = match promoted {
            Ok(promoted) => {
                backoff.reset();
                if promoted.count > 0 {
                    tracing::debug!(%partition, count = promoted.count, "promoted");
                }
                // What is due still was too much for one script.
                let pause = if promoted.count > 0 { Duration::ZERO } else { GATHER };
                let gathered = |due: Duration| if due.is_zero() { pause } else { due.max(GATHER) };
                promoted.next_in.map(|due| self.looked + gathered(due).min(BELIEF))
            }
            Err(error) => {
                tracing::warn!(%partition, %error, "parked jobs not promoted");
                Some(self.looked + backoff.next_delay())
            }
        };
    }

    /// How long this worker lets the others go first. The least of so many exponential times is as far
    /// from the second, on average, however many there are.
    fn turn(&self) -> Duration {
        let others = f64::from(self.workers.saturating_sub(1));
        APART.mul_f64(others * -random().ln()).min(LONGEST_TURN)
    }
}

/// Above 0, and up to 1.
fn random() -> f64 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    let random = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (f64::from(random) + 1.0) / (f64::from(u32::MAX) + 1.0)
}

/// Waits until it is time to look, or for a while where no wake comes through.
async fn until(at: Option<Instant>, link: Link) {
    let at = match link {
        Link::Live(_) => at,
        _ => Some(at.unwrap_or_else(|| Instant::now() + BLIND).min(Instant::now() + BLIND)),
    };
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promoter(workers: u32) -> Promoter {
        let now = Instant::now();
        Promoter { at: None, is_last: false, looked: now - GATHER, workers }
    }

    fn heard(wake: Wake) -> Heard {
        Heard::Message(wake.message().into_bytes().into())
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_when_it_was_told_and_asks_nobody() {
        let mut alone = promoter(1);
        let next = |due_in| heard(Wake::Next(Next { due_in, workers: 1 }));
        let second = Duration::from_secs(1);
        // The first word is for workers of an earlier version.
        alone.hear(&heard(Wake::Parked));
        alone.hear(&next(Some(second)));
        assert_eq!(alone.at, Some(Instant::now() + second));
        alone.hear(&heard(Wake::Swept));
        assert_eq!(alone.at, Some(Instant::now() + second));
        // It sees for itself once whether nothing is parked, however often it is told so.
        for _ in 0..3 {
            alone.hear(&next(None));
            tokio::time::advance(second).await;
        }
        let last = alone.at.unwrap() - Instant::now();
        assert!(last > second * 55 && last <= second * 90, "{last:?}");
        // A producer of an earlier version says no more, also where a worker has just looked.
        alone.hear(&heard(Wake::Parked));
        assert_eq!(alone.at, Some(Instant::now() + MOMENT));
        alone.hear(&next(None));
        alone.hear(&Heard::Lagged);
        assert_eq!(alone.at, Some(Instant::now() + MOMENT));
    }

    /// Guards against jobs that stay parked because who parked them may not publish, or because somebody
    /// said that none are.
    #[tokio::test(start_paused = true)]
    async fn a_message_delays_a_look_and_never_prevents_it() {
        let mut alone = promoter(1);
        let next = |due_in| heard(Wake::Next(Next { due_in, workers: 1 }));
        alone.hear(&next(None));
        assert_eq!(alone.at, None, "nothing was ever parked");
        alone.hear(&next(Some(Duration::from_hours(48))));
        assert_eq!(alone.at, Some(Instant::now() + BELIEF));
        alone.hear(&next(Some(Duration::from_secs(3))));
        alone.hear(&next(None));
        let last = alone.at.expect("it still looks");
        assert!(last - Instant::now() <= BELIEF * 2);
        alone.hear(&next(Some(Duration::from_secs(3))));
        assert_eq!(alone.at, Some(Instant::now() + Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_one_is_first_by_some_milliseconds_and_nobody_is_late() {
        for workers in [2, 10, 100] {
            let promoter = promoter(workers);
            let (mut apart, mut first) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..1000 {
                let mut turns: Vec<Duration> = (0..workers).map(|_| promoter.turn()).collect();
                turns.sort_unstable();
                first += turns[0];
                apart += turns[1].saturating_sub(turns[0]);
                assert!(turns[1] <= LONGEST_TURN);
            }
            let mean = Duration::from_millis(3)..Duration::from_millis(8);
            assert!(mean.contains(&(apart / 1000)), "{workers}: {apart:?}");
            assert!(first / 1000 < mean.end, "{workers}: {first:?}");
        }
    }
}
