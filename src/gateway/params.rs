//! What the path and the query name.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{Uri, request::Parts},
};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use super::{
    app::App,
    audit::{By, Trail},
    auth::{self, Caller, Right},
    error::Refusal,
};
use crate::job::JobId;

/// What a route takes in its query. Each parameter may be left out.
pub(super) trait Asked: DeserializeOwned {
    /// Each parameter, and what it may be.
    const ALLOWED: &'static [(&'static str, &'static str)];
}

/// A query, read strictly.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<T: Asked> FromRequestParts<Arc<App>> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Refusal> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(at_fault::<T>(&parts.uri)
                .unwrap_or_else(|| Refusal::bad("invalid_parameter", error.body_text()))),
        }
    }
}

/// The parameter for which a query cannot be read.
fn at_fault<T: Asked>(uri: &Uri) -> Option<Refusal> {
    let mut seen = Vec::new();
    for pair in uri.query()?.split('&') {
        let alone: Uri = format!("/?{pair}").parse().ok()?;
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&alone).ok()?;
        let Some((name, value)) = pairs.into_iter().next() else { continue };
        let name = name.as_str();
        let Some((_, allowed)) = T::ALLOWED.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = T::ALLOWED.iter().map(|(known, _)| *known).collect();
            let text = format!("there is no parameter `{name}`; allowed: {}", known.join(", "));
            return Some(Refusal::param(name, text));
        };
        if seen.contains(&pair.split('=').next()) {
            return Some(Refusal::param(name, format!("{name} is given twice; allowed: once")));
        }
        if Query::<T>::try_from_uri(&alone).is_err() {
            return Some(Refusal::param(name, format!("{name} is `{value}`; allowed: {allowed}")));
        }
        seen.push(pair.split('=').next());
    }
    None
}

/// What the path names; a name may have slashes, where its route takes several segments.
#[derive(Debug)]
pub(super) struct Named(pub(super) String);

impl FromRequestParts<Arc<App>> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let path = Path::<Vec<String>>::from_request_parts(parts, app).await;
        path.map(|Path(segments)| Self(segments.join("/")))
            .map_err(|_| Refusal::bad("invalid_path", "the path is not UTF-8"))
    }
}

/// The job that the path names.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct JobAt {
    /// The job's ID.
    #[param(value_type = String, format = "uuid")]
    pub(super) id: JobId,
}

impl FromRequestParts<Arc<App>> for JobAt {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let Named(text) = Named::from_request_parts(parts, app).await?;
        // What is no ID is no job's, as well.
        text.parse().map(|id| Self { id }).map_err(|_| Refusal::no_job(format_args!("`{text}`")))
    }
}

/// Somebody who may read the job that the path names: by key, or by a browser token. Whether the job is
/// this tenant's is still to be found out.
#[derive(Debug)]
pub(super) struct JobReader {
    pub(super) id: JobId,
    /// Who came by a key, or has made the token.
    pub(super) caller: Arc<Caller>,
    /// The token's name, where it is a token that lets in.
    pub(super) token: Option<String>,
}

#[derive(Deserialize)]
struct Presented {
    token: Option<String>,
}

impl FromRequestParts<Arc<App>> for JobReader {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let token =
            Query::<Presented>::try_from_uri(&parts.uri).ok().and_then(|query| query.0.token);
        let Some(token) = token else {
            let caller = auth::identify(app, parts)?;
            caller.needs(Right::Read)?;
            auth::admit(app, &caller.tenant).await?;
            let JobAt { id } = JobAt::from_request_parts(parts, app).await?;
            return Ok(Self { id, caller, token: None });
        };
        let JobAt { id } = JobAt::from_request_parts(parts, app).await?;
        let caller = app.keys.maker(&token, id).ok_or_else(|| {
            let text = "this token is not for this job, has expired, or its API key is not valid any more; get \
                        another by POST /v1/jobs/{id}/token";
            Refusal::new(axum::http::StatusCode::UNAUTHORIZED, "invalid_token", text)
        })?;
        Trail::known(parts, By::Token, &caller.tenant, None);
        // Its signature, which the page that has it cannot change.
        let name = token.rsplit('.').next().unwrap_or_default().to_owned();
        let most = app.options.limits.requests_per_token;
        if most > 0
            && let Some(wait) = app.rates.token(&name, most)
        {
            return Err(auth::too_many("this token", most, wait));
        }
        auth::admit(app, &caller.tenant).await?;
        Ok(Self { id, caller, token: Some(name) })
    }
}
