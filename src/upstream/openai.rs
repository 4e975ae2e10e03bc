//! Any OpenAI-compatible endpoint, through async-openai.
//!
//! The client's own types are not used: requests go out with the bytes that came in, and answers
//! come back as raw JSON, so that fields which the client does not know survive. Its hidden retry
//! is replaced by a service that makes one call and keeps the status of every error.

mod fault;
mod redirect;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use async_openai::{
    Client, config::OpenAIConfig, error::OpenAIError, middleware::HttpRequestFactory,
};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{Model, Part, Parts, Upstream, gate::Gate};
use crate::{
    error::{Code, Failure},
    event::Piece,
    job::ChatRequest,
};

/// Where the model is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The address up to and including the version, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as a bearer token; empty for an endpoint without keys.
    pub api_key: String,
    /// Longest time to connect.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            api_key: String::new(),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("base_url", &crate::mask::url(&self.base_url))
            .field("connect_timeout", &self.connect_timeout)
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
    #[error("upstream.base_url is `{0}`; allowed: an http:// or https:// address such as {OPENAI}")]
    Address(String),
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// An OpenAI-compatible endpoint.
#[derive(Clone)]
pub struct OpenAi {
    client: Client<OpenAIConfig>,
    /// The key, which no error tells.
    secret: Arc<str>,
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
        let base = if options.base_url.is_empty() { OPENAI } else { &options.base_url };
        let base = base.trim_end_matches('/');
        let url = reqwest::Url::parse(base).ok().filter(|url| url.scheme().starts_with("http"));
        if url.is_none() {
            return Err(Error::Address(crate::mask::url(base)));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(Error::Client)?;
        let config = OpenAIConfig::new().with_api_base(base).with_api_key(&options.api_key);
        let client = Client::build(http.clone(), config).with_http_service(OneCall { http });
        Ok(Self { client, secret: options.api_key.as_str().into() })
    }
}

#[async_trait]
impl Upstream for OpenAi {
    async fn answer(&self, request: &ChatRequest, stream: bool) -> Result<Parts, Failure> {
        let body = shaped(request, stream);
        if stream {
            let gate = Arc::new(Gate::default());
            let chat = self.client.chat();
            let call = chat.create_stream_byot::<_, Box<RawValue>>(body);
            let told = {
                let secret = Arc::clone(&self.secret);
                move |failure| without(&secret, failure)
            };
            let chunks = GATE.scope(Arc::clone(&gate), call).await;
            let chunks = chunks.map_err(|error| told(fault::of_client(error)))?;
            let parts = gate.reader(chunks).map(move |chunk| {
                chunk.map_err(fault::of_client).and_then(|raw| part(&raw)).map_err(&told)
            });
            return Ok(Box::pin(parts));
        }
        let whole: Result<Box<RawValue>, _> = self.client.chat().create_byot(body).await;
        let part = whole.map_err(fault::of_client).and_then(|raw| part(&raw));
        let part = part.map_err(|failure| without(&self.secret, failure))?;
        Ok(Box::pin(stream::iter([Ok(part)])))
    }

