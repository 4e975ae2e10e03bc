//! What was enqueued, exactly.

use std::fmt;

use serde::Serialize;

use crate::job::JobId;

/// An enqueued job, as one JSON object on one line.
#[derive(Debug, Serialize)]
pub(super) struct Enqueued<'a> {
    /// `None` where nothing was enqueued and the job has no key.
    pub(super) id: Option<JobId>,
    pub(super) line: u64,
    pub(super) state: &'a str,
    pub(super) custom_id: Option<&'a str>,
}

/// A number of things.
pub(super) fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// Lines, as ranges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds a line that lies above all others.
    pub(super) fn push(&mut self, line: u64) {
        match self.0.last_mut() {
            Some((_, last)) if *last + 1 == line => *last = line,
            _ => self.0.push((line, line)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first} to {last}")?;
            }
        }
        Ok(())
    }
}

/// What has come of the input.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Jobs that the broker acknowledged, duplicates among them.
    pub(super) enqueued: u64,
    /// Jobs that were there already.
    pub(super) duplicates: u64,
    /// Lines that were refused.
    pub(super) refused: u64,
    /// The last line that was enqueued or refused.
    pub(super) through: u64,
    /// Lines of which it is not known whether they are enqueued.
    pub(super) unknown: Ranges,
    /// Lines for which there was no room.
    pub(super) no_room: Ranges,
    /// Jobs that are over.
    pub(super) ended: u64,
    /// Jobs that failed.
    pub(super) failed: u64,
}

impl Tally {
    /// Where the input was left, and how to go on with it.
    pub(super) fn left(&self, prefix: Option<&str>) -> String {
        let next = self.through + 1;
        let mut parts = vec![match self.through {
            0 => "no line is enqueued".to_owned(),
            through => format!("read up to line {through}: {self}"),
        }];
        if !self.no_room.is_empty() {
            parts.push(format!("not enqueued, for want of room: line {}", self.no_room));
        }
        if !self.unknown.is_empty() {
            parts.push(format!("enqueued or not, nothing is known: line {}", self.unknown));
        }
        let is_whole = self.no_room.is_empty() && self.unknown.is_empty();
        parts.push(match prefix {
            Some(prefix) => format!(
                "run it again with --idempotency-prefix {prefix}, which leaves out what is enqueued"
            ),
            None if is_whole => format!("go on at line {next}"),
            None => format!(
                "go on with these lines and from line {next} (a file enqueued with \
                 --idempotency-prefix can simply be run again)"
            ),
        });
        parts.join("; ")
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} enqueued", counted(self.enqueued, "job"))?;
        if self.refused > 0 {
            write!(f, ", {} refused", counted(self.refused, "line"))?;
        }
        for (count, what) in [
            (self.duplicates, "of them there already"),
            (self.ended, "over"),
            (self.failed, "of these failed"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_exactly() {
        let mut tally = Tally { enqueued: 510, refused: 2, through: 512, ..Tally::default() };
        assert_eq!(
            tally.left(None),
            "read up to line 512: 510 jobs enqueued, 2 lines refused; go on at line 513"
        );
        (513..=768).chain([770]).for_each(|line| tally.unknown.push(line));
        tally.through = 770;
        let text = tally.left(Some("run"));
        assert!(text.contains("nothing is known: line 513 to 768, 770"), "{text}");
        assert!(text.contains("--idempotency-prefix run"), "{text}");
        assert!(tally.left(None).contains("go on with these lines and from line 771"));
        let mut tally = Tally { enqueued: 4, through: 7, ..Tally::default() };
        for line in [3, 5, 6] {
            tally.no_room.push(line);
        }
        assert_eq!(
            tally.left(None),
            "read up to line 7: 4 jobs enqueued; not enqueued, for want of room: line 3, 5 to 6; \
             go on with these lines and from line 8 (a file enqueued with --idempotency-prefix can \
             simply be run again)"
        );
        assert!(Tally::default().left(None).starts_with("no line is enqueued"));
    }

    #[test]
    fn an_enqueued_job_is_an_object_of_four_fields() {
        let line = Enqueued { id: None, line: 2, state: "valid", custom_id: Some("c") };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"id":null,"line":2,"state":"valid","custom_id":"c"}"#
        );
    }
}
