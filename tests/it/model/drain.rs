//! The end of a case: what is late arrives, and one honest worker takes everything to its end.

use millstream::{broker::Refused, error::Code, job::Lane, state::State};

use super::{
    check,
    play::Play,
    real::Halt,
    terms::{Answer, Call, Delivery, Deltas, Due, End, Refusal},
};

/// More rounds than any job needs: each takes every entry one step on.
const ROUNDS: usize = 12;

impl Play {
    /// Ends every job, and checks that every run came to one end.
    pub async fn drain(&mut self) -> Result<(), Halt> {
        for call in self.no_longer_late() {
            self.deliver(&call).await?;
        }
        let worker = self.real.hire();
        for _ in 0..ROUNDS {
            self.give_up_waiting().await?;
            if self.left() == 0 {
                break;
            }
            self.make(&Call::Promote).await?;
            let mut given = self.given(&Call::Sweep { worker, ran_out: true }).await?;
            for lane in Lane::ALL {
                given.extend(self.given(&Call::Read { worker, lane, most: 1_000 }).await?);
            }
            for delivery in given {
                self.finish(worker, delivery).await?;
            }
        }
        if self.left() > 0 {
            let text = format!("{} jobs are left after {ROUNDS} rounds", self.left());
            return Err(Halt::Wrong(text));
        }
        self.every_run_has_ended().await
    }

    /// Entries and parked jobs.
    fn left(&self) -> usize {
        self.told.lanes.iter().flatten().count() + self.told.parked.len()
    }

    async fn given(&mut self, call: &Call) -> Result<Vec<Delivery>, Halt> {
        match self.make(call).await? {
            Answer::Given { deliveries, .. } => Ok(deliveries),
            other => Err(Halt::Wrong(format!("{call:?}: {other:?}"))),
        }
    }

    /// What would wait beyond the end of the case is cancelled: jobs of another day, and runs that
    /// an operator has opened without coming to their entries.
    async fn give_up_waiting(&mut self) -> Result<(), Halt> {
        for job in 0..self.told.jobs.len() {
            let parked = self.told.parked.get(&job).filter(|parked| parked.due == Due::Far);
            let parked = parked.map(|parked| parked.run);
            let nobodys = self.told.jobs[job].known && !self.told.is_carried(job);
            if parked.is_some() || nobodys {
                self.make(&Call::Cancel { job }).await?;
            }
            if let Some(run) = parked {
                self.make(&Call::Unpark { job, run }).await?;
            }
        }
        Ok(())
    }

    /// Does what an entry is owed.
    async fn finish(&mut self, worker: usize, delivery: Delivery) -> Result<(), Halt> {
        let entry = delivery.entry;
        let mut answer = self.make(&Call::Begin { worker, delivery }).await?;
        while let Answer::Refuse { why, .. } = answer {
            let how = match why {
                Refused::Cancelled => Refusal::Cancelled,
                Refused::Expired => Refusal::Failed(Code::Expired),
                Refused::Poison { .. } => Refusal::Failed(Code::Poison),
            };
            answer = self.make(&Call::Refuse { delivery, how }).await?;
        }
        let last = match answer {
            Answer::Begun(attempt) => {
                let deltas = Deltas { first: 1, end: 2 };
                self.make(&Call::Conclude { attempt, deltas, end: End::Done }).await?;
                Call::Remove { entry }
            }
            Answer::Park { attempt, due } => Call::Park { entry, attempt, due },
            Answer::Bury { attempts, fence, .. } => Call::Bury { entry, attempts, fence },
            _ => Call::Remove { entry },
        };
        self.make(&last).await.map(drop)
    }

    async fn every_run_has_ended(&self) -> Result<(), Halt> {
        for (no, job) in self.told.jobs.iter().enumerate() {
            let (record, log) = self.real.look(no).await?;
            let Some(record) = record else { continue };
            let ends = check::ends(&log);
            let one_each = ends.iter().all(|count| *count == 1);
            if !one_each || ends.len() != job.run as usize || !record.state.is_terminal() {
                let text =
                    format!("job {no} is {} and its runs ended {ends:?} times", record.state);
                return Err(Halt::Wrong(format!("{text}\n  {log:?}")));
            }
            if job.promised == job.run && job.state == State::Failed && !self.told.is_carried(no) {
                return Err(Halt::Wrong(format!("job {no} has failed without a letter")));
            }
        }
        Ok(())
    }
}
