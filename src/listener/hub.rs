//! The process's one subscriber connection, shared by every reader.
//!
//! A single task owns the connection. Readers only say which topics they want, in a table, which also
//! names the topics that somebody has joined first or left last; the task looks at those alone and makes
//! the subscriptions match. Messages go straight from the connection to each topic's readers, which have
//! bounded [`Room`]: one that has none left is told that it lags.
//!
//! The task opens the connection for the first topic, asks every `ping` whether it lives, and after
//! a disconnect tries again with backoff and subscribes anew. Each connection has a number, so that
//! a reader knows when it must read the log again.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::join_all};
use tokio::{
    sync::{Notify, watch},
    time::MissedTickBehavior,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    live::{Live, Next},
    room::Room,
};
use crate::{
    broker::{Feed, Shared as Broker, Signal, Sink, Topic},
    retry::Backoff,
};

/// How a topic is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Not known yet.
    Pending,
    /// Every message arrives, on the connection of this number.
    Live(u64),
    /// Nothing arrives: the connection is gone or the subscription refused.
    Down,
}

/// Shares one subscriber connection.
#[derive(Clone)]
pub struct Hub {
    table: Arc<Table>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("topics", &self.topics()).finish_non_exhaustive()
    }
}

/// Who wants what.
struct Table {
    wanted: Mutex<Wanted>,
    changed: Notify,
    /// Most bytes that wait for a reader that brings no room of its own.
    room: usize,
    /// There is no connection, and the last attempt to make one failed.
    down: AtomicBool,
}

#[derive(Default)]
struct Wanted {
    topics: HashMap<Topic, Arc<Shared>>,
    /// Topics whose subscription may have to change.
    changed: HashSet<Topic>,
}

/// A topic that somebody reads, or read a moment ago.
#[derive(Debug)]
struct Shared {
    live: Live,
    link: watch::Sender<Link>,
}

/// What is to be done about subscriptions.
#[derive(Debug, Default)]
struct Changes {
    /// Topics that are wanted and not connected.
    open: Vec<Topic>,
    /// Topics that are connected and that nobody wants any more.
    over: Vec<Topic>,
    /// Topics that were looked at.
    looked: usize,
}

/// A reader's part in a topic; dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    hub: Hub,
    topic: Topic,
    shared: Arc<Shared>,
    reader: u64,
    link: watch::Receiver<Link>,
}

/// What a subscription has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A message.
    Message(Arc<[u8]>),
    /// Messages were lost: the reader was too slow.
    Lagged,
    /// The link has changed.
    Link(Link),
}

