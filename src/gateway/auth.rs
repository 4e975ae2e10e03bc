//! Who asks, and what they may do.
//!
//! A key is known by its HMAC only. Verdicts are remembered for a while under the SHA-256 of what was
//! presented, so that the same key costs no more than a look; a changed file of keys forgets them all.

pub(super) mod keys;
mod token;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
};
use keys::Table;
pub use keys::{check as check_keys, exposed as exposed_keys, generate as generate_key};
use moka::{Expiry, sync::Cache};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
pub(super) use token::{Signer, Token};
use utoipa::ToSchema;

use super::{
    Error, Limits, Options,
    app::App,
    audit::{By, Trail},
    error::Refusal,
    host,
};
use crate::job::{JobId, Tenant, Timestamp};

/// How long a verdict on a key is remembered.
const VALID: Duration = Duration::from_secs(120);
const INVALID: Duration = Duration::from_secs(300);

/// Verdicts that are remembered at most.
const VERDICTS: u64 = 10_000;

/// How often the file of keys is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How `OpenAI`'s API tells the limit of requests, what is left of it, and when it is whole again.
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
pub(super) const RATE_REMAINING: HeaderName =
    HeaderName::from_static("x-ratelimit-remaining-requests");
pub(super) const RATE_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// To enqueue and cancel jobs.
    Enqueue,
    /// To read jobs and their events.
    Read,
    /// To see queues, workers and metrics.
    Admin,
}

impl Right {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Enqueue, Self::Read, Self::Admin];
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, ToSchema)]
pub struct Caller {
    /// Whose jobs these are.
    #[schema(value_type = String)]
    pub(super) tenant: Tenant,
    /// The key's ID; `null` where keys are not asked for.
    #[schema(required)]
    pub(super) key: Option<String>,
    /// What they may do.
    pub(super) rights: Vec<Right>,
    /// When the key expires, in milliseconds since the epoch.
    #[schema(value_type = Option<u64>, required)]
    pub(super) expires_at: Option<Timestamp>,
    /// The key's hash: another key of the same ID is another caller.
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) hash: String,
}

impl Caller {
    /// A caller whom an application knows: put it into the request's extensions.
    pub fn new(tenant: Tenant, rights: impl Into<Vec<Right>>) -> Self {
        Self { tenant, key: None, rights: rights.into(), expires_at: None, hash: String::new() }
    }

    /// Refuses without that right.
    pub(super) fn needs(&self, right: Right) -> Result<(), Refusal> {
        if self.rights.contains(&right) {
            return Ok(());
        }
        let name = format!("{right:?}").to_lowercase();
        let text = format!("this API key lacks the right `{name}`; use one that has it");
        Err(Refusal::new(StatusCode::FORBIDDEN, "missing_right", text))
    }

    fn expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= Timestamp::now())
    }
}

/// The API keys in force, and what was found about those that were presented.
pub(super) struct Keys {
    path: std::path::PathBuf,
    signer: Signer,
    /// `None`: no keys are configured.
    table: Option<RwLock<Loaded>>,
    verdicts: Cache<[u8; 32], Option<Arc<Caller>>>,
}

struct Loaded {
    table: Table,
    digest: Digested,
}

/// The SHA-256 of a file's content; `None`: it cannot be read. Times would miss what is written twice within
/// one tick of their clock.
type Digested = Option<[u8; 32]>;

/// A verdict's time by what it is.
struct ByVerdict;

impl Expiry<[u8; 32], Option<Arc<Caller>>> for ByVerdict {
    fn expire_after_create(
        &self,
        _: &[u8; 32],
        verdict: &Option<Arc<Caller>>,
        _: Instant,
    ) -> Option<Duration> {
        Some(if verdict.is_some() { VALID } else { INVALID })
    }
}

impl Keys {
    pub(super) fn load(options: &Options) -> Result<Self, Error> {
        let path = options.keys.clone();
        let signer = Signer::new(&options.secret).and(&options.second_secret);
        let table = if path.as_os_str().is_empty() {
            None
        } else if options.secret.is_empty() {
            return Err(Error::NoSecret);
        } else {
            let (digest, table) = read(&path);
            let table = table.map_err(|message| Error::Keys { path: path.clone(), message })?;
            if let Some(warning) = exposed_keys(&path) {
                tracing::warn!("{warning}");
            }
            Some(RwLock::new(Loaded { table, digest }))
        };
        let verdicts = Cache::builder().max_capacity(VERDICTS).expire_after(ByVerdict).build();
        Ok(Self { path, signer, table, verdicts })
    }

