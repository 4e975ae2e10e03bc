//! Open streams and answers that are being read, counted in all, by tenant, and by browser token.
//!
//! What a client has not read yet takes memory until it has. A slot stands for [`SHARE`] bytes of that: a stream
//! has one, an answer as many as it is large, a socket some more for many subscriptions. A slot is given back
//! when it is dropped.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::StatusCode,
};
use hyper::body::{Frame, SizeHint};

use super::{error::Refusal, options::Limits};
use crate::job::Tenant;

/// How long a client waits for another stream to end.
const WAIT: Duration = Duration::from_secs(5);

/// The bytes for which one slot stands.
const SHARE: usize = 64 * 1024;

/// An answer is handed to its connection in pieces of so many bytes: the slot is there until the last of them is
/// on its way.
const PIECE: usize = 16 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: usize,
    each: usize,
    /// Of one browser token.
    of_token: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
    by_token: HashMap<String, usize>,
}

/// The right to keep one stream open, or to have one answer read.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    tenant: Tenant,
    token: Option<String>,
    /// As how many it counts.
    size: usize,
}

impl Slots {
    pub(super) fn new(limits: &Limits) -> Self {
        let (all, each) = (limits.max_streams, limits.max_streams_per_tenant);
        let of_token = limits.max_streams_per_token;
        Self(Arc::new(Shared { all, each, of_token, open: Mutex::default() }))
    }

    /// Takes a slot, or says which limit is reached.
    pub(super) fn take(&self, tenant: &Tenant) -> Result<Slot, Refusal> {
        self.take_with(tenant, None)
    }

    /// As [`Slots::take`] for one who comes with a browser token of that name, or with none.
    pub(super) fn take_with(&self, tenant: &Tenant, token: Option<&str>) -> Result<Slot, Refusal> {
        let (shared, token) = (Arc::clone(&self.0), token.map(str::to_owned));
        let mut slot = Slot { shared, tenant: tenant.clone(), token, size: 0 };
        slot.grow(1)?;
        Ok(slot)
    }

    /// Streams that are open.
    pub(super) fn open(&self) -> usize {
        self.0.lock().all
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts that many more for whoever has a slot.
    fn take(&self, slot: &Slot, count: usize) -> Result<(), Refusal> {
        let mut open = self.lock();
        let mine = open.by_tenant.get(&slot.tenant).copied().unwrap_or(0);
        let of_token = slot.token.as_ref().and_then(|token| open.by_token.get(token).copied());
        // One that is larger than all that is allowed is let in alone.
        let fits = |have: usize, most: usize| have <= slot.size || have + count <= most;
        let (scope, most) = if !fits(open.all, self.all) {
            ("this gateway has", self.all)
        } else if !fits(mine, self.each) {
            ("your tenant has", self.each)
        } else if !fits(of_token.unwrap_or(0), self.of_token) {
            ("this token has", self.of_token)
        } else {
            open.add(slot, count);
            return Ok(());
        };
        let text = format!(
            "{scope} {most} open streams, the most that are allowed (an answer that is being read counts as \
             one for each 64 KiB); close one, or wait"
        );
        Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", text).after(WAIT))
    }
}

impl Open {
    fn add(&mut self, slot: &Slot, count: usize) {
        self.all += count;
        *self.by_tenant.entry(slot.tenant.clone()).or_default() += count;
        if let Some(token) = &slot.token {
            *self.by_token.entry(token.clone()).or_default() += count;
        }
    }

    fn give_back(&mut self, slot: &Slot) {
        self.all = self.all.saturating_sub(slot.size);
        less(&mut self.by_tenant, &slot.tenant, slot.size);
        if let Some(token) = &slot.token {
            less(&mut self.by_token, token, slot.size);
        }
    }
}

/// Counts so many less; who has nothing more is forgotten.
fn less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K, size: usize) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(size);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Slot {
    fn grow(&mut self, more: usize) -> Result<(), Refusal> {
        self.shared.take(self, more)?;
        self.size += more;
        Ok(())
    }

    /// Counts as many as that many bytes need.
    pub(super) fn widen(&mut self, bytes: usize) -> Result<(), Refusal> {
        let more = bytes.div_ceil(SHARE).saturating_sub(self.size);
        if more > 0 { self.grow(more) } else { Ok(()) }
    }

    /// As [`Slot::widen`] for an answer that is paid for: it is not refused, and whoever comes next may be.
    pub(super) fn count(&mut self, bytes: usize) {
        let more = bytes.div_ceil(SHARE).saturating_sub(self.size);
        self.shared.lock().add(self, more);
        self.size += more;
    }

    /// The body of an answer, which keeps the slot until it is handed out.
    pub(super) fn body(self, bytes: Bytes) -> Body {
        Body::new(Held { bytes, _slot: self })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.lock().give_back(self);
    }
}

/// A body that counts as long as it is there.
struct Held {
    bytes: Bytes,
    _slot: Slot,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.bytes.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.bytes.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
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

    /// Whoever had one token of a page could take all streams of its tenant.
    #[test]
    fn a_token_has_its_own_share_of_its_tenants_streams() {
        let slots = Slots::new(&Limits { max_streams_per_token: 2, ..Limits::default() });
        let tenant: Tenant = "a".parse().unwrap();
        let held = ["x", "x", "y"].map(|token| slots.take_with(&tenant, Some(token)).unwrap());
        let words = slots.take_with(&tenant, Some("x")).unwrap_err().error.message;
        assert!(words.contains("this token has 2"), "{words}");
        slots.take(&tenant).unwrap();
        drop(held);
        assert!(slots.0.lock().by_token.is_empty());
        // A large answer is read alone.
        let mut large = slots.take_with(&tenant, Some("x")).unwrap();
        large.widen(9 * SHARE).unwrap();
        assert!(slots.take_with(&tenant, Some("x")).is_err());
    }

    /// A large answer that nobody reads took the memory of many streams, and counted as none.
    #[tokio::test]
    async fn a_large_answer_counts_as_many_until_it_is_read() {
        let slots = Slots::new(&Limits { max_streams: 10, ..Limits::default() });
        let [a, b]: [Tenant; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let mut slot = slots.take(&a).unwrap();
        let _other = slots.take(&b).unwrap();
        slot.widen(SHARE).unwrap();
        assert_eq!(slots.open(), 2);
        // One that is paid for is counted beyond the limit, and refuses others.
        let mut paid = slots.take(&b).unwrap();
        paid.count(12 * SHARE);
        assert_eq!(slots.open(), 14);
        assert!(slots.take(&a).is_err());
        drop(paid);
        assert_eq!(slots.open(), 2);
        assert!(slot.widen(10 * SHARE).is_err());
        slot.widen(8 * SHARE + 1).unwrap();
        assert_eq!(slots.open(), 10);
        let mut body = slot.body(vec![7; 8 * SHARE + 1].into());
        assert_eq!(body.size_hint().exact(), Some(8 * SHARE as u64 + 1));
        let mut read = 0;
        while let Some(frame) = next(&mut body).await {
            assert_eq!(slots.open(), 10);
            read += frame.into_data().unwrap().len();
        }
        assert_eq!(read, 8 * SHARE + 1);
        drop(body);
        assert_eq!(slots.open(), 1);
    }

    async fn next(body: &mut Body) -> Option<Frame<Bytes>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.map(Result::unwrap)
    }
}
