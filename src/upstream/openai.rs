//! Any OpenAI-compatible endpoint, through async-openai.
//!
//! The client's own types are not used: requests go out with the bytes that came in, and answers
//! come back as raw JSON, so that fields which the client does not know survive. Its hidden retry
//! is replaced by a service that makes one call and keeps the status of every error, and its reading
//! of answers by one that takes them as endpoints really send them.

mod answer;
mod call;
mod chunk;
mod endpoint;
mod fault;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod redirect;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_openai::Client;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::{call::OneCall, endpoint::Endpoint};
use super::{Model, Parts, Upstream};
use crate::{
    error::{Code, Failure},
    job::ChatRequest,
};

pub(crate) use endpoint::is_address;

/// Where the model is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The address up to and including the version, such as `https://api.openai.com/v1`. A query is sent with
    /// every call, behind its path, such as Azure's `?api-version=2024-10-21`.
    pub base_url: String,
    /// Sent as a bearer token; empty for an endpoint without keys, to which no `Authorization` is sent.
    pub api_key: String,
    /// Longest time to connect.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Whether `stream_options.include_usage` is added to requests that stream.
    pub include_usage: IncludeUsage,
    /// Most bytes of an answer that does not stream, or of one event of a stream.
    pub max_answer_bytes: usize,
}

/// When a stream's usage is asked for. Usage that the caller asks for is always asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum IncludeUsage {
    /// Until the endpoint refuses a request for it (status 400 or 422): that request is sent once more without,
    /// and so are all that follow.
    #[default]
    Auto,
    /// With every request.
    Always,
    /// Not unless the caller asks.
    Never,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            api_key: String::new(),
            connect_timeout: Duration::from_secs(10),
            include_usage: IncludeUsage::Auto,
            max_answer_bytes: 64 * 1024 * 1024,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("base_url", &crate::mask::url(&self.base_url))
            .field("connect_timeout", &self.connect_timeout)
            .field("include_usage", &self.include_usage)
            .field("max_answer_bytes", &self.max_answer_bytes)
            .finish_non_exhaustive()
    }
}

/// `OpenAI`'s own endpoint: what an API key without an address means.
pub const OPENAI: &str = "https://api.openai.com/v1";

/// An endpoint that cannot be used as it is described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be read.
    #[error(
        "upstream.base_url is `{0}`; allowed: an http:// or https:// address without a #fragment, such as {OPENAI}"
    )]
    Address(String),
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// An OpenAI-compatible endpoint.
#[derive(Clone)]
pub struct OpenAi {
    client: Arc<Client<Endpoint>>,
    /// The key, which no error tells.
    secret: Arc<str>,
    include_usage: IncludeUsage,
    /// The endpoint has refused to be asked for usage.
    refuses_usage: Arc<AtomicBool>,
    max_answer_bytes: usize,
}

impl std::fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenAi").finish_non_exhaustive()
    }
}

impl OpenAi {
    /// Prepares the client; nothing is called yet.
    pub fn new(options: &Options) -> Result<Self, Error> {
        crate::install_tls_provider();
        let endpoint = Endpoint::new(options)?;
        let http = reqwest::Client::builder()
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(Error::Client)?;
        let client = Client::build(http.clone(), endpoint).with_http_service(OneCall { http });
        let client = Arc::new(client);
        Ok(Self {
            client,
            secret: options.api_key.as_str().into(),
            include_usage: options.include_usage,
            refuses_usage: Arc::default(),
            max_answer_bytes: options.max_answer_bytes,
        })
    }

    async fn call(&self, body: ChatRequest) -> Result<reqwest::Response, Failure> {
        call::response(self.client.chat().create_byot(body)).await
    }

    /// Whether to ask for the usage of a stream.
    fn asks_usage(&self) -> bool {
        match self.include_usage {
            IncludeUsage::Auto => !self.refuses_usage.load(Ordering::Relaxed),
            IncludeUsage::Always => true,
            IncludeUsage::Never => false,
        }
    }

    /// Makes the call, and once more without the request for usage where that is refused.
    async fn asked(
        &self,
        request: &ChatRequest,
        stream: bool,
    ) -> Result<reqwest::Response, Failure> {
        let usage = self.asks_usage();
        let called = self.call(shaped(request, stream, usage)).await;
        match called {
            Err(failure)
                if stream
                    && usage
                    && self.include_usage == IncludeUsage::Auto
                    && !wants_usage(request)
                    && refuses_usage(&failure) =>
            {
                let again = self.call(shaped(request, stream, false)).await?;
                if !self.refuses_usage.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "the model's endpoint refuses stream_options: usage is not asked for any more"
                    );
                }
                Ok(again)
            }
            called => called,
        }
    }
}

