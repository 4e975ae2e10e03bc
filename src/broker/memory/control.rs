//! What is asked of a job from outside.

use super::state::{State, is_put_back};
use crate::{
    broker::{
        Cancel, DeadLetter, Error, Order, Partition, Reopened, Result, Run, Topic, Wake, WorkerId,
        proof,
    },
    event::{Body, Cancelled, Codec, Frame, Requeued},
    job::{JobId, Timestamp},
    state::State as JobState,
};

fn frame(body: &Body) -> Result<Frame> {
    Frame::new(0, body, Codec::Json).map_err(|e| Error::Protocol(e.to_string()))
}

impl State {
    pub(super) fn cancel(&mut self, job: JobId, now: Timestamp) -> Result<Cancel> {
        let Some(run) = self.runs.get_mut(&job) else { return Ok(Cancel::Unknown) };
        let number = run.record.run;
        match run.record.state {
            JobState::Cancelled => {
                let partition = run.record.partition.clone();
                return Ok(Cancel::Cancelled { partition, run: number, again: true });
            }
            state if state.is_terminal() => return Ok(Cancel::Over(state)),
            JobState::Running => {
                let again = std::mem::replace(&mut run.cancel, true);
                run.record.cancelling = true;
                let worker = run.record.worker.clone().unwrap_or_default();
                if let Ok(id) = worker.parse::<WorkerId>() {
                    let order = Order::Cancel(job).message();
                    self.topics.publish(&Topic::Worker(id), order.as_bytes());
                }
                return Ok(Cancel::Asked { worker, again });
            }
            _ => {}
        }
        let fence = run.raise(now);
        run.record.state = JobState::Cancelled;
        run.record.ended_at = Some(now);
        run.record.due = None;
        let partition = run.record.partition.clone();
        let body = Body::Cancelled(Cancelled {
            attempts: run.record.attempt,
            usage: None,
            custom_id: run.record.custom_id.clone(),
            labels: run.record.labels.clone(),
        });
        self.write(job, fence, &[frame(&body)?]);
        self.finished.push_back(job);
        Ok(Cancel::Cancelled { partition, run: number, again: false })
    }

    pub(super) fn reopen(
        &mut self,
        partition: &Partition,
        letter: &DeadLetter,
        now: Timestamp,
    ) -> Result<Reopened> {
        if let Some(run) = self.runs.get(&letter.id) {
            let mine = run.letter.as_ref() == Some(&letter.letter);
            let (number, state) = (run.record.run, run.record.state);
            let over = matches!(state, JobState::Failed | JobState::Cancelled);
            if mine && !over && state != JobState::Done {
                return Ok(Reopened::Yes(Run { number, fresh: false }));
            }
            // The run that this letter opened has had its entry, so the letter is gone.
            let spent = mine && (state == JobState::Failed || run.place.is_some());
            if !over || spent || (number != letter.run && !mine) {
                return Ok(Reopened::No(state));
            }
        }
        if !self.runs.contains_key(&letter.id) {
            let mut run = super::run::Run::new(letter.id, letter.at);
            run.sum = Some(proof::sum(letter.payload().unwrap_or_default()));
            if let Some(job) = letter.job() {
                run.describe(&job, partition);
            }
            self.keep(run);
        }
        // It is not over any more: it must not go with what is.
        self.finished.retain(|id| *id != letter.id);
        self.answered_keys.retain(|id| *id != letter.id);
        let Some(run) = self.runs.get_mut(&letter.id) else {
            return Err(Error::Protocol("the record is gone".to_owned()));
        };
        let number = run.reopen(letter, now);
        let fence = run.record.fence;
        self.write(letter.id, fence, &[frame(&Body::Requeued(Requeued { run: number }))?]);
        Ok(Reopened::Yes(Run { number, fresh: true }))
    }

    /// Whether a job runs that is to be cancelled.
    pub(super) fn is_to_be_cancelled(&self, job: JobId) -> bool {
        let run = self.runs.get(&job);
        run.is_some_and(|run| run.cancel && run.record.state == JobState::Running)
    }

    /// Whether a letter has opened a run that has no entry yet.
    pub(super) fn is_unfinished(&self, letter: &DeadLetter) -> bool {
        is_put_back(&self.runs, letter)
    }

    pub(super) fn requeue(
        &mut self,
        partition: &Partition,
        letter: &DeadLetter,
        run: Run,
        now: Timestamp,
    ) -> bool {
        let there = self.queue(partition).unbury(&letter.letter);
        if there || run.fresh {
            self.queue(partition).add(letter.lane, letter.entry(run.number), now);
            self.wake(partition, Wake::Added);
        }
        there || run.fresh
    }
}
