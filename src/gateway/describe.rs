//! The router, and its description at `/openapi.json`, made from the same handlers.

use std::{any::Any, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowOrigin, CorsLayer},
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, OpenApi as Document, Ref, RefOr, ResponseBuilder,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    app::App,
    console,
    error::{ErrorBody, JOB_HEADER, Refusal, SHOULD_RETRY},
    events, health, jobs, models, openai, queues, ws,
};

/// Names a request in the log and in what clients report.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Status, and when it is met.
const ERRORS: [(&str, &str); 12] = [
    ("400", "The request cannot be understood, or a value is not allowed"),
    ("401", "No valid API key"),
    ("403", "The key lacks the right, or the host is not this machine's"),
    ("404", "There is no such job, model or route"),
    ("405", "Not with this method"),
    ("408", "The body did not arrive in time"),
    ("413", "The body or the job is too large"),
    ("415", "The body is not JSON"),
    ("429", "Too many requests, streams or waiting jobs; see Retry-After"),
    ("431", "The headers are too large"),
    ("500", "A fault of the gateway"),
    ("503", "The broker cannot be reached, or the gateway is closing; see Retry-After"),
];

#[derive(OpenApi)]
#[openapi(
    info(title = "Millstream", description = "An LLM job queue: durable jobs, answers that can be resumed."),
    components(schemas(ErrorBody)),
    modifiers(&Common),
    security(("key" = []))
)]
struct Description;

/// What all routes have in common.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let key = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("key", key);
    }
}

/// Adds the errors that every route may answer with.
fn with_errors(document: &mut Document) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.delete]
            .into_iter()
            .filter_map(Option::as_mut);
        for operation in operations {
            for (status, text) in ERRORS {
                let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name("ErrorBody"))));
                let response = ResponseBuilder::new().description(text);
                let response = response.content("application/json", body).build();
                operation.responses.responses.entry(status.to_owned()).or_insert(response.into());
            }
        }
    }
}

/// Every route.
pub(super) fn router(app: &Arc<App>, tasks: Arc<impl Send + Sync + 'static>) -> Router {
    let (router, mut document) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(jobs::enqueue, jobs::list::list))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(jobs::token))
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
    with_errors(&mut document);
    let document = Arc::new(document);
    let description = async move || {
        // The router keeps the gateway's tasks alive.
        let _ = &tasks;
        Json(document.as_ref().clone()).into_response()
    };
    let panicked = Arc::clone(app);
    let router = router
        .route("/openapi.json", get(description))
        .route("/v1/ws", get(ws::upgrade))
        .merge(console::router())
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(move |panic: Box<dyn Any + Send>| fault(&panicked, &*panic)))
        .layer(middleware::from_fn_with_state(Arc::clone(app), guard))
        .with_state(Arc::clone(app));
    // The layer answers every OPTIONS, even where it allows nothing.
    match &app.options.cors_origins[..] {
        [] => router,
        origins => router.layer(cors(origins)),
    }
}

async fn nowhere(request: Request) -> Refusal {
    let text = format!("there is nothing at {}; see /openapi.json", request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, "not_found", text)
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

/// Refuses oversized headers, and names the request.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let own = || HeaderValue::from_str(&uuid::Uuid::new_v4().simple().to_string()).ok();
    let id = request.headers().get(&REQUEST_ID).filter(|id| id.len() <= 128).cloned().or_else(own);
    let most = app.options.limits.max_header;
    let size: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let size = size + request.uri().to_string().len();
    let mut response = if size > most {
        let text =
            format!("the headers have {size} bytes; allowed: {most} (gateway.limits.max_header)");
        Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", text)
            .into_response()
    } else {
        next.run(request).await
    };
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Lets pages of these origins in.
fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok()))
    };
    let common = [header::RETRY_AFTER, header::LOCATION, header::ETAG];
    let exposed = [JOB_HEADER, REQUEST_ID, SHOULD_RETRY].into_iter().chain(common);
    let exposed: Vec<HeaderName> = exposed.collect();
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // OpenAI's client sends headers of its own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
}
