//! An array of jobs, read no further than allowed.

use std::{collections::BTreeSet, fmt};

use axum::{
    body::Bytes,
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use serde::{
    Deserializer as _, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    super::{
        app::App,
        audit::Trail,
        auth,
        error::{ErrorObject, Refusal},
        presence::{self, with_warning},
        view,
    },
    submission,
};
use crate::{
    broker::Submission,
    job::{QueueName, Tenant, Timestamp},
};

/// What became of several jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct Bulk {
    /// `list`.
    object: &'static str,
    /// One result for each job, in order.
    data: Vec<Item>,
    /// Jobs that were taken.
    accepted: usize,
    /// Jobs that were refused.
    refused: usize,
}

/// What became of one of several jobs: either is there.
#[derive(Debug, Serialize, ToSchema)]
struct Item {
    /// Its place in the request, from 0.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    job: Option<view::Accepted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<ErrorObject>,
}

/// Enqueues the jobs of an array, each by itself.
pub(super) async fn enqueue(
    app: &App,
    tenant: &Tenant,
    body: &[u8],
    trail: &Trail,
) -> Result<Response, Refusal> {
    // What became of many jobs takes memory until it is read.
    let mut slot = app.slots.take(tenant)?;
    let jobs = admitted(app, tenant, body).await?;
    let verdicts: Vec<_> =
        jobs.iter().map(|job| submission(app, tenant, job.get().as_bytes(), None)).collect();
    let queues: BTreeSet<QueueName> =
        verdicts.iter().flatten().map(|job| job.partition.queue.clone()).collect();
    let mut refusals = Vec::new();
    let mut good = Vec::new();
    for (index, verdict) in verdicts.into_iter().enumerate() {
        match verdict {
            Ok(submission) => good.push((index, submission)),
            Err(refusal) => refusals.push((index, Err(refusal))),
        }
    }
    let (places, batch): (Vec<usize>, Vec<Submission>) = good.into_iter().unzip();
    let mut results = Vec::new();
    for part in batch.chunks(256) {
        let submitted = app.producer.submit(part).await;
        submitted.iter().flatten().for_each(|receipt| trail.did(receipt.id));
        results.extend(submitted.into_iter().map(|result| app.noticed(result)));
    }
    let now = Timestamp::now();
    let noted: Vec<_> = results
        .iter()
        .flatten()
        .filter(|receipt| !receipt.duplicate)
        .map(|receipt| (receipt.id, now))
        .collect();
    if let Err(error) = app.broker.note(tenant, &noted).await {
        tracing::debug!(%error, "jobs not noted among their tenant's");
    }
    refusals.extend(places.into_iter().zip(results));
    refusals.sort_by_key(|(index, _)| *index);
    let accepted = refusals.iter().filter(|(_, result)| result.is_ok()).count();
    let data: Vec<Item> = refusals
        .into_iter()
        .map(|(index, result)| match result {
            Ok(receipt) => Item { index, job: Some((&receipt).into()), error: None },
            Err(refusal) => Item { index, job: None, error: Some(refusal.error) },
        })
        .collect();
    let bulk = Bulk { object: "list", refused: data.len() - accepted, accepted, data };
    let warnings = join_all(queues.iter().map(|queue| presence::warning(app, queue))).await;
    let warnings: Vec<String> = warnings.into_iter().flatten().collect();
    let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
    let answer = Bytes::from(serde_json::to_vec(&bulk).unwrap_or_default());
    slot.count(answer.len());
    let kind = [(header::CONTENT_TYPE, "application/json")];
    let response = (kind, slot.body(answer)).into_response();
    Ok(with_warning(response, warning.as_deref()))
}

/// The jobs of an array, each counted as a request of its tenant's.
async fn admitted<'a>(
    app: &App,
    tenant: &Tenant,
    body: &'a [u8],
) -> Result<Vec<&'a RawValue>, Refusal> {
    let most = app.options.limits.max_bulk;
    let (jobs, count) = first(body, most)
        .map_err(|error| Refusal::bad("invalid_job", format!("not JSON: {error}")))?;
    if count == 0 || count > most {
        let text = format!("{count} jobs; allowed: 1 to {most} (gateway.limits.max_bulk)");
        return Err(Refusal::bad("too_many_jobs", text));
    }
    let jobs_as_requests = u32::try_from(count).unwrap_or(u32::MAX);
    let burst = app.options.limits.rate().map_or(u32::MAX, |rate| rate.burst);
    if jobs_as_requests > burst {
        let text = format!(
            "{count} jobs; allowed: 1 to {burst}, as many as your tenant may ask for at once \
             (gateway.limits.burst)"
        );
        return Err(Refusal::bad("too_many_jobs", text));
    }
    // The request itself has been counted as the first of them.
    auth::admit_many(app, tenant, jobs_as_requests - 1).await?;
    Ok(jobs)
}

/// The first `most` values of an array, and how many it has. The others are passed over: kept, small ones
/// would take many times the memory of their text.
pub(super) fn first(text: &[u8], most: usize) -> serde_json::Result<(Vec<&RawValue>, usize)> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let values = reader.deserialize_seq(First(most))?;
    reader.end()?;
    Ok(values)
}

struct First(usize);

impl<'de> Visitor<'de> for First {
    type Value = (Vec<&'de RawValue>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of jobs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        while first.len() < self.0 {
            let Some(value) = array.next_element()? else { break };
            first.push(value);
        }
        let mut count = first.len();
        while count >= self.0 && array.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((first, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_allowed_is_kept_and_all_are_counted() {
        for (text, kept, count) in [
            ("[]", &[][..], 0),
            (" [1] ", &["1"], 1),
            ("[1, {}]", &["1", "{}"], 2),
            ("[1,2,[[3]],4,\"5\"]", &["1", "2"], 5),
        ] {
            let (values, met) = first(text.as_bytes(), 2).unwrap();
            assert_eq!(
                (values.iter().map(|raw| raw.get()).collect::<Vec<_>>(), met),
                (kept.to_vec(), count)
            );
        }
        for bad in
            ["", "{}", "[1,]", "[1,2,3", "[1,2,x]", "[1] 2", "[1,2] 3", "[1,2,3]]", "[\"\u{1}\"]"]
        {
            assert!(first(bad.as_bytes(), 2).is_err(), "{bad}");
        }
    }
}
