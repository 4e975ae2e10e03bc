//! `/v1/jobs/{id}/token`.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::{OriginalUri, State},
    response::IntoResponse,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{
        app::App,
        auth::{Known, Right},
        error::{JOB_HEADER, Refusal},
        params::JobAt,
    },
    record,
};
use crate::job::Timestamp;

/// What lets a browser read one job for a while.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the names are the API's")]
pub(in crate::gateway) struct Token {
    /// `job.token`.
    object: &'static str,
    /// Goes into the query as `token`.
    token: String,
    /// In milliseconds since the epoch.
    #[schema(value_type = u64)]
    expires_at: Timestamp,
    /// The job's events, for an `EventSource`.
    events_url: String,
}

/// A browser token: reads this one job, for a short while, without the API key
///
/// State and events, and nothing else. Your server asks for it and gives it to the page.
#[utoipa::path(post, path = "/v1/jobs/{id}/token", operation_id = "job_token", tag = "jobs", params(JobAt),
    responses((status = 200, description = "The token", body = Token)))]
pub(in crate::gateway) async fn token(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    OriginalUri(uri): OriginalUri,
    JobAt { id }: JobAt,
) -> Result<impl IntoResponse, Refusal> {
    caller.needs(Right::Read)?;
    record(&app, &caller.tenant, id).await?;
    let expires_at = Timestamp::now().after(app.options.token_ttl);
    let token = app.keys.signer().token(&caller, id, expires_at);
    let events_url = app.link(uri.path(), &format!("/v1/jobs/{id}/events?token={token}"));
    let token = Token { object: "job.token", token, expires_at, events_url };
    Ok(([(JOB_HEADER, id.to_string())], Reply(token)))
}
