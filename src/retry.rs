//! Waiting longer each time: the retry schedule of jobs and the backoff of readers and
//! connections, both on the `backoff` crate, which is named nowhere else.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};
use serde::{Deserialize, Serialize};

/// Exponentially growing delays, from `initial` by `multiplier` up to `max`, each spread evenly
/// over ± `jitter` of itself.
#[derive(Debug)]
pub struct Backoff {
    inner: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// A backoff that never ends. `jitter` lies between 0 and 1.
    pub fn new(initial: Duration, multiplier: f64, max: Duration, jitter: f64) -> Self {
        let inner = ExponentialBackoffBuilder::new()
            .with_initial_interval(initial)
            .with_multiplier(multiplier)
            .with_max_interval(max)
            .with_randomization_factor(jitter)
            .with_max_elapsed_time(None)
            .build();
        Self { inner, max }
    }

    /// How a reader falls back from live delivery: 50 ms × 1.5 up to 2 s, ± 30 %: thousands that lose one
    /// connection do not read in step.
    pub fn reading() -> Self {
        Self::new(Duration::from_millis(50), 1.5, Duration::from_secs(2), 0.3)
    }

    /// How a lost connection is sought again: 100 ms × 2 up to 5 s, ± 30 %.
    pub fn connecting() -> Self {
        Self::new(Duration::from_millis(100), 2.0, Duration::from_secs(5), 0.3)
    }

    /// How a full queue is tried again, on top of what it asks for: 100 ms × 1.5 up to 4 s, ± 50 %.
    pub fn waiting() -> Self {
        Self::new(Duration::from_millis(100), 1.5, Duration::from_secs(4), 0.5)
    }

    /// The next delay; it never exceeds the maximum by more than the jitter.
    pub fn next_delay(&mut self) -> Duration {
        self.inner.next_backoff().unwrap_or(self.max)
    }

    /// Starts again from the first delay.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

/// When a failed job is tried again, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Most attempts that may fail, unless the job says otherwise. One that was lost with its worker
    /// or given back does not count.
    pub max_attempts: u32,
    /// Most attempts that may be lost with their workers: then the job itself is taken for the cause.
    pub max_crashes: u32,
    /// The delay after the first failure.
    #[serde(with = "humantime_serde")]
    pub initial: Duration,
    /// How the delay grows with each failure.
    pub multiplier: f64,
    /// The longest delay, a `Retry-After` included.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
    /// Spread of a delay around its value, 0 to 1.
    pub jitter: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            max_crashes: 3,
            initial: Duration::from_secs(1),
            multiplier: 2.0,
            max: Duration::from_secs(60),
            jitter: 0.2,
        }
    }
}

impl Schedule {
    /// The delay after the `failures`th failure (from 1). What the upstream asked for counts where
    /// it is longer, up to `max`.
    pub fn delay(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let mut backoff = Backoff::new(self.initial, self.multiplier, self.max, self.jitter);
        let mut delay = backoff.next_delay();
        for _ in 1..failures.min(64) {
            delay = backoff.next_delay();
        }
        delay.max(asked.unwrap_or_default()).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand readers that lost one connection read their logs at the same moments.
    #[test]
    fn readers_back_off_from_50_ms_by_half_to_2_s_and_not_in_step() {
        let crowd: Vec<Vec<f64>> = (0..50)
            .map(|_| {
                let mut backoff = Backoff::reading();
                (0..12).map(|_| backoff.next_delay().as_secs_f64() * 1000.0).collect()
            })
            .collect();
        let mut middle: f64 = 50.0;
        for step in 0..12 {
            let delays = crowd.iter().map(|reader| reader[step]);
            assert!(
                delays.clone().all(|d| (middle * 0.69..=middle * 1.31).contains(&d)),
                "{middle}"
            );
            let (least, most) = delays.fold((f64::MAX, 0.0_f64), |(a, b), d| (a.min(d), b.max(d)));
            assert!(most - least > middle * 0.2, "step {step}: {least} to {most}");
            middle = (middle * 1.5).min(2000.0);
        }
        let mut backoff = Backoff::reading();
        assert!((0..12).map(|_| backoff.next_delay()).max() > Some(Duration::from_secs(1)));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(65));
    }

    #[test]
    fn it_never_ends() {
        let mut backoff = Backoff::connecting();
        assert!((0..1000).all(|_| backoff.next_delay() <= Duration::from_millis(6500)));
    }

    #[test]
    fn a_retry_grows_and_honours_what_was_asked() {
        let schedule = Schedule { jitter: 0.0, ..Schedule::default() };
        let seconds = |n, asked| schedule.delay(n, asked).as_secs();
        assert_eq!((seconds(1, None), seconds(2, None), seconds(3, None)), (1, 2, 4));
        assert_eq!(seconds(1, Some(Duration::from_secs(30))), 30);
        assert_eq!(seconds(1, Some(Duration::from_secs(600))), 60);
        assert_eq!(seconds(3, Some(Duration::from_secs(1))), 4);
        assert_eq!(seconds(u32::MAX, None), 60);
    }

    #[test]
    fn jitter_spreads_around_the_delay() {
        let schedule = Schedule { jitter: 0.5, ..Schedule::default() };
        let delays: Vec<Duration> = (0..50).map(|_| schedule.delay(1, None)).collect();
        assert!(delays.iter().all(|d| (500..=1500).contains(&d.as_millis())));
        assert!(delays.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
