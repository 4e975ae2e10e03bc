//! Samples as they are: sorted, none thrown away.

use std::{fmt, time::Duration};

/// Bars of a histogram, at most.
const BINS: u128 = 15;

/// The narrowest bar: some clocks tell milliseconds only.
const NARROWEST: u128 = 1_000_000;

/// All samples of one figure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution(Vec<Duration>);

/// A place in a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The least sample.
    Min,
    /// The sample that this percentage is not above: the nearest rank.
    Percentile(u8),
    /// The greatest sample.
    Max,
}

impl Mark {
    /// The marks that tell a distribution, from the least.
    pub const ALL: [Self; 6] = [
        Self::Min,
        Self::Percentile(50),
        Self::Percentile(90),
        Self::Percentile(95),
        Self::Percentile(99),
        Self::Max,
    ];
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Min => f.write_str("min"),
            Self::Percentile(of) => write!(f, "p{of}"),
            Self::Max => f.write_str("max"),
        }
    }
}

/// Samples from one time to below another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bin {
    /// Its least possible sample.
    pub from: Duration,
    /// Where the next one begins.
    pub to: Duration,
    /// How many samples it has.
    pub count: usize,
}

impl FromIterator<Duration> for Distribution {
    fn from_iter<T: IntoIterator<Item = Duration>>(samples: T) -> Self {
        let mut samples: Vec<Duration> = samples.into_iter().collect();
        samples.sort_unstable();
        Self(samples)
    }
}

impl Distribution {
    /// How many samples there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The sample at this place; zero where there is none.
    pub fn at(&self, mark: Mark) -> Duration {
        let rank = match mark {
            Mark::Min => 1,
            Mark::Percentile(of) => (self.0.len() * usize::from(of)).div_ceil(100),
            Mark::Max => self.0.len(),
        };
        self.0.get(rank.max(1) - 1).copied().unwrap_or_default()
    }

    /// Bins of one width, 1, 2 or 5 times a power of ten, from the least sample to the greatest; no
    /// more than samples.
    pub fn histogram(&self) -> Vec<Bin> {
        let (Some(least), Some(most)) = (self.0.first(), self.0.last()) else { return Vec::new() };
        let (least, most) = (least.as_nanos(), most.as_nanos());
        let widths =
            (0..12).flat_map(|power| [1, 2, 5].map(|n| n * NARROWEST * 10_u128.pow(power)));
        let allowed = BINS.min(self.0.len() as u128);
        let fits = |width: &u128| most / width - least / width < allowed;
        let width = widths.into_iter().find(fits).unwrap_or(u128::MAX);
        let first = least / width;
        let time = |bin: u128| Duration::from_nanos_u128((first + bin) * width);
        let mut bins: Vec<Bin> = (0..=most / width - first)
            .map(|bin| Bin { from: time(bin), to: time(bin + 1), count: 0 })
            .collect();
        for sample in &self.0 {
            let bin = usize::try_from(sample.as_nanos() / width - first);
            if let Some(bin) = bin.ok().and_then(|bin| bins.get_mut(bin)) {
                bin.count += 1;
            }
        }
        bins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Distribution {
        millis.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn marks_are_samples_at_the_nearest_rank() {
        let hundred = of((1..=100).rev());
        let marks = Mark::ALL.map(|mark| hundred.at(mark).as_millis());
        assert_eq!(marks, [1, 50, 90, 95, 99, 100]);
        let two = of([7, 9]);
        assert_eq!(Mark::ALL.map(|mark| two.at(mark).as_millis()), [7, 7, 9, 9, 9, 9]);
        assert_eq!(Distribution::default().at(Mark::Max), Duration::ZERO);
        assert_eq!(Mark::ALL.map(|mark| mark.to_string()).join(" "), "min p50 p90 p95 p99 max");
    }

    #[test]
    fn a_histogram_holds_every_sample_in_few_round_bins() {
        let bins = of([4_100, 4_900, 5_000, 7_200]).histogram();
        assert_eq!((bins[0].from, bins[0].to), (Duration::from_secs(4), Duration::from_secs(5)));
        assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [2, 1, 0, 1]);
        for samples in [vec![3], (0..1_000).collect(), vec![0, 3_600_000]] {
            let bins = of(samples.clone()).histogram();
            assert!(bins.len() <= 15, "{bins:?}");
            assert_eq!(bins.iter().map(|bin| bin.count).sum::<usize>(), samples.len());
        }
        assert!(Distribution::default().histogram().is_empty());
    }
}
