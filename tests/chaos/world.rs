//! What all clients share: the way to Redis, the journal, and the listeners.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

use millstream::{
    broker::{
        Partition, Shared,
        redis::{Options, Redis, keys::Keys},
    },
    job::{JobId, QueueName},
    listener::{self, Listener},
    producer::{self, Producer},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    history::{Asked, Fate, Reader, Span},
    plan::{Outlook, Planned},
    proxy::Proxy,
    support,
};

/// Processes that would serve readers, such as web handlers: each has a subscriber connection.
const HOUSES: usize = 3;

/// What was planned and what came of it.
pub struct Entry {
    pub planned: Planned,
    pub asked: Asked,
}

/// A listener that can be replaced; its readers then go on with the next one.
struct House(watch::Sender<Listener>);

/// Shared by the clients.
pub struct World {
    /// Between the clients and Redis.
    pub proxy: Proxy,
    pub redis: Redis,
    pub producer: Producer,
    pub journal: Mutex<Vec<Entry>>,
    houses: Vec<House>,
    /// Events that readers saw: a sign of progress.
    pub seen: AtomicU64,
    forgotten: AtomicU64,
    /// Enqueues under way and readers, each a task.
    pub tasks: TaskTracker,
    /// Readers that still wait hand in what they have.
    pub over: CancellationToken,
}

impl World {
    pub async fn new(port: u16) -> Arc<Self> {
        let proxy = Proxy::to(port).await;
        let options = Options { url: proxy.url(), ..Options::default() };
        let redis = Redis::connect(options).await.unwrap();
        redis.ensure_schema(&[partition()]).await.unwrap();
        let shared: Shared = Arc::new(redis.clone());
        // Lanes are trimmed all the time.
        let often = producer::Options { trim_every: 50, ..producer::Options::default() };
        let houses = (0..HOUSES).map(|_| House(watch::Sender::new(listener(&shared)))).collect();
        Arc::new(Self {
            proxy,
            redis,
            producer: Producer::new(shared, often),
            journal: Mutex::default(),
            houses,
            seen: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            over: CancellationToken::new(),
        })
    }

    pub fn keys(&self) -> &Keys {
        self.redis.keys()
    }

    pub fn journal(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.journal.lock().unwrap()
    }

    /// Notes a job that is about to be enqueued; its number.
    pub fn note(&self, planned: Planned) -> usize {
        let name = planned.name.clone();
        let hopeless = planned.outlook == Outlook::Hopeless;
        let asked = Asked { name, hopeless, ..Asked::default() };
        let mut journal = self.journal();
        journal.push(Entry { planned, asked });
        journal.len() - 1
    }

    /// Notes an acknowledgement of what was asked for at `asked`; whether it is the job's first.
    pub fn acknowledged(&self, job: usize, id: JobId, asked: u64) -> bool {
        let journal = &mut self.journal()[job].asked;
        journal.promised.push(Span { from: asked, until: support::now() });
        let fate = &mut journal.fate;
        match fate {
            Fate::Unknown => *fate = Fate::Acknowledged(vec![id]),
            Fate::Acknowledged(ids) => ids.push(id),
        }
        matches!(fate, Fate::Acknowledged(ids) if ids.len() == 1)
    }

    pub fn read(&self, job: usize, reader: Reader) {
        self.journal()[job].asked.readers.push(reader);
    }

    pub fn saw(&self) {
        self.seen.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the server has forgotten a moment.
    pub fn forgot(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// The listener of a house, and every one that replaces it.
    pub fn house(&self, number: usize) -> watch::Receiver<Listener> {
        self.houses[number % HOUSES].0.subscribe()
    }

    /// Ends a house: its subscriber connection and every reader's stream.
    pub fn drop_house(&self, number: u64) {
        let house = &self.houses[usize::try_from(number % HOUSES as u64).unwrap()];
        let broker: Shared = Arc::new(self.redis.clone());
        house.0.send_replace(listener(&broker));
    }
}

fn listener(broker: &Shared) -> Listener {
    let options =
        listener::Options { page: 16, buffer_bytes: 8 * 1024, ..listener::Options::default() };
    Listener::new(broker.clone(), options)
}

/// The one partition of the one queue.
pub fn partition() -> Partition {
    Partition::first(QueueName::default())
}
