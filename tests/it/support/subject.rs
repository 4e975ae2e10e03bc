//! A broker under test, and the words in which behaviours are told.

use std::{ops::Deref, sync::Arc, time::Duration};

use millstream::{
    broker::{
        Attempt, Begin, Broker, Claimer, Crashes, DeadLetter, Entry, Feed, Limits, Outcome,
        Partition, Place, Receipt, Refusal, Result, Settled, Shared, Signal, Spent, Submission,
        Topic, WorkerId, Written,
        memory::{self, Memory},
        redis::{
            Options, Redis,
            keys::{GROUP, Keys},
        },
    },
    error::{Code, Failure},
    event::{Body, Chunk, Codec, Done, Event, EventId, Failed, Frame, Piece, Retrying},
    job::{ChatRequest, Job, JobId, Lane, Timestamp},
};
use tokio::sync::mpsc;

use super::{
    recorder::{Recorder, Seen},
    redis::Server,
};

/// Longest time for something that happens at once; only a fault takes it.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Fails the test where `future` is not ready before the deadline.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("not ready before the deadline")
}

/// What only the adapter itself can do.
#[derive(Clone)]
pub enum Adapter {
    /// The embedded broker.
    Memory(Memory),
    /// Redis, and the server behind it.
    Redis(Arc<Server>, Keys),
}

/// A broker under test with two partitions that no other behaviour uses. Dereferences to the
/// broker itself.
pub struct Subject {
    broker: Shared,
    adapter: Adapter,
    seen: Arc<Seen>,
    /// The first partition.
    pub partition: Partition,
    /// Another shard of the same queue.
    pub second: Partition,
}

impl Deref for Subject {
    type Target = dyn Broker;

    fn deref(&self) -> &Self::Target {
        &*self.broker
    }
}

/// The partitions of the behaviour called `name`.
pub fn partitions(name: &str) -> [Partition; 2] {
    let queue = name.chars().take(64).collect::<String>().parse().unwrap();
    let first = Partition::first(queue);
    [first.clone(), Partition { index: 1, ..first }]
}

/// The embedded broker.
pub fn memory_broker() -> (Shared, Adapter) {
    let memory = Memory::new(memory::Options::default());
    (Arc::new(memory.clone()), Adapter::Memory(memory))
}

/// Redis on a server of its own, with these partitions.
pub async fn redis_broker(partitions: &[Partition]) -> (Shared, Adapter) {
    let server = Server::start().await;
    let options = Options { url: server.url(), ..Options::default() };
    let redis = Redis::connect(options).await.unwrap();
    redis.migrate(partitions).await.unwrap();
    let keys = redis.keys().clone();
    (Arc::new(redis), Adapter::Redis(Arc::new(server), keys))
}

impl Subject {
    /// The subject of the behaviour called `name`; `seen` notes what it does.
    pub fn new(name: &str, (broker, adapter): (Shared, Adapter), seen: Arc<Seen>) -> Self {
        let [partition, second] = partitions(name);
        let broker = Recorder::around(broker, seen.clone());
        Self { broker, adapter, seen, partition, second }
    }

    /// The same partitions under limits, of which this subject knows nothing.
    pub async fn limited(&self, limits: Limits) -> Self {
        let embedded = memory::Options { limits, ..memory::Options::default() };
        self.with(embedded, Options { limits, ..Options::default() }).await
    }

    /// The same partitions, whose dead letters are kept for so long.
    pub async fn aging(&self, dead_ttl: Duration) -> Self {
        let embedded = memory::Options { dead_ttl, ..memory::Options::default() };
        self.with(embedded, Options { dead_ttl, ..Options::default() }).await
    }

    /// The same partitions, of which each keeps so many dead letters.
    pub async fn keeping(&self, dead_max: usize) -> Self {
        let embedded = memory::Options { dead_max, ..memory::Options::default() };
        self.with(embedded, Options { dead_max: dead_max as u64, ..Options::default() }).await
    }

    /// The same partitions, whose finished jobs, and their keys, are kept for so long.
    pub async fn fleeting(&self, result_ttl: Duration) -> Self {
        let key_ttl = result_ttl;
        let embedded = memory::Options { result_ttl, key_ttl, ..memory::Options::default() };
        self.with(embedded, Options { result_ttl, key_ttl, ..Options::default() }).await
    }

    /// The same partitions with other options: on Redis those of another process at the same
    /// server, else of a broker of its own.
    async fn with(&self, embedded: memory::Options, options: Options) -> Self {
        let (broker, adapter): (Shared, Adapter) = match &self.adapter {
            Adapter::Memory(_) => {
                let memory = Memory::new(embedded);
                (Arc::new(memory.clone()), Adapter::Memory(memory))
            }
            Adapter::Redis(server, _) => {
                let options = Options { url: server.url(), ..options };
                (Arc::new(Redis::connect(options).await.unwrap()), self.adapter.clone())
            }
        };
        Self {
            broker: Recorder::around(broker, self.seen.clone()),
            adapter,
            seen: self.seen.clone(),
            partition: self.partition.clone(),
            second: self.second.clone(),
        }
    }

