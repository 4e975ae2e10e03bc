//! Cancelling jobs, telling workers, and opening new runs of dead ones.

use async_trait::async_trait;

use super::{Redis, codec, incoming::record_fields, millis};
use crate::{
    broker::{
        Cancel, Control, DeadLetter, Error, Order, Partition, Reopened, Result, Run, Settled,
        WorkerId,
        redis::inspect::{letters, partition},
    },
    job::JobId,
    state::State,
};

fn state(text: &str, script: &str) -> Result<State> {
    text.parse().map_err(|error| Error::Protocol(format!("{script}: {error}")))
}

impl Redis {
    /// The run in which a job is, where the record tells one.
    async fn run_of(&self, job: JobId) -> Result<Option<u32>> {
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.job(job)).arg("run");
        codec::read(self.pool.command(&command).await?, "run")
    }
}

#[async_trait]
impl Control for Redis {
    async fn cancel(&self, job: JobId) -> Result<Cancel> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        // The run that is there now is meant, and none that is opened before the call arrives.
        let mut meant = self.run_of(job).await?.unwrap_or(1);
        let (verdict, was, more, run) = loop {
            let mut call = self.scripts.cancel.key(self.keys.job(job));
            call.key(self.keys.log(job))
                .key(self.keys.events(job))
                .arg(self.keys.workers())
                .arg(millis(self.options.job_ttl))
                .arg(&name)
                .arg(meant);
            let answer: (String, String, String, u32) =
                codec::read(self.pool.script(&call).await?, "cancel")?;
            if answer.0 != "moved" {
                break answer;
            }
            meant = answer.3;
        };
        Ok(match verdict.as_str() {
            "cancelled" => {
                Cancel::Cancelled { partition: partition(&more), run, again: was == "cancelled" }
            }
            "asked" => Cancel::Asked { worker: more, again: false },
            "again" => Cancel::Asked { worker: more, again: true },
            "over" => Cancel::Over(state(&was, "cancel")?),
            "unknown" => Cancel::Unknown,
            other => return Err(Error::Protocol(format!("cancel: unknown verdict `{other}`"))),
        })
    }

    async fn unpark(
        &self,
        partition: &Partition,
        job: JobId,
        run: u32,
        session: u64,
    ) -> Result<Settled> {
        let mut call = self.scripts.unpark.key(self.keys.parked(partition));
        call.key(self.keys.parked_jobs(partition))
            .key(self.keys.load(partition))
            .arg(job.to_string())
            .arg(run);
        super::settle::settled(self.pool.script_within(session, &call).await?, "unpark")
    }

    async fn cancelled(&self, jobs: &[JobId]) -> Result<Vec<JobId>> {
        let mut pipe = redis::pipe();
        for job in jobs {
            pipe.cmd("HMGET").arg(self.keys.job(*job)).arg(&["state", "cancel"]);
        }
        let mut found = Vec::new();
        for (job, reply) in jobs.iter().zip(self.pool.pipeline(&mut pipe).await?) {
            let value = reply.map_err(|e| self.pool.connector().classify(e))?;
            let (state, wish): (Option<String>, Option<String>) = codec::read(value, "cancel")?;
            // What stands in another record was carried out: a later run, which it does not know yet, is
            // not meant.
            if wish.is_some() && state.as_deref() == Some("running") {
                found.push(*job);
            }
        }
        Ok(found)
    }

    async fn tell(&self, worker: &WorkerId, order: Order) -> Result<u64> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(self.keys.worker(worker)).arg(order.message());
        codec::read(self.pool.command(&command).await?, "PUBLISH")
    }

    async fn reopen(&self, partition: &Partition, letter: &DeadLetter) -> Result<Reopened> {
        let mut call = self.scripts.reopen.key(self.keys.job(letter.id));
        call.key(self.keys.log(letter.id))
            .key(self.keys.events(letter.id))
            .arg(&letter.letter)
            .arg(letter.fence)
            .arg(letter.run)
            .arg(millis(self.options.job_ttl))
            .arg(self.run_of(letter.id).await?.map_or(String::new(), |run| run.to_string()));
        match letter.job() {
            Some(job) => {
                let payload = letter.payload().unwrap_or_default();
                for (field, value) in
                    record_fields(partition, letter.lane, letter.at, &job, payload)
                {
                    call.arg(&*field).arg(value);
                }
            }
            None => {
                call.arg("queue").arg(partition.to_string());
                call.arg("lane").arg(letter.lane.as_str()).arg("at").arg(letter.at.0);
            }
        }
        let (verdict, more): (String, String) =
            codec::read(self.pool.script(&call).await?, "reopen")?;
        if verdict == "no" {
            return Ok(Reopened::No(state(&more, "reopen")?));
        }
        let number = more.parse().map_err(|_| Error::Protocol(format!("reopen: run `{more}`")))?;
        Ok(Reopened::Yes(Run { number, fresh: verdict == "yes" }))
    }

    async fn requeue(&self, partition: &Partition, letter: &DeadLetter, run: Run) -> Result<bool> {
        let mut call = self.scripts.requeue.key(self.keys.dead(partition));
        call.key(self.keys.lane(partition, letter.lane))
            .arg(&letter.letter)
            .arg(self.keys.wake(partition))
            .arg(u8::from(run.fresh));
        for (name, value) in letter.entry(run.number) {
            call.arg(name).arg(value);
        }
        codec::read(self.pool.script(&call).await?, "requeue")
    }

    async fn letter(&self, partition: &Partition, letter: &str) -> Result<Option<DeadLetter>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.dead(partition)).arg(letter).arg(letter);
        Ok(letters(self.pool.command(&command).await?)?.into_iter().next())
    }

    async fn unfinished(&self, letters: &[DeadLetter]) -> Result<Vec<bool>> {
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for letter in letters {
            pipe.cmd("HMGET").arg(self.keys.job(letter.id)).arg(&["state", "letter", "place"]);
        }
        let replies = self.pool.pipeline(&mut pipe).await?;
        let read = |(letter, reply): (&DeadLetter, redis::RedisResult<redis::Value>)| {
            let value = reply.map_err(|e| self.pool.connector().classify(e))?;
            let [state, opened_by, place]: [Option<String>; 3] = codec::read(value, "record")?;
            let waits = state.as_deref() == Some(State::Waiting.as_str());
            Ok(waits && opened_by.as_ref() == Some(&letter.letter) && place.is_none())
        };
        letters.iter().zip(replies).map(read).collect()
    }

    async fn purge(&self, partition: &Partition, letters: &[String]) -> Result<u64> {
        if letters.is_empty() {
            return Ok(0);
        }
        let mut command = redis::cmd("XDEL");
        command.arg(self.keys.dead(partition)).arg(letters);
        codec::read(self.pool.command(&command).await?, "XDEL")
    }
}
