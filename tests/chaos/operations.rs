//! What owners and operators do meanwhile: they cancel jobs and put dead letters back. Each asks
//! until there is an answer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use millstream::{
    admin::{Admin, Cancelled, Requeued},
    broker::{DeadLetter, Shared},
    event::EventId,
    job::JobId,
};
use tokio_util::sync::CancellationToken;

use crate::{
    history::{Fate, Repeats},
    readers,
    support::now,
    world::{World, partition},
};

/// How long is waited between two looks, and before a question is repeated.
const PAUSE: Duration = Duration::from_millis(500);

fn admin(world: &World) -> Admin {
    let broker: Shared = Arc::new(world.redis.clone());
    Admin::new(broker)
}

/// Cancels a job some time after it was enqueued.
pub async fn cancel(world: Arc<World>, job: usize, id: JobId, delay: Duration) {
    tokio::time::sleep(delay).await;
    let admin = admin(&world);
    let mut asked = Repeats::default();
    loop {
        let from = now();
        match admin.cancel(id).await {
            Ok(Cancelled::Cancelled | Cancelled::Asked { .. }) => asked.acknowledge(from),
            Ok(Cancelled::Over { .. } | Cancelled::Unknown) => {}
            Err(_) => {
                asked.unknown += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        world.journal()[job].asked.cancels = asked;
        return;
    }
}

/// Puts dead letters back, at most one of a job, until `stop`.
pub async fn operate(world: Arc<World>, stop: CancellationToken) {
    let admin = admin(&world);
    let mut handled: HashMap<JobId, (u64, u64)> = HashMap::new();
    while !stop.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return,
        }
        let letters: Result<Vec<DeadLetter>, _> =
            admin.dead_letters(&partition()).try_collect().await;
        let jobs = jobs(&world);
        for letter in letters.unwrap_or_default() {
            // One that is not acknowledged yet may be in a moment.
            let Some(job) = jobs.get(&letter.id).copied() else { continue };
            // One that is there again was put back in a moment that the server has forgotten.
            let (fence, forgotten) = (letter.fence, world.forgotten());
            let before = handled.get(&letter.id);
            if before.is_some_and(|(known, then)| *known != fence || *then == forgotten) {
                continue;
            }
            handled.insert(letter.id, (fence, forgotten));
            if world.journal()[job].planned.is_put_back {
                world.tasks.spawn(requeue(world.clone(), job, letter));
            }
        }
    }
}

/// Acknowledged jobs by their IDs.
fn jobs(world: &World) -> HashMap<JobId, usize> {
    let journal = world.journal();
    let id = |fate: &Fate| match fate {
        Fate::Acknowledged(ids) => ids.first().copied(),
        Fate::Unknown => None,
    };
    let jobs = journal.iter().enumerate();
    jobs.filter_map(|(job, entry)| Some((id(&entry.asked.fate)?, job))).collect()
}

/// Puts one back, and has its next run read.
async fn requeue(world: Arc<World>, job: usize, letter: DeadLetter) {
    let admin = admin(&world);
    let mut asked = Repeats::default();
    loop {
        let from = now();
        match admin.requeue(&partition(), &letter).await {
            Ok(Requeued::Requeued { .. }) => asked.acknowledge(from),
            Ok(Requeued::Gone | Requeued::Alive { .. }) => {}
            Err(_) => {
                asked.unknown += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        let opened = asked.acknowledged > 0;
        world.journal()[job].asked.requeues.add(asked);
        if opened {
            // The run before ends with the letter's fence.
            let after = EventId { fence: letter.fence, seq: u64::MAX };
            readers::follow(&world, job, letter.id, after);
        }
        return;
    }
}
