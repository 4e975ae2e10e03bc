//! Requests that this process counts by itself: those with one browser token, and those of a tenant for which no
//! limit is configured.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Limits;
use crate::{
    broker::{Buckets, Rate},
    job::Tenant,
};

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Rates {
    tenants: Mutex<Buckets<Tenant>>,
    /// By the signatures of the tokens.
    tokens: Mutex<Buckets<String>>,
}

/// A minute's requests, which may all come at once.
fn a_minutes(per_minute: u32) -> Rate {
    Rate { per_minute, burst: per_minute }
}

impl Rates {
    /// Counts so many requests of a tenant; how long it has to wait where that is too many.
    pub(super) fn tenant(&self, tenant: &Tenant, count: u32) -> Option<Duration> {
        let mut buckets = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(tenant, a_minutes(Limits::GENEROUS), count, Instant::now())
    }

    /// Counts a request with a token, of which so many may come in a minute.
    pub(super) fn token(&self, token: &str, per_minute: u32) -> Option<Duration> {
        let mut buckets = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(&token.to_owned(), a_minutes(per_minute), 1, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing was configured, a tenant could ask without end, and an array counted as one request.
    #[test]
    fn a_tenant_has_a_generous_limit_of_its_own() {
        let rates = Rates::default();
        let [a, b]: [Tenant; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        for _ in 0..60 {
            assert_eq!(rates.tenant(&a, 1000), None);
        }
        let wait = rates.tenant(&a, 1000).unwrap();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(rates.tenant(&b, 1000), None);
    }
}
