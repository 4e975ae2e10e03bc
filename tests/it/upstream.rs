//! Endpoints that point elsewhere, and what of their words reaches whom.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt as _;
use millstream::{
    error::{Code, Failure},
    job::ChatRequest,
    upstream::{
        Upstream,
        openai::{self, OpenAi},
    },
    worker::{self, Worker},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    program::{MILLSTREAM, run},
    stack::{Stack, instant},
    subject::soon,
    web::{Web, options},
};

/// A server that answers as it is told, and what it was asked: head and body.
struct Endpoint {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    /// `answer` makes a status line, headers and a body of each request's path and of this server's address.
    async fn start(answer: impl Fn(&str, SocketAddr) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, asked) = (listener.local_addr().unwrap(), Arc::default());
        let seen: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut text = String::new();
                let whole = |text: &str| {
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let length = head.to_lowercase();
                    let length = length.split("content-length: ").nth(1).map_or(0, |rest| {
                        rest.split("\r\n").next().unwrap().parse::<usize>().unwrap()
                    });
                    (body.len() >= length).then_some(())
                };
                let mut buffer = [0; 4096];
                while whole(&text).is_none() {
                    let count = stream.read(&mut buffer).await.unwrap();
                    assert!(count > 0, "a request that was cut: {text}");
                    text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
                }
                let path = text.split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(text);
                let answer = answer(&path, addr);
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        Self { addr, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn upstream(&self) -> OpenAi {
        let base_url = format!("http://{}/v1", self.addr);
        let api_key = "the-operators-key".to_owned();
        OpenAi::new(&openai::Options { base_url, api_key, ..Default::default() }).unwrap()
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    )
}

fn completion() -> String {
    let whole = json!({"id": "c", "model": "m", "choices": [{"index": 0,
        "message": {"role": "assistant", "content": "here"}, "finish_reason": "stop"}]});
    answer("200 OK", "content-type: application/json\r\n", &whole.to_string())
}

async fn ask(upstream: &OpenAi) -> Result<Value, Failure> {
    let request = ChatRequest::ask("m", "the prompt");
    let mut parts = upstream.answer(&request, false).await?;
    loop {
        // A part that says nothing is a sign of life.
        let part = parts.next().await.expect("the answer says nothing")?;
        if let Some(piece) = part.pieces.first() {
            return Ok(piece.delta["content"].clone());
        }
    }
}

/// A redirect fetched an address that only this machine reaches, and posted the prompt to whoever was named.
#[tokio::test]
async fn a_redirect_is_followed_within_the_endpoints_origin_and_no_further() {
    let elsewhere = Endpoint::start(|_, _| completion()).await;
    let away = elsewhere.addr;
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"] {
        let endpoint = Endpoint::start(move |_, _| {
            answer(status, &format!("location: http://{away}/v1/inside\r\n"), "a body from inside")
        })
        .await;
        let failure = ask(&endpoint.upstream()).await.unwrap_err();
        assert_eq!(failure.code, Code::UpstreamRedirect, "{failure}");
        let shown = serde_json::to_string(&failure).unwrap();
        assert!(!shown.contains("127.0.0.1") && !shown.contains("inside"), "{shown}");
        assert!(failure.detail.unwrap().contains(&format!("http://{away}/v1/inside")));
        assert_eq!(endpoint.upstream().models().await.unwrap_err().code, Code::UpstreamRedirect);
    }
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());

    // Within the origin the same request arrives, prompt, method and key.
    let endpoint = Endpoint::start(|path, addr| match path {
        "/v1/chat/completions" => answer("302 Found", "location: /v2/chat/completions\r\n", ""),
        "/v2/chat/completions" => {
            answer("307 Temporary", &format!("location: http://{addr}/v3\r\n"), "")
        }
        _ => completion(),
    })
    .await;
    assert_eq!(ask(&endpoint.upstream()).await.unwrap(), "here");
    let asked = endpoint.asked();
    assert_eq!(asked.len(), 3);
    for request in &asked {
        assert!(request.starts_with("POST /v") && request.contains("the prompt"), "{request}");
        assert!(request.contains("the-operators-key"), "{request}");
    }

    // For ever, it is not.
    let endless =
        Endpoint::start(|path, _| answer("307 Temporary", &format!("location: {path}\r\n"), ""))
            .await;
    let failure = ask(&endless.upstream()).await.unwrap_err();
    assert_eq!((failure.code, endless.asked().len()), (Code::UpstreamRedirect, 4));
    assert!(failure.detail.unwrap().contains("after 3 others"));
}

/// What an endpoint said of the operator's key stood in the job, its events and its list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoints_words_about_the_operator_reach_the_operator_alone() {
    let words =
        "Incorrect API key the-operators-key (sk-12**89) of org-7, see http://10.0.0.7/keys";
    let body = json!({"error": {"message": words, "code": "invalid_api_key"}}).to_string();
    let endpoint = Endpoint::start(move |_, _| {
        answer("401 Unauthorized", "content-type: application/json\r\n", &body)
    })
    .await;
    let stack = Stack::start(instant()).await;
    let web = Web::start(&stack.broker, options());
    let upstream = Arc::new(endpoint.upstream());
    let worker =
        Worker::new(stack.broker.clone(), web.listener.hub(), upstream, worker::Options::default());
    let stop = CancellationToken::new();
    let working = tokio::spawn(worker.run(stop.clone()));
    let id = web.enqueue("a").await;
    let letter = soon(async {
        loop {
            let letters = stack.broker.dead_letters(&stack.partition, None, 1).await.unwrap();
            if let Some(letter) = letters.into_iter().next() {
                break letter;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    stop.cancel();
    working.await.unwrap();
    let detail = letter.detail.as_deref().unwrap();
    assert!(detail.contains("sk-12**89") && detail.contains("10.0.0.7"), "{detail}");
    assert!(!detail.contains("the-operators-key"), "{detail}");

    let shown = web.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!(shown.json()["error"]["code"], "upstream_auth");
    assert_eq!(shown.json()["error"]["status"], 401);
    let events = web.events(&id, "").await.rest().await;
    assert_eq!(events.last().unwrap().event, "failed");
    let log = stack.server.command(&["XRANGE", &format!("ms:{{job:{id}}}:log"), "-", "+"]);
    let record = stack.server.command(&["HGETALL", &format!("ms:{{job:{id}}}")]);
    let page = web.get("/v1/jobs").await.text;
    let told: String = events.iter().map(|event| event.data.clone()).collect();
    for text in [&shown.text, &told, &log, &record, &page] {
        assert!(text.contains("upstream_auth") && text.contains("refuses this server"), "{text}");
        assert!(!["sk-12", "org-7", "10.0.0.7"].iter().any(|word| text.contains(word)), "{text}");
    }
    let ran = run(MILLSTREAM, &["dlq", "show", &id], &[("REDIS_URL", &stack.server.url())]);
    assert!(ran.out.contains("sk-12**89"), "{ran:?}");
}
