//! Every route and every operation of a WebSocket, tried by everybody there is.

use std::collections::BTreeSet;

use axum::http::header;
use millstream::{
    broker::{Partition, Shared},
    gateway::{Options, Right},
    job::{JobId, Timestamp},
    state::State,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite;

use super::access::Keys;
use crate::{
    socket::client::open_at,
    support::{
        redis::Server,
        stack::connect,
        web::{Reply, Web, chat, embedded},
    },
};

/// Who asks: without a key, with a key that nobody knows or that has expired, with all rights of another tenant,
/// with a token of the job or of another job, and with keys of the job's own tenant.
const CALLERS: [&str; 10] = [
    "nobody",
    "unknown",
    "expired",
    "foreign",
    "token",
    "other token",
    "enqueue",
    "read",
    "admin",
    "both",
];

/// What each is answered, in the order of [`CALLERS`]: the status, or that of the error of a frame. A row for each
/// operation of the description, by its ID, and for each of a WebSocket.
const EXPECTED: [(&str, [u16; 10]); 20] = [
    //                 nobody unknown expired foreign token other enqueue read admin both
    ("enqueue", [401, 401, 401, 202, 401, 401, 202, 403, 403, 202]),
    ("list_jobs", [401, 401, 401, 200, 401, 401, 403, 200, 403, 200]),
    ("show_job", [401, 401, 401, 404, 200, 401, 403, 200, 403, 200]),
    ("cancel_job", [401, 401, 401, 404, 401, 401, 200, 403, 403, 200]),
    ("job_token", [401, 401, 401, 404, 401, 401, 403, 200, 403, 200]),
    ("job_events", [401, 401, 401, 404, 200, 401, 403, 200, 403, 200]),
    // Let in with a body that is no chat: one that is would wait for its answer.
    ("complete_chat", [401, 401, 401, 400, 401, 401, 400, 403, 403, 400]),
    ("list_models", [401, 401, 401, 200, 401, 401, 403, 200, 403, 200]),
    ("show_model", [401, 401, 401, 200, 401, 401, 403, 200, 403, 200]),
    ("list_queues", [401, 401, 401, 200, 401, 401, 403, 403, 200, 403]),
    ("metrics", [401, 401, 401, 200, 401, 401, 403, 403, 200, 403]),
    ("whoami", [401, 401, 401, 200, 401, 401, 200, 200, 200, 200]),
    ("healthz", [200; 10]),
    ("readyz", [200; 10]),
    ("describe", [200; 10]),
    ("open_socket", [401, 401, 401, 101, 401, 401, 101, 101, 101, 101]),
    ("ws enqueue", [401, 401, 401, 200, 401, 401, 200, 403, 403, 200]),
    ("ws subscribe", [401, 401, 401, 404, 401, 401, 403, 200, 403, 200]),
    // Asks for no right: whether a job was followed on this very socket.
    ("ws unsubscribe", [401, 401, 401, 200, 401, 401, 200, 200, 200, 200]),
    ("ws cancel", [401, 401, 401, 404, 401, 401, 200, 403, 403, 200]),
];

/// One operation of the description.
struct Operation {
    name: String,
    method: Method,
    path: String,
    takes_body: bool,
}

/// Every operation that `/openapi.json` tells of, those within a WebSocket among them.
async fn described(web: &Web) -> Vec<Operation> {
    let document = web.get("/openapi.json").await.json();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            if !["GET", "POST", "DELETE", "PUT", "PATCH"].contains(&method.as_str()) {
                continue;
            }
            let takes_body = operation["requestBody"].is_object();
            let name = operation["operationId"].as_str().unwrap().to_owned();
            let ops = operation["x-websocket-ops"].as_array().cloned().unwrap_or_default();
            for op in ops {
                let name = format!("ws {}", op.as_str().unwrap());
                all.push(Operation { name, method: Method::GET, path: path.clone(), takes_body });
            }
            all.push(Operation { name, method, path: path.clone(), takes_body });
        }
    }
    all
}

/// A gateway with keys, and each caller's credentials.
struct Site {
    web: Web,
    keys: Vec<Option<String>>,
    owner: String,
    _file: Keys,
}

impl Site {
    fn start(broker: &Shared) -> Self {
        let mut file = Keys::new();
        let old = Some(Timestamp(1));
        let (all, both) = (Right::ALL, [Right::Enqueue, Right::Read]);
        let expired = file.add("expired", "acme", &all, old);
        let foreign = file.add("foreign", "other", &all, None);
        let enqueue = file.add("enqueue", "acme", &[Right::Enqueue], None);
        let read = file.add("read", "acme", &[Right::Read], None);
        let admin = file.add("admin", "acme", &[Right::Admin], None);
        let owner = file.add("both", "acme", &both, None);
        let unknown = "ms_both_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned();
        let keys = [unknown, expired, foreign].map(Some).into_iter().chain([None, None]);
        let keys = keys.chain([enqueue, read, admin, owner.clone()].map(Some));
        let keys = std::iter::once(None).chain(keys).collect();
        let options = Options { models: vec!["m".to_owned()], ..file.options() };
        Self { web: Web::start(broker, options), keys, owner, _file: file }
    }

