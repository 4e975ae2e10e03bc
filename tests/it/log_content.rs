//! What no log holds, however much is logged: content, keys, tokens and passwords.

use axum::{Router, body::Bytes, http::header, response::IntoResponse, routing::post};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    socket::client::{Client, try_open},
    support::{
        program::{Folder, GATEWAY, MILLSTREAM, PRODUCER, Running, WORKER, run},
        redis::Server,
        subject::soon,
        web::{Reply, Sse, client},
    },
};

const PROMPT: &str = "prompt-of-the-tenant";
const ANSWER: &str = "answer-of-the-model";
const SECRET: &str = "signing-secret-of-the-gateway-0123456789";
const UPSTREAM_KEY: &str = "sk-key-of-the-upstream-0123456789";
const PASSWORD: &str = "password-of-the-user-of-redis";
const WRONG_KEY: &str = "ms_web_a-key-that-nobody-knows";

/// A model that answers in one piece, and for the model `broken` with what is no chunk.
async fn upstream() -> String {
    async fn answer(body: Bytes) -> impl IntoResponse {
        let request: Value = serde_json::from_slice(&body).unwrap();
        let delta = |delta: Value, finish: Value| {
            let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
            let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [choice]});
            format!("data: {chunk}\n\n")
        };
        let (model, stream) = (request["model"].as_str().unwrap(), request["stream"] == true);
        let text = match (model, stream) {
            ("broken", _) => {
                format!("data: {{\"choices\": [{{\"index\": \"{ANSWER}\", \"delta\"}}]}}\n\n")
            }
            (_, true) => {
                let said = delta(json!({"content": ANSWER}), Value::Null);
                said + &delta(json!({}), "stop".into()) + "data: [DONE]\n\n"
            }
            (_, false) => {
                let message = json!({"role": "assistant", "content": ANSWER});
                let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
                let whole = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m",
                    "choices": [choice]});
                return ([(header::CONTENT_TYPE, "application/json")], whole.to_string());
            }
        };
        ([(header::CONTENT_TYPE, "text/event-stream")], text)
    }
    let socket = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/v1", socket.local_addr().unwrap());
    let app = Router::new().route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(socket, app).await });
    url
}

/// The same bytes, as libraries write them.
fn spellings(text: &str) -> [String; 3] {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    [text.to_owned(), hex, list.join(", ")]
}

fn chat(model: &str, stream: bool) -> Value {
    let messages = json!([{"role": "user", "content": PROMPT}]);
    json!({"model": model, "messages": messages, "stream": stream})
}

/// Everything that a tenant does, over HTTP, server-sent events and a WebSocket; gives its browser token.
async fn everything(url: &str, key: &str) -> String {
    let client = client();
    let ask = |method: Method, path: &str| client.request(method, format!("{url}{path}"));
    let keyed = |method: Method, path: &str| ask(method, path).bearer_auth(key);
    let json = |request: RequestBuilder, body: String| {
        request.header("content-type", "application/json").body(body)
    };
    let jobs = keyed(Method::POST, "/v1/jobs");
    let job = Reply::of(json(jobs, chat("m", true).to_string())).await.json();
    let id = job["id"].as_str().unwrap().to_owned();
    let made = Reply::of(keyed(Method::POST, &format!("/v1/jobs/{id}/token"))).await.json();
    let token = made["token"].as_str().unwrap().to_owned();
    let events = ask(Method::GET, &format!("/v1/jobs/{id}/events?token={token}"));
    let blocks = Sse::open(events).await.rest().await;
    assert!(blocks.iter().any(|block| block.data.contains(ANSWER)), "{blocks:?}");
    let chats = "/v1/chat/completions";
    let whole = Reply::of(json(keyed(Method::POST, chats), chat("m", false).to_string())).await;
    assert!(whole.text.contains(ANSWER), "{}", whole.text);
    let streamed = json(keyed(Method::POST, chats), chat("m", true).to_string());
    assert!(Sse::open(streamed).await.rest().await.len() > 1);
    // Some of it is refused: with a key that is none, no JSON, and an answer that cannot be read.
    let unknown =
        json(ask(Method::POST, chats).bearer_auth(WRONG_KEY), chat("m", false).to_string());
    assert_eq!(Reply::of(unknown).await.status, 401);
    let torn = json(keyed(Method::POST, chats), format!("{{\"messages\": \"{PROMPT}"));
    assert_eq!(Reply::of(torn).await.status, 400);
    let broken = json(keyed(Method::POST, chats), chat("broken", false).to_string());
    assert!(Reply::of(broken).await.status.is_server_error());
    let path = format!("/v1/jobs/{id}/events?token={token}x");
    assert_eq!(Reply::of(ask(Method::GET, &path)).await.status, 401);
    converse(url, key).await;
    token
}