    async fn models(&self) -> Result<Vec<Model>, Failure> {
        let told = |error| without(&self.secret, fault::of_client(error));
        let models: Models = self.client.models().list_byot().await.map_err(told)?;
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

/// The request with the fields that decide streaming set, and every other field as it came.
fn shaped(request: &ChatRequest, stream: bool) -> ChatRequest {
    let mut body = request.clone();
    if stream {
        let mut options: Map<String, Value> = body.get("stream_options").unwrap_or_default();
        options.insert("include_usage".to_owned(), Value::Bool(true));
        body.set("stream_options", &options);
    } else {
        body.remove("stream_options");
    }
    body.set("stream", &stream);
    body
}

/// One chunk, or one whole answer.
#[derive(Deserialize)]
struct Wire {
    id: Option<String>,
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
    error: Option<Value>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<Map<String, Value>>,
    message: Option<Map<String, Value>>,
    finish_reason: Option<String>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

fn part(raw: &RawValue) -> Result<Part, Failure> {
    let wire: Wire = serde_json::from_str(raw.get()).map_err(|e| {
        Failure::new(Code::UpstreamProtocol, format!("a chunk of the answer cannot be read: {e}"))
    })?;
    if let Some(error) = wire.error.filter(|error| !error.is_null()) {
        return Err(fault::of_object(&error));
    }
    let mut extra = wire.extra;
    extra.retain(|name, value| !value.is_null() && name != "object" && name != "created");
    let pieces = wire.choices.unwrap_or_default().into_iter().map(|choice| Piece {
        index: choice.index,
        delta: choice.delta.or(choice.message).unwrap_or_default(),
        finish_reason: choice.finish_reason,
        extra: choice.extra,
    });
    Ok(Part {
        id: wire.id.filter(|id| !id.is_empty()),
        model: wire.model.filter(|model| !model.is_empty()),
        pieces: pieces.collect(),
        usage: wire.usage.filter(|usage| !usage.is_null()),
        extra,
    })
}

/// Makes one call and turns every error status into a [`Failure`] that keeps it.
#[derive(Clone)]
struct OneCall {
    http: reqwest::Client,
}

type Calling = Pin<Box<dyn Future<Output = Result<reqwest::Response, OpenAIError>> + Send>>;

impl tower::Service<HttpRequestFactory> for OneCall {
    type Response = reqwest::Response;
    type Error = OpenAIError;
    type Future = Calling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequestFactory) -> Calling {
        let http = self.http.clone();
        Box::pin(async move {
            let request = request.build().await?;
            match called(&http, request).await {
                Ok(response) => Ok(gated(response)),
                Err(failure) => Err(OpenAIError::Boxed(Box::new(failure))),
            }
        })
    }
}

/// Makes a call, by way of the redirects that stay within its origin.
async fn called(
    http: &reqwest::Client,
    mut request: reqwest::Request,
) -> Result<reqwest::Response, Failure> {
    let mut followed = 0;
    loop {
        let (again, from) = (request.try_clone(), request.url().clone());
        let response = http.execute(request).await.map_err(|error| {
            // Of an address, the part that may hold a secret is for nobody.
            let host = from.host_str().unwrap_or_default().to_owned();
            let failure = fault::of_connection(&error.without_url());
            let detail = failure.detail.as_ref().map(|detail| format!("{host}: {detail}"));
            Failure { detail, ..failure }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if !status.is_redirection() {
            return Err(refused(response).await);
        }
        let led = redirect::target(&from, status, response.headers());
        let to = led.and_then(|to| match (followed < redirect::MOST, again) {
            (true, Some(again)) => Ok((to, again)),
            _ => Err(format!("{} to {to}, after {followed} others", status.as_u16())),
        });
        let (to, mut again) = to.map_err(|why| {
            let words = "the model's endpoint sends the request to another place";
            fault::hidden(Code::UpstreamProtocol, words, why).at(status.as_u16(), None)
        })?;
        *again.url_mut() = to;
        (request, followed) = (again, followed + 1);
    }
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

tokio::task_local! {
    /// The gate of the answer that this task asks for.
    static GATE: Arc<Gate>;
}

/// The response, read no further ahead than its gate allows.
fn gated(response: reqwest::Response) -> reqwest::Response {
    let Ok(gate) = GATE.try_with(Arc::clone) else { return response };
    let (status, headers) = (response.status(), response.headers().clone());
    let body = reqwest::Body::wrap_stream(gate.body(Box::pin(response.bytes_stream())));
    let mut gated = http::Response::new(body);
    *gated.status_mut() = status;
    *gated.headers_mut() = headers;
    gated.into()
}

/// Most bytes of an error's body that are read.
const ERROR_BODY: usize = 64 * 1024;

async fn refused(response: reqwest::Response) -> Failure {
    let status = response.status();
    let after = retry_after(response.headers());
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_BODY {
            break;
        }
    }
    let reason = status.canonical_reason().unwrap_or("error");
    fault::of_status(status.as_u16(), reason, &body, after)
}

/// `retry-after-ms`, then `Retry-After` as seconds or as an HTTP date (RFC 9110, 10.2.3).
fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(ms) = text("retry-after-ms").and_then(|value| value.trim().parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let value = text("retry-after")?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn raw(value: &Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(value).unwrap()
    }

    #[test]
    fn streaming_is_asked_for_without_touching_the_rest() {
        let request: ChatRequest = serde_json::from_str(
            r#"{"model":"m","messages":[{}],"stream_options":{"x":1},"big":123456789012345678901}"#,
        )
        .unwrap();
        let text = serde_json::to_string(&shaped(&request, true)).unwrap();
        assert!(text.contains(r#""x":1,"include_usage":true"#), "{text}");
        assert!(text.contains("123456789012345678901") && text.contains(r#""stream":true"#));
        let text = serde_json::to_string(&shaped(&request, false)).unwrap();
        assert!(!text.contains("stream_options"), "{text}");
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

    #[test]
    fn unknown_fields_of_a_chunk_survive() {
        let chunk = json!({"id": "c", "object": "x", "created": 1, "model": "m", "usage": null,
            "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "x": 1}], "y": [2]});
        let part = part(&raw(&chunk)).unwrap();
        assert_eq!(part.pieces[0].delta["reasoning_content"], "hm");
        assert_eq!(part.pieces[0].extra["x"], 1);
        assert_eq!(part.extra, *json!({"y": [2]}).as_object().unwrap());
        assert_eq!(part.usage, None);
    }

    #[test]
    fn retry_after_is_read_in_all_forms() {
        let after = |name: &'static str, value: &str| {
            let mut headers = reqwest::header::HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("retry-after-ms", "1500"), Some(Duration::from_millis(1500)));
        assert_eq!(after("retry-after", "2"), Some(Duration::from_secs(2)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(after("retry-after", &date).is_some_and(|d| (58..=60).contains(&d.as_secs())));
        assert_eq!(after("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("retry-after", "soon"), None);
        assert_eq!(after("retry-after", "-1"), None);
    }
}
