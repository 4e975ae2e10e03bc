//! Claiming entries, opening attempts, and promoting parked jobs.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::{Redis, codec, incoming::record_fields, millis, read::RedisClaimer, short};
use crate::{
    broker::{
        Attempt, Begin, Claim, Claimer, Crashes, Entry, Error, Inspect, Partition, Place, Promoted,
        Refused, Renewed, Result, Sweep, Swept, Wake, WorkerId,
    },
    error::{Code, Failure},
    job::{JobId, Timestamp},
};

/// Most workers that one script forgets, which takes about 1 ms for them.
const NAMES: usize = 100;

/// The record's note of which entry carries a job.
pub(super) fn place_text(place: &Place) -> String {
    format!("{} {}", place.lane, place.entry)
}

/// What a record says of its job for ever, as far as the entry tells it; with the fingerprint of its request, which
/// makes an idempotency key known again.
pub(super) fn described(entry: &Entry, fingerprint: Option<&str>) -> Vec<short::Field> {
    let Place { partition, lane, entry: entry_id } = &entry.place;
    let Ok(job) = &entry.job else {
        let mut fields = vec![
            ("sum".into(), entry.sum()),
            ("queue".into(), partition.to_string()),
            ("lane".into(), lane.to_string()),
            ("at".into(), entry.at.0.to_string()),
        ];
        // Whose job it is stands in what cannot be read, unless it was counted.
        fields.extend(entry.load.as_ref().map(|load| ("tenant".into(), load.tenant.to_string())));
        return fields;
    };
    let mut fields = record_fields(partition, *lane, entry.at, job, entry.payload());
    if let Some(fingerprint) = fingerprint {
        fields.push(("fp".into(), fingerprint.to_owned()));
        fields.push(("added".into(), entry_id.clone()));
    }
    fields
}

/// A number that a script gives as text: it may be larger than Lua's numbers are told exactly.
pub(super) fn number(text: &str, script: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::Protocol(format!("{script}: `{text}` is not a number")))
}

/// A failure as the record and the dead letters hold it.
pub(super) fn failure_text(error: &Failure) -> String {
    serde_json::to_string(error).unwrap_or_default()
}

/// The failure in a record, whatever wrote it.
pub(super) fn read_failure(text: &str) -> Failure {
    serde_json::from_str(text).unwrap_or_else(|_| Failure::new(Code::Unknown, text))
}

impl Redis {
    /// Runs `begin.lua` for `started`, `failed` or `cancelled`; `None` where the entry's session is over.
    pub(super) async fn open_fence(
        &self,
        entry: &Entry,
        event: (&str, &[u8]),
        by: (&str, Crashes),
        failure: &str,
    ) -> Result<Option<Verdict>> {
        let parked = entry.was_parked() && self.has_promoted(&entry.place).await?;
        // Of a plain entry nobody has looked at the key before; and a worker may be quicker than whoever writes the
        // record of a job that has just been added.
        let small = entry.attempt == 0 && entry.payload().len() <= SMALL;
        let fingerprint = if small || entry.is_plain() { entry.fingerprint() } else { None };
        let shown = Shown { parked, fingerprint };
        let told = self.ask_fence(entry, event, by, failure, &shown).await?;
        if told.as_ref().is_none_or(|(verdict, ..)| verdict != PROVE) {
            return Ok(told);
        }
        let shown = Shown { fingerprint: entry.fingerprint(), ..shown };
        self.ask_fence(entry, event, by, failure, &shown).await
    }

    /// Whether a parked job that cannot be read has become this entry.
    async fn has_promoted(&self, place: &Place) -> Result<bool> {
        let mut command = redis::cmd("HEXISTS");
        command.arg(self.keys.unread(&place.partition)).arg(place_text(place));
        codec::read(self.pool.command(&command).await?, "HEXISTS")
    }

    async fn ask_fence(
        &self,
        entry: &Entry,
        (event, payload): (&str, &[u8]),
        (worker, crashes): (&str, Crashes),
        failure: &str,
        shown: &Shown,
    ) -> Result<Option<Verdict>> {
        // A job that has begun once, or was put back by an operator, does not expire.
        let fresh = entry.attempt == 0 && entry.run == 1;
        let job = entry.job.as_ref().ok().filter(|_| fresh);
        let expires = job.and_then(|job| job.expires_at).map_or(0, |at| at.min(Timestamp::MAX).0);
        let begins = job.and_then(|job| job.not_before).map_or(0, |at| at.min(Timestamp::MAX).0);
        let mut call = self.scripts.begin.prepare_invoke();
        call.key(self.keys.job(entry.id))
            .key(self.keys.log(entry.id))
            .key(self.keys.events(entry.id))
            .arg(event)
            .arg(payload)
            .arg(worker)
            .arg(place_text(&entry.place))
            .arg(entry.attempt)
            .arg(entry.run)
            .arg(u8::from(entry.crashed))
            .arg(millis(self.options.job_ttl))
            .arg(crashes.most)
            .arg(u8::from(crashes.alone))
            .arg(expires)
            .arg(failure)
            .arg(begins)
            .arg(entry.job.as_ref().map_or("", |job| job.tenant.as_str()))
            .arg(if shown.parked { String::new() } else { entry.at.0.to_string() })
            .arg(entry.taking)
            .arg(entry.sum())
            .arg(shown.fingerprint.as_deref().unwrap_or_default())
            .arg(u8::from(entry.is_keyed()));
        let (letter, after) = entry.opened_by();
        call.arg(letter).arg(after);
        for (field, value) in described(entry, shown.fingerprint.as_deref()) {
            call.arg(&*field).arg(value);
        }
        let Some(reply) = self.pool.script_within(entry.session, &call).await? else {
            return Ok(None);
        };
        let (verdict, fence, attempt, failures, due, error): (_, String, _, _, String, _) =
            codec::read(reply, "begin")?;
        let (fence, due) = (number(&fence, "begin")?, number(&due, "begin")?);
        Ok(Some((verdict, fence, attempt, failures, due, error)))
    }
}

