//! The router, and its description at `/openapi.json`, made from the same handlers.

mod common;

use std::{any::Any, collections::BTreeSet, sync::Arc};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{OriginalUri, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowOrigin, CorsLayer},
};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::common::{Common, headers};
use super::{
    absent,
    app::App,
    audit::{Operations, Trail},
    auth::Known,
    console,
    error::{ErrorBody, Refusal},
    events, health, host, jobs, models, openai, queues, schemas, ws,
};

/// Names a request in the log and in what clients report.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(OpenApi)]
#[openapi(
    info(title = "Millstream", contact(name = "The operator of this gateway"), description = "An LLM job queue: durable jobs, answers that can be resumed.\n\n\
        Every error is `{\"error\": {\"message\", \"type\", \"param\", \"code\"}}`. Each path answers 405 with \
        `Allow` to methods that it does not have (OPTIONS is answered where pages of other origins are allowed), \
        and HEAD where it has GET, but for the socket; any other path answers 404. \
        docs/HTTP.md tells the rest, the frames of WebSockets among it."),
    servers((url = "/", description = "This gateway")),
    tags(
        (name = "jobs", description = "Jobs and their events"),
        (name = "openai", description = "What OpenAI's clients ask for"),
        (name = "operation", description = "For whoever runs it")),
    paths(socket, description),
    components(schemas(ErrorBody, schemas::StateName)),
    modifiers(&Common),
    security(("key" = []), ("header" = []))
)]
struct Description;

/// This description
///
/// What you read: every route, made from the code that serves it.
#[utoipa::path(get, path = "/openapi.json", operation_id = "describe", tag = "operation", security(()),
    responses((status = 200, description = "OpenAPI 3.2", body = serde_json::Map<String, serde_json::Value>)))]
async fn description(
    Extension(document): Extension<Document>,
    OriginalUri(uri): OriginalUri,
) -> Response {
    let json = match uri.path().strip_suffix("/openapi.json") {
        // Wherever an application has put these routes.
        Some(base) if !base.is_empty() => document.below(base),
        _ => document.json,
    };
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// A WebSocket that follows many jobs
///
/// Frames are JSON text. You send `{"id", "op", …}` with `op` `enqueue`, `subscribe`, `unsubscribe` or `cancel`, and
/// are answered `{"id", "ok"}` or `{"id", "error"}`; events come as `{"job", "event", "event_id", "data"}`, and
/// `{"job", "end": true}` behind the last. A key can also be named by the subprotocol `bearer.KEY`. docs/HTTP.md
/// tells frames and close codes.
#[utoipa::path(get, path = "/v1/ws", operation_id = "open_socket", tag = "jobs",
    params(
        ("Upgrade" = String, Header, pattern = "^websocket$", description = "`websocket`"),
        ("Connection" = String, Header, pattern = "^Upgrade$", description = "`Upgrade`"),
        ("Sec-WebSocket-Version" = String, Header, pattern = "^13$", description = "`13`"),
        ("Sec-WebSocket-Key" = String, Header, description = "16 random bytes in base64"),
        ("Sec-WebSocket-Protocol" = Option<String>, Header, nullable = false,
            description = "`millstream`, and `bearer.KEY` where no other header can be set"),
        ("Origin" = Option<String>, Header, nullable = false,
            description = "The page's; it is this host or one of gateway.cors_origins")),
    responses(
        (status = 101, description = "The connection is a WebSocket from here on"),
        (status = 426, description = "The connection cannot be upgraded", body = ErrorBody)))]
async fn socket(
    app: State<Arc<App>>,
    known: Known,
    headers: HeaderMap,
    trail: Trail,
    upgrade: ws::Upgrade,
) -> Result<Response, Refusal> {
    ws::upgrade(app, known, &headers, upgrade, trail)
}

/// The description as JSON.
#[derive(Clone)]
struct Document {
    json: Bytes,
    /// The gateway's tasks, which live as long as a router that needs them.
    _tasks: Arc<dyn Any + Send + Sync>,
}

impl Document {
    /// The description of routes that stand below this path.
    fn below(&self, base: &str) -> Bytes {
        let document: Result<serde_json::Value, _> = serde_json::from_slice(&self.json);
        let Ok(mut document) = document else { return self.json.clone() };
        document["servers"][0]["url"] = base.into();
        serde_json::to_vec(&document).unwrap_or_default().into()
    }
}

