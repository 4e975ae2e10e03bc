//! Reads one partition's lanes: by weight while there is something to read, and with one blocking
//! read over all lanes when there is not. No polling.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Context, slots::Slot, start};
use crate::{
    broker::{Claimer, Entry, Partition, Result, Wake},
    job::Lane,
    retry::Backoff,
};

/// Chooses lanes in proportion to their weights: smooth weighted round robin, as in nginx. The
/// credits outlive a round, so that the proportion holds with one free slot at a time, too.
#[derive(Debug)]
struct Weights {
    weights: [u32; 3],
    credits: [i64; 3],
}

impl Weights {
    fn new(weights: [u32; 3]) -> Self {
        Self { weights: weights.map(|weight| weight.max(1)), credits: [0; 3] }
    }

    /// The jobs of one full round.
    fn round(&self) -> usize {
        self.weights.iter().map(|weight| *weight as usize).sum()
    }

    /// Closed lanes of more weight than one that is open.
    fn above(&self, open: [bool; 3]) -> Vec<Lane> {
        let is_open = |lane: &Lane| open[lane.index()];
        let weight = |lane: &Lane| self.weights[lane.index()];
        let least = Lane::ALL.iter().filter(|lane| is_open(lane)).map(weight).min();
        let above = |lane: &Lane| !is_open(lane) && least.is_some_and(|least| weight(lane) > least);
        Lane::ALL.into_iter().filter(above).collect()
    }

    /// How many of `slots` each open lane gets.
    fn share(&mut self, slots: usize, open: [bool; 3]) -> [usize; 3] {
        let mut shares = [0; 3];
        let total: i64 = (0..3).filter(|at| open[*at]).map(|at| i64::from(self.weights[at])).sum();
        if total == 0 {
            return shares;
        }
        for _ in 0..slots {
            let mut best: Option<usize> = None;
            for at in (0..3).filter(|at| open[*at]) {
                self.credits[at] += i64::from(self.weights[at]);
                if best.is_none_or(|best| self.credits[at] > self.credits[best]) {
                    best = Some(at);
                }
            }
            if let Some(at) = best {
                self.credits[at] -= total;
                shares[at] += 1;
            }
        }
        shares
    }
}

/// The claim loop of one partition.
pub(super) struct Reader {
    context: Arc<Context>,
    partition: Partition,
    jobs: TaskTracker,
    weights: Weights,
    /// Lanes that may have entries: all but those whose last read came back short.
    open: [bool; 3],
    /// Jobs started since all lanes were last looked at.
    started: usize,
    /// Jobs started since closed lanes of more weight were last looked at.
    passed: usize,
    /// Claimed and not started, and since when; they go before anything else.
    surplus: VecDeque<(Entry, Instant)>,
}

impl Reader {
    pub(super) fn new(context: Arc<Context>, partition: Partition, jobs: TaskTracker) -> Self {
        let weights = Weights::new(context.options.weights);
        let (open, surplus) = ([true; 3], VecDeque::new());
        Self { context, partition, jobs, weights, open, started: 0, passed: 0, surplus }
    }

