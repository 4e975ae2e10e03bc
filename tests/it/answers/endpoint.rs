//! An endpoint that sends the bytes that it is told to, and a whole system that reads them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use millstream::{
    retry::Schedule,
    upstream::openai::{self, OpenAi},
    worker::{self, Worker},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    subject::soon,
    web::{Reply, Web, chat, embedded, options, streamed},
};

/// How a response's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As it was announced.
    Whole,
    /// The connection closes in the middle.
    Cut,
    /// A comment every 50 ms, for as long as the reader stays.
    Comments,
}

/// A response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: &'static str,
    pub kind: &'static str,
    pub headers: String,
    /// Pieces of the body, and how long the endpoint waits before each.
    pub pieces: Vec<(Duration, Vec<u8>)>,
    /// The length is announced; else the body comes in chunks.
    pub sized: bool,
    pub end: End,
}

impl Response {
    pub fn of(status: &'static str, kind: &'static str, body: impl AsRef<[u8]>) -> Self {
        let pieces = vec![(Duration::ZERO, body.as_ref().to_vec())];
        Self { status, kind, headers: String::new(), pieces, sized: true, end: End::Whole }
    }

    /// An event stream.
    pub fn events(body: impl AsRef<[u8]>) -> Self {
        Self { sized: false, ..Self::of("200 OK", "text/event-stream", body) }
    }

    pub fn json(body: &Value) -> Self {
        Self::of("200 OK", "application/json", body.to_string())
    }

    pub fn ending(self, end: End) -> Self {
        Self { end, ..self }
    }

    pub fn with(mut self, header: &str) -> Self {
        self.headers.push_str(header);
        self.headers.push_str("\r\n");
        self
    }

    pub fn then(mut self, after: Duration, bytes: impl AsRef<[u8]>) -> Self {
        self.pieces.push((after, bytes.as_ref().to_vec()));
        self
    }

    async fn send(self, stream: &mut TcpStream) -> std::io::Result<()> {
        let length: usize = self.pieces.iter().map(|(_, piece)| piece.len()).sum();
        let framing = if self.sized {
            format!("content-length: {length}")
        } else {
            "transfer-encoding: chunked".to_owned()
        };
        let Self { status, kind, headers, .. } = &self;
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{framing}\r\nconnection: close\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let chunk = |bytes: &[u8]| {
            if self.sized {
                return bytes.to_vec();
            }
            [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
        };
        for (after, piece) in self.pieces.iter().filter(|(_, piece)| !piece.is_empty()) {
            tokio::time::sleep(*after).await;
            stream.write_all(&chunk(piece)).await?;
            stream.flush().await?;
        }
        match self.end {
            End::Whole if !self.sized => stream.write_all(b"0\r\n\r\n").await?,
            End::Whole | End::Cut => {}
            End::Comments => loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.write_all(&chunk(b": keep\n\n")).await?;
            },
        }
        stream.shutdown().await
    }
}

/// A request: its head, and its body.
#[derive(Debug, Clone)]
pub struct Request {
    pub head: String,
    pub body: String,
}

impl Request {
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut text = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let seen = String::from_utf8_lossy(&text).into_owned();
            if let Some((head, body)) = seen.split_once("\r\n\r\n") {
                let lower = head.to_lowercase();
                let length = lower.split("content-length: ").nth(1);
                let length: usize =
                    length.map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
                if body.len() >= length {
                    return Some(Self { head: head.to_owned(), body: body.to_owned() });
                }
            }
            let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
            text.extend_from_slice(&buffer[..count]);
        }
    }
}

/// An endpoint that is told what to answer to each request.
pub struct Endpoint {
    pub addr: SocketAddr,
    calls: Arc<AtomicUsize>,
}

