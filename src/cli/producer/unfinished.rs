//! Jobs whose end is awaited, and what is told of them when nobody waits any longer.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use tokio::time::timeout;

use crate::{
    broker::Shared,
    cli::ended::Ended,
    job::{JobId, Labels},
};

/// Most records that are asked for at once.
const LOOKUPS: usize = 256;
/// How long, in all, an early end may be held up by asking where the jobs stand.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nobody waits any longer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Why {
    Interrupted,
    Late,
    /// The producer itself cannot go on.
    Broken,
}

/// The jobs by their lines.
#[derive(Debug, Default)]
pub(super) struct Unfinished(BTreeMap<u64, (JobId, Option<String>, Labels)>);

impl Unfinished {
    /// How to go on with what [`Unfinished::ends`] tells.
    pub(super) const REMEDY: &'static str = "what is not over goes on, and stands on standard output: \
                                             `millstream jobs wait --file -` takes these lines";

    pub(super) fn insert(&mut self, job: &Ended) {
        self.0.insert(job.line, (job.id, job.custom_id.clone(), job.labels.clone()));
    }

    pub(super) fn remove(&mut self, line: u64) {
        self.0.remove(&line);
    }

    pub(super) fn first(&self) -> Option<JobId> {
        self.0.values().next().map(|(id, ..)| *id)
    }

    /// Each of these jobs, with the state that it is in as far as the broker tells it soon.
    pub(super) async fn ends(&self, broker: &Shared, why: Why) -> Vec<Ended> {
        let (code, message) = match why {
            Why::Interrupted => ("interrupted", "interrupted before the end"),
            Why::Late => ("listen_timeout", "not over in time"),
            Why::Broken => ("producer_failed", "the producer ended before the job"),
        };
        let mut ends: Vec<Ended> = Vec::with_capacity(self.0.len());
        for (line, (id, custom_id, labels)) in &self.0 {
            ends.push(Ended {
                custom_id: custom_id.clone(),
                labels: labels.clone(),
                error: Some(json!({"code": code, "message": message})),
                ..Ended::unknown(*id, *line)
            });
        }
        let look = async {
            for some in ends.chunks_mut(LOOKUPS) {
                let ids: Vec<JobId> = some.iter().map(|ended| ended.id).collect();
                let Ok(records) = broker.records(&ids).await else { return };
                for (ended, record) in some.iter_mut().zip(records) {
                    if let Some(record) = record {
                        ended.stands(&record);
                    }
                }
            }
        };
        // Of a broker that is away the lines say `unknown`.
        let _ = timeout(PATIENCE, look).await;
        ends
    }
}