    /// Whether keys are asked for.
    pub(super) fn are_asked_for(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Who presents this key; `None` for one that is not known or has expired.
    fn check(&self, key: &str) -> Option<Arc<Caller>> {
        let table = self.table.as_ref()?;
        let seen: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        // Held until the verdict is kept: one on keys that have just been replaced must not outlive them.
        let loaded = table.read().unwrap_or_else(PoisonError::into_inner);
        let verdict = self.verdicts.get_with(seen, || {
            let entry = loaded.table.find(key, &self.signer)?;
            let caller = entry.caller();
            if entry.is_under_second(key, &self.signer) {
                let key = caller.key.as_deref();
                tracing::info!(key, "hashed under gateway.second_secret: it needs a successor");
            }
            Some(Arc::new(caller))
        });
        drop(loaded);
        verdict.filter(|caller| !caller.expired())
    }

    /// Who has made this browser token for a job, as long as it is good, and the key by which it was made is in
    /// force and may read.
    pub(super) fn maker(&self, token: &str, job: JobId) -> Option<Arc<Caller>> {
        let token = Token::read(token)?;
        let caller = if token.key.is_empty() {
            Caller::new(token.tenant.clone(), [Right::Read])
        } else {
            let loaded = self.table.as_ref()?.read().unwrap_or_else(PoisonError::into_inner);
            loaded.table.get(token.key)?.caller()
        };
        let may = caller.tenant == token.tenant && caller.rights.contains(&Right::Read);
        let good = may && !caller.expired();
        let now = Timestamp::now();
        (good && self.signer.has_made(&token, &caller, job, now)).then(|| Arc::new(caller))
    }

    /// Whether who came by a key is still who comes by it.
    pub(super) fn holds(&self, caller: &Caller) -> bool {
        let (Some(table), Some(key)) = (&self.table, &caller.key) else { return true };
        let loaded = table.read().unwrap_or_else(PoisonError::into_inner);
        !caller.expired() && loaded.table.get(key).is_some_and(|entry| entry.caller() == *caller)
    }

    /// Reads the file again where it has changed; whether it was taken over.
    fn reload(&self) -> bool {
        let Some(table) = &self.table else { return false };
        // Nobody waits for the file but this task.
        let (digest, read) = read(&self.path);
        if table.read().unwrap_or_else(PoisonError::into_inner).digest == digest {
            return false;
        }
        let mut loaded = table.write().unwrap_or_else(PoisonError::into_inner);
        loaded.digest = digest;
        match read {
            Ok(table) => loaded.table = table,
            Err(message) => {
                let path = self.path.display();
                tracing::error!(%path, message, "API keys not reloaded; the old ones stay in force");
                return false;
            }
        }
        self.verdicts.invalidate_all();
        drop(loaded);
        tracing::info!(path = %self.path.display(), "API keys reloaded");
        true
    }
}

fn read(path: &std::path::Path) -> (Digested, Result<Table, String>) {
    match std::fs::read_to_string(path) {
        Ok(text) => (Some(Sha256::digest(&text).into()), Table::parse(&text)),
        Err(error) => (None, Err(error.to_string())),
    }
}

/// Reloads the file of keys when it changes.
pub(super) async fn watch(app: Arc<App>) {
    if !app.keys.are_asked_for() {
        return;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        let reader = Arc::clone(&app);
        if tokio::task::spawn_blocking(move || reader.keys.reload()).await.unwrap_or(false) {
            app.cache.forget_callers();
        }
    }
}

/// What a request presents as its key.
fn presented(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let readable = |name| match headers.get(name).map(header::HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(unauthorized("the API key holds characters that no key has")),
    };
    if let Some(text) = readable(header::AUTHORIZATION)? {
        return match text.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(key.trim())),
            _ => Err(unauthorized("Authorization is not `Bearer KEY`")),
        };
    }
    if let Some(key) = readable(header::HeaderName::from_static("x-api-key"))? {
        return Ok(Some(key));
    }
    // A browser's script can set no other header of a WebSocket.
    let protocols = readable(header::SEC_WEBSOCKET_PROTOCOL)?.unwrap_or_default();
    Ok(protocols.split(',').find_map(|name| name.trim().strip_prefix("bearer.")))
}

fn unauthorized(message: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}

/// Put into a request by the gateway's own server, which listens on loopback where there are no keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served;

/// Headers by which a proxy says that it asks for somebody else.
const PROXIED: [&str; 2] = ["Forwarded", "X-Forwarded-For"];