    /// Claims and starts jobs until `stop`. An entry that is claimed by then is started where a slot is
    /// free, and else given back.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::connecting();
        while !stop.is_cancelled() {
            let Err(error) = self.serve(&stop, &mut backoff).await else { break };
            tracing::warn!(partition = %self.partition, %error, "claiming interrupted");
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = stop.cancelled() => {}
            }
        }
        while let Some((entry, _)) = self.surplus.pop_front() {
            match self.context.slots.try_take() {
                Some(slot) => self.start(entry, slot),
                None => {
                    drop(self.context.hands.hold(&entry.place));
                    self.context.release(&entry.place, entry.id, None).await;
                }
            }
        }
    }

    /// Waits until the oldest surplus entry has found no slot for as long as a sweep takes to come:
    /// longer it must not keep a job from workers that have room.
    async fn out_of_patience(&self) {
        match self.surplus.front() {
            Some((_, since)) => {
                tokio::time::sleep_until(*since + self.context.options.sweep).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Gives back the entries that have waited so long.
    async fn give_back(&mut self) {
        let patience = self.context.options.sweep;
        while let Some((entry, _)) = self.surplus.pop_front_if(|(_, at)| at.elapsed() >= patience) {
            tracing::debug!(job = %entry.id, "given back: no slot has come free");
            drop(self.context.hands.hold(&entry.place));
            self.context.release(&entry.place, entry.id, None).await;
        }
    }

    async fn serve(&mut self, stop: &CancellationToken, backoff: &mut Backoff) -> Result<()> {
        let context = Arc::clone(&self.context);
        let session = context.broker.session();
        let opened = async {
            context.broker.announce(&self.partition, &context.id, context.options.lease).await?;
            let mut claimer = context.broker.claimer(&self.partition, &context.id).await?;
            // What a lost reply carried is still this worker's, and so is that whose end was forgotten.
            let pending = claimer.pending().await?;
            Ok::<_, crate::broker::Error>((claimer, pending))
        };
        let (mut claimer, pending) = tokio::select! {
            opened = opened => opened?,
            () = stop.cancelled() => return Ok(()),
        };
        self.keep(pending, session, None).await;
        self.open = [true; 3];
        loop {
            let slot = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                slot = context.slots.take() => slot,
                () = self.out_of_patience() => {
                    self.give_back().await;
                    continue;
                }
            };
            backoff.reset();
            if let Some((entry, _)) = self.surplus.pop_front() {
                self.start(entry, slot);
            } else if self.open.contains(&true) {
                // A lane that was empty is looked at again, however busy the others are.
                if self.started >= self.weights.round() {
                    self.open = [true; 3];
                    self.started = 0;
                }
                self.read(claimer.as_mut(), slot).await?;
            } else {
                drop(slot);
                self.wait(claimer.as_mut(), stop).await?;
            }
        }
    }

    /// One blocking read over all lanes, which brings what is there already, too. It ends as no slot comes free:
    /// an entry that came later would wait here for a job of another queue to end, while other workers have room.
    async fn wait(&mut self, claimer: &mut dyn Claimer, stop: &CancellationToken) -> Result<()> {
        let context = Arc::clone(&self.context);
        let end = stop.child_token();
        let session = context.broker.session();
        let (entries, since) = {
            let wait = claimer.wait(context.options.block, &end);
            let reply = dated(wait, context.options.lease / 8);
            tokio::pin!(reply);
            tokio::select! {
                biased;
                reply = &mut reply => reply,
                () = context.slots.stay_full() => {
                    end.cancel();
                    reply.await
                }
            }
        };
        let entries = entries?;
        self.passed = 0;
        for entry in &entries {
            self.open[entry.place.lane.index()] = true;
        }
        // Of those that it was given before, nobody knows how long it has had them: a blocking read that
        // could not be ended but by closing its connection brings them, too.
        let (new, again): (Vec<_>, Vec<_>) = entries.into_iter().partition(Entry::is_new);
        self.keep(again, session, None).await;
        self.keep(new, session, Some(since)).await;
        Ok(())
    }

    /// Reads lanes until every free slot has an entry or no lane has more.
    async fn read(&mut self, claimer: &mut dyn Claimer, slot: Slot) -> Result<()> {
        let mut free = vec![slot];
        while let Some(more) = self.context.slots.try_take() {
            free.push(more);
        }
        if self.passed >= self.context.options.concurrency {
            self.look_above(claimer, free.len()).await?;
            self.start_in(&mut free);
        }
        while !free.is_empty() && self.open.contains(&true) {
            let shares = self.weights.share(free.len(), self.open);
            for (lane, share) in Lane::ALL.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
                let (asked, session) = (Instant::now(), self.context.broker.session());
                let entries = claimer.read(lane, share).await?;
                self.open[lane.index()] = entries.len() >= share;
                self.keep(entries, session, Some(asked)).await;
            }
            self.start_in(&mut free);
        }
        Ok(())
    }

    /// Looks whether something has come to a closed lane that has more weight than one that is read: it is to
    /// wait for no more jobs of the other than there are slots. One that has, is open.
    async fn look_above(&mut self, claimer: &mut dyn Claimer, most: usize) -> Result<()> {
        self.passed = 0;
        for lane in self.weights.above(self.open) {
            if self.surplus.len() < most {
                let (asked, session) = (Instant::now(), self.context.broker.session());
                let entries = claimer.read(lane, 1).await?;
                self.open[lane.index()] = !entries.is_empty();
                self.keep(entries, session, Some(asked)).await;
            }
        }
        Ok(())
    }

    /// Starts surplus entries in free slots.
    fn start_in(&mut self, free: &mut Vec<Slot>) {
        while let Some(slot) = free.pop() {
            let Some((entry, _)) = self.surplus.pop_front() else {
                free.push(slot);
                break;
            };
            self.start(entry, slot);
        }
    }

    /// Takes entries into this worker's hands, unless they are there; it was given them no earlier
    /// than `since`, and in this session or a later one. From idle to holding work it tells the partition's workers, so that one of them
    /// sweeps.
    async fn keep(&mut self, entries: Vec<Entry>, session: u64, since: Option<Instant>) {
        if entries.is_empty() {
            return;
        }
        let idle = !self.context.hands.any_of(&self.partition);
        let now = Instant::now();
        for mut entry in entries {
            entry.session = session;
            if self.context.hands.take(&entry, since) {
                self.surplus.push_back((entry, now));
            }
        }
        // Told just now by the one who added it: they look after this.
        let told = self.context.wakes.within(&self.partition, self.context.options.sweep / 2);
        if idle
            && !told
            && let Err(error) = self.context.broker.wake(&self.partition, Wake::Claimed).await
        {
            tracing::debug!(%error, "nobody woken");
        }
    }

    fn start(&mut self, entry: Entry, slot: Slot) {
        self.started += 1;
        self.passed += 1;
        start(&self.context, &self.jobs, entry, slot);
    }
}

