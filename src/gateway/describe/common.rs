//! What the routes have in common, said once: errors, headers, who may ask.

use std::collections::BTreeSet;

use serde_json::json;
use utoipa::{
    Modify,
    openapi::{
        Content, HeaderBuilder, OpenApi as Document, OpenApiVersion, Ref, RefOr, Response,
        ResponseBuilder, SecurityRequirement,
        extensions::ExtensionsBuilder,
        path::{Operation, ParameterBuilder, ParameterIn},
        schema::{ObjectBuilder, Type},
        security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::super::ws::frame::Op;

/// Every route may answer so.
const ALWAYS: [(&str, &str); 5] = [
    ("400", "The request does not say which host is meant, or a value is not allowed"),
    ("431", "The headers are too large"),
    ("500", "A fault of the gateway"),
    ("501", "The body has a transfer coding that is not known"),
    ("503", "The broker cannot be reached, or the gateway is closing or full; see Retry-After"),
];

/// A route that takes a body.
const SENT: [(&str, &str); 3] = [
    ("408", "The body did not arrive in time"),
    ("413", "The body or the job is too large"),
    ("415", "The body is not JSON, or is compressed"),
];

/// A route that is not for everybody.
const KNOWN: [(&str, &str); 2] = [
    ("401", "No valid API key"),
    ("403", "The key lacks the right, or the host is not this machine's"),
];

/// A route that is counted.
const COUNTED: [(&str, &str); 1] =
    [("429", "Too many requests, streams or waiting jobs; see Retry-After")];

/// A route whose path names something.
const NAMED: [(&str, &str); 1] =
    [("404", "There is no such job or model, or it is somebody else's")];

/// What a tenant that asks too often is told of its limit.
const RATES: [(&str, &str); 3] = [
    ("x-ratelimit-limit-requests", "Where requests are limited: how many a minute has"),
    ("x-ratelimit-remaining-requests", "Where requests are limited: how many are left"),
    (
        "x-ratelimit-reset-requests",
        "Where requests are limited: when there is another, such as `3s`",
    ),
];

/// Adds what the routes have in common.
pub(super) struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        // The first version that can tell what one block of an event stream holds.
        document.openapi = OpenApiVersion::Version32;
        let named = |name| ApiKeyValue::new(name);
        let schemes = [
            ("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer))),
            ("header", SecurityScheme::ApiKey(ApiKey::Header(named("x-api-key")))),
            ("token", SecurityScheme::ApiKey(ApiKey::Query(named("token")))),
        ];
        let components = document.components.get_or_insert_default();
        for (name, scheme) in schemes {
            components.add_security_scheme(name, scheme);
        }
    }
}

/// Completes every route's responses.
pub(super) fn complete(document: &mut Document) {
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            add_errors(path, operation);
            add_headers(path, operation);
            if path == "/v1/ws" {
                let ops = ExtensionsBuilder::new().add("x-websocket-ops", json!(Op::names()));
                operation.extensions.get_or_insert_default().merge(ops.build());
            }
        }
    }
}

fn add_errors(path: &str, operation: &mut Operation) {
    let open = operation.security.as_deref() == Some(&[SecurityRequirement::default()]);
    let parts: [(bool, &[(&str, &str)]); 5] = [
        (true, &ALWAYS),
        (operation.request_body.is_some(), &SENT),
        (!open, &KNOWN),
        (path.starts_with("/v1/"), &COUNTED),
        (path.contains('{'), &NAMED),
    ];
    for (status, text) in parts.iter().filter(|(meant, _)| *meant).flat_map(|(_, errors)| *errors) {
        let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name("ErrorBody"))));
        let response = ResponseBuilder::new().description(*text).content("application/json", body);
        let responses = &mut operation.responses.responses;
        responses.entry((*status).to_owned()).or_insert(response.build().into());
    }
}

fn add_headers(path: &str, operation: &mut Operation) {
    let cached = operation.responses.responses.contains_key("304");
    if cached {
        let known = ParameterBuilder::new()
            .name("If-None-Match")
            .parameter_in(ParameterIn::Header)
            .description(Some("The ETag of the answer that you have"))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        operation.parameters.get_or_insert_default().push(known.build().into());
    }
    let sends = operation.request_body.is_some() || path.ends_with("/events");
    let about_a_job = path.starts_with("/v1/jobs/{id}") || path == "/v1/chat/completions";
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let good = status.starts_with(['2', '3']);
        header(response, "x-request-id", "Names the request: yours, or one of ours");
        if about_a_job && good || path == "/v1/jobs" && status == "202" {
            header(response, "x-millstream-job", "The job that the answer is about");
        }
        if may_wait(path, status) && sends {
            header(
                response,
                "x-millstream-warning",
                "No live worker serves the queue, where that is so",
            );
        }
        if cached && good {
            header(response, "etag", "Names this very answer");
            header(response, "cache-control", "Who may keep it for how long");
        }
        if ["429", "503"].contains(&status.as_str()) {
            header(response, "retry-after", "After how many seconds another try makes sense");
        }
        if status == "429" && path.starts_with("/v1/") {
            for (name, text) in RATES {
                header(response, name, text);
            }
        }
        if status == "401" {
            header(response, "www-authenticate", "`Bearer`");
        }
        if path == "/v1/chat/completions" && !good || path == "/v1/jobs" && status == "409" {
            let text = "Where it is known: whether another try may help, `true` or `false`";
            header(response, "x-should-retry", text);
        }
        if let Some(RefOr::T(events)) = response.content.get_mut("text/event-stream") {
            // What is described is one block.
            events.item_schema = events.schema.take();
        }
    }
}

/// Whether an answer of this status may be about a job that waits.
fn may_wait(path: &str, status: &str) -> bool {
    match path {
        "/v1/jobs" => ["200", "202"].contains(&status),
        "/v1/jobs/{id}/events" => status == "200",
        "/v1/chat/completions" => true,
        _ => false,
    }
}

/// The names of all headers that answers are said to have, in small letters.
pub(super) fn headers(document: &Document) -> BTreeSet<String> {
    let items = document.paths.paths.values();
    let operations = items.flat_map(|item| [&item.get, &item.post, &item.delete]).flatten();
    let responses = operations.flat_map(|operation| operation.responses.responses.values());
    let told = responses.filter_map(|response| match response {
        RefOr::T(response) => Some(response.headers.keys()),
        RefOr::Ref(_) => None,
    });
    told.flatten().map(|name| name.to_ascii_lowercase()).collect()
}

fn header(response: &mut Response, name: &str, text: &str) {
    let header = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .description(Some(text));
    response.headers.insert(name.to_owned(), header.build().into());
}
