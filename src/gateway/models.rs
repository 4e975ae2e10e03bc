//! `/v1/models`.
//!
//! Where none are configured, the gateway's upstream is asked: once for all who wait, for so long and no longer,
//! and what it tells is kept for every route. That it does not answer is kept as well, for a shorter time.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    Json as Reply,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use serde::Serialize;
use tokio::time::{Instant, timeout};
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

/// How long it is kept that there is no list.
const RESPITE: Duration = Duration::from_secs(5);

/// How long the upstream may take to tell its models.
const PATIENCE: Duration = Duration::from_secs(10);

/// A model, as whoever serves it tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name in requests.
    pub id: String,
    /// When it was made, in seconds since the epoch; 0 where that is not known.
    pub created: u64,
    /// Whose it is.
    pub owned_by: String,
}

impl Model {
    /// A model of which only the name is known.
    pub fn named(id: impl Into<String>) -> Self {
        Self { id: id.into(), created: 0, owned_by: "millstream".to_owned() }
    }
}

/// Tells the models there are.
pub type ModelSource =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Vec<Model>, String>> + Send + Sync>;

/// The models that are known, and where they are asked for.
#[derive(Default)]
pub(super) struct Catalogue {
    source: OnceLock<ModelSource>,
    told: Mutex<Option<(Instant, Question)>>,
}

/// What the source told, and until when that counts.
#[derive(Clone)]
struct Told {
    models: Option<Arc<[Model]>>,
    until: Instant,
}

/// A question to the source.
type Question = Shared<BoxFuture<'static, Told>>;

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalogue").finish_non_exhaustive()
    }
}

impl Catalogue {
    /// The first source stays.
    pub(super) fn ask_at(&self, source: ModelSource) {
        self.source.set(source).ok();
    }

    /// The models, and for how long that counts.
    async fn models(&self, configured: &[String]) -> Result<(Arc<[Model]>, Duration), Refusal> {
        let source = self.source.get().filter(|_| configured.is_empty());
        let Some(source) = source else {
            return Ok((configured.iter().map(Model::named).collect(), LIFETIME));
        };
        let Told { models, until } = self.told(source).await;
        models.map(|models| (models, until - Instant::now())).ok_or_else(|| {
            let text = "the model's endpoint does not tell its models now; set gateway.models to name them";
            Refusal::new(StatusCode::BAD_GATEWAY, "models_unknown", text)
        })
    }

    /// What the source tells: one question for all who wait, which they drive together. Those who leave, or wait no
    /// more, take nothing from the others.
    async fn told(&self, source: &ModelSource) -> Told {
        let question = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            match &*told {
                Some((since, question)) if counts(*since, question) => question.clone(),
                _ => told.insert((Instant::now(), ask(source).boxed().shared())).1.clone(),
            }
        };
        question.await
    }
}

/// Whether a question is under way, or its answer still holds.
fn counts(since: Instant, question: &Question) -> bool {
    match question.peek() {
        Some(told) => told.until > Instant::now(),
        None => since.elapsed() < PATIENCE,
    }
}

/// Asks the source, for so long.
fn ask(source: &ModelSource) -> impl Future<Output = Told> + Send + use<> {
    let asked = timeout(PATIENCE, source());
    async move {
        let models = match asked.await.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok(models) => Some(models.into()),
            Err(error) => {
                tracing::warn!(error, "models not known");
                None
            }
        };
        let lifetime = if models.is_some() { LIFETIME } else { RESPITE };
        Told { models, until: Instant::now() + lifetime }
    }
}

/// The models there are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    /// `list`.
    object: &'static str,
    data: Vec<Shown>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Model)]
pub(super) struct Shown {
    id: String,
    /// `model`.
    object: &'static str,
    /// As its endpoint tells, in seconds since the epoch; 0 where that is not known.
    created: u64,
    owned_by: String,
}