async fn converse(url: &str, key: &str) {
    let addr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let protocols = format!("millstream, bearer.{key}");
    let headers = [(header::SEC_WEBSOCKET_PROTOCOL, protocols.as_str())];
    let (mut socket, _): (Client, _) = try_open(addr, &headers).await.unwrap();
    let job = chat("m", true);
    let answer = socket.ask(json!({"id": "e", "op": "enqueue", "job": job})).await;
    let id = answer["ok"]["id"].as_str().unwrap().parse().unwrap();
    socket.subscribe(id, None).await;
    let events = socket.until_over(1).await;
    assert!(serde_json::to_string(&events).unwrap().contains(ANSWER));
    // No request at all.
    socket.send(&json!(PROMPT)).await;
    socket.answer().await;
    use futures_util::SinkExt as _;
    soon(socket.socket.send(Message::binary(PROMPT))).await.unwrap();
    assert_eq!(socket.code().await, 1003);
}

/// Guards against prompts, answers and keys that libraries print at `trace`: the WebSocket library did so with
/// every frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_everything_holds_no_content_and_no_secret() {
    let server = Server::start().await;
    server.command(&["ACL", "SETUSER", "app", "on", &format!(">{PASSWORD}"), "~*", "&*", "+@all"]);
    let redis = format!("redis://app:{PASSWORD}@127.0.0.1:{}", server.port());
    let (folder, base_url) = (Folder::new(), upstream().await);
    let keys = folder.path().join("keys.toml").display().to_string();
    let common = vec![
        ("RUST_LOG", "trace"),
        ("OPENAI_BASE_URL", &base_url),
        ("OPENAI_API_KEY", UPSTREAM_KEY),
        ("MILLSTREAM_GATEWAY__KEYS", &keys),
        ("MILLSTREAM_GATEWAY__SECRET", SECRET),
        ("MILLSTREAM_WORKER__RETRY__MAX_ATTEMPTS", "1"),
        ("MILLSTREAM_WORKER__DRAIN", "1s"),
    ];
    let shared = [&common[..], &[("REDIS_URL", redis.as_str())]].concat();
    let made = run(MILLSTREAM, &["keys", "create", "web", "--rights", "enqueue,read"], &common);
    let key = made.out.trim().to_owned();
    let mut logs = vec![("keys create", made.err)];
    let mut tokens = Vec::new();
    for (program, args, begins, env) in
        [(GATEWAY, &[][..], "gateway listens", &shared), (MILLSTREAM, &["dev"], "web: ", &common)]
    {
        let mut gateway = Running::start(program, args, env);
        let line = gateway.wait_for(begins);
        let at = line.find("http://").unwrap();
        let mut parts =
            line[at..].split(|c: char| !(c.is_ascii_alphanumeric() || ":/.".contains(c)));
        let url = parts.next().unwrap().to_owned();
        let worker = (program == GATEWAY).then(|| Running::start(WORKER, &[], env));
        tokens.push(everything(&url, &key).await);
        for (name, running) in [("gateway", Some(gateway)), ("worker", worker)] {
            let Some(running) = running else { continue };
            running.signal("TERM");
            logs.push((name, running.end().1));
        }
    }
    let asked = ["--model", "m", "--user", PROMPT];
    logs.push(("producer", run(PRODUCER, &asked, &shared).err));
    logs.push(("list", run(MILLSTREAM, &["dlq", "list"], &shared).err));

    // It is a log of everything, the libraries' words among them.
    for words in ["TRACE millstream", "DEBUG hyper_util", "TRACE", "DEBUG"] {
        assert!(logs.iter().any(|(_, log)| log.contains(words)), "nowhere: {words}");
    }
    let secrets = [PROMPT, ANSWER, SECRET, UPSTREAM_KEY, PASSWORD, WRONG_KEY, &key, &key[7..]];
    for secret in secrets.into_iter().chain(tokens.iter().map(String::as_str)) {
        for spelling in spellings(secret) {
            for (name, log) in &logs {
                let line =
                    log.lines().find(|line| line.to_lowercase().contains(&spelling.to_lowercase()));
                assert_eq!(line, None, "{secret} stands in the log of {name}");
            }
        }
    }
}
