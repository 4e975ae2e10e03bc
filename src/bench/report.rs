//! What a scenario returns.

use std::time::Duration;

use super::{Distribution, Mark};

/// What was measured, and what it should have been.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What was done, in a sentence.
    pub setting: String,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What was counted.
    pub amounts: Vec<Amount>,
    /// What must hold for the figures to mean anything.
    pub claims: Vec<Claim>,
    /// Where it was measured.
    pub machine: Machine,
}

impl Report {
    /// Whether every budget is met and every claim holds.
    pub fn is_met(&self) -> bool {
        let amounts = self.amounts.iter().all(Amount::is_met);
        amounts && self.figures.iter().all(Figure::is_met) && self.claims.iter().all(Claim::holds)
    }
}

/// One distribution, with its budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// From what to what.
    pub name: &'static str,
    /// Its samples.
    pub distribution: Distribution,
    /// What it may be; none where it only explains the others.
    pub budgets: Vec<Budget>,
}

impl Figure {
    /// Whether it keeps within this budget; without samples nothing is known to.
    pub fn meets(&self, budget: &Budget) -> bool {
        self.distribution.count() > 0 && self.distribution.at(budget.mark) <= budget.limit
    }

    fn is_met(&self) -> bool {
        self.budgets.iter().all(|budget| self.meets(budget))
    }
}

/// The most that a place in a distribution may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The place.
    pub mark: Mark,
    /// The most.
    pub limit: Duration,
}

/// A number, and the most that it may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Amount {
    /// Of what, with its unit.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// The most; none where it only explains the others.
    pub limit: Option<f64>,
}

impl Amount {
    /// One that has a budget.
    pub(super) fn most(name: &'static str, value: f64, limit: f64) -> Self {
        Self { name, value, limit: Some(limit) }
    }

    /// One that explains the others.
    pub(super) fn told(name: &'static str, value: f64) -> Self {
        Self { name, value, limit: None }
    }

    /// Whether it keeps within its budget.
    pub fn is_met(&self) -> bool {
        self.limit.is_none_or(|limit| self.value <= limit)
    }
}

/// Something that must hold in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// What.
    pub text: &'static str,
    /// In how many cases it held.
    pub held: usize,
    /// How many cases there were.
    pub of: usize,
}

impl Claim {
    /// Whether it held in every case.
    pub fn holds(&self) -> bool {
        self.held == self.of
    }
}

/// The machine, and what ran on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// Processes that wanted a core in the last minute, this one's included, where that is known.
    pub load: Option<String>,
    /// The operating system, with its version where that is known, and the architecture.
    pub system: String,
    /// The server, with its version.
    pub redis: String,
    /// Whether this program is built for speed.
    pub is_release: bool,
}

impl Machine {
    pub(super) fn here(redis: String) -> Self {
        let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let words = [std::env::consts::OS, version.trim(), std::env::consts::ARCH];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let load = load.and_then(|text| text.split(' ').next().map(str::to_owned));
        Self {
            load,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: words.join(" "),
            redis,
            is_release: !cfg!(debug_assertions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sample: u64, held: usize) -> Report {
        let budget = Budget { mark: Mark::Max, limit: Duration::from_millis(50) };
        let distribution = [Duration::from_millis(sample)].into_iter().collect();
        Report {
            scenario: "any",
            setting: String::new(),
            figures: vec![Figure { name: "late", distribution, budgets: vec![budget] }],
            amounts: vec![Amount::told("things", 1.0)],
            claims: vec![Claim { text: "once", held, of: 2 }],
            machine: Machine::here("Redis 7".to_owned()),
        }
    }

    #[test]
    fn one_budget_or_claim_decides() {
        assert!(report(50, 2).is_met());
        assert!(!report(51, 2).is_met());
        assert!(!report(50, 1).is_met());
        let mut large = report(50, 2);
        large.amounts[0].limit = Some(0.9);
        assert!(!large.is_met());
    }

    #[test]
    fn a_figure_without_samples_meets_nothing() {
        let mut report = report(1, 2);
        report.figures[0].distribution = Distribution::default();
        assert!(!report.is_met());
    }
}