impl From<&Model> for Shown {
    fn from(model: &Model) -> Self {
        let Model { id, created, owned_by } = model.clone();
        Self { id, object: "model", created, owned_by }
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
        let (models, lifetime) = app.models.models(&app.options.models).await?;
        let data = models.iter().map(Shown::from).collect();
        Ok(Answer::new(&Models { object: "list", data }, lifetime, false))
    };
    Ok(app.cache.get(Key::Models, &app.counters, find).await?.respond(&headers))
}

/// One model
///
/// As in the list; 404 where that does not name it.
#[utoipa::path(get, path = "/v1/models/{model}", operation_id = "show_model", tag = "openai",
    params(("model" = String, Path, description = "The model's name")),
    responses((status = 200, description = "The model", body = Shown),
        (status = 502, description = "The model's endpoint does not tell", body = super::error::ErrorBody)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    Named(id): Named,
) -> Result<Reply<Shown>, Refusal> {
    caller.needs(Right::Read)?;
    let (models, _) = app.models.models(&app.options.models).await?;
    if let Some(model) = models.iter().find(|model| model.id == id) {
        return Ok(Reply(model.into()));
    }
    let text = format!("there is no model `{id}`; GET /v1/models lists those there are");
    Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", text).at("model"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Counts how often it is asked; never answers while `hang`.
    fn source(asked: &Arc<AtomicU32>, hang: bool) -> ModelSource {
        let asked = Arc::clone(asked);
        Arc::new(move || {
            asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                if hang {
                    std::future::pending::<()>().await;
                }
                Ok(vec![Model { id: "a".to_owned(), created: 7, owned_by: "b".to_owned() }])
            })
        })
    }

    /// Of an endpoint that never answers, everybody who asked for models waited for ever.
    #[tokio::test(start_paused = true)]
    async fn a_source_that_hangs_is_waited_for_once_and_not_for_ever() {
        let (asked, catalogue) = (Arc::default(), Catalogue::default());
        catalogue.ask_at(source(&asked, true));
        let began = Instant::now();
        let ask = || async { catalogue.models(&[]).await.unwrap_err().error.code };
        assert_eq!(tokio::join!(ask(), ask()), ("models_unknown".into(), "models_unknown".into()));
        assert_eq!(ask().await, "models_unknown");
        assert_eq!((began.elapsed(), asked.load(Ordering::Relaxed)), (PATIENCE, 1));
        tokio::time::advance(RESPITE).await;
        assert_eq!(ask().await, "models_unknown");
        assert_eq!((began.elapsed(), asked.load(Ordering::Relaxed)), (PATIENCE * 2 + RESPITE, 2));
    }

    /// Whoever asked and left made the models unknown for everybody, for as long as a source that hangs does.
    #[tokio::test(start_paused = true)]
    async fn one_that_asks_and_leaves_takes_nothing_from_the_others() {
        let catalogue = Catalogue::default();
        catalogue.ask_at(Arc::new(|| {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(vec![Model::named("a")])
            })
        }));
        assert!(catalogue.models(&[]).now_or_never().is_none());
        let mut still = Box::pin(catalogue.models(&[]));
        assert!(still.as_mut().now_or_never().is_none());
        assert_eq!(catalogue.models(&[]).await.unwrap().0[0], Model::named("a"));
    }

    /// Each request for one model asked the endpoint again.
    #[tokio::test(start_paused = true)]
    async fn what_the_source_tells_is_kept_whole_for_its_time() {
        let (asked, catalogue) = (Arc::default(), Catalogue::default());
        catalogue.ask_at(source(&asked, false));
        for wait in [0, 40, 15] {
            tokio::time::advance(Duration::from_secs(wait)).await;
            let (models, left) = catalogue.models(&[]).await.unwrap();
            assert_eq!((models[0].created, &*models[0].owned_by), (7, "b"));
            assert!(left + Duration::from_secs(wait) <= LIFETIME);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(5)).await;
        catalogue.models(&[]).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        assert_eq!(catalogue.models(&["x".to_owned()]).await.unwrap().0[0], Model::named("x"));
    }
}
