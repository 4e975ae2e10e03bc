//! `GET /v1/jobs`: a tenant's jobs.

use std::sync::Arc;

use axum::{Json as Reply, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::{
    app::App,
    auth::{Known, Right},
    error::{ErrorBody, Refusal},
    params::{Asked, Params},
    schemas, view,
};
use crate::{
    broker::{Recent, Record},
    job::JobId,
    state::State as JobState,
};

/// Jobs that are looked at, at most, to find those that are asked for.
const SOUGHT: usize = 1000;

/// Some of a tenant's jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct List {
    /// `list`.
    object: &'static str,
    /// The newest first.
    data: Vec<view::Job>,
    /// Whether there are older ones.
    has_more: bool,
    /// What to ask for as `before` to get them.
    #[schema(value_type = Option<String>, format = "uuid", required)]
    next: Option<JobId>,
}

/// Which jobs are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::gateway) struct Which {
    /// Only those in this state.
    #[param(value_type = Option<schemas::StateName>, nullable = false)]
    state: Option<JobState>,
    /// Only those with this label, as `name:value`.
    #[param(pattern = "^[^:]+:.*$", nullable = false, example = "conversation:c-17")]
    label: Option<String>,
    /// Most jobs.
    #[serde(default = "twenty")]
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: usize,
    /// Only those that are older than this job.
    #[param(value_type = Option<String>, format = "uuid", nullable = false)]
    before: Option<JobId>,
}

impl Asked for Which {
    const ALLOWED: &'static [(&'static str, &'static str)] = &[
        ("state", "waiting, parked, running, done, failed, cancelled"),
        ("label", "name:value"),
        ("limit", "1 to 100"),
        ("before", "a job's ID"),
    ];
}

fn twenty() -> usize {
    20
}

/// Your jobs, the newest first
///
/// The most recent ones are kept in mind, a thousand unless configured otherwise.
#[utoipa::path(get, path = "/v1/jobs", operation_id = "list_jobs", tag = "jobs", params(Which),
    responses(
        (status = 200, description = "Some of your jobs, without what they said", body = List),
        (status = 404, description = "`before` is no job that is kept in mind", body = ErrorBody)))]
pub(in crate::gateway) async fn list(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    Params(which): Params<Which>,
) -> Result<Reply<List>, Refusal> {
    caller.needs(Right::Read)?;
    if !(1..=100).contains(&which.limit) {
        let text = format!("limit is {}; allowed: 1 to 100", which.limit);
        return Err(Refusal::param("limit", text));
    }
    let label = match which.label.as_deref().map(|label| label.split_once(':')) {
        Some(None | Some(("", _))) => {
            return Err(Refusal::param("label", "label is not `name:value`"));
        }
        found => found.flatten(),
    };
    let means = |job: &Record| {
        which.state.is_none_or(|state| state == job.state)
            && label.is_none_or(|(name, value)| {
                job.labels.0.get(name).map(String::as_str) == Some(value)
            })
            && job.is_of(&caller.tenant)
    };
    let (mut data, mut before, mut looked) = (Vec::new(), which.before, 0);
    loop {
        let recent = app.noticed(app.broker.recent(&caller.tenant, before, 100).await)?;
        let Recent::Jobs(ids) = recent else {
            let text = "before is no job that is kept in mind";
            let status = StatusCode::NOT_FOUND;
            return Err(Refusal::new(status, "job_not_found", text).at("before"));
        };
        let records = app.noticed(app.broker.records(&ids).await)?;
        let (read, full) = (ids.len(), ids.len() == 100);
        looked += read;
        for (at, (id, record)) in ids.into_iter().zip(records).enumerate() {
            before = Some(id);
            let Some(record) = record.filter(|record| means(record)) else { continue };
            data.push(view::Job::brief(record));
            if data.len() == which.limit {
                let has_more = full || at + 1 < read;
                let next = before.filter(|_| has_more);
                return Ok(Reply(List { object: "list", data, has_more, next }));
            }
        }
        if !full || looked >= SOUGHT {
            let next = before.filter(|_| full);
            return Ok(Reply(List { object: "list", data, has_more: full, next }));
        }
    }
}