/// Waits for a reply, and dates it: it came after the returned time. A process that was stopped
/// finds its reply as late as it finds that a tick has passed, so the tick before the last counts.
async fn dated<T>(reply: impl Future<Output = T>, tick: Duration) -> (T, Instant) {
    tokio::pin!(reply);
    let tick = tick.max(Duration::from_millis(1));
    let mut last = Instant::now();
    let mut before = last;
    loop {
        tokio::select! {
            biased;
            reply = &mut reply => return (reply, before),
            () = tokio::time::sleep_until(last + tick) => (before, last) = (last, Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reply_is_hardly_older_than_its_date_unless_the_process_stood_still() {
        let tick = Duration::from_secs(1);
        let ((), date) = dated(tokio::time::sleep(tick * 20), tick).await;
        assert!((tick..=tick * 2).contains(&date.elapsed()), "{:?}", date.elapsed());

        // It stands still for a minute, and finds the reply only after the tick.
        let (start, (sender, reply)) = (Instant::now(), tokio::sync::oneshot::channel());
        let dating = tokio::spawn(dated(reply, tick));
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_mins(1)).await;
        tokio::task::yield_now().await;
        sender.send(()).unwrap();
        let (_, date) = dating.await.unwrap();
        assert!(date.duration_since(start) <= tick);
    }

    #[test]
    fn lanes_are_chosen_by_weight() {
        let mut weights = Weights::new([8, 4, 1]);
        assert_eq!(weights.share(13, [true; 3]), [8, 4, 1]);
        assert_eq!(weights.share(12, [false, true, false]), [0, 12, 0]);
        assert_eq!(weights.share(5, [false; 3]), [0; 3]);
    }

    #[test]
    fn only_lanes_of_more_weight_are_looked_at_before_their_turn() {
        let weights = Weights::new([8, 4, 1]);
        assert_eq!(weights.above([false, true, true]), [Lane::High]);
        assert_eq!(weights.above([false, false, true]), [Lane::High, Lane::Normal]);
        assert_eq!(weights.above([true, false, true]), [Lane::Normal]);
        assert_eq!(weights.above([true, false, false]), []);
        assert_eq!(Weights::new([1, 1, 1]).above([false, true, false]), []);
    }

    #[test]
    fn one_slot_at_a_time_starves_no_lane() {
        let mut weights = Weights::new([8, 4, 1]);
        let mut sums = [0; 3];
        for _ in 0..130 {
            let share = weights.share(1, [true; 3]);
            (0..3).for_each(|at| sums[at] += share[at]);
        }
        assert_eq!(sums, [80, 40, 10]);
    }
}
