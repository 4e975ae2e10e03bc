//! `/v1/models`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Reply,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    app::App,
    auth::{Known, Right},
    cache::{Answer, Key},
    error::Refusal,
    params::Named,
};

/// How long the list is kept.
const LIFETIME: Duration = Duration::from_secs(60);

/// The models there are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    /// `list`.
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    /// `model`.
    object: &'static str,
    /// Not known: 0.
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn of(id: String) -> Self {
        Self { id, object: "model", created: 0, owned_by: "millstream" }
    }
}

async fn names(app: &App) -> Result<Vec<String>, Refusal> {
    let configured = &app.options.models;
    match app.models.get() {
        Some(source) if configured.is_empty() => source().await.map_err(|error| {
            tracing::warn!(error, "models not known");
            let text = "the model's endpoint does not tell its models now; set gateway.models to name them";
            Refusal::new(StatusCode::BAD_GATEWAY, "models_unknown", text)
        }),
        _ => Ok(configured.clone()),
    }
}

/// The models there are
///
/// Those that are configured; otherwise those that the gateway's own upstream tells. Where that list is empty,
/// every name is accepted, and the upstream of the workers decides.
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = "openai",
    responses((status = 200, description = "The models", body = Models), (status = 304, description = "As the ETag says"),
        (status = 502, description = "The model's endpoint does not tell", body = super::error::ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    caller.needs(Right::Read)?;
    let find = async {
        let data = names(&app).await?.into_iter().map(Model::of).collect();
        Ok(Answer::new(&Models { object: "list", data }, LIFETIME, false))
    };
    Ok(app.cache.get(Key::Models, &app.counters, find).await?.respond(&headers))
}

/// One model
#[utoipa::path(get, path = "/v1/models/{model}", operation_id = "show_model", tag = "openai",
    params(("model" = String, Path, description = "The model's name")),
    responses((status = 200, description = "The model", body = Model),
        (status = 502, description = "The model's endpoint does not tell", body = super::error::ErrorBody)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    Named(id): Named,
) -> Result<Reply<Model>, Refusal> {
    caller.needs(Right::Read)?;
    if names(&app).await?.contains(&id) {
        return Ok(Reply(Model::of(id)));
    }
    let text = format!("there is no model `{id}`; GET /v1/models lists those there are");
    Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", text).at("model"))
}