    async fn job(&self) -> String {
        let request =
            self.web.posted("/v1/jobs", &chat("the prompt of acme")).bearer_auth(&self.owner);
        Reply::of(request).await.json()["id"].as_str().unwrap().to_owned()
    }

    async fn token(&self, job: &str) -> String {
        let request = self.web.ask(Method::POST, &format!("/v1/jobs/{job}/token"));
        let made = Reply::of(request.bearer_auth(&self.owner)).await.json();
        made["token"].as_str().unwrap().to_owned()
    }

    /// What one caller is answered to one operation on a waiting job.
    async fn try_it(&self, operation: &Operation, caller: usize, job: &str) -> (u16, String) {
        let token = match CALLERS[caller] {
            "token" => Some(self.token(job).await),
            "other token" => Some(self.token(&self.job().await).await),
            _ => None,
        };
        let mut path = operation.path.replace("{id}", job).replace("{model}", "m");
        assert!(!path.contains('{'), "{path}: the test does not know what is named there");
        if let Some(token) = token {
            path = format!("{path}?token={token}");
        }
        if operation.path == "/v1/ws" {
            return self.over_a_socket(&path, operation, caller, job).await;
        }
        let mut request = self.web.ask(operation.method.clone(), &path);
        if let Some(key) = &self.keys[caller] {
            request = request.bearer_auth(key);
        }
        // A stream would have no end.
        request = request.header("accept", "application/json");
        if operation.takes_body {
            let body = if operation.name == "complete_chat" { json!({}) } else { chat("another") };
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let reply = Reply::of(request).await;
        (reply.status.as_u16(), reply.text)
    }

    async fn over_a_socket(
        &self,
        path: &str,
        operation: &Operation,
        caller: usize,
        job: &str,
    ) -> (u16, String) {
        let stream = TcpStream::connect(("127.0.0.1", self.web.port())).await.unwrap();
        let bearer = self.keys[caller].as_ref().map(|key| format!("Bearer {key}"));
        let headers: Vec<_> =
            bearer.iter().map(|bearer| (header::AUTHORIZATION, bearer.as_str())).collect();
        let mut socket = match open_at(stream, path, &headers).await {
            Ok((socket, _)) => socket,
            Err(tungstenite::Error::Http(response)) => {
                let text = response.body().clone().unwrap_or_default();
                return (response.status().as_u16(), String::from_utf8(text).unwrap());
            }
            Err(other) => panic!("{other}"),
        };
        let Some(op) = operation.name.strip_prefix("ws ") else { return (101, String::new()) };
        let what = if op == "enqueue" { chat("another") } else { json!(job) };
        let answer = socket.ask(json!({"id": 1, "op": op, "job": what})).await;
        let status = match answer["error"]["code"].as_str() {
            None => 200,
            Some("missing_right") => 403,
            Some("job_not_found") => 404,
            Some(other) => panic!("{other}: {answer}"),
        };
        (status, answer.to_string())
    }
}

/// Guards against a route or an operation that lets in whom it should not, a new one among them: one that the
/// description tells and the table does not fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_everybody_as_the_table_says() {
    let server = Server::start().await;
    for broker in [embedded(), connect(&server.url()).await] {
        let site = Site::start(&broker);
        let operations = described(&site.web).await;
        let told: BTreeSet<&str> =
            operations.iter().map(|operation| operation.name.as_str()).collect();
        let known: BTreeSet<&str> = EXPECTED.iter().map(|(name, _)| *name).collect();
        assert_eq!(told, known, "the description and the table of this test");
        for operation in &operations {
            let (_, expected) = EXPECTED.iter().find(|(name, _)| *name == operation.name).unwrap();
            for (caller, name) in CALLERS.into_iter().enumerate() {
                let job = site.job().await;
                let (status, text) = site.try_it(operation, caller, &job).await;
                assert_eq!(status, expected[caller], "{} by {name}: {text}", operation.name);
                if status >= 400 {
                    is_unharmed(&broker, &job, &text, operation, name).await;
                }
            }
        }
    }
}

/// Whoever is refused learns nothing of the job, and does nothing to it.
async fn is_unharmed(broker: &Shared, job: &str, text: &str, operation: &Operation, name: &str) {
    let id: JobId = job.parse().unwrap();
    let record = broker.job(id).await.unwrap().unwrap();
    assert_eq!(record.state, State::Waiting, "{} by {name}", operation.name);
    assert_eq!(broker.depth(&Partition::first(Default::default())).await.unwrap().dead, 0);
    let error: Value = serde_json::from_str(text).unwrap();
    assert!(error["error"]["code"].is_string(), "{text}");
    for words in ["the prompt of acme", "acme", "ms_"] {
        assert!(!text.contains(words), "{} by {name}: {text}", operation.name);
    }
}
