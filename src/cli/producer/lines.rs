//! Line numbers: which lines of a file are meant, and how they are written.

use std::{fmt, str::FromStr};

/// A set of lines, as ranges in rising order. The last may be open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LineSet(Vec<(u64, u64)>);

/// The end of a range without one.
const OPEN: u64 = u64::MAX;

impl LineSet {
    /// Every line.
    pub(super) fn all() -> Self {
        Self(vec![(1, OPEN)])
    }

    /// Adds a line that lies above all others.
    pub(super) fn push(&mut self, line: u64) {
        self.extend(line, line);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, line: u64) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&line))
    }

    /// Whether every line of the set lies below this one.
    pub(super) fn is_below(&self, line: u64) -> bool {
        self.0.last().is_none_or(|(_, last)| *last < line)
    }

    /// These lines, and those of `all` from `next` on.
    pub(super) fn and_from(&self, next: u64, all: &Self) -> Self {
        let mut lines = self.clone();
        for (first, last) in &all.0 {
            if *last >= next {
                lines.extend((*first).max(next), *last);
            }
        }
        lines
    }

    fn extend(&mut self, first: u64, last: u64) {
        match self.0.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => self.0.push((first, last)),
        }
    }
}

impl fmt::Display for LineSet {
    /// As `--lines` takes it: `3,5-6,8-`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match *last {
                OPEN => write!(f, "{comma}{first}-")?,
                last if last == *first => write!(f, "{comma}{first}")?,
                last => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for LineSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "`{text}` names no lines; allowed: such as 7, 3,5-6 or 3,5-6,8-, from 1, rising"
            )
        };
        let number = |text: &str| text.parse::<u64>().ok().filter(|line| *line > 0);
        let mut lines = Self::default();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                None => (number(part), number(part)),
                Some((first, "")) => (number(first), Some(OPEN)),
                Some((first, last)) => (number(first), number(last)),
            };
            let (Some(first), Some(last)) = (first, last) else { return Err(refused()) };
            if last < first || !lines.is_below(first) {
                return Err(refused());
            }
            lines.extend(first, last);
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        for text in ["7", "3,5-6", "3,5-6,8-", "1-"] {
            assert_eq!(text.parse::<LineSet>().unwrap().to_string(), text);
        }
        assert_eq!("3,4,5-6".parse::<LineSet>().unwrap().to_string(), "3-6");
        for bad in ["", "0", "x", "-3", "6-5", "5,3", "3-,5", "3,,4", "3-4,4"] {
            assert!(bad.parse::<LineSet>().is_err(), "{bad}");
        }
        let lines: LineSet = "3,5-6,8-9".parse().unwrap();
        let held: Vec<u64> = (1..12).filter(|line| lines.contains(*line)).collect();
        assert_eq!(held, [3, 5, 6, 8, 9]);
        assert!(lines.is_below(10) && !lines.is_below(9));
    }

    #[test]
    fn the_rest_is_some_lines_and_all_behind() {
        let mut lines = LineSet::default();
        for line in [3, 5, 6] {
            lines.push(line);
        }
        assert_eq!(lines.and_from(8, &LineSet::all()).to_string(), "3,5-6,8-");
        assert_eq!(lines.and_from(7, &LineSet::all()).to_string(), "3,5-");
        let chosen: LineSet = "1-4,9-12".parse().unwrap();
        assert_eq!(lines.and_from(10, &chosen).to_string(), "3,5-6,10-12");
        assert_eq!(LineSet::default().and_from(13, &chosen).to_string(), "");
    }
}
