//! The audit trail: who did what to which job, refusals included, and nothing that was said.

use std::time::Duration;

use axum::http::header;
use millstream::job::JobId;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    socket::client::open_with,
    support::{
        program::{Folder, GATEWAY, MILLSTREAM, Running, WORKER, run},
        redis::Server,
        stack::{instant, simulate},
        subject::soon,
        web::{Reply, chat, client},
    },
};

const SECRET: &str = "a secret of thirty-two bytes or more";
const PROMPT: &str = "the prompt that nobody writes down";

/// The events of a file, each as what it says.
fn trail(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            assert_eq!(line["target"], "millstream::audit", "{line}");
            line["fields"].clone()
        })
        .collect()
}

/// The one event that says all this; `null` stands for what it must not say.
fn said(trail: &[Value], words: &Value) -> Value {
    let has = |event: &&Value| {
        words.as_object().unwrap().iter().all(|(name, value)| event[name] == *value)
    };
    let mut found = trail.iter().filter(has);
    let event = found.next().unwrap_or_else(|| panic!("nowhere: {words}\n{trail:#?}"));
    assert!(found.next().is_none(), "twice: {words}\n{trail:#?}");
    event.clone()
}

/// A gateway with its trail in a file.
struct Site {
    server: Server,
    folder: Folder,
    url: String,
    gateway: Running,
    keys: [String; 4],
}

impl Site {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn env(server: &Server, folder: &Folder) -> Vec<(&'static str, String)> {
        let path = |name: &str| folder.path().join(name).display().to_string();
        vec![
            ("REDIS_URL", server.url()),
            ("MILLSTREAM_GATEWAY__KEYS", path("keys.toml")),
            ("MILLSTREAM_GATEWAY__SECRET", SECRET.to_owned()),
            ("MILLSTREAM_LOG__AUDIT_FILE", path("audit.log")),
            ("USER", "olga".to_owned()),
        ]
    }

    fn run(&self, args: &[&str]) -> String {
        let env = Self::env(&self.server, &self.folder);
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run(MILLSTREAM, args, &env).out
    }

    async fn start() -> Self {
        let (server, folder) = (Server::start().await, Folder::new());
        let env = Self::env(&server, &folder);
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let keys = [
            ("web", "acme", "enqueue,read"),
            ("other", "else", "enqueue,read"),
            ("ops", "acme", "admin"),
            ("many", "busy", "read"),
        ]
        .map(|(id, tenant, rights)| {
            let args = ["keys", "create", id, "--tenant", tenant, "--rights", rights];
            run(MILLSTREAM, &args, &env).out.trim().to_owned()
        });
        let args =
            ["--set", "gateway.limits.requests_per_minute=600", "--set", "gateway.limits.burst=15"];
        let mut gateway = Running::start(GATEWAY, &args, &env);
        let line = gateway.wait_for("gateway listens");
        let at = line.find("http://").unwrap();
        let url = line[at..].split(['"', ' ']).next().unwrap().to_owned();
        Self { server, folder, url, gateway, keys }
    }

    fn ask(&self, key: usize, method: Method, path: &str) -> RequestBuilder {
        client().request(method, format!("{}{path}", self.url)).bearer_auth(&self.keys[key])
    }

    fn post(&self, key: usize, path: &str, body: &Value) -> RequestBuilder {
        let request = self.ask(key, Method::POST, path).body(body.to_string());
        request.header("content-type", "application/json")
    }
}

