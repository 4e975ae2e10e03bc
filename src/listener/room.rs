//! The bytes that may wait for one reader.
//!
//! They are events of the log that were read and not handed out, and live messages that were heard and
//! not taken. A page of the log is read only when there is room for it, so that several jobs that are
//! followed by one reader take turns; a live message for which there is none makes its reader lag, which
//! then reads it from the log. An event that is larger than all of the room takes all of it, and passes
//! alone.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// The bytes that may wait for one reader, whatever it follows. Clones are the same room.
#[derive(Debug, Clone)]
pub struct Room {
    free: Arc<Semaphore>,
    size: u32,
}

/// A part of a room that is taken until it is dropped.
#[derive(Debug)]
pub(super) struct Taken(Option<OwnedSemaphorePermit>);

impl Room {
    /// A room of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(2, u32::MAX >> 1);
        Self { free: Arc::new(Semaphore::new(size as usize)), size }
    }

    /// Most bytes of a page: half of the room, so that live messages have the other half.
    pub(super) fn page(&self) -> usize {
        self.size as usize / 2
    }

    /// Room for a page, once there is.
    pub(super) async fn take(&self) -> Taken {
        Taken(Arc::clone(&self.free).acquire_many_owned(self.size / 2).await.ok())
    }

    /// Room for a page, if there is.
    pub(super) fn try_take(&self) -> Option<Taken> {
        let permit = Arc::clone(&self.free).try_acquire_many_owned(self.size / 2).ok()?;
        Some(Taken(Some(permit)))
    }

    /// What a message of so many bytes takes.
    fn part(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).map_or(self.size, |bytes| bytes.min(self.size))
    }

    /// Takes room for a message, if there is; [`Room::release`] gives it back.
    pub(super) fn claim(&self, bytes: usize) -> bool {
        self.free.try_acquire_many(self.part(bytes)).map(SemaphorePermit::forget).is_ok()
    }

    /// Gives back what a message took.
    pub(super) fn release(&self, bytes: usize) {
        self.free.add_permits(self.part(bytes) as usize);
    }
}

impl Taken {
    /// Gives back what is more than so many bytes.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn pages_and_messages_share_the_room() {
        let room = Room::new(100);
        let mut page = room.take().await;
        assert!(room.claim(40) && !room.claim(11));
        assert!(room.try_take().is_none());
        page.shrink(30);
        assert!(room.claim(30) && !room.claim(1));
        room.release(40);
        drop(page);
        assert!(room.claim(70) && !room.claim(1));
        room.release(70);
        room.release(30);
        // Larger than the room: alone.
        assert!(room.claim(1000) && !room.claim(1));
        assert!(room.take().now_or_never().is_none());
        room.release(1000);
        assert!(room.try_take().is_some());
    }
}
