//! The process's one subscriber connection, shared by every reader.
//!
//! A single task owns the connection. Readers only say which topics they want, by counting
//! themselves in a table; the task makes the subscriptions match it. Messages go straight from the
//! connection into each topic's bounded channel: a reader that lags is told so by the channel.
//!
//! The task opens the connection for the first topic, asks every `ping` whether it lives, and after
//! a disconnect tries again with backoff and subscribes anew. Each connection has a number, so that
//! a reader knows when it must read the log again.

use std::{
    collections::HashMap,
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
    sync::{Notify, broadcast, watch},
    time::MissedTickBehavior,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    broker::{Feed, Shared, Signal, Sink, Topic},
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
    topics: Mutex<HashMap<Topic, Wanted>>,
    changed: Notify,
    buffer: usize,
    /// There is no connection, and the last attempt to make one failed.
    down: AtomicBool,
}

struct Wanted {
    readers: usize,
    messages: broadcast::Sender<Arc<[u8]>>,
    link: watch::Sender<Link>,
}

/// A reader's part in a topic; dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    hub: Hub,
    topic: Topic,
    messages: broadcast::Receiver<Arc<[u8]>>,
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
    /// Starts the task, on the current tokio runtime. It ends with the last clone.
    pub fn new(broker: Shared, ping: Duration, buffer: usize) -> Self {
        let table = Arc::new(Table {
            topics: Mutex::default(),
            changed: Notify::new(),
            buffer: buffer.max(1),
            down: AtomicBool::new(false),
        });
        let task = tokio::spawn(keep_going(broker, Arc::clone(&table), ping));
        Self { table, _task: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Joins a topic. Whether it is connected is told by [`Subscription::link`].
    pub fn subscribe(&self, topic: Topic) -> Subscription {
        let mut topics = self.table.lock();
        let wanted = topics.entry(topic.clone()).or_insert_with(|| Wanted {
            readers: 0,
            messages: broadcast::Sender::new(self.table.buffer),
            link: watch::Sender::new(self.table.unknown()),
        });
        wanted.readers += 1;
        let (messages, link) = (wanted.messages.subscribe(), wanted.link.subscribe());
        drop(topics);
        self.table.changed.notify_one();
        Subscription { hub: self.clone(), topic, messages, link }
    }

    /// Topics in use.
    pub fn topics(&self) -> usize {
        self.table.lock().len()
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

    /// The next message or change.
    pub async fn next(&mut self) -> Heard {
        tokio::select! {
            biased;
            changed = self.link.changed() => Heard::Link(match changed {
                Ok(()) => *self.link.borrow_and_update(),
                Err(_) => Link::Down,
            }),
            message = self.messages.recv() => match message {
                Ok(bytes) => Heard::Message(bytes),
                Err(_) => Heard::Lagged,
            },
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self.hub.table.lock();
        if let Some(wanted) = topics.get_mut(&self.topic) {
            wanted.readers = wanted.readers.saturating_sub(1);
        }
        drop(topics);
        self.hub.table.changed.notify_one();
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, Wanted>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link of a topic that is not subscribed yet.
    fn unknown(&self) -> Link {
        if self.down.load(Ordering::Relaxed) { Link::Down } else { Link::Pending }
    }

    /// Whether anybody reads.
    fn is_wanted(&self) -> bool {
        self.lock().values().any(|wanted| wanted.readers > 0)
    }

    fn hand_on(&self, topic: &Topic, bytes: &[u8]) {
        if let Some(wanted) = self.lock().get(topic) {
            // No reader: the last one has just gone.
            let _ = wanted.messages.send(bytes.into());
        }
    }

    /// Nothing arrives any more, for no topic.
    fn disconnected(&self) {
        let topics = self.lock();
        self.down.store(true, Ordering::Relaxed);
        for wanted in topics.values() {
            wanted.link.send_replace(Link::Down);
        }
    }

    fn set(&self, topic: &Topic, link: Link) {
        if let Some(wanted) = self.lock().get(topic) {
            wanted.link.send_if_modified(|have| std::mem::replace(have, link) != link);
        }
    }

    /// Topics that are wanted and not connected, and, removed from the table, those that nobody
    /// wants any more. `again` counts refused ones among the former.
    fn changes(&self, again: bool) -> (Vec<Topic>, Vec<Topic>) {
        let mut topics = self.lock();
        let over: Vec<Topic> = topics
            .iter()
            .filter(|(_, wanted)| wanted.readers == 0)
            .map(|(topic, _)| topic.clone())
            .collect();
        for topic in &over {
            topics.remove(topic);
        }
        let open = topics
            .iter()
            .filter(|(_, wanted)| match *wanted.link.borrow() {
                Link::Pending => true,
                Link::Down => again,
                Link::Live(_) => false,
            })
            .map(|(topic, _)| topic.clone())
            .collect();
        (open, over)
    }
}

/// Begins again after a panic: nobody else would learn that nothing arrives any more.
async fn keep_going(broker: Shared, table: Arc<Table>, ping: Duration) {
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
    broker: &Shared,
    table: &Arc<Table>,
    ping: Duration,
    backoff: &mut Backoff,
    number: &mut u64,
) {
    loop {
        while table.changes(true).0.is_empty() {
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
    let mut again = true;
    loop {
        let (open, over) = table.changes(again);
        again = false;
        let left = join_all(over.iter().map(|topic| feed.unsubscribe(topic)));
        let joined = join_all(open.iter().map(|topic| feed.subscribe(topic)));
        let (left, joined) = tokio::join!(left, joined);
        for (topic, result) in open.iter().zip(&joined) {
            match result {
                Ok(()) => table.set(topic, Link::Live(number)),
                Err(error) => {
                    tracing::warn!(%error, "subscription refused; reading the log instead");
                    table.set(topic, Link::Down);
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
                again = true;
            }
        }
    }
}
