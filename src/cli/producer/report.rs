//! What was enqueued, exactly.

use std::fmt;

use serde::Serialize;

use super::LineSet;
use crate::job::{JobId, Labels};

/// An enqueued job, as one JSON object on one line.
#[derive(Debug, Serialize)]
pub(super) struct Enqueued<'a> {
    /// `None` where nothing was enqueued and the job has no key.
    pub(super) id: Option<JobId>,
    pub(super) line: u64,
    pub(super) state: &'a str,
    pub(super) custom_id: Option<&'a str>,
    pub(super) labels: &'a Labels,
}

/// A number of things.
pub(super) fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
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
    pub(super) unknown: LineSet,
    /// Lines for which there was no room.
    pub(super) no_room: LineSet,
    /// Jobs that are over.
    pub(super) ended: u64,
    /// Jobs that failed.
    pub(super) failed: u64,
    /// Jobs that the broker has lost before their end.
    pub(super) forgotten: u64,
    /// Jobs that are done, and whose answers are not kept any more.
    pub(super) expired: u64,
    /// Jobs that had failed before, and were put back.
    pub(super) retried: u64,
    /// Tokens of the answers, as their models counted.
    pub(super) tokens: u64,
}

impl Tally {
    /// Where the input was left, and the command that goes on with it. `meant` are the lines that were
    /// to be enqueued.
    pub(super) fn left(&self, prefix: Option<&str>, meant: &LineSet) -> String {
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
        let (next, none) = (self.through + 1, LineSet::default());
        parts.push(match prefix {
            Some(prefix) => format!(
                "run it again with --idempotency-prefix {prefix}, which leaves out what is enqueued"
            ),
            None if self.unknown.is_empty() => {
                let rest = self.no_room.and_from(next, meant);
                format!("the same command with --lines {rest} goes on")
            }
            None => format!(
                "the same command with --lines {} goes on behind them, with --lines {} it enqueues \
                 them too, perhaps a second time (a file enqueued with --idempotency-prefix can \
                 simply be run again)",
                none.and_from(next, meant),
                self.unknown.and_from(next, meant)
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
            (self.retried, "of these failed before and put back"),
            (self.ended, "over"),
            (self.failed, "of these failed"),
            (self.forgotten, "of these forgotten by Redis"),
            (self.expired, "of these with answers that are not kept any more"),
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
    fn what_is_left_names_a_command_that_goes_on() {
        let all = LineSet::all();
        let mut tally = Tally { enqueued: 510, refused: 2, through: 512, ..Tally::default() };
        assert_eq!(
            tally.left(None, &all),
            "read up to line 512: 510 jobs enqueued, 2 lines refused; the same command with --lines \
             513- goes on"
        );
        (513..=768).chain([770]).for_each(|line| tally.unknown.push(line));
        tally.through = 770;
        let text = tally.left(Some("run"), &all);
        assert!(text.contains("nothing is known: line 513-768,770"), "{text}");
        assert!(text.contains("--idempotency-prefix run"), "{text}");
        let text = tally.left(None, &all);
        assert!(
            text.contains("--lines 771- goes on behind them, with --lines 513-768,770-"),
            "{text}"
        );
        let mut tally = Tally { enqueued: 4, through: 7, ..Tally::default() };
        for line in [3, 5, 6] {
            tally.no_room.push(line);
        }
        assert_eq!(
            tally.left(None, &"1-9".parse().unwrap()),
            "read up to line 7: 4 jobs enqueued; not enqueued, for want of room: line 3,5-6; the same \
             command with --lines 3,5-6,8-9 goes on"
        );
        assert!(Tally::default().left(None, &all).starts_with("no line is enqueued"));
    }

    #[test]
    fn an_enqueued_job_is_an_object_with_its_labels() {
        let labels = Labels([("a".to_owned(), "b".to_owned())].into());
        let line =
            Enqueued { id: None, line: 2, state: "valid", custom_id: Some("c"), labels: &labels };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"id":null,"line":2,"state":"valid","custom_id":"c","labels":{"a":"b"}}"#
        );
    }
}
