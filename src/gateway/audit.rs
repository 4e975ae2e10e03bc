//! The audit trail: who did what to which job, and what was refused.
//!
//! Every request for which somebody must be known leaves one event of the target [`TARGET`], a request of many jobs one
//! for each, and so does every operation of a WebSocket. It has IDs, the operation, the status and the code of a
//! refusal, and no content. A job that was enqueued is written down at once: its answer may come minutes later, or
//! never. Actions and refusals are at `info`, what was only read is at `debug`.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    extract::{FromRequestParts, MatchedPath, Request},
    http::{Method, StatusCode, request::Parts},
    response::Response,
};
use serde_json::Value;
use utoipa::openapi::{OpenApi, SecurityRequirement};

use super::{
    app::App,
    auth::Caller,
    error::Refusal,
    ws::frame::{self, Op},
};
use crate::job::{JobId, Tenant};

/// The target of these events.
pub const TARGET: &str = "millstream::audit";

/// By what somebody is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// An API key.
    Key,
    /// A browser token.
    Token,
    /// The word of the application that the router is part of.
    Application,
    /// No key is asked for, and it is this machine.
    Machine,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Token => "token",
            Self::Application => "application",
            Self::Machine => "machine",
        }
    }
}

#[derive(Debug)]
struct Who {
    by: By,
    tenant: Tenant,
    key: Option<String>,
}

/// The operations for which somebody must be known, as the description names them.
#[derive(Debug)]
pub(super) struct Operations(Vec<(Method, String, Arc<str>)>);

impl Operations {
    /// Those of a description.
    pub(super) fn of(document: &OpenApi) -> Arc<Self> {
        let mut all = Vec::new();
        for (path, item) in &document.paths.paths {
            let methods = [
                (Method::GET, &item.get),
                (Method::POST, &item.post),
                (Method::DELETE, &item.delete),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
            ];
            for (method, operation) in methods {
                let Some(operation) = operation else { continue };
                let is_open =
                    operation.security.as_deref() == Some(&[SecurityRequirement::default()]);
                if !is_open {
                    let name = operation.operation_id.as_deref().unwrap_or(path);
                    all.push((method, path.clone(), name.into()));
                }
            }
        }
        Arc::new(Self(all))
    }

    /// The operation that a request is for. The router may stand below a path.
    fn find(&self, request: &Request) -> Option<Arc<str>> {
        let matched = request.extensions().get::<MatchedPath>()?.as_str();
        let method = match request.method() {
            &Method::HEAD => &Method::GET,
            method => method,
        };
        let is_meant = |(named, path, _): &&(Method, String, Arc<str>)| {
            named == method && matched.ends_with(path.as_str())
        };
        self.0.iter().find(is_meant).map(|(_, _, name)| Arc::clone(name))
    }
}

/// What becomes known of a request while it is served.
#[derive(Debug, Clone, Default)]
pub(super) struct Trail(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    action: OnceLock<Arc<str>>,
    request: String,
    is_read: bool,
    who: OnceLock<Who>,
    job: OnceLock<JobId>,
    /// What it did is written down.
    is_told: AtomicBool,
}

/// The code of a refusal, for whoever has only its response.
#[derive(Debug, Clone)]
pub(super) struct Refused(pub(super) String);

/// How something ended: its status, and the code of a refusal.
type Ended<'a> = Option<(StatusCode, Option<&'a str>)>;

impl Trail {
    /// The trail of a request, which is named `request`; `None` where nobody need be known.
    pub(super) fn begin(
        operations: &Operations,
        request: &mut Request,
        name: &str,
    ) -> Option<Ending> {
        let known = Known {
            action: operations.find(request)?.into(),
            request: name.to_owned(),
            is_read: request.method().is_safe(),
            ..Known::default()
        };
        let trail = Self(Arc::new(known));
        let named = request.uri().path().split("/v1/jobs/").nth(1);
        let named = named.and_then(|rest| rest.split('/').next()?.parse().ok());
        if let Some(job) = named {
            trail.about(job);
        }
        request.extensions_mut().insert(trail.clone());
        Some(Ending { trail, is_answered: false })
    }

