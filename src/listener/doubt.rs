//! A cursor that the log does not hold.
//!
//! A reader comes with the ID of the last event that it saw, and the log has nothing behind it. Mostly
//! the reader has simply seen everything. But the log may end below the cursor, for two reasons that
//! look alike. The broker may have forgotten the log's tail: then the worker writes it again in one
//! step, with the same IDs, and whoever passed it on would repeat it. Or no such event was ever
//! written: then everything that comes is news, and whoever waited for the cursor would say nothing,
//! not even at the end.
//!
//! The next writes tell. A tail is written again as a whole, with at most one append behind it that the
//! reader may have heard of before. A log that grows twice and is still below the cursor never held it.

use crate::event::EventId;

/// What is known so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubt {
    /// The event before those that have come since: reading begins here if the cursor is false.
    from: EventId,
    /// The log's last event at the last look.
    seen: EventId,
    /// How often the log has grown since.
    growths: u8,
}

impl Doubt {
    /// Where reading begins if the cursor is false.
    pub(super) fn from(self) -> EventId {
        self.from
    }
}

/// What a look at the log says of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The log holds it.
    True,
    /// No event was ever there: the reader goes on from here.
    False(EventId),
    /// Not known yet.
    Open(Doubt),
}

/// Judges `cursor` by the log's `last` event; `heard` is the live event that was the reason to look.
pub(super) fn judge(
    cursor: EventId,
    doubt: Option<Doubt>,
    last: Option<EventId>,
    heard: Option<EventId>,
) -> Verdict {
    let last = last.unwrap_or(EventId::START);
    if last >= cursor {
        return Verdict::True;
    }
    let Some(doubt) = doubt else {
        // What is heard was written just now.
        let (from, growths) = heard.map_or((last, 0), |event| (event.before(), 1));
        return Verdict::Open(Doubt { from, seen: last, growths });
    };
    let growths = doubt.growths + u8::from(last > doubt.seen);
    if growths > 1 {
        return Verdict::False(doubt.from);
    }
    Verdict::Open(Doubt { seen: last, growths, ..doubt })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> EventId {
        EventId { fence: 7, seq }
    }

    fn look(
        cursor: u64,
        doubt: impl Into<Option<Doubt>>,
        last: u64,
        heard: Option<u64>,
    ) -> Verdict {
        judge(id(cursor), doubt.into(), Some(id(last)), heard.map(id))
    }

    fn open(verdict: Verdict) -> Doubt {
        match verdict {
            Verdict::Open(doubt) => doubt,
            other => panic!("judged: {other:?}"),
        }
    }

    #[test]
    fn a_tail_that_is_written_again_makes_the_cursor_true() {
        // 51 to 56 in one step, and behind them the append whose reply was lost.
        let mut doubt = open(look(57, None, 56, Some(51)));
        for heard in 52..=56 {
            doubt = open(look(57, doubt, 56, Some(heard)));
        }
        assert_eq!(look(57, doubt, 57, Some(57)), Verdict::True);
        // The same without live messages.
        let doubt = open(look(57, None, 50, None));
        let doubt = open(look(57, doubt, 50, None));
        let doubt = open(look(57, doubt, 56, None));
        assert_eq!(look(57, doubt, 57, None), Verdict::True);
    }

    #[test]
    fn a_log_that_grows_twice_below_the_cursor_never_held_it() {
        let doubt = open(look(900, None, 51, Some(51)));
        assert_eq!(look(900, doubt, 52, Some(52)), Verdict::False(id(50)));
        let doubt = open(look(900, None, 50, None));
        let doubt = open(look(900, doubt, 51, None));
        assert_eq!(look(900, doubt, 53, None), Verdict::False(id(50)));
    }
}
