//! Memory for request bodies and for messages of WebSockets, within a bound in all and for each tenant.
//!
//! A body takes room as its bytes arrive, and gives it back when it is dropped. Where there is none the request is
//! refused instead of made to wait: bodies that wait for one another's room would all wait for ever.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;

use super::error::Refusal;
use crate::job::Tenant;

/// How soon there may be room again.
const SOON: Duration = Duration::from_secs(1);

/// The room there is.
#[derive(Debug, Clone)]
pub(super) struct Bodies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
}

/// The room of one body.
#[derive(Debug)]
pub(super) struct Room {
    shared: Arc<Shared>,
    tenant: Tenant,
    bytes: usize,
}

impl Bodies {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, taken: Mutex::default() }))
    }

    /// Room for a body of this tenant, none of it taken yet.
    pub(super) fn room(&self, tenant: &Tenant) -> Room {
        Room { shared: Arc::clone(&self.0), tenant: tenant.clone(), bytes: 0 }
    }
}

impl Room {
    /// Takes room for that many bytes more, or says that there is none.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        let most = self.shared.most;
        let mut taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = taken.by_tenant.get(&self.tenant).copied().unwrap_or(0);
        let whose = match (taken.all + bytes <= most, mine + bytes <= most / 2) {
            (true, true) => {
                taken.all += bytes;
                taken.by_tenant.insert(self.tenant.clone(), mine + bytes);
                self.bytes += bytes;
                return Ok(());
            }
            (true, false) => "your tenant sends",
            (false, _) => "this gateway is sent",
        };
        let text = format!(
            "{whose} too many bytes of request bodies at once; send them one after the other, or wait \
             (gateway.limits.max_bodies)"
        );
        Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_bodies", text).after(SOON))
    }
}

impl Room {
    /// Gives back as much of what it has.
    fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        if bytes == 0 {
            return;
        }
        self.bytes -= bytes;
        let mut taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(bytes);
        if let Some(mine) = taken.by_tenant.get_mut(&self.tenant) {
            *mine = mine.saturating_sub(bytes);
            if *mine == 0 {
                taken.by_tenant.remove(&self.tenant);
            }
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// The room of a WebSocket's messages: taken where their bytes come in, and given back for each message once it has
/// been answered and is there no more.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<Mutex<Option<Room>>>);

impl Meter {
    /// Counts from here on.
    pub(super) fn begin(&self, room: Room) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(room);
    }

    /// Takes room for bytes that came in, or says that there is none.
    pub(super) fn count(&self, bytes: usize) -> Result<(), Refusal> {
        let mut room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        room.as_mut().map_or(Ok(()), |room| room.take(bytes))
    }

    /// What is taken now.
    pub(super) fn taken(&self) -> usize {
        let room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        room.as_ref().map_or(0, |room| room.bytes)
    }

    /// So many bytes are there no more.
    pub(super) fn give_back(&self, bytes: usize) {
        if let Some(room) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            room.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_half_of_the_room_and_gives_it_back() {
        let bodies = Bodies::new(100);
        let [a, b, c]: [Tenant; 3] = ["a", "b", "c"].map(|name| name.parse().unwrap());
        let (mut first, mut second) = (bodies.room(&a), bodies.room(&a));
        first.take(30).unwrap();
        second.take(20).unwrap();
        assert!(second.take(1).unwrap_err().error.message.contains("your tenant"));
        let mut other = bodies.room(&b);
        other.take(49).unwrap();
        let mut last = bodies.room(&c);
        assert!(last.take(2).unwrap_err().error.message.contains("this gateway"));
        drop(first);
        last.take(31).unwrap();
        drop((second, other, last));
        let taken = bodies.0.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_tenant.len()), (0, 0));
    }
}