    /// Notes who asks; the first word counts.
    pub(super) fn known(parts: &Parts, by: By, tenant: &Tenant, key: Option<&str>) {
        if let Some(trail) = parts.extensions.get::<Self>() {
            let who = Who { by, tenant: tenant.clone(), key: key.map(str::to_owned) };
            trail.0.who.set(who).ok();
        }
    }

    /// A trail of what an application's caller does.
    pub(super) fn of(caller: &Caller) -> Self {
        let who =
            Who { by: By::Application, tenant: caller.tenant.clone(), key: caller.key.clone() };
        Self(Arc::new(Known { who: who.into(), ..Known::default() }))
    }

    /// Notes which job it is about.
    pub(super) fn about(&self, job: JobId) {
        self.0.job.set(job).ok();
    }

    /// Writes down that this was done to a job, or to one of several.
    pub(super) fn did(&self, job: JobId) {
        self.0.is_told.store(true, Ordering::Relaxed);
        self.write(self.action(), false, Some(job), Some((StatusCode::OK, None)));
    }

    /// Writes down what a frame of a WebSocket asked for, and what became of it.
    pub(super) fn frame(&self, request: &frame::Request<'_>, answer: &Result<Value, Refusal>) {
        let (action, is_read) = match request.op() {
            Ok(Op::Enqueue) => ("enqueue", false),
            Ok(Op::Cancel) => ("cancel_job", false),
            Ok(Op::Subscribe) => ("job_events", true),
            Ok(Op::Unsubscribe) | Err(_) => return,
        };
        let made = answer.as_ref().ok().and_then(|ok| ok["id"].as_str()?.parse().ok());
        let ended = match answer {
            Ok(_) => (StatusCode::OK, None),
            Err(refusal) => (refusal.status, Some(&*refusal.error.code)),
        };
        self.write(action, is_read, made.or_else(|| request.job().ok()), Some(ended));
    }

    fn action(&self) -> &str {
        self.0.action.get().map_or("", |action| action)
    }

    fn write(&self, action: &str, is_read: bool, job: Option<JobId>, ended: Ended<'_>) {
        let who = self.0.who.get();
        let by = who.map(|who| who.by.name());
        let tenant = who.map(|who| who.tenant.as_str());
        let key = who.and_then(|who| who.key.as_deref());
        let job = job.map(|job| job.to_string());
        let (job, request) = (job.as_deref(), self.0.request.as_str());
        let status = ended.map(|(status, _)| status.as_u16());
        let code = ended.and_then(|(_, code)| code);
        let outcome = match status {
            None => "broken off",
            Some(500..) => "failed",
            Some(400..) => "refused",
            Some(_) => "done",
        };
        if is_read && outcome == "done" {
            tracing::debug!(target: TARGET, action, by, tenant, key, job, status, code, request, "{outcome}");
        } else {
            tracing::info!(target: TARGET, action, by, tenant, key, job, status, code, request, "{outcome}");
        }
    }
}

impl FromRequestParts<Arc<App>> for Trail {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// The end of a request: its answer, or the client's going away before there is one.
#[derive(Debug)]
pub(super) struct Ending {
    trail: Trail,
    is_answered: bool,
}

impl Ending {
    /// Writes down how it was answered, unless all is said.
    pub(super) fn answered(mut self, response: &Response) {
        self.is_answered = true;
        let status = response.status();
        let is_refused = [401, 403, 404, 429].contains(&status.as_u16());
        if is_refused || !self.is_told() {
            let code = response.extensions().get::<Refused>().map(|refused| refused.0.as_str());
            self.write(Some((status, code)));
        }
    }

    fn is_told(&self) -> bool {
        self.trail.0.is_told.load(Ordering::Relaxed)
    }

    fn write(&self, ended: Ended<'_>) {
        let known = &self.trail.0;
        self.trail.write(self.trail.action(), known.is_read, known.job.get().copied(), ended);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.is_answered && !self.is_told() {
            self.write(None);
        }
    }
}

/// Writes down that a job is cancelled because its client went away.
pub(super) fn abandoned(job: JobId) {
    let job = job.to_string();
    tracing::info!(target: TARGET, action = "cancel_job", by = "gateway", job, "done");
}