impl Endpoint {
    pub async fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, calls) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&calls);
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Some(request) = Request::read(&mut stream).await else { return };
                    counted.fetch_add(1, Ordering::SeqCst);
                    let response = answer(&request);
                    // A reader that has read enough leaves.
                    let _ = response.send(&mut stream).await;
                });
            }
        });
        Self { addr, calls }
    }

    /// One that answers everything alike.
    pub async fn saying(response: Response) -> Self {
        Self::start(move |_| response.clone()).await
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn options(&self) -> openai::Options {
        let base_url = format!("http://{}/v1", self.addr);
        openai::Options { base_url, ..openai::Options::default() }
    }
}

/// A worker that does not wait between attempts.
pub fn eager() -> worker::Options {
    let initial = Duration::from_millis(1);
    let retry = Schedule { initial, max: initial, ..Schedule::default() };
    worker::Options { retry, ..worker::Options::default() }
}

/// A gateway and a worker on an embedded broker, in front of an endpoint.
pub struct System {
    pub web: Web,
    _stop: tokio_util::sync::DropGuard,
}

/// What came of one question.
#[derive(Debug)]
pub struct Outcome {
    /// Status of the chat completion, and its body: the error, or the data of its events.
    pub reply: Reply,
    /// The data of its events but for `[DONE]`.
    pub chunks: Vec<Value>,
    /// The stream ended with `[DONE]`.
    pub done: bool,
    /// The job as `GET /v1/jobs/ID` shows it.
    pub job: Value,
    /// The job's events.
    pub events: Vec<Value>,
}

impl System {
    pub fn start(upstream: &openai::Options, worker: worker::Options) -> Self {
        let broker = embedded();
        let web = Web::start(&broker, options());
        let upstream = Arc::new(OpenAi::new(upstream).unwrap());
        let worker = Worker::new(broker, web.listener.hub(), upstream, worker);
        let stop = CancellationToken::new();
        tokio::spawn(worker.run(stop.clone()));
        Self { web, _stop: stop.drop_guard() }
    }

    /// Asks as a client does that streams.
    pub async fn ask(&self) -> Outcome {
        self.asked(&streamed("q")).await
    }

    /// Asks as a client does that wants the whole answer.
    pub async fn ask_whole(&self) -> Outcome {
        self.asked(&chat("q")).await
    }

    pub async fn asked(&self, request: &Value) -> Outcome {
        let reply = Reply::of(self.web.posted("/v1/chat/completions", request)).await;
        let data = reply.text.lines().filter_map(|line| line.strip_prefix("data: "));
        let data: Vec<&str> = data.collect();
        let done = data.last() == Some(&"[DONE]");
        let chunks = data.iter().filter(|data| **data != "[DONE]");
        let chunks = chunks.map(|data| serde_json::from_str(data).unwrap()).collect();
        let id = reply.header("x-millstream-job").to_owned();
        let job = self.web.get(&format!("/v1/jobs/{id}")).await.json();
        let events = soon(self.web.events(&id, "").await.rest()).await;
        let events =
            events.into_iter().map(|block| json!({"event": block.event, "data": block.json()}));
        Outcome { chunks, done, job, events: events.collect(), reply }
    }
}

impl Outcome {
    /// The text of the stream's first choice.
    pub fn text(&self) -> String {
        let texts = self.chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["content"]);
        texts.filter_map(Value::as_str).collect()
    }

    /// The finish reasons that a client read, without the nulls.
    pub fn reasons(&self) -> Vec<Value> {
        let choices =
            self.chunks.iter().flat_map(|chunk| chunk["choices"].as_array().into_iter().flatten());
        let reasons = choices.map(|choice| choice["finish_reason"].clone());
        reasons.filter(|reason| !reason.is_null()).collect()
    }

    /// The first choice's message, as the job shows it.
    pub fn message(&self) -> &Value {
        &self.job["choices"][0]["message"]
    }
}

/// One event of a stream with one choice.
pub fn event(delta: &Value, reason: &Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
    format!(
        "data: {}\n\n",
        json!({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})
    )
}

/// A delta of text.
pub fn says(text: &str) -> String {
    event(&json!({"content": text}), &Value::Null)
}

/// The end of a choice.
pub fn ends(reason: &str) -> String {
    event(&json!({}), &reason.into())
}

pub const DONE: &str = "data: [DONE]\n\n";
