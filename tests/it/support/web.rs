//! A gateway in this process, a client of it, and a worker in the test's own hands.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use millstream::{
    broker::{
        Attempt, Begin, Crashes, Entry, Outcome, Partition, Shared, WorkerId, Written,
        memory::{self, Memory},
    },
    error::Failure,
    event::{Body, Chunk, Codec, Done, Failed, Frame},
    gateway::{Gateway, Options, Stopped},
    job::{Lane, QueueName},
    listener::Listener,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::subject::soon;

/// An embedded broker.
pub fn embedded() -> Shared {
    Arc::new(Memory::new(memory::Options::default()))
}

/// Any free port.
pub fn options() -> Options {
    let notice = Duration::ZERO;
    Options { listen: ([127, 0, 0, 1], 0).into(), notice, ..Options::default() }
}

/// A client with connections of its own.
pub fn client() -> Client {
    // Whoever comes first installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new()
}

/// A gateway that listens, until this value goes.
pub struct Web {
    pub url: String,
    pub client: Client,
    /// Its listener.
    pub listener: Listener,
    /// What SIGTERM does.
    pub stop: CancellationToken,
    task: JoinHandle<Stopped>,
}

impl Web {
    pub fn start(broker: &Shared, options: Options) -> Self {
        let listener = Listener::new(broker.clone(), Default::default());
        let gateway =
            Gateway::new(broker.clone(), listener.clone(), Default::default(), options).unwrap();
        Self::of(gateway, listener)
    }