impl Hub {
    /// Starts the task, on the current tokio runtime. It ends with the last clone. A reader that brings
    /// no room of its own may have `room` bytes waiting.
    pub fn new(broker: Broker, ping: Duration, room: usize) -> Self {
        let table = Arc::new(Table {
            wanted: Mutex::default(),
            changed: Notify::new(),
            room,
            down: AtomicBool::new(false),
        });
        let task = tokio::spawn(keep_going(broker, Arc::clone(&table), ping));
        Self { table, _task: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Joins a topic. Whether it is connected is told by [`Subscription::link`].
    pub fn subscribe(&self, topic: Topic) -> Subscription {
        self.subscribe_within(topic, Room::new(self.table.room))
    }

    /// Joins a topic; what waits for the reader takes part of its room.
    pub fn subscribe_within(&self, topic: Topic, room: Room) -> Subscription {
        let mut wanted = self.table.lock();
        let shared = wanted.topics.entry(topic.clone()).or_insert_with(|| {
            let link = watch::Sender::new(self.table.unknown());
            Arc::new(Shared { live: Live::default(), link })
        });
        let (shared, reader) = (Arc::clone(shared), shared.live.join(room));
        let link = shared.link.subscribe();
        let is_connected = matches!(*link.borrow(), Link::Live(_));
        if !is_connected {
            wanted.changed.insert(topic.clone());
        }
        drop(wanted);
        if !is_connected {
            self.table.changed.notify_one();
        }
        Subscription { hub: self.clone(), topic, shared, reader, link }
    }

    /// Topics in use.
    pub fn topics(&self) -> usize {
        self.table.lock().topics.len()
    }
}

impl Subscription {
    /// The link as it is; waits until it is known.
    pub async fn link(&mut self) -> Link {
        match self.link.wait_for(|link| *link != Link::Pending).await {
            Ok(link) => *link,
            Err(_) => Link::Down,
        }
    }

    /// The link as far as it is known.
    pub fn current(&self) -> Link {
        *self.link.borrow()
    }

    /// The next change of the link.
    pub async fn next_link(&mut self) -> Link {
        match self.link.changed().await {
            Ok(()) => *self.link.borrow_and_update(),
            Err(_) => Link::Down,
        }
    }

    /// Gives up the messages that have come and were not taken: the reader is about to read the log.
    pub fn skip(&mut self) {
        self.shared.live.skip(self.reader);
    }

    /// The next message or change.
    pub async fn next(&mut self) -> Heard {
        let (live, reader) = (&self.shared.live, self.reader);
        let message = async {
            loop {
                let news = live.news.notified();
                tokio::pin!(news);
                // Enlisted before the look: what comes in between still rings.
                news.as_mut().enable();
                match live.take(reader) {
                    Some(Next::Message(bytes)) => return Heard::Message(bytes),
                    Some(Next::Lagged) => return Heard::Lagged,
                    None => news.await,
                }
            }
        };
        tokio::select! {
            biased;
            changed = self.link.changed() => Heard::Link(match changed {
                Ok(()) => *self.link.borrow_and_update(),
                Err(_) => Link::Down,
            }),
            heard = message => heard,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.shared.live.leave(self.reader) > 0 {
            return;
        }
        self.hub.table.lock().changed.insert(self.topic.clone());
        self.hub.table.changed.notify_one();
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link of a topic that is not subscribed yet.
    fn unknown(&self) -> Link {
        if self.down.load(Ordering::Relaxed) { Link::Down } else { Link::Pending }
    }

    /// Whether anybody reads.
    fn is_wanted(&self) -> bool {
        self.lock().topics.values().any(|shared| shared.live.readers() > 0)
    }

    fn hand_on(&self, topic: &Topic, bytes: &[u8]) {
        let shared = self.lock().topics.get(topic).map(Arc::clone);
        if let Some(shared) = shared {
            shared.live.push(bytes);
        }
    }

    /// Nothing arrives any more, for no topic.
    fn disconnected(&self) {
        let wanted = self.lock();
        self.down.store(true, Ordering::Relaxed);
        for shared in wanted.topics.values() {
            shared.link.send_replace(Link::Down);
        }
    }

    fn set(&self, topic: &Topic, link: Link) {
        if let Some(shared) = self.lock().topics.get(topic) {
            shared.link.send_if_modified(|have| std::mem::replace(have, link) != link);
        }
    }

    /// Every topic is to be looked at.
    fn look_at_all(&self) {
        let Wanted { topics, changed } = &mut *self.lock();
        changed.extend(topics.keys().cloned());
    }

    /// The topics of these are to be looked at again.
    fn look_at(&self, topics: impl Iterator<Item = Topic>) {
        self.lock().changed.extend(topics);
    }

    /// What is to be done about the topics that have changed; those that nobody wants leave the table.
    fn changes(&self) -> Changes {
        let Wanted { topics, changed } = &mut *self.lock();
        let mut changes = Changes { looked: changed.len(), ..Changes::default() };
        for topic in changed.drain() {
            let Some(shared) = topics.get(&topic) else { continue };
            let is_connected = matches!(*shared.link.borrow(), Link::Live(_));
            match (shared.live.readers() > 0, is_connected) {
                (true, true) => {}
                (true, false) => changes.open.push(topic),
                (false, is_connected) => {
                    topics.remove(&topic);
                    if is_connected {
                        changes.over.push(topic);
                    }
                }
            }
        }
        changes
    }
}

/// Begins again after a panic: nobody else would learn that nothing arrives any more.
async fn keep_going(broker: Broker, table: Arc<Table>, ping: Duration) {
    let mut backoff = Backoff::connecting();
    let mut number = 0;
    loop {
        let kept = keep_connected(&broker, &table, ping, &mut backoff, &mut number);
        if AssertUnwindSafe(kept).catch_unwind().await.is_err() {
            tracing::error!("the task of the subscriber connection failed; it begins again");
        }
        table.disconnected();
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn keep_connected(
    broker: &Broker,
    table: &Arc<Table>,
    ping: Duration,
    backoff: &mut Backoff,
    number: &mut u64,
) {
    loop {
        // Those that nobody wants any more leave the table; the others are looked at once there is a connection.
        while table.changes().open.is_empty() && !table.is_wanted() {
            table.changed.notified().await;
        }
        let closed = Arc::new(Notify::new());
        match broker.feed(sink(table, &closed)).await {
            Ok(feed) => {
                *number += 1;
                backoff.reset();
                table.down.store(false, Ordering::Relaxed);
                serve(feed.as_ref(), table, *number, ping, &closed).await;
                // At the end of a program the last reader has just gone, and nobody misses it.
                if table.is_wanted() {
                    tracing::warn!("subscriber connection lost; reading logs until it is back");
                }
            }
            Err(error) => tracing::warn!(%error, "no subscriber connection; reading logs"),
        }
        table.disconnected();
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

fn sink(table: &Arc<Table>, closed: &Arc<Notify>) -> Sink {
    let (table, closed) = (Arc::clone(table), Arc::clone(closed));
    Arc::new(move |signal| match signal {
        Signal::Message(topic, bytes) => table.hand_on(&topic, &bytes),
        Signal::Closed => closed.notify_one(),
    })
}

/// Makes the subscriptions match the table until the connection is gone.
async fn serve(feed: &dyn Feed, table: &Table, number: u64, ping: Duration, closed: &Notify) {
    let mut ticks = tokio::time::interval(ping);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    table.look_at_all();
    let mut refused = HashSet::new();
    loop {
        let Changes { open, over, looked } = table.changes();
        tracing::trace!(looked, opened = open.len(), left = over.len(), "subscriptions");
        let left = join_all(over.iter().map(|topic| feed.unsubscribe(topic)));
        let joined = join_all(open.iter().map(|topic| feed.subscribe(topic)));
        let (left, joined) = tokio::join!(left, joined);
        for (topic, result) in open.iter().zip(&joined) {
            match result {
                Ok(()) => table.set(topic, Link::Live(number)),
                Err(error) => {
                    tracing::warn!(%error, "subscription refused; reading the log instead");
                    table.set(topic, Link::Down);
                    refused.insert(topic.clone());
                }
            }
        }
        let broken = |result: &crate::broker::Result<()>| {
            result.as_ref().is_err_and(crate::broker::Error::is_transient)
        };
        if left.iter().chain(&joined).any(broken) {
            return;
        }
        tokio::select! {
            () = closed.notified() => return,
            () = table.changed.notified() => {}
            _ = ticks.tick() => {
                if feed.ping().await.is_err() {
                    return;
                }
                table.look_at(refused.drain());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{broker::memory::Memory, job::JobId};

    /// A join or a leave costs a look at its own topic, not at all that there are.
    #[tokio::test]
    async fn whoever_comes_or_goes_is_looked_at_alone() {
        let broker: Broker = Arc::new(Memory::new(crate::broker::memory::Options::default()));
        let hub = Hub::new(broker, Duration::from_secs(60), 1 << 16);
        let topic = || Topic::Job(JobId::new());
        let mut crowd: Vec<_> = (0..1000).map(|_| hub.subscribe(topic())).collect();
        for subscription in &mut crowd {
            assert!(matches!(subscription.link().await, Link::Live(1)));
        }
        let table = Arc::clone(&hub.table);
        assert_eq!(table.changes().looked, 0);
        let one = hub.subscribe(topic());
        let Changes { open, over, looked } = table.changes();
        assert_eq!((open.as_slice(), over.len(), looked), (&[one.topic.clone()][..], 0, 1));
        // A second reader of a topic, and its going, are nobody's business.
        drop(hub.subscribe(crowd[0].topic.clone()));
        assert_eq!(table.changes().looked, 0);
        let gone = crowd.remove(0).topic.clone();
        let Changes { open, over, looked } = table.changes();
        assert_eq!((open.len(), over.as_slice(), looked), (0, &[gone][..], 1));
        assert_eq!(hub.topics(), 1000);
    }
}