/// Without keys only programs of this machine are served; a web page that has another name for it is none.
fn local(headers: &HeaderMap) -> Result<(), Refusal> {
    let refused = |met: &str| {
        let text = format!(
            "{met}: without API keys only 127.0.0.1 and localhost are served, and no proxy; set gateway.keys"
        );
        Err(Refusal::new(StatusCode::FORBIDDEN, "loopback_only", text))
    };
    // Whoever asks on behalf of others may be asked by anybody.
    if let Some(name) = PROXIED.iter().find(|name| headers.contains_key(**name)) {
        return refused(&format!("the header {name}, which a proxy adds"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if host::is_local(host) { Ok(()) } else { refused(&format!("host `{host}`")) }
}

/// Who sends a request with these headers; the broker is not asked.
pub(super) fn identify(app: &App, parts: &Parts) -> Result<Arc<Caller>, Refusal> {
    let (caller, by) = found(app, parts)?;
    Trail::known(parts, by, &caller.tenant, caller.key.as_deref());
    Ok(caller)
}

fn found(app: &App, parts: &Parts) -> Result<(Arc<Caller>, By), Refusal> {
    if let Some(caller) = parts.extensions.get::<Caller>() {
        return Ok((Arc::new(caller.clone()), By::Application));
    }
    if !app.keys.are_asked_for() {
        if parts.extensions.get::<Served>().is_none() {
            let text = "no API keys, and the application does not say who asks (gateway::Caller)";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "unknown_caller", text));
        }
        local(&parts.headers)?;
        return Ok((Arc::new(Caller::new(Tenant::default(), Right::ALL)), By::Machine));
    }
    match presented(&parts.headers)? {
        None => Err(unauthorized("no API key; send it as `Authorization: Bearer KEY`")),
        Some(key) => app.keys.check(key).map(|caller| (caller, By::Key)).ok_or_else(|| {
            unauthorized("this API key is not known, or has expired; ask whoever runs the gateway")
        }),
    }
}

/// A caller who may ask the broker now: known, within its requests per minute, and the broker is there.
#[derive(Debug, Clone)]
pub(super) struct Known(pub(super) Arc<Caller>);

impl FromRequestParts<Arc<App>> for Known {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let caller = identify(app, parts)?;
        admit(app, &caller.tenant).await?;
        Ok(Self(caller))
    }
}

/// Counts a request against its tenant's limit.
pub(super) async fn admit(app: &App, tenant: &Tenant) -> Result<(), Refusal> {
    app.breaker.check()?;
    admit_many(app, tenant, 1).await
}

/// Counts so many requests against their tenant's limit: all are let in, or none.
pub(super) async fn admit_many(app: &App, tenant: &Tenant, count: u32) -> Result<(), Refusal> {
    let (wait, per_minute) = match app.options.limits.rate() {
        Some(rate) => {
            let wait = app.noticed(app.broker.admit_many(tenant, &rate, count).await)?;
            (wait, rate.per_minute)
        }
        None if app.keys.are_asked_for() => (app.rates.tenant(tenant, count), Limits::GENEROUS),
        None => (None, 0),
    };
    wait.map_or(Ok(()), |wait| Err(too_many("your tenant", per_minute, wait)))
}

/// The refusal of somebody who has to wait for the next request.
pub(super) fn too_many(who: &str, per_minute: u32, wait: Duration) -> Refusal {
    let text = format!("{who} has had its {per_minute} requests of this minute; wait");
    let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", text);
    let seconds = wait.as_secs_f64().ceil();
    let reset = HeaderValue::from_str(&format!("{seconds}s"));
    let refusal = refusal
        .with(RATE_LIMIT, HeaderValue::from(per_minute))
        .with(RATE_REMAINING, HeaderValue::from(0));
    match reset {
        Ok(reset) => refusal.with(RATE_RESET, reset),
        Err(_) => refusal,
    }
    .after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "a secret of thirty-two bytes or more";

    /// A verdict is remembered for as long as it may be: without the table the key is known all the same.
    #[test]
    fn a_verdict_is_remembered_and_for_how_long() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("keys.toml");
        let (key, lines) =
            generate_key(SECRET, "web", &Tenant::default(), &Right::ALL, None).unwrap();
        std::fs::write(&path, lines).unwrap();
        let options = Options { keys: path, secret: SECRET.to_owned(), ..Options::default() };
        let keys = Keys::load(&options).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        let caller = keys.check(&key).unwrap();
        assert!(keys.check("ms_web_wrong").is_none());
        let table = keys.table.as_ref().unwrap();
        table.write().unwrap().table = Table::default();
        assert_eq!(keys.check(&key), Some(Arc::clone(&caller)));
        assert!(!keys.holds(&caller), "what is open is judged by the table");
        keys.verdicts.invalidate_all();
        assert_eq!(keys.check(&key), None);
        for (verdict, seconds) in [(Some(caller), 120), (None, 300)] {
            let lifetime = ByVerdict.expire_after_create(&[0; 32], &verdict, Instant::now());
            assert_eq!(lifetime, Some(Duration::from_secs(seconds)));
        }
    }
}
