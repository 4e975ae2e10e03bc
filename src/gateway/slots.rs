//! Open streams, counted in all and by tenant. A slot is given back when it is dropped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;

use super::{error::Refusal, options::Limits};
use crate::job::Tenant;

/// How long a client waits for another stream to end.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: usize,
    each: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
}

/// The right to keep one stream open.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    tenant: Tenant,
}

impl Slots {
    pub(super) fn new(limits: &Limits) -> Self {
        let (all, each) = (limits.max_streams, limits.max_streams_per_tenant);
        Self(Arc::new(Shared { all, each, open: Mutex::default() }))
    }

    /// Takes a slot, or says which limit is reached.
    pub(super) fn take(&self, tenant: &Tenant) -> Result<Slot, Refusal> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.by_tenant.get(tenant).copied().unwrap_or(0);
        let (scope, most) = match (open.all < self.0.all, mine < self.0.each) {
            (true, true) => {
                open.all += 1;
                open.by_tenant.insert(tenant.clone(), mine + 1);
                return Ok(Slot { shared: Arc::clone(&self.0), tenant: tenant.clone() });
            }
            (true, false) => ("your tenant has", self.0.each),
            (false, _) => ("this gateway has", self.0.all),
        };
        let text =
            format!("{scope} {most} open streams, the most that are allowed; close one, or wait");
        Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", text).after(WAIT))
    }

    /// Streams that are open.
    pub(super) fn open(&self) -> usize {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all = open.all.saturating_sub(1);
        if let Some(mine) = open.by_tenant.get_mut(&self.tenant) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                open.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back_when_its_stream_ends() {
        let limits = Limits { max_streams: 3, max_streams_per_tenant: 2, ..Limits::default() };
        let slots = Slots::new(&limits);
        let [a, b]: [Tenant; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let held = [slots.take(&a).unwrap(), slots.take(&a).unwrap()];
        assert!(slots.take(&a).unwrap_err().error.message.contains("your tenant has 2"));
        let other = slots.take(&b).unwrap();
        assert!(slots.take(&b).unwrap_err().error.message.contains("this gateway has 3"));
        drop(held);
        assert_eq!(slots.open(), 1);
        drop((slots.take(&a).unwrap(), other));
        assert_eq!(slots.open(), 0);
    }
}
