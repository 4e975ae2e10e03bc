//! Readers: they follow a job to its end over as many connections as it takes, each from the last
//! event that they saw.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use millstream::{
    event::EventId,
    job::JobId,
    listener::{self, Listener},
};
use tokio::sync::watch;

use crate::{
    history::{Reader, Session, Step},
    plan::{Reading, Route},
    support,
    world::World,
};

/// How long a reader waits before it connects again.
const PAUSE: Duration = Duration::from_millis(100);

/// A reader that hears nothing for so long connects again.
const SILENCE: Duration = Duration::from_secs(20);

/// Why a reader's connection ended.
enum Break {
    /// The stream came to its end.
    End,
    /// There is no such job.
    NotFound,
    /// To be opened again.
    Lost,
    /// The test is over.
    Over,
}

/// One reader of one job.
struct Following {
    world: Arc<World>,
    house: watch::Receiver<Listener>,
    id: JobId,
    /// It leaves after so many events.
    leaves: Option<usize>,
    /// The job may have no record yet.
    expected: bool,
    reader: Reader,
    last: EventId,
}

/// Starts the readers that a job is planned to have.
pub fn start(world: &Arc<World>, job: usize, id: JobId) {
    let (reading, route) = {
        let journal = world.journal();
        (journal[job].planned.reading, journal[job].planned.route)
    };
    let readers: &[(Option<usize>, Duration)] = match reading {
        Reading::None => &[],
        Reading::Steady => &[(None, Duration::ZERO)],
        Reading::Restless(events) => &[(Some(events), Duration::ZERO)],
        Reading::Late(delay) => &[(None, Duration::ZERO), (None, delay)],
    };
    for (number, (leaves, delay)) in readers.iter().copied().enumerate() {
        let house = world.house(job + number);
        let following = Following { leaves, ..Following::new(world, house, id, route) };
        world.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            following.run(job).await;
        });
    }
}

/// Starts one reader of what comes after an event.
pub fn follow(world: &Arc<World>, job: usize, id: JobId, after: EventId) {
    let house = world.house(job);
    let following = Following::new(world, house, id, Route::Library);
    world.tasks.spawn(Following { last: after, ..following }.run(job));
}

impl Following {
    fn new(world: &Arc<World>, house: watch::Receiver<Listener>, id: JobId, route: Route) -> Self {
        Self {
            world: Arc::clone(world),
            house,
            id,
            leaves: None,
            expected: route == Route::Plain,
            reader: Reader::default(),
            last: EventId::START,
        }
    }

    async fn run(mut self, job: usize) {
        loop {
            match self.connect().await {
                Break::End => self.reader.ended = true,
                Break::NotFound => self.reader.not_found = Some(support::now()),
                Break::Over => {}
                Break::Lost => continue,
            }
            break;
        }
        self.world.read(job, self.reader);
    }

    /// One connection, from the last event seen.
    async fn connect(&mut self) -> Break {
        let listener = self.house.borrow_and_update().clone();
        let listen = listener.listen(self.id).after(self.last).idle_timeout(SILENCE);
        let mut events = if self.expected { listen.expected() } else { listen }.events();
        let mut session = Session { after: self.last, ..Session::default() };
        let ended = loop {
            let event = tokio::select! {
                () = self.world.over.cancelled() => break Break::Over,
                _ = self.house.changed() => break Break::Lost,
                event = events.next() => event,
            };
            match event {
                None => break Break::End,
                Some(Ok(event)) => {
                    self.world.saw();
                    self.last = event.id;
                    session.seen.push(Step::of(&event));
                    session.when.push(support::now());
                    if self.leaves.is_some_and(|leaves| session.seen.len() >= leaves) {
                        break Break::Lost;
                    }
                }
                Some(Err(listener::Error::NotFound(_))) => break Break::NotFound,
                Some(Err(_)) => {
                    tokio::time::sleep(PAUSE).await;
                    break Break::Lost;
                }
            }
        };
        if !session.seen.is_empty() {
            self.reader.sessions.push(session);
        }
        ended
    }
}
