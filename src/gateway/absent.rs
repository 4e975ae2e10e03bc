//! Paths where nothing is, and where the client that asks for one should be pointed instead.

use std::sync::Arc;

use axum::{
    extract::{OriginalUri, Request, State},
    http::StatusCode,
};

use super::{app::App, error::Refusal};

/// What is served of `OpenAI`'s API.
const SERVED: &str = "of OpenAI's API this gateway serves /v1/chat/completions and /v1/models";

/// Routes of other APIs that clients ask for by default, and what to do about each.
const ELSEWHERE: [(&str, &str); 14] = [
    (
        "responses",
        "the Responses API is not served; tell the client to use chat completions: `openai.chat(MODEL)` in the AI \
         SDK, `set_default_openai_api(\"chat_completions\")` in OpenAI's agents, `use_responses_api=False` in \
         LangChain, `OpenAIChatModel` in pydantic-ai",
    ),
    (
        "completions",
        "completions of a bare prompt are not served; send messages to /v1/chat/completions (in LiteLLM \
         `openai/MODEL`, not `text-completion-openai/MODEL`)",
    ),
    (
        "embeddings",
        "embeddings are not served; give the client of embeddings its model's own address",
    ),
    ("messages", "Anthropic's protocol is not served; use a client of OpenAI's chat completions"),
    (
        "batches",
        "batches are enqueued as jobs: POST /v1/jobs with an array, or millstream-producer --file",
    ),
    (
        "files",
        "there are no files here; a batch's lines go to POST /v1/jobs, or to millstream-producer --file",
    ),
    ("api/chat", "Ollama's protocol is not served; choose the client's OpenAI-compatible provider"),
    (
        "api/generate",
        "Ollama's protocol is not served; choose the client's OpenAI-compatible provider",
    ),
    ("api/tags", "Ollama's protocol is not served; choose the client's OpenAI-compatible provider"),
    ("moderations", "moderations are not served"),
    ("audio", "audio is not served"),
    (
        "images",
        "images are not made here; chat completions may hold some where the model takes them",
    ),
    ("realtime", "the Realtime API is not served; /v1/ws follows jobs"),
    ("assistants", "assistants are not served"),
];

/// What there is below `/v1`.
const BELOW: [&str; 5] = ["chat/completions", "models", "jobs", "queues", "ws"];

/// 404, and the way.
pub(super) async fn nowhere(State(app): State<Arc<App>>, request: Request) -> Refusal {
    // The address that was asked, also where the router stands below a path.
    let asked = request.extensions().get::<OriginalUri>();
    let shown = asked.map_or(request.uri().path(), |uri| uri.path());
    let text = match hint(request.uri().path()) {
        Some(hint) => {
            let base = match app.options.public_url.trim_end_matches('/') {
                "" => "this gateway's address with /v1 behind it".to_owned(),
                public => format!("{public}/v1"),
            };
            format!(
                "there is nothing at {shown}: {hint}; {SERVED}, so a client's base URL is {base}; see /openapi.json"
            )
        }
        None => format!("there is nothing at {shown}; see /openapi.json"),
    };
    Refusal::new(StatusCode::NOT_FOUND, "not_found", text)
}

/// What a client that asks for this has got wrong.
fn hint(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let versions = parts.iter().take_while(|part| **part == "v1").count();
    parts.drain(..versions);
    let plain = parts.join("/");
    let is_below = |whole: &str, route: &str| {
        whole.strip_prefix(route).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if BELOW.iter().any(|route| is_below(&plain, route)) {
        let canonical = format!("/v1/{plain}");
        let fault = match versions {
            0 => "its base URL lacks /v1",
            1 if path == canonical => return None,
            1 => "it has a slash too many",
            _ => "its base URL has /v1 twice",
        };
        return Some(format!("{fault}, {canonical} is meant"));
    }
    // Azure's clients name the model in the path.
    if plain.starts_with("openai/deployments/") {
        return Some(
            "Azure's paths are not served; choose the client's OpenAI provider".to_owned(),
        );
    }
    let (_, hint) = ELSEWHERE.iter().find(|(route, _)| is_below(&plain, route))?;
    Some((*hint).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client with a wrong base URL, or of another API, was told that there is nothing, and no more.
    #[test]
    fn who_asks_for_another_api_is_pointed_here() {
        for (path, word) in [
            ("/v1/responses", "chat completions"),
            ("/v1/responses/resp_1/cancel", "chat completions"),
            ("/responses", "chat completions"),
            ("/v1/embeddings", "embeddings"),
            ("/v1/completions", "/v1/chat/completions"),
            ("/v1/messages", "Anthropic"),
            ("/api/chat", "Ollama"),
            ("/openai/deployments/m/chat/completions", "Azure"),
            ("/v1/audio/speech", "audio"),
            ("/chat/completions", "lacks /v1, /v1/chat/completions is meant"),
            ("/models/m", "lacks /v1, /v1/models/m is meant"),
            ("//v1/chat/completions", "slash too many"),
            ("/v1//chat/completions", "slash too many"),
            ("/v1/chat/completions/", "slash too many"),
            ("/v1/v1/chat/completions", "/v1 twice, /v1/chat/completions is meant"),
        ] {
            let hint = hint(path).unwrap_or_else(|| panic!("no hint for {path}"));
            assert!(hint.contains(word), "{path}: {hint}");
        }
        for path in ["/", "/v1", "/v1/jobs/a/b", "/favicon.ico", "/v1/response", "/admin"] {
            assert_eq!(hint(path), None, "{path}");
        }
    }
}
