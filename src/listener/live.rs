//! The live messages of one topic.
//!
//! A message is kept once, however many readers there are, until the last of them has taken it. Each
//! reader has [`Room`] for what it has not taken. One that has none left lags: it gives up everything
//! that it has not taken, and is told so. Thus a topic keeps no more than its slowest reader may have,
//! and a reader that has stopped keeps nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::room::Room;

/// What a message takes beside its bytes.
const BESIDE: usize = 64;

/// What a reader takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Message(Arc<[u8]>),
    /// Messages were given up.
    Lagged,
}

/// The messages of one topic.
#[derive(Debug, Default)]
pub(super) struct Live {
    state: Mutex<State>,
    /// Something came, or a reader lags.
    pub(super) news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the first message that is kept.
    first: u64,
    messages: VecDeque<Kept>,
    readers: HashMap<u64, Reader>,
    joined: u64,
}

#[derive(Debug)]
struct Kept {
    bytes: Arc<[u8]>,
    /// Those who have not taken it.
    readers: usize,
}

#[derive(Debug)]
struct Reader {
    /// The number of the message that it takes next; it has room for that one and all behind it.
    next: u64,
    lagged: bool,
    room: Room,
}

impl State {
    fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    /// A reader gives up what it has not taken. One that lags has given it up, and is counted for nothing
    /// that came since.
    fn give_up(&mut self, reader: &mut Reader) {
        if reader.lagged {
            reader.next = self.end();
            return;
        }
        let from = usize::try_from(reader.next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for kept in self.messages.iter_mut().skip(from) {
            kept.readers -= 1;
            reader.room.release(weight(&kept.bytes));
        }
        reader.next = self.end();
    }

    fn trim(&mut self) {
        while self.messages.front().is_some_and(|kept| kept.readers == 0) {
            self.messages.pop_front();
            self.first += 1;
        }
        if self.messages.is_empty() {
            // A burst's space is not kept for ever.
            self.messages = VecDeque::new();
        }
    }
}

fn weight(bytes: &[u8]) -> usize {
    bytes.len() + BESIDE
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new reader, which hears what comes from now on.
    pub(super) fn join(&self, room: Room) -> u64 {
        let mut state = self.lock();
        state.joined += 1;
        let (number, next) = (state.joined, state.end());
        state.readers.insert(number, Reader { next, lagged: false, room });
        number
    }

    /// A reader goes; how many are left.
    pub(super) fn leave(&self, reader: u64) -> usize {
        let mut state = self.lock();
        if let Some(mut reader) = state.readers.remove(&reader) {
            state.give_up(&mut reader);
            state.trim();
        }
        state.readers.len()
    }

    /// How many read.
    pub(super) fn readers(&self) -> usize {
        self.lock().readers.len()
    }

    /// A message has come.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let mut readers = std::mem::take(&mut state.readers);
        let mut waiting = 0;
        for reader in readers.values_mut().filter(|reader| !reader.lagged) {
            if reader.room.claim(weight(bytes)) {
                waiting += 1;
            } else {
                state.give_up(reader);
                reader.lagged = true;
            }
        }
        state.readers = readers;
        state.trim();
        if waiting > 0 {
            state.messages.push_back(Kept { bytes: bytes.into(), readers: waiting });
        }
        drop(state);
        self.news.notify_waiters();
    }

    /// What comes next for a reader, if anything has come.
    pub(super) fn take(&self, reader: u64) -> Option<Next> {
        let mut state = self.lock();
        let (first, end) = (state.first, state.end());
        let reader = state.readers.get_mut(&reader)?;
        if std::mem::take(&mut reader.lagged) {
            reader.next = end;
            return Some(Next::Lagged);
        }
        if reader.next >= end {
            return None;
        }
        let place = usize::try_from(reader.next - first).ok()?;
        reader.next += 1;
        let room = reader.room.clone();
        let kept = state.messages.get_mut(place)?;
        kept.readers -= 1;
        let bytes = Arc::clone(&kept.bytes);
        room.release(weight(&bytes));
        state.trim();
        Some(Next::Message(bytes))
    }

    /// A reader is about to read the log, which has everything that it has not taken.
    pub(super) fn skip(&self, reader: u64) {
        let mut state = self.lock();
        if let Some(mut place) = state.readers.remove(&reader) {
            state.give_up(&mut place);
            place.lagged = false;
            state.readers.insert(reader, place);
            state.trim();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> Next {
        Next::Message(bytes.into())
    }

    #[test]
    fn every_reader_takes_every_message_once() {
        let live = Live::default();
        let [a, b] = [(); 2].map(|()| live.join(Room::new(10_000)));
        live.push(b"1");
        let c = live.join(Room::new(10_000));
        live.push(b"2");
        for reader in [a, b] {
            assert_eq!(live.take(reader), Some(message(b"1")));
        }
        for reader in [c, a, b] {
            assert_eq!(live.take(reader), Some(message(b"2")));
            assert_eq!(live.take(reader), None);
        }
        assert!(live.lock().messages.is_empty());
        live.push(b"3");
        live.skip(a);
        assert_eq!((live.take(a), live.leave(b), live.take(c)), (None, 2, Some(message(b"3"))));
        assert!(live.lock().messages.is_empty());
    }

    /// Guards against a message that is dropped before a reader has taken it: one that lags and goes was
    /// counted off once more.
    #[test]
    fn a_reader_that_lags_takes_nothing_from_the_others() {
        for skips in [false, true] {
            let live = Live::default();
            let (fast, room) = (live.join(Room::new(10_000)), Room::new(200));
            let slow = [(); 2].map(|()| live.join(room.clone()));
            for _ in 0..4 {
                live.push(b"message");
            }
            for _ in 0..4 {
                assert_eq!(live.take(fast), Some(message(b"message")));
            }
            live.push(b"done");
            for slow in slow {
                if skips {
                    live.skip(slow);
                } else {
                    live.leave(slow);
                }
            }
            assert_eq!(live.take(fast), Some(message(b"done")));
            assert!(live.lock().messages.is_empty());
        }
    }

    #[test]
    fn a_reader_without_room_gives_up_what_it_has_not_taken() {
        let live = Live::default();
        let (fast, slow) = (live.join(Room::new(10_000)), live.join(Room::new(200)));
        for _ in 0..4 {
            live.push(b"message");
        }
        assert_eq!(live.lock().messages.len(), 4);
        for _ in 0..4 {
            assert_eq!(live.take(fast), Some(message(b"message")));
        }
        // The slow one keeps nothing from here on, however much comes.
        live.push(b"more");
        assert_eq!(live.take(fast), Some(message(b"more")));
        assert!(live.lock().messages.is_empty());
        assert_eq!((live.take(slow), live.take(slow)), (Some(Next::Lagged), None));
        live.push(&[0; 5000]);
        assert_eq!(
            live.take(slow),
            Some(message(&[0; 5000])),
            "one larger than the room passes alone"
        );
        live.push(&[0; 5000]);
        live.push(b"too much");
        assert_eq!(live.take(slow), Some(Next::Lagged));
    }
}