    /// A handle to the broker for a task of its own.
    pub fn shared(&self) -> Shared {
        self.broker.clone()
    }

    // The ports in fewer words.

    /// Begins with room for crashes.
    pub async fn begin(&self, entry: &Entry, worker: &WorkerId) -> Result<Begin> {
        self.broker.begin(entry, worker, Crashes { most: 100, alone: true }).await
    }

    /// Refuses for a failure.
    pub async fn refuse(&self, entry: &Entry, error: &Failure, frame: &Frame) -> Result<Begin> {
        self.broker.refuse(entry, &Refusal::Failed(error.clone()), frame).await
    }

    /// Ends entries in whatever session.
    pub async fn remove(&self, spent: &[Spent]) -> Result<()> {
        assert!(self.broker.remove(spent, u64::MAX).await?);
        Ok(())
    }

    /// Parks an entry in whatever session; whether it was there.
    pub async fn park(&self, entry: &Entry, attempt: u32, due: Timestamp) -> Result<bool> {
        Ok(was_there(self.broker.park(entry, attempt, due, u64::MAX).await?))
    }

    /// Buries an entry in whatever session; whether it was there.
    pub async fn bury(&self, entry: &Entry, letter: &DeadLetter) -> Result<bool> {
        Ok(was_there(self.broker.bury(entry, letter, false, u64::MAX).await?))
    }

    /// The same of a failure that the record has told.
    pub async fn bury_as_told(&self, entry: &Entry, letter: &DeadLetter) -> Result<bool> {
        Ok(was_there(self.broker.bury(entry, letter, true, u64::MAX).await?))
    }

    /// Removes a parked job in whatever session; whether it was there.
    pub async fn unpark(&self, partition: &Partition, job: JobId, run: u32) -> Result<bool> {
        Ok(was_there(self.broker.unpark(partition, job, run, u64::MAX).await?))
    }

    /// What a renewal says of entries that are not this worker's.
    pub async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Vec<Place>> {
        Ok(self.broker.renew(worker, places).await?.gone)
    }

    /// The oldest dead letters.
    pub async fn dead_letters(
        &self,
        partition: &Partition,
        most: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.broker.dead_letters(partition, None, most).await
    }

    /// Deletes an entry as a stranger would. Whether the adapter knows such a thing.
    pub fn delete(&self, place: &Place) -> bool {
        match &self.adapter {
            Adapter::Memory(_) => false,
            Adapter::Redis(server, keys) => {
                let lane = keys.lane(&place.partition, place.lane);
                server.command(&["XDEL", &lane, &place.entry]) == "1"
            }
        }
    }

    /// What the server says to this command, where there is a server; `KEY` in it is the key.
    pub fn ask(&self, command: &str, key: impl FnOnce(&Keys) -> String) -> Option<String> {
        match &self.adapter {
            Adapter::Memory(_) => None,
            Adapter::Redis(server, keys) => {
                let key = key(keys);
                let words: Vec<&str> = command
                    .split(' ')
                    .map(|word| if word == "KEY" { &key } else { word })
                    .collect();
                Some(server.command(&words))
            }
        }
    }

    /// What the server answers to a script, a line for each value, where there is a server.
    pub fn run(
        &self,
        script: &str,
        names: impl FnOnce(&Keys) -> [String; 2],
        args: &[&str],
    ) -> Option<String> {
        match &self.adapter {
            Adapter::Memory(_) => None,
            Adapter::Redis(server, keys) => {
                let [first, second] = names(keys);
                let mut words = vec!["EVAL", script, "2", &first, &second];
                words.extend(args);
                Some(server.command(&words))
            }
        }
    }

    // What a port does not offer.

