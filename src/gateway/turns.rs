//! Turns at work that takes much memory: few at a time in all, and fewer for one tenant.
//!
//! Each request waits until there is a turn. A tenant's requests wait for one another first: no more of them
//! than the tenant's share stand in the line of all, however many it sends, and the other tenants wait behind
//! those at most.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::job::Tenant;

/// The turns there are.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    each: usize,
    tenants: Mutex<HashMap<Tenant, Line>>,
}

/// A tenant's own line.
#[derive(Debug)]
struct Line {
    free: Arc<Semaphore>,
    /// Requests that have a turn or wait for one.
    requests: usize,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _all: Option<SemaphorePermit<'a>>,
    _own: Option<OwnedSemaphorePermit>,
    _place: Place<'a>,
}

/// Counts a request in its tenant's line.
#[derive(Debug)]
struct Place<'a> {
    turns: &'a Turns,
    tenant: Tenant,
}

impl Turns {
    /// So many turns at a time, and so many for one tenant.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { all: Semaphore::new(all), each, tenants: Mutex::default() }
    }

    /// A turn for a request of this tenant, once there is one.
    pub(super) async fn take(&self, tenant: &Tenant) -> Turn<'_> {
        let place = Place { turns: self, tenant: tenant.clone() };
        let free = self.join(tenant);
        // The semaphores are never closed.
        let own = free.acquire_owned().await.ok();
        let all = self.all.acquire().await.ok();
        Turn { _all: all, _own: own, _place: place }
    }

    fn join(&self, tenant: &Tenant) -> Arc<Semaphore> {
        let mut tenants = self.lock();
        let line = tenants
            .entry(tenant.clone())
            .or_insert_with(|| Line { free: Arc::new(Semaphore::new(self.each)), requests: 0 });
        line.requests += 1;
        Arc::clone(&line.free)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, Line>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut tenants = self.turns.lock();
        if let Some(line) = tenants.get_mut(&self.tenant) {
            line.requests = line.requests.saturating_sub(1);
            if line.requests == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{Extension, body::Body, http::Request};
    use futures_util::FutureExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        broker::{
            Shared,
            memory::{self, Memory},
        },
        gateway::{Caller, Gateway, Options, Right},
        job::{ChatRequest, Job},
        listener::{self, Listener},
        producer::{self, Producer},
    };

    /// One tenant's requests took every turn, and the others waited behind all of them.
    #[tokio::test]
    async fn a_tenant_that_asks_a_thousand_times_leaves_turns_to_the_others() {
        let turns = Turns::new(3, 2);
        let [a, b, c]: [Tenant; 3] = ["a", "b", "c"].map(|name| name.parse().unwrap());
        let mut crowd: Vec<_> = (0..1000).map(|_| Box::pin(turns.take(&a))).collect();
        let mut held: Vec<_> =
            crowd.iter_mut().filter_map(futures_util::FutureExt::now_or_never).collect();
        assert_eq!(held.len(), 2);
        let other = turns.take(&b).now_or_never().expect("a turn is left");
        // All are taken: whoever comes next waits for one of them, and not for the crowd.
        let mut next = Box::pin(turns.take(&c));
        assert!(next.as_mut().now_or_never().is_none());
        held.pop();
        assert!(next.now_or_never().is_some());
        drop((other, held, crowd));
        assert!(turns.lock().is_empty(), "nothing is kept of tenants that are gone");
    }

    /// Guards against an answer that is not given because another tenant's answers are put together.
    #[tokio::test]
    async fn an_answer_is_given_while_another_tenant_has_all_its_turns() {
        let broker: Shared = Arc::new(Memory::new(memory::Options::default()));
        let listener = Listener::new(broker.clone(), listener::Options::default());
        let options = Options::default();
        let gateway =
            Gateway::new(broker.clone(), listener, producer::Options::default(), options).unwrap();
        let [busy, other]: [Tenant; 2] = ["busy", "other"].map(|name| name.parse().unwrap());
        let turns = &gateway.app.assembling;
        let mut held = Vec::new();
        while let Some(turn) = turns.take(&busy).now_or_never() {
            held.push(turn);
        }
        let producer = Producer::new(broker, producer::Options::default());
        for (tenant, is_answered) in [(busy, false), (other, true)] {
            let job = Job { tenant: tenant.clone(), ..Job::new(ChatRequest::ask("m", "a")) };
            let id = producer.enqueue(job).await.unwrap().id;
            let caller = Caller::new(tenant, Right::ALL);
            let router = gateway.router().layer(Extension(caller));
            let asked = Request::get(format!("/v1/jobs/{id}")).header("host", "localhost");
            let answer = router.oneshot(asked.body(Body::empty()).unwrap());
            let patience = Duration::from_millis(if is_answered { 20_000 } else { 50 });
            let answer = tokio::time::timeout(patience, answer).await;
            assert_eq!(answer.is_ok_and(|answer| answer.unwrap().status() == 200), is_answered);
        }
    }
}
