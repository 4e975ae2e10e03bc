//! Cached answers of routes that are asked often.
//!
//! An answer is kept under its route and whatever it depends on, for its route's time, with an `ETag`. While
//! one request refreshes an answer, the others wait for it. The answer of a finished job is kept together
//! with a subscription to its events: the first event of a new run makes it stale, in every process, and
//! so does a connection on which such an event may have been missed.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use moka::{Expiry, future::Cache as Store};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio_util::task::AbortOnDropHandle;

use super::{auth::Caller, counters::Counters, error::Refusal, slots::Slot};
use crate::{
    job::{JobId, Tenant},
    listener::{Link, Subscription},
};

/// What an answer is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// `/healthz`.
    Health,
    /// `/whoami` of a caller.
    Caller(Arc<Caller>),
    /// `/v1/models`.
    Models,
    /// `/v1/jobs/ID` of a tenant.
    Job(Tenant, JobId),
}

/// An answer, and how long it is good.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    body: Bytes,
    etag: HeaderValue,
    control: HeaderValue,
    lifetime: Duration,
    /// What it took to find it out.
    took: Duration,
    guard: Option<Arc<Guard>>,
}

/// Notices that a job's answer has changed.
#[derive(Debug)]
pub(super) struct Guard {
    stale: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

impl Guard {
    /// Watches from now on, once the link is known; `None` where nothing would be heard.
    pub(super) async fn on(mut subscription: Subscription) -> Option<Self> {
        if !matches!(subscription.link().await, Link::Live(_)) {
            return None;
        }
        let stale = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stale);
        let task = tokio::spawn(async move {
            // Whatever is heard: an event of a new run, or that one may have been missed.
            subscription.next().await;
            flag.store(true, Ordering::Release);
        });
        Some(Self { stale, _task: AbortOnDropHandle::new(task) })
    }

    fn is_quiet(&self) -> bool {
        !self.stale.load(Ordering::Acquire)
    }
}

impl Answer {
    /// An answer for everybody, or for its caller alone, that clients may keep for as long.
    pub(super) fn new(content: &impl Serialize, lifetime: Duration, public: bool) -> Self {
        let scope = if public { "public" } else { "private" };
        let control = format!("{scope}, max-age={}", lifetime.as_secs());
        Self::with(content, lifetime, &control, None)
    }

    /// An answer of a finished job: clients ask each time whether it is still good.
    pub(super) fn guarded(
        content: &impl Serialize,
        lifetime: Duration,
        guard: Option<Guard>,
    ) -> Self {
        let lifetime = if guard.is_some() { lifetime } else { Duration::ZERO };
        Self::with(content, lifetime, "private, no-cache", guard)
    }

    /// An answer that is true for the moment only.
    pub(super) fn passing(content: &impl Serialize) -> Self {
        Self::with(content, Duration::ZERO, "no-store", None)
    }

    fn with(
        content: &impl Serialize,
        lifetime: Duration,
        control: &str,
        guard: Option<Guard>,
    ) -> Self {
        let body = Bytes::from(serde_json::to_vec(content).unwrap_or_default());
        let hash: String = Sha256::digest(&body)[..12].iter().map(|b| format!("{b:02x}")).collect();
        let header = |text: &str| {
            HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("no-store"))
        };
        Self {
            etag: header(&format!("\"{hash}\"")),
            control: header(control),
            body,
            lifetime,
            took: Duration::ZERO,
            guard: guard.map(Arc::new),
        }
    }

    fn is_good(&self) -> bool {
        self.guard.as_ref().is_none_or(|guard| guard.is_quiet())
    }

    /// As [`Answer::respond`], to a reader whose slot it takes until it is read.
    pub(super) fn respond_within(
        self,
        mut slot: Slot,
        request: &HeaderMap,
    ) -> Result<Response, Refusal> {
        // What readers have of it outlives its place in the cache.
        slot.widen(self.body.len())?;
        Ok(self.responding(request, |body| slot.body(body)))
    }

    /// The response, or 304 where the client has it.
    pub(super) fn respond(self, request: &HeaderMap) -> Response {
        self.responding(request, Body::from)
    }

    fn responding(self, request: &HeaderMap, hand_out: impl FnOnce(Bytes) -> Body) -> Response {
        let known = request.get_all(header::IF_NONE_MATCH).iter().any(|value| {
            let mut tags = value.to_str().unwrap_or_default().split(',').map(str::trim);
            tags.any(|tag| tag == "*" || tag.trim_start_matches("W/") == self.etag)
        });
        // What belongs to one key is not for a browser's next one; an application may know callers by a cookie.
        let vary = HeaderValue::from_static("authorization, cookie, x-api-key");
        let caching = [
            (header::ETAG, self.etag),
            (header::CACHE_CONTROL, self.control),
            (header::VARY, vary),
        ];
        if known {
            return (StatusCode::NOT_MODIFIED, caching).into_response();
        }
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (caching, kind, hand_out(self.body)).into_response()
    }
}

