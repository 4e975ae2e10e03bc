//! The faults: one at a time, each on a victim that is worth it.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use millstream::broker::Inspect as _;
use tokio::{sync::watch, time::Instant};

use crate::{
    fleet::{Fleet, WORKERS},
    history::Span,
    plan::{Fault, FaultKind, Faults},
    proxy::Proxy,
    server::Server,
    support,
    world::{World, partition},
};

/// A fault that was done, in milliseconds since the epoch.
#[derive(Debug, Clone)]
pub struct Done {
    pub kind: FaultKind,
    pub from: u64,
    pub until: u64,
}

/// Everything that can be hurt.
pub struct Victims {
    pub server: Server,
    pub fleet: Fleet,
    pub world: Arc<World>,
    /// Spans of time that the server does not know of any more.
    pub forgotten: Vec<Span>,
    /// Ends the process of a feed.
    pub feeds: Vec<watch::Sender<u64>>,
}

/// Does one fault after the other until `end`.
pub async fn run(victims: &mut Victims, mut faults: Faults, end: Instant) -> Vec<Done> {
    let mut done = Vec::new();
    loop {
        let fault = faults.draw();
        let due = Instant::now() + fault.gap;
        if due >= end {
            tokio::time::sleep_until(end).await;
            return done;
        }
        tokio::time::sleep_until(due).await;
        victims.fleet.revive();
        let from = support::now();
        victims.suffer(&fault).await;
        done.push(Done { kind: fault.kind, from, until: support::now() });
    }
}

impl Victims {
    async fn suffer(&mut self, fault: &Fault) {
        let time = fault.time;
        match fault.kind {
            FaultKind::WorkerKill => {
                let slot = self.busy(fault.pick).await;
                self.fleet.kill(slot, time).await;
            }
            FaultKind::WorkerFreeze => {
                let slot = self.busy(fault.pick).await;
                self.fleet.freeze(slot, time).await;
            }
            FaultKind::WorkerDrain => {
                let slot = self.busy(fault.pick).await;
                self.fleet.drain(slot, time).await;
            }
            FaultKind::RedisKill => self.server.kill(time).await,
            FaultKind::RedisShutdown => self.server.shutdown(time).await,
            FaultKind::RedisForget => {
                let span = self.server.forget(fault.forgotten, time).await;
                self.forgotten.push(span);
                self.world.forgot();
            }
            FaultKind::Cut => {
                self.links(fault.pick).iter().for_each(|proxy| proxy.cut(fault.cut));
            }
            FaultKind::Stall => stall(&self.links(fault.pick), time).await,
            FaultKind::ListenerDrop => self.world.drop_house(fault.pick),
            FaultKind::ProducerKill => {
                let feed = &self.feeds[remainder(fault.pick, self.feeds.len())];
                feed.send_modify(|kills| *kills += 1);
            }
        }
    }

    /// A worker with answers under way: one of those that hold at least half as many jobs as the
    /// one that holds most.
    async fn busy(&self, pick: u64) -> usize {
        let seen = self.world.redis.workers(&partition()).await.unwrap_or_default();
        let held = |name: &String| {
            seen.iter()
                .filter(|worker| worker.id.starts_with(name))
                .map(|worker| worker.pending)
                .sum()
        };
        let held: Vec<u64> = self.fleet.names().iter().map(held).collect();
        let most = held.iter().copied().max().unwrap_or(0);
        let busy: Vec<usize> = (0..WORKERS).filter(|slot| held[*slot] * 2 >= most).collect();
        busy[remainder(pick, busy.len())]
    }

    /// The links of one worker, of the clients, or of everybody.
    fn links(&self, pick: u64) -> Vec<&Proxy> {
        match remainder(pick, WORKERS + 2) {
            slot if slot < WORKERS => vec![self.fleet.proxy(slot)],
            WORKERS => vec![&self.world.proxy],
            _ => self.fleet.proxies().chain([&self.world.proxy]).collect(),
        }
    }
}

async fn stall(links: &[&Proxy], time: Duration) {
    join_all(links.iter().map(|proxy| proxy.stall(time))).await;
}

fn remainder(pick: u64, length: usize) -> usize {
    usize::try_from(pick % length as u64).unwrap()
}