    /// Adds an entry with these fields and nothing else; gives its place.
    pub fn add_raw(&self, lane: Lane, fields: &[(&str, &[u8])]) -> Place {
        let entry = match &self.adapter {
            Adapter::Memory(memory) => {
                let field =
                    |(name, value): &(&str, &[u8])| (name.as_bytes().to_vec(), value.to_vec());
                let fields = fields.iter().map(field).collect();
                memory.add_raw(&self.partition, lane, fields).unwrap()
            }
            Adapter::Redis(server, keys) => {
                let key = keys.lane(&self.partition, lane);
                let mut words: Vec<&[u8]> = vec![b"XADD", key.as_bytes(), b"*"];
                words.extend(fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]));
                server.command(&words)
            }
        };
        Place { partition: self.partition.clone(), lane, entry }
    }

    /// Loses a job's record and log, as a restart without persistence does.
    pub fn forget(&self, job: JobId) {
        match &self.adapter {
            Adapter::Memory(memory) => memory.forget(job),
            Adapter::Redis(server, keys) => {
                server.command(&["DEL", &keys.job(job), &keys.log(job)]);
            }
        }
    }

    /// Waits until the record of an entry's job is gone.
    pub async fn forgets(&self, entry: &Entry) {
        soon(async {
            while self.job(entry.id).await.unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Acknowledges an entry without deleting it, as a consumer in another language may. Whether
    /// the adapter knows such a thing.
    pub fn ack_only(&self, place: &Place) -> bool {
        match &self.adapter {
            Adapter::Memory(_) => false,
            Adapter::Redis(server, keys) => {
                let lane = keys.lane(&place.partition, place.lane);
                server.command(&["XACK", &lane, GROUP, &place.entry]) == "1"
            }
        }
    }

    // Enqueueing.

    /// A submission of a job to the first partition.
    pub fn submission(&self, job: Job) -> Submission {
        let payload = serde_json::to_vec(&job).unwrap();
        let partition = self.partition.clone();
        Submission { id: job.assign_id(), job, payload, partition }
    }

    /// Enqueues one job.
    pub async fn try_add(&self, job: Job) -> Result<Receipt> {
        let mut results = self.enqueue(&[self.submission(job)]).await;
        assert_eq!(results.len(), 1);
        results.remove(0)
    }

    /// Enqueues one job, which must be accepted.
    pub async fn add(&self, job: Job) -> Receipt {
        self.try_add(job).await.unwrap()
    }

    // Claiming.

    /// A reader of the first partition.
    pub async fn reader(&self, worker: &WorkerId) -> Box<dyn Claimer> {
        self.claimer(&self.partition, worker).await.unwrap()
    }

    /// What one read of a lane gives a worker.
    pub async fn claim_all(&self, lane: Lane, worker: &WorkerId) -> Vec<Entry> {
        self.reader(worker).await.read(lane, 1_000).await.unwrap()
    }

    /// The only unread entry of the normal lane.
    pub async fn claim(&self, worker: &WorkerId) -> Entry {
        let mut entries = self.claim_all(Lane::Normal, worker).await;
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries.remove(0)
    }

    /// Enqueues a job, claims it and opens its attempt.
    pub async fn running(&self, worker: &WorkerId) -> (Entry, Attempt) {
        self.add(job("running")).await;
        let entry = self.claim(worker).await;
        let attempt = begun(self.begin(&entry, worker).await.unwrap());
        (entry, attempt)
    }

    /// A job that is parked until `due`, even where that has passed.
    pub async fn parked(&self, due: Timestamp) -> JobId {
        let id = self.add(job("parked")).await.id;
        let entry = self.claim(&worker("parker")).await;
        assert!(self.park(&entry, 0, due).await.unwrap());
        id
    }

    /// Moves the parked jobs to their lanes, as each comes due, until `count` have been moved.
    pub async fn promote_until(&self, count: usize) {
        let mut moved = 0;
        soon(async {
            while moved < count {
                let promoted = self.promote(&self.partition, count).await.unwrap();
                moved += promoted.count;
                if promoted.count == 0 {
                    // The next is due then; nothing else has to happen first.
                    tokio::time::sleep(promoted.next_in.expect("nothing is parked")).await;
                }
            }
        })
        .await;
        assert_eq!(moved, count);
    }

    // Settling.

    /// Finishes an attempt with the event `seq`.
    pub async fn finish(&self, attempt: &Attempt, seq: u64) -> Written {
        let outcome = Outcome::Done { finish_reason: Some("stop".to_owned()), usage: None };
        self.end(attempt, done(seq), &outcome).await
    }

    /// Ends an attempt as its worker does, which has just looked at the log: a pool that opens another
    /// connection in between begins another session, and nothing is sent.
    async fn end(&self, attempt: &Attempt, frame: Frame, outcome: &Outcome) -> Written {
        let frames = [frame];
        loop {
            let session = self.session();
            let attempt = Attempt { session, ..attempt.clone() };
            let written = self.conclude(&attempt, &frames, outcome).await.unwrap();
            if written != Written::Behind || session == self.session() {
                return written;
            }
        }
    }

    /// Ends an attempt with a retry after `delay`, as event 1.
    pub async fn retry(&self, attempt: &Attempt, delay: Duration) -> Written {
        let outcome = Outcome::Retry { error: failure("try again"), delay };
        self.end(attempt, retrying(1, attempt), &outcome).await
    }

    /// Ends an attempt with a retry at once, as this event.
    pub async fn retry_as(&self, attempt: &Attempt, frame: Frame) {
        let outcome = Outcome::Retry { error: failure("try again"), delay: Duration::ZERO };
        assert_eq!(self.end(attempt, frame, &outcome).await, Written::Yes);
    }

    /// Parks the entry of a job that is to be retried, as `begin` asks for it, and waits until it
    /// is promoted and claimed again.
    pub async fn promoted(&self, entry: &Entry) -> Entry {
        let me = worker("promoter");
        let Begin::Park { attempt, due } = self.begin(entry, &me).await.unwrap() else {
            panic!("not to be parked")
        };
        assert!(self.park(entry, attempt, due).await.unwrap());
        self.promote_until(1).await;
        self.claim_all(entry.place.lane, &me).await.remove(0)
    }

    // Reading.

    /// The whole log.
    pub async fn log(&self, job: JobId) -> Vec<Event> {
        self.read(job, EventId::START, 10_000).await.unwrap()
    }

    /// The kinds of all events.
    pub async fn kinds(&self, job: JobId) -> Vec<String> {
        self.log(job).await.iter().map(|event| event.body.kind().to_owned()).collect()
    }

    /// A feed of these topics.
    pub async fn listen(&self, topics: &[Topic]) -> Listening {
        let (sender, signals) = mpsc::unbounded_channel();
        let sink = Arc::new(move |signal| drop(sender.send(signal)));
        let feed = self.feed(sink).await.unwrap();
        for topic in topics {
            feed.subscribe(topic).await.unwrap();
        }
        Listening { feed, signals }
    }
}

/// A feed and what it has heard.
pub struct Listening {
    pub feed: Box<dyn Feed>,
    signals: mpsc::UnboundedReceiver<Signal>,
}

impl Listening {
    /// The next message.
    pub async fn next(&mut self) -> (Topic, Vec<u8>) {
        match soon(self.signals.recv()).await {
            Some(Signal::Message(topic, bytes)) => (topic, bytes),
            other => panic!("not a message: {other:?}"),
        }
    }

    /// The next message, as an event.
    pub async fn event(&mut self) -> Event {
        Event::decode_message(&self.next().await.1).unwrap()
    }

    /// Whether nothing more has been heard.
    pub fn is_empty(&self) -> bool {
        self.signals.is_empty()
    }
}

/// A job that asks `question`.
pub fn job(question: &str) -> Job {
    Job::new(ChatRequest::ask("model-1", question))
}

/// A worker.
pub fn worker(name: &str) -> WorkerId {
    WorkerId::new(name)
}

/// A time that does not come during a test.
pub fn far() -> Timestamp {
    Timestamp::now().after(Duration::from_hours(1))
}

/// The attempt of an answer that opens one.
pub fn begun(begin: Begin) -> Attempt {
    match begin {
        Begin::Begun(attempt) => attempt,
        other => panic!("not begun: {other:?}"),
    }
}

/// Whether an entry was there to be parked or buried.
pub fn was_there(settled: Settled) -> bool {
    assert_ne!(settled, Settled::Stale);
    settled == Settled::Yes
}

/// A passing failure.
pub fn failure(message: &str) -> Failure {
    Failure::new(Code::UpstreamError, message)
}

/// A `delta` that says `text`.
pub fn delta(seq: u64, text: &str, codec: Codec) -> Frame {
    let piece: Piece =
        serde_json::from_value(serde_json::json!({"delta": {"content": text}})).unwrap();
    let mut chunk = Chunk::default();
    chunk.push(piece);
    Frame::new(seq, &Body::Delta(chunk), codec).unwrap()
}

/// A `done`.
pub fn done(seq: u64) -> Frame {
    let done = Done { finish_reason: Some("stop".to_owned()), attempts: 1, ..Done::default() };
    Frame::new(seq, &Body::Done(done), Codec::Json).unwrap()
}

/// A `failed`.
pub fn failed(seq: u64, error: Failure) -> Frame {
    let labels = millstream::job::Labels::default();
    let failed = Failed { error, attempts: 1, custom_id: None, labels };
    Frame::new(seq, &Body::Failed(failed), Codec::Json).unwrap()
}

/// A `retrying`.
pub fn retrying(seq: u64, attempt: &Attempt) -> Frame {
    let error = failure("try again");
    let body = Body::Retrying(Retrying { error, attempt: attempt.number, delay_ms: 1 });
    Frame::new(seq, &body, Codec::Json).unwrap()
}

/// The `started` that begin has written for an attempt.
pub fn started(attempt: &Attempt) -> Frame {
    let started =
        millstream::event::Started { attempt: attempt.number, worker: attempt.worker.to_string() };
    Frame::new(0, &Body::Started(started), Codec::Json).unwrap()
}