/// Guards against an operator who cannot tell afterwards who did what: every way by which a job is enqueued, read,
/// cancelled, put back or deleted, and every refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_says_who_did_what_to_which_job() {
    let site = Site::start().await;
    let id = |reply: &Reply| reply.json()["id"].as_str().unwrap().to_owned();
    let named = |request: RequestBuilder, name: &str| request.header("x-request-id", name);
    let first = Reply::of(named(site.post(0, "/v1/jobs", &chat(PROMPT)), "r1")).await;
    let first = id(&first);
    let pair =
        Reply::of(site.post(0, "/v1/jobs", &json!([chat(PROMPT), chat(PROMPT)]))).await.json();
    let path = format!("/v1/jobs/{first}");
    assert_eq!(Reply::of(site.ask(0, Method::GET, &path)).await.status, 200);
    Reply::of(named(site.ask(1, Method::GET, &path), "r2")).await.refused(404, "job_not_found");
    Reply::of(site.ask(1, Method::DELETE, &path)).await.refused(404, "job_not_found");
    Reply::of(site.ask(2, Method::GET, &path)).await.refused(403, "missing_right");
    let unknown = client().get(format!("{}{path}", site.url)).bearer_auth("ms_web_nobody");
    Reply::of(named(unknown, "r3")).await.refused(401, "invalid_api_key");
    let token = Reply::of(site.ask(0, Method::POST, &format!("{path}/token"))).await.json();
    let token = token["token"].as_str().unwrap();
    let url = format!("{}{path}?token={token}", site.url);
    assert_eq!(Reply::of(client().get(&url)).await.status, 200);
    let events = format!("{}{path}/events?token={token}", site.url);
    drop(client().get(&events).send().await.unwrap());
    let until_refused =
        async { while Reply::of(site.ask(3, Method::GET, "/v1/jobs")).await.status == 200 {} };
    soon(until_refused).await;
    assert_eq!(Reply::of(site.ask(0, Method::DELETE, &path)).await.status, 200);

    // Over a WebSocket.
    let stream = TcpStream::connect(site.url.strip_prefix("http://").unwrap()).await.unwrap();
    let bearer = format!("Bearer {}", site.keys[1]);
    let name = header::HeaderName::from_static("x-request-id");
    let headers = [(header::AUTHORIZATION, bearer.as_str()), (name, "s1")];
    let (mut socket, _) = open_with(stream, &headers).await.unwrap();
    let job = socket.ask(json!({"id": 1, "op": "enqueue", "job": chat(PROMPT)})).await;
    let second = job["ok"]["id"].as_str().unwrap().to_owned();
    socket.ask(json!({"id": 2, "op": "subscribe", "job": second})).await;
    socket.ask(json!({"id": 3, "op": "cancel", "job": first})).await;
    socket.ask(json!({"id": 4, "op": "cancel", "job": second})).await;

    // A client that goes away in mid-answer, and what operators do.
    let chats = site.post(0, "/v1/chat/completions", &chat(PROMPT));
    let gone = tokio::time::timeout(Duration::from_millis(500), chats.send()).await;
    assert!(gone.is_err());
    let third = pair["data"][0]["job"]["id"].as_str().unwrap();
    site.run(&["jobs", "cancel", third]);
    let (base_url, _simulator) = simulate(instant()).await;
    let mut failing = chat(PROMPT);
    failing["model"] = "m?fault=status:400".into();
    let dead = id(&Reply::of(site.post(0, "/v1/jobs", &failing)).await);
    let redis = site.server.url();
    let worker =
        Running::start(WORKER, &[], &[("REDIS_URL", &redis), ("OPENAI_BASE_URL", &base_url)]);
    let buried = async || {
        soon(async {
            while site.server.command(&["XLEN", "ms:{q:default:0}:dead"]) != "1" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    buried().await;
    site.run(&["dlq", "requeue", &dead]);
    buried().await;
    site.run(&["dlq", "purge", &dead, "--yes"]);
    drop(worker);

    let trail = trail(&site.path("audit.log"));
    let web = |words: Value| {
        let mut all = json!({"by": "key", "tenant": "acme", "key": "web"});
        all.as_object_mut().unwrap().extend(words.as_object().unwrap().clone());
        all
    };
    let second_of_pair = &pair["data"][1]["job"]["id"];
    for words in [
        json!({"action": "create_key", "by": "operator", "user": "olga", "what": "web"}),
        web(json!({"action": "enqueue", "job": first, "request": "r1", "message": "done"})),
        web(json!({"action": "enqueue", "job": third})),
        web(json!({"action": "enqueue", "job": second_of_pair})),
        web(json!({"action": "show_job", "job": first, "status": 200, "code": null})),
        web(json!({"action": "job_token", "job": first})),
        web(json!({"action": "cancel_job", "job": first, "message": "done"})),
        json!({"action": "show_job", "by": "key", "tenant": "else", "key": "other", "job": first, "status": 404,
            "code": "job_not_found", "request": "r2", "message": "refused"}),
        json!({"action": "cancel_job", "key": "other", "job": first, "status": 404, "request": trail_id(&trail, "cancel_job", 404)}),
        json!({"action": "show_job", "key": "ops", "job": first, "status": 403, "code": "missing_right"}),
        json!({"action": "show_job", "by": null, "tenant": null, "key": null, "job": first, "status": 401,
            "code": "invalid_api_key", "request": "r3"}),
        json!({"action": "show_job", "by": "token", "tenant": "acme", "job": first, "status": 200}),
        json!({"action": "job_events", "by": "token", "tenant": "acme", "job": first, "status": 200}),
        json!({"action": "list_jobs", "key": "many", "status": 429, "code": "too_many_requests"}),
        json!({"action": "open_socket", "key": "other", "request": "s1", "status": 101}),
        json!({"action": "enqueue", "key": "other", "job": second, "request": "s1", "status": 200}),
        json!({"action": "job_events", "key": "other", "job": second, "request": "s1", "status": 200}),
        json!({"action": "cancel_job", "key": "other", "job": first, "request": "s1", "code": "job_not_found"}),
        json!({"action": "cancel_job", "key": "other", "job": second, "request": "s1", "message": "done"}),
        json!({"action": "cancel_job", "by": "operator", "user": "olga", "job": third, "message": "done"}),
        json!({"action": "requeue", "by": "operator", "job": dead, "message": "done"}),
        json!({"action": "purge", "by": "operator", "job": dead, "message": "done"}),
    ] {
        said(&trail, &words);
    }
    // The job of the chat is known by its cancellation.
    let chat = said(&trail, &web(json!({"action": "complete_chat", "message": "done"})));
    let left = json!({"action": "cancel_job", "by": "gateway", "job": chat["job"]});
    said(&trail, &left);
    chat["job"].as_str().unwrap().parse::<JobId>().unwrap();

    let text = std::fs::read_to_string(site.path("audit.log")).unwrap();
    for secret in
        [PROMPT, SECRET, token, "nobody"].into_iter().chain(site.keys.iter().map(|key| &key[8..]))
    {
        assert!(!text.contains(secret), "{secret}");
    }
    site.gateway.signal("TERM");
    let (_, log) = site.gateway.end();
    assert!(!log.contains("millstream::audit"), "{log}");
}

/// The request of an event that only the trail has named.
fn trail_id(trail: &[Value], action: &str, status: u16) -> Value {
    let is_meant = |event: &&Value| {
        event["action"] == action && event["status"] == status && event["request"] != "s1"
    };
    let event = trail.iter().find(is_meant).unwrap();
    assert!(event["request"].as_str().unwrap().len() == 32);
    event["request"].clone()
}

/// Guards against a trail that is lost where no file is named, and against one that nobody can write to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_file_the_trail_is_in_the_log() {
    let env = [("RUST_LOG", "info"), ("MILLSTREAM_LOG__FORMAT", "json")];
    let mut dev = Running::start(MILLSTREAM, &["dev"], &env);
    let line = dev.wait_for("web: ");
    let url = line[line.find("http://").unwrap()..].split(['"', ' ', ';', ',']).next().unwrap();
    let url = url.trim_end_matches('/');
    let request =
        client().post(format!("{url}/v1/jobs")).header("content-type", "application/json");
    let id = Reply::of(request.body(chat(PROMPT).to_string())).await.json()["id"].clone();
    let line: Value = serde_json::from_str(&dev.wait_for("millstream::audit")).unwrap();
    let fields = &line["fields"];
    assert_eq!(
        (&fields["action"], &fields["by"], &fields["job"]),
        (&"enqueue".into(), &"machine".into(), &id)
    );
    dev.signal("TERM");
    assert_eq!(dev.end().0, Some(0));
    let ran = run(MILLSTREAM, &["dev"], &[("MILLSTREAM_LOG__AUDIT_FILE", "/nowhere/audit.log")]);
    assert!(ran.code == Some(3) && ran.err.contains("log.audit_file, /nowhere"), "{ran:?}");
}