    /// A gateway that somebody has made.
    pub fn of(gateway: Gateway, listener: Listener) -> Self {
        let bound = gateway.bind().unwrap();
        let url = format!("http://{}", bound.addr());
        let stop = CancellationToken::new();
        let task = tokio::spawn(bound.run(stop.clone()));
        Self { url, client: client(), listener, stop, task }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.url.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// A request to be sent.
    pub fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.ask(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        Reply::of(self.ask(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::of(self.posted(path, body)).await
    }

    /// A request with a body of JSON.
    pub fn posted(&self, path: &str, body: &Value) -> RequestBuilder {
        self.ask(Method::POST, path)
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    /// Enqueues a question and gives the job's ID.
    pub async fn enqueue(&self, question: &str) -> String {
        let reply = self.post("/v1/jobs", &chat(question)).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    /// A job's events, from behind a cursor or, where it is empty, from the first.
    pub async fn events(&self, job: &str, after: &str) -> Sse {
        Sse::open(self.ask(Method::GET, &format!("/v1/jobs/{job}/events?after={after}"))).await
    }

    /// A figure of `/metrics`.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text;
        let name = format!("millstream_gateway_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until a figure has this value.
    pub async fn until_metric(&self, name: &str, value: f64) {
        soon(async {
            while self.metric(name).await != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Stops it as SIGTERM does, and waits for its end.
    pub async fn end(self) -> Stopped {
        self.stop.cancel();
        soon(self.task).await.unwrap()
    }
}

/// A chat request.
pub fn chat(question: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": question}]})
}

/// A chat request to be answered in chunks.
pub fn streamed(question: &str) -> Value {
    let mut request = chat(question);
    request["stream"] = true.into();
    request
}

/// An answer that has arrived whole.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    pub async fn of(request: RequestBuilder) -> Self {
        Self::read(soon(request.send()).await.unwrap()).await
    }

    pub async fn read(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, text: soon(response.text()).await.unwrap() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The error that it must be, of this status and code; gives its message.
    pub fn refused(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let (body, kind) = (self.json(), self.kind());
        assert_eq!((&body["error"]["code"], &body["error"]["type"]), (&json!(code), &json!(kind)));
        assert!(body["error"].get("param").is_some(), "{body}");
        assert!(!self.header("x-request-id").is_empty());
        body["error"]["message"].as_str().unwrap().to_owned()
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// A block of a stream; comments by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    pub comment: String,
    pub id: String,
    pub event: String,
    pub data: String,
    pub retry: String,
}

impl Block {
    fn parse(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap();
            let value = value.strip_prefix(' ').unwrap_or(value);
            let field = match name {
                "" => &mut block.comment,
                "id" => &mut block.id,
                "event" => &mut block.event,
                "data" => &mut block.data,
                "retry" => &mut block.retry,
                other => panic!("field `{other}` in {text}"),
            };
            assert!(field.is_empty(), "twice `{name}` in {text}");
            value.clone_into(field);
        }
        block
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What a `delta`, or a chunk of a chat completion, says.
    pub fn says(&self) -> String {
        let text = &self.json()["choices"][0]["delta"]["content"];
        text.as_str().unwrap_or_default().to_owned()
    }
}

/// A stream under way.
pub struct Sse {
    pub headers: HeaderMap,
    body: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Sse {
    pub async fn open(request: RequestBuilder) -> Self {
        let response = soon(request.send()).await.unwrap();
        assert_eq!(response.status(), 200, "{:?}", response.headers());
        let headers = response.headers().clone();
        assert_eq!(headers["content-type"], "text/event-stream");
        Self { headers, body: response.bytes_stream().boxed(), text: String::new() }
    }

    /// The next block, be it a comment; `None` at the end.
    pub async fn any(&mut self) -> Option<Block> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = Block::parse(block);
                self.text = rest.into();
                return Some(block);
            }
            match soon(self.body.next()).await {
                Some(bytes) => {
                    self.text.push_str(std::str::from_utf8(&bytes.unwrap()).unwrap());
                }
                None => {
                    assert_eq!(self.text, "", "a block that is not whole");
                    return None;
                }
            }
        }
    }

    /// The next block that is no comment.
    pub async fn next(&mut self) -> Option<Block> {
        loop {
            let block = self.any().await?;
            if block.comment.is_empty() {
                return Some(block);
            }
        }
    }

    /// The next block, which must be there.
    pub async fn block(&mut self) -> Block {
        self.next().await.expect("the stream has ended")
    }

    /// Every block that is left.
    pub async fn rest(mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Some(block) = self.next().await {
            blocks.push(block);
        }
        blocks
    }
}

/// A worker in the test's own hands, with one job.
pub struct Hand {
    broker: Shared,
    pub entry: Entry,
    pub attempt: Attempt,
    seq: u64,
}

impl Hand {
    /// Waits for a job of the default queue, and begins it.
    pub async fn begin(broker: &Shared) -> Self {
        Self::begin_at(broker, QueueName::default()).await
    }

    /// The same of another queue.
    pub async fn begin_at(broker: &Shared, queue: QueueName) -> Self {
        let me = WorkerId::new("hand");
        let partition = Partition::first(queue);
        let mut claimer = broker.claimer(&partition, &me).await.unwrap();
        let never = CancellationToken::new();
        let entry = soon(async {
            loop {
                let mut entries = claimer.read(Lane::Normal, 1).await.unwrap();
                if entries.is_empty() {
                    entries = claimer.wait(Duration::from_secs(1), &never).await.unwrap();
                }
                if let Some(entry) = entries.pop() {
                    break entry;
                }
            }
        })
        .await;
        let attempt = opened(broker, &entry, &me).await;
        Self { broker: broker.clone(), entry, attempt, seq: 0 }
    }

    /// The worker dies, and another one takes the job over.
    pub async fn lose(&mut self) {
        let next = WorkerId::new("next");
        self.attempt = opened(&self.broker, &self.entry, &next).await;
        self.seq = 0;
    }

    fn next(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    pub async fn say(&mut self, text: &str) {
        self.piece(json!({"delta": {"content": text}})).await;
    }

    /// Says a piece of a choice.
    pub async fn piece(&mut self, piece: Value) {
        let mut chunk = Chunk::default();
        chunk.push(serde_json::from_value(piece).unwrap());
        let frame = Frame::new(self.next(), &Body::Delta(chunk), Codec::Json).unwrap();
        assert_eq!(self.broker.append(&self.attempt, &[frame]).await.unwrap(), Written::Yes);
    }

    /// Ends the job.
    pub async fn done(&mut self) {
        let usage = json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3});
        self.piece(json!({"delta": {}, "finish_reason": "stop"})).await;
        let done = Done {
            finish_reason: Some("stop".to_owned()),
            usage: Some(usage.clone()),
            attempts: self.attempt.number,
            ttft_ms: Some(7),
            run_ms: 9,
            ..Done::default()
        };
        let outcome = Outcome::Done {
            finish_reason: done.finish_reason.clone(),
            usage: Some(usage.to_string()),
        };
        self.conclude(&Body::Done(done), &outcome).await;
    }

    pub async fn fail(&mut self, error: Failure) {
        let (attempts, custom_id, labels) = (self.attempt.number, None, Default::default());
        let failed = Failed { error: error.clone(), attempts, custom_id, labels };
        self.conclude(&Body::Failed(failed), &Outcome::Failed(error)).await;
    }

    async fn conclude(&mut self, body: &Body, outcome: &Outcome) {
        let frame = Frame::new(self.next(), body, Codec::Json).unwrap();
        let written = self.broker.conclude(&self.attempt, &[frame], outcome).await.unwrap();
        assert_eq!(written, Written::Yes);
    }
}

async fn opened(broker: &Shared, entry: &Entry, worker: &WorkerId) -> Attempt {
    match broker.begin(entry, worker, Crashes { most: 100, alone: true }).await.unwrap() {
        Begin::Begun(attempt) => attempt,
        other => panic!("not begun: {other:?}"),
    }
}