/// Every route.
pub(super) fn router(app: &Arc<App>, tasks: Arc<dyn Any + Send + Sync>) -> Router {
    let (router, mut document) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(jobs::enqueue, jobs::list::list))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(jobs::token::token))
        .routes(routes!(queues::queues))
        .routes(routes!(events::events))
        .routes(routes!(openai::complete))
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::whoami))
        .routes(routes!(health::metrics))
        .split_for_parts();
    common::complete(&mut document);
    let told = headers(&document);
    let json = serde_json::to_vec(&document).unwrap_or_default().into();
    let operations = Operations::of(&document);
    let document = Document { json, _tasks: tasks };
    let panicked = Arc::clone(app);
    let router = router
        .route("/openapi.json", get(description).layer(Extension(document)))
        .route("/v1/ws", get(socket))
        // Names of models have slashes, and clients that do not encode them.
        .route("/v1/models/{owner}/{*name}", get(models::show))
        // Many ask so without having been told.
        .route("/health", get(health::healthz))
        .merge(console::router())
        .fallback(absent::nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(move |panic: Box<dyn Any + Send>| fault(&panicked, &*panic)))
        .layer(middleware::from_fn_with_state((Arc::clone(app), operations), guard))
        .with_state(Arc::clone(app));
    // The layer answers every OPTIONS, even where it allows nothing.
    match &app.options.cors_origins[..] {
        [] => router,
        origins => router.layer(cors(origins, told)),
    }
}

async fn wrong_method(request: Request) -> Refusal {
    let text = format!("{} is not for {}; see Allow", request.method(), request.uri().path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

/// A panic is a fault of ours: it is logged, counted, and costs one request.
fn fault(app: &App, panic: &(dyn Any + Send)) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(panic = text, "a request met a fault of the gateway");
    app.counters.panics.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let text = "a fault of the gateway; it is in its log";
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text).into_response()
}

/// Refuses headers that are too large or leave open what is meant, and names the request.
async fn guard(
    State((app, operations)): State<(Arc<App>, Arc<Operations>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let own = || HeaderValue::from_str(&uuid::Uuid::new_v4().simple().to_string()).ok();
    let id = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= 128).cloned().or_else(own);
    let name = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
    let ending = Trail::begin(&operations, &mut request, name);
    let most = app.options.limits.max_header;
    let size: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let size = size + request.uri().to_string().len();
    let mut response = if size > most {
        let text =
            format!("the headers have {size} bytes; allowed: {most} (gateway.limits.max_header)");
        Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", text)
            .into_response()
    } else if let Err(refusal) = host::settle(&mut request).and(transferable(request.headers())) {
        refusal.into_response()
    } else {
        next.run(request).await
    };
    if let Some(ending) = ending {
        ending.answered(&response);
    }
    let headers = response.headers_mut();
    headers.extend(id.map(|id| (REQUEST_ID, id)));
    // A browser takes no answer for anything else than it is called, and keeps none that does not say so.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Refuses a body that was coded on its way: the HTTP library takes the chunks apart, and nothing else.
fn transferable(headers: &HeaderMap) -> Result<(), Refusal> {
    let values = headers.get_all(header::TRANSFER_ENCODING).iter();
    let texts = values.map(|value| value.to_str().unwrap_or("?"));
    let codings = texts.flat_map(|text| text.split(',')).map(str::trim).enumerate();
    let mut others =
        codings.filter(|(at, coding)| *at > 0 || !coding.eq_ignore_ascii_case("chunked"));
    let Some((_, coding)) = others.next() else { return Ok(()) };
    let text = format!("transfer coding `{coding}`; allowed: chunked, once");
    let close = HeaderValue::from_static("close");
    let refusal = Refusal::new(StatusCode::NOT_IMPLEMENTED, "transfer_coding", text);
    Err(refusal.with(header::CONNECTION, close))
}

/// Lets pages of these origins in. Their scripts may read every header that the routes are said to have.
fn cors(origins: &[String], told: BTreeSet<String>) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok()))
    };
    let told = told.into_iter().filter_map(|name| HeaderName::try_from(name).ok());
    // No route has this one: it goes with a method that the path does not have.
    let exposed: Vec<HeaderName> = told.chain([header::ALLOW]).collect();
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // OpenAI's client sends headers of its own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
}