#[async_trait]
impl Upstream for OpenAi {
    async fn answer(&self, request: &ChatRequest, stream: bool) -> Result<Parts, Failure> {
        let secret = Arc::clone(&self.secret);
        let told = move |failure| without(&secret, failure);
        let response = self.asked(request, stream).await.map_err(&told)?;
        let parts = answer::parts(response, self.max_answer_bytes);
        Ok(Box::pin(parts.map(move |part| part.map_err(&told))))
    }

    async fn models(&self) -> Result<Vec<Model>, Failure> {
        let told = |failure| without(&self.secret, failure);
        let response = call::response(self.client.models().list_byot()).await.map_err(told)?;
        let body = call::whole(response, self.max_answer_bytes).await.map_err(told)?;
        let models: Models = serde_json::from_slice(&body).map_err(|error| {
            told(match serde_json::from_slice::<Value>(&body) {
                Ok(value) if value.get("error").is_some_and(|error| !error.is_null()) => {
                    fault::of_object(&value["error"])
                }
                _ => Failure::new(
                    Code::UpstreamProtocol,
                    format!("the model's endpoint sent what is no list of models: {error}"),
                ),
            })
        })?;
        Ok(models.data.into_iter().map(Model::from).collect())
    }
}

/// A list of models.
#[derive(Deserialize)]
struct Models {
    data: Vec<Listed>,
}

/// A model of a list. Endpoints agree on the name alone.
#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    created: Value,
    #[serde(default)]
    owned_by: Value,
}

impl From<Listed> for Model {
    fn from(listed: Listed) -> Self {
        let owned_by = listed.owned_by.as_str().unwrap_or_default().to_owned();
        Self { id: listed.id, created: listed.created.as_u64().unwrap_or_default(), owned_by }
    }
}

/// The request with the fields that decide streaming set, and every other field as it came. Usage is asked for
/// where `usage` says so.
fn shaped(request: &ChatRequest, stream: bool, usage: bool) -> ChatRequest {
    let mut body = request.clone();
    if !stream {
        body.remove("stream_options");
    } else if usage {
        let mut options: Map<String, Value> = body.get("stream_options").unwrap_or_default();
        options.insert("include_usage".to_owned(), Value::Bool(true));
        body.set("stream_options", &options);
    }
    body.set("stream", &stream);
    body
}

/// Whether the caller asks for usage.
fn wants_usage(request: &ChatRequest) -> bool {
    let options: Option<Map<String, Value>> = request.get("stream_options");
    options.is_some_and(|options| options.get("include_usage") == Some(&Value::Bool(true)))
}

/// Whether a failure is about the field that asks for usage.
fn refuses_usage(failure: &Failure) -> bool {
    let about = |text: &str| text.contains("stream_options") || text.contains("include_usage");
    matches!(failure.status, Some(400 | 422))
        && (about(&failure.message)
            || failure.param.as_deref().is_some_and(about)
            || failure.detail.as_deref().is_some_and(about))
}

/// What is shorter is no secret, and may stand in any word.
const SECRET: usize = 8;

/// The failure, with no word of the key that the call was made with.
fn without(secret: &str, failure: Failure) -> Failure {
    if secret.len() < SECRET {
        return failure;
    }
    let clean = |text: String| text.replace(secret, "…");
    let Failure { message, detail, .. } = failure.clone();
    Failure { message: clean(message), detail: detail.map(clean), ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn streaming_is_asked_for_without_touching_the_rest() {
        let request: ChatRequest = serde_json::from_str(
            r#"{"model":"m","messages":[{}],"stream_options":{"x":1},"big":123456789012345678901}"#,
        )
        .unwrap();
        let text = serde_json::to_string(&shaped(&request, true, true)).unwrap();
        assert!(text.contains(r#""x":1,"include_usage":true"#), "{text}");
        assert!(text.contains("123456789012345678901") && text.contains(r#""stream":true"#));
        let text = serde_json::to_string(&shaped(&request, false, true)).unwrap();
        assert!(!text.contains("stream_options"), "{text}");
        // The caller's own options stay where usage is not asked for.
        let text = serde_json::to_string(&shaped(&request, true, false)).unwrap();
        assert!(text.contains(r#""stream_options":{"x":1}"#), "{text}");
    }

    /// Their age and owner were lost, and one odd field would have hidden all.
    #[test]
    fn models_keep_what_is_told_of_them() {
        let list = json!({"data": [{"id": "a", "created": 7, "owned_by": "b", "x": 1},
            {"id": "c", "created": null, "owned_by": ["d"]}]});
        let list: Models = serde_json::from_value(list).unwrap();
        let [full, bare] = list.data.try_into().ok().unwrap();
        let expected = Model { id: "a".to_owned(), created: 7, owned_by: "b".to_owned() };
        assert_eq!(Model::from(full), expected);
        assert_eq!(Model::from(bare), Model { id: "c".to_owned(), ..Model::default() });
    }
}