/// Every answer has its own time.
struct ByAnswer;

impl Expiry<Key, Answer> for ByAnswer {
    fn expire_after_create(&self, _: &Key, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(answer.lifetime)
    }
}

/// Why an answer is not kept.
#[derive(Debug, Clone)]
enum Unkept {
    Refused(Refusal),
    Passing(Answer),
}

/// Answers that are kept.
#[derive(Debug, Clone)]
pub(super) struct Cache(Store<Key, Answer>);

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        let weigh = |_: &Key, answer: &Answer| {
            // A guard is a task, and a reader of a topic of its own: 1.5 to 2.7 KB were measured.
            let guard = if answer.guard.is_some() { 3 * 1024 } else { 0 };
            u32::try_from(answer.body.len() + 512 + guard).unwrap_or(u32::MAX)
        };
        Self(Store::builder().max_capacity(bytes).weigher(weigh).expire_after(ByAnswer).build())
    }

    /// The answer under `key`, kept or found out by `find`, which runs once for all who wait for it.
    pub(super) async fn get(
        &self,
        key: Key,
        counters: &Counters,
        find: impl Future<Output = Result<Answer, Refusal>>,
    ) -> Result<Answer, Refusal> {
        let began = Instant::now();
        if let Some(answer) = self.0.get(&key).await {
            if answer.is_good() {
                counters.cache_hit(answer.took.saturating_sub(began.elapsed()));
                return Ok(answer);
            }
            self.0.invalidate(&key).await;
        }
        counters.cache_miss();
        let find = async {
            let began = Instant::now();
            let answer = find.await.map_err(Unkept::Refused)?;
            let answer = Answer { took: began.elapsed(), ..answer };
            if answer.lifetime.is_zero() { Err(Unkept::Passing(answer)) } else { Ok(answer) }
        };
        match self.0.try_get_with(key, find).await {
            Ok(answer) => Ok(answer),
            Err(unkept) => match Arc::unwrap_or_clone(unkept) {
                Unkept::Refused(refusal) => Err(refusal),
                Unkept::Passing(answer) => Ok(answer),
            },
        }
    }

    /// The keys have changed: who somebody is may have changed too.
    pub(super) fn forget_callers(&self) {
        self.0.invalidate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept is found out anew when its time is over, and not before.
    #[tokio::test]
    async fn an_answer_is_kept_for_its_own_time() {
        let (cache, counters) = (Cache::new(1 << 20), Counters::default());
        let ask = async |key: Key, text: &str, lifetime| {
            let find = async { Ok(Answer::new(&text, lifetime, false)) };
            cache.get(key, &counters, find).await.unwrap().body
        };
        let (short, long) = (Duration::from_millis(30), Duration::from_secs(3600));
        assert_eq!(ask(Key::Health, "a", long).await, "\"a\"");
        assert_eq!(ask(Key::Models, "a", short).await, "\"a\"");
        while ask(Key::Models, "b", short).await == "\"a\"" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ask(Key::Health, "b", long).await, "\"a\"");
    }
}