/// Most bytes of a job whose fingerprint is found out before it is asked for.
const SMALL: usize = 16 * 1024;

/// The verdict of `begin.lua` on an entry whose fingerprint it needs.
const PROVE: &str = "prove";

/// The proofs of an entry beside its fields.
struct Shown {
    /// Whether it stands for a parked job that could not be read, and came of that.
    parked: bool,
    /// The fingerprint of a key's request.
    fingerprint: Option<String>,
}

/// What `begin.lua` returns: verdict, fence, attempt, failures, due or crashes, error.
pub(super) type Verdict = (String, u64, u32, u32, u64, String);

/// Turns the script's verdict into what the worker is to do.
pub(super) fn verdict(
    reply: Option<Verdict>,
    begun: impl FnOnce(u64, u32, u32) -> Attempt,
) -> Result<Begin> {
    let Some((verdict, fence, attempt, failures, due, error)) = reply else {
        return Ok(Begin::Stale);
    };
    Ok(match verdict.as_str() {
        "begun" => Begin::Begun(begun(fence, attempt, failures)),
        "remove" => Begin::Remove,
        "park" => Begin::Park { attempt, due: Timestamp(due) },
        "bury" => Begin::Bury { error: read_failure(&error), attempts: attempt, fence },
        "late" => Begin::Late,
        "alone" => Begin::Alone,
        "foreign" => Begin::Foreign,
        "newer" => Begin::Newer { state: error },
        "cancel" => Begin::Refuse { why: Refused::Cancelled, attempts: attempt },
        "expired" => Begin::Refuse { why: Refused::Expired, attempts: attempt },
        "poison" => {
            let crashes = u32::try_from(due).unwrap_or(u32::MAX);
            Begin::Refuse { why: Refused::Poison { crashes }, attempts: attempt }
        }
        other => return Err(Error::Protocol(format!("begin: unknown verdict `{other}`"))),
    })
}

#[async_trait]
impl Claim for Redis {
    async fn announce(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        lease: Duration,
    ) -> Result<()> {
        let mut call = self.scripts.announce.key(self.keys.leases(partition));
        call.arg(worker.as_str()).arg(millis(lease));
        self.pool.script(&call).await.map(drop)
    }

    async fn claimer(&self, partition: &Partition, worker: &WorkerId) -> Result<Box<dyn Claimer>> {
        let claimer = RedisClaimer::open(self.clone(), partition.clone(), worker.clone()).await?;
        Ok(Box::new(claimer))
    }

    async fn begin(&self, entry: &Entry, worker: &WorkerId, crashes: Crashes) -> Result<Begin> {
        let session = self.pool.session();
        let payload = format!("\"worker\":\"{worker}\"}}");
        let (event, by) = (("started", payload.as_bytes()), (worker.as_str(), crashes));
        verdict(self.open_fence(entry, event, by, "").await?, |fence, number, failures| Attempt {
            job: entry.id,
            place: entry.place.clone(),
            worker: worker.clone(),
            fence,
            number,
            failures,
            run: entry.run,
            session,
        })
    }

    async fn promote(&self, partition: &Partition, most: usize) -> Result<Promoted> {
        self.move_due(partition, most).await
    }

    async fn renew(&self, worker: &WorkerId, places: &[Place]) -> Result<Renewed> {
        self.renew_leases(worker, places).await
    }

    async fn keep(&self, jobs: &[JobId]) -> Result<()> {
        try_join_all(jobs.iter().map(async |job| {
            let mut call = self.scripts.keep.key(self.keys.job(*job));
            call.key(self.keys.log(*job)).arg(millis(self.options.job_ttl));
            self.pool.script(&call).await
        }))
        .await
        .map(drop)
    }

    async fn sweep(
        &self,
        partition: &Partition,
        worker: &WorkerId,
        sweep: &Sweep,
    ) -> Result<Swept> {
        self.take_over(partition, worker, sweep).await
    }

    async fn retire(
        &self,
        partition: &Partition,
        worker: Option<&WorkerId>,
        idle: Duration,
    ) -> Result<u64> {
        let leaving = worker.map_or("", WorkerId::as_str);
        let names: Vec<String> = match worker {
            Some(worker) => vec![worker.to_string()],
            None => {
                let seen = self.workers(partition).await?;
                seen.into_iter().filter(|seen| seen.idle > idle).map(|seen| seen.id).collect()
            }
        };
        let mut count = 0;
        for page in names.chunks(NAMES) {
            let mut call = self.scripts.retire.prepare_invoke();
            for lane in self.keys.lanes(partition) {
                call.key(lane);
            }
            call.key(self.keys.leases(partition));
            call.arg(leaving).arg(self.keys.workers()).arg(page);
            count += codec::read::<u64>(self.pool.script(&call).await?, "retire")?;
        }
        Ok(count)
    }

    async fn wake(&self, partition: &Partition, why: Wake) -> Result<()> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(self.keys.wake(partition)).arg(why.message());
        self.pool.command(&command).await.map(drop)
    }
}
