//! A cursor that the log does not hold.
//!
//! A reader comes with the ID of the last event that it saw, and the log has nothing behind it. Mostly
//! the reader has simply seen everything. But the log may end below the cursor, for three reasons that
//! look alike. The broker may have forgotten the log's tail: then the worker writes it again in one
//! step, with the same IDs, and whoever passed it on would repeat it. It may have forgotten the whole
//! attempt that the reader saw, and the one before it goes on. Or no such event was ever written. In both
//! of these everything that comes is news, and whoever waited for the cursor would say nothing, not even
//! at the end.
//!
//! The next writes tell. A tail is written again as a whole, with at most one append behind it that the
//! reader may have heard of before. A log that grows twice and is still below the cursor never held it, or
//! holds it no more; so does one that grows under a lower fence, or ends. What is heard is believed only
//! where the log has it: a worker that has lost its job says its next words all the same, and the log
//! refuses them.
//!
//! A reader whose attempt is forgotten has text that no log holds. It is given the attempt that goes on from
//! its `started` on, which tells it to discard that text.

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

/// A live event at the cursor or below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) id: EventId,
    /// Whether it ends a run.
    pub(super) ends: bool,
}

/// What a look at the log says of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The log holds it.
    True,
    /// No such event is there: the reader goes on from here.
    False(EventId),
    /// Not known yet.
    Open(Doubt),
}

/// Where the attempt of this event begins; an event that is the last under its fence is none of an attempt.
pub(super) fn attempt_of(id: EventId) -> EventId {
    if id.seq == u64::MAX { id } else { EventId { seq: 0, ..id }.before() }
}

/// Judges `cursor` by the log's `last` event; `heard` is the live event that was the reason to look.
pub(super) fn judge(
    cursor: EventId,
    doubt: Option<Doubt>,
    last: Option<EventId>,
    heard: Option<Word>,
) -> Verdict {
    let last = last.unwrap_or(EventId::START);
    if last >= cursor {
        return Verdict::True;
    }
    let heard = heard.filter(|word| word.id.fence == last.fence && word.id <= last);
    // A log that was longer has lost its tail once more.
    let doubt = doubt.filter(|doubt| doubt.seen <= last).unwrap_or(Doubt {
        from: heard.map_or(last, |word| word.id.before()),
        // What is heard was written just now.
        seen: heard.map_or(last, |word| word.id.before()),
        growths: 0,
    });
    let growths = doubt.growths + u8::from(last > doubt.seen);
    let is_another = last.fence < cursor.fence;
    if growths > 1 || heard.is_some_and(|word| word.ends || is_another) {
        return Verdict::False(if is_another { attempt_of(doubt.from) } else { doubt.from });
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
        let heard = heard.map(|seq| Word { id: id(seq), ends: false });
        judge(id(cursor), doubt.into(), Some(id(last)), heard)
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

    /// Guards against a reader that is told an attempt again: a worker that was frozen says its next words
    /// after another has taken its job over, and the log refuses them.
    #[test]
    fn what_is_heard_and_not_in_the_log_tells_nothing() {
        let late = Some(Word { id: EventId { fence: 6, seq: 30 }, ends: false });
        assert_eq!(judge(id(24), None, Some(id(24)), late), Verdict::True);
        let doubt = open(judge(id(24), None, Some(id(20)), late));
        assert_eq!(doubt, Doubt { from: id(20), seen: id(20), growths: 0 });
        let unwritten = Some(Word { id: id(22), ends: true });
        assert_eq!(judge(id(24), None, Some(id(20)), unwritten), Verdict::Open(doubt));
    }

    #[test]
    fn an_attempt_that_is_forgotten_gives_way_to_the_one_that_goes_on() {
        let before = |seq| EventId { fence: 6, seq };
        let start = EventId { fence: 5, seq: u64::MAX };
        let heard = Some(Word { id: before(31), ends: false });
        assert_eq!(judge(id(2), None, Some(before(31)), heard), Verdict::False(start));
        // The same without live messages.
        let doubt = open(judge(id(2), None, Some(before(30)), None));
        let doubt = open(judge(id(2), Some(doubt), Some(before(31)), None));
        assert_eq!(judge(id(2), Some(doubt), Some(before(32)), None), Verdict::False(start));
        // It may be written again, too.
        assert_eq!(judge(id(2), Some(doubt), Some(id(2)), None), Verdict::True);
    }

    #[test]
    fn a_log_that_loses_its_tail_once_more_is_judged_anew() {
        let doubt = open(look(57, None, 50, None));
        let doubt = open(look(57, doubt, 56, None));
        let doubt = open(look(57, doubt, 40, None));
        assert_eq!(doubt, Doubt { from: id(40), seen: id(40), growths: 0 });
        let doubt = open(look(57, doubt, 56, None));
        assert_eq!(look(57, doubt, 57, None), Verdict::True);
    }
}
