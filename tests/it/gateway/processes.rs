//! The programs around the gateway, as a person runs them.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::support::{
    port,
    program::{Folder, GATEWAY, MILLSTREAM, Running, run},
    redis::Server,
    subject::soon,
    web::{Reply, Sse, chat, client, streamed},
};

const SECRET: (&str, &str) = ("MILLSTREAM_GATEWAY__SECRET", "a secret of thirty-two bytes or more");

/// The address in a line of the log or of standard error.
fn address(line: &str) -> String {
    let at = line.find("http://").unwrap_or_else(|| panic!("no address in {line}"));
    let rest = &line[at..];
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || ":/.".contains(c)));
    rest[..end.unwrap_or(rest.len())].to_owned()
}

async fn get(url: &str, key: &str) -> Reply {
    Reply::of(client().get(url).bearer_auth(key)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_listens_on_the_port_of_the_platform_and_lets_created_keys_in() {
    let server = Server::start().await;
    let folder = Folder::new();
    let keys = folder.path().join("keys.toml").display().to_string();
    let (redis, port) = (server.url(), port::free().to_string());
    let env = [
        ("REDIS_URL", redis.as_str()),
        ("PORT", &port),
        ("MILLSTREAM_GATEWAY__KEYS", &keys),
        SECRET,
    ];
    // A first key, made before the gateway runs, and a second one while it does.
    let create = |args: &[&str]| {
        let ran = run(MILLSTREAM, &[&["keys", "create"], args].concat(), &env);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.out.trim().to_owned()
    };
    let first = create(&["web", "--tenant", "acme"]);
    assert!(first.starts_with("ms_web_") && first.len() == 50, "{first}");
    let file = std::fs::read_to_string(&keys).unwrap();
    assert!(file.contains("id = \"web\"") && !file.contains(&first[7..]), "{file}");
    let mut gateway = Running::start(GATEWAY, &[], &env);
    let url = address(&gateway.wait_for("gateway listens"));
    assert_eq!(url, format!("http://127.0.0.1:{port}"));
    let me = get(&format!("{url}/whoami"), &first).await.json();
    let expected =
        json!({"tenant": "acme", "key": "web", "rights": ["enqueue", "read"], "expires_at": null});
    assert_eq!(me, expected);
    get(&format!("{url}/whoami"), "ms_web_x").await.refused(401, "invalid_api_key");
    let second = create(&["ops", "--tenant", "acme", "--rights", "admin", "--expires-in", "1h"]);
    soon(async {
        while get(&format!("{url}/whoami"), &second).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(get(&format!("{url}/v1/queues"), &second).await.status, 200);
    get(&format!("{url}/v1/queues"), &first).await.refused(403, "missing_right");
    let twice = run(MILLSTREAM, &["keys", "create", "web"], &env);
    assert_eq!((twice.code, twice.out.as_str()), (Some(2), ""), "{}", twice.err);
    // Its jobs are those that everybody sees, and SIGTERM ends it in order.
    let request = client().post(format!("{url}/v1/jobs")).bearer_auth(&first);
    let request = request.header("content-type", "application/json").body(chat("a").to_string());
    let id = Reply::of(request).await.json()["id"].as_str().unwrap().to_owned();
    let shown = run(MILLSTREAM, &["jobs", "show", &id], &env);
    assert!(shown.code == Some(0) && shown.out.contains("acme"), "{} {}", shown.out, shown.err);
    let events = client().get(format!("{url}/v1/jobs/{id}/events")).bearer_auth(&first);
    let mut stream = Sse::open(events).await;
    gateway.signal("TERM");
    assert_eq!(stream.block().await.event, "reconnect");
    let (code, said) = gateway.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 streams open at the end, 0 answers cut off"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_cannot_start_says_why() {
    let server = Server::start().await;
    let (redis, port) = (server.url(), "65536");
    let folder = Folder::new();
    let missing = folder.path().join("none.toml").display().to_string();
    for (args, more, code, words) in [
        (&[][..], ("PORT", port), 3, "PORT is `65536`"),
        (&["--listen", "0.0.0.0:0"], ("PORT", ""), 3, "gateway.listen is 0.0.0.0:0"),
        (&["--keys", &missing], SECRET, 3, "gateway.keys"),
        (&["--keys", &missing], ("PORT", ""), 3, "gateway.secret"),
    ] {
        let env = [("REDIS_URL", redis.as_str()), more];
        let ran = run(GATEWAY, args, &env);
        assert!(ran.err.contains(words), "{words}: {}", ran.err);
        assert_eq!(ran.code, Some(code), "{}", ran.err);
    }
}

/// Guards against a gateway that answers nothing as documented until Redis is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_redis_answers_what_needs_none() {
    let mut server = Server::start().await;
    server.stop();
    let (redis, port) = (server.url(), port::free().to_string());
    let env = [("REDIS_URL", redis.as_str()), ("PORT", &port)];
    let mut gateway = Running::start(GATEWAY, &[], &env);
    gateway.wait_for("waiting for Redis");
    let url = format!("http://127.0.0.1:{port}");
    let get = async |path: &str| Reply::of(client().get(format!("{url}{path}"))).await;
    let health = get("/healthz").await;
    assert_eq!((&health.json()["status"], health.status.as_u16()), (&json!("ok"), 200));
    assert!(
        health.json()["version"].is_string() && !health.header("etag").is_empty(),
        "{}",
        health.text
    );
    assert_eq!(get("/whoami").await.json()["tenant"], "default");
    assert!(get("/metrics").await.text.contains("millstream_gateway_connections_open"));
    assert!(get("/openapi.json").await.json()["paths"]["/v1/jobs"].is_object());
    assert!(get("/").await.text.contains("<title>"));
    get("/nowhere").await.refused(404, "not_found");
    let enqueue = async || {
        let request = client().post(format!("{url}/v1/jobs"));
        let request = request.header("content-type", "application/json");
        Reply::of(request.body(chat("a").to_string())).await
    };
    for reply in [get("/readyz").await, get("/v1/queues").await, enqueue().await] {
        reply.refused(503, "broker_unavailable");
        assert_eq!(reply.header("retry-after"), "2");
    }
    server.restart().await;
    gateway.wait_for("gateway listens");
    assert_eq!(enqueue().await.status, 202);
    gateway.signal("TERM");
    assert_eq!(gateway.end().0, Some(0));
}

/// Everything in one process, which ends at once although somebody waits for an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_serves_the_web_and_ends_at_once() {
    let mut dev = Running::start(MILLSTREAM, &["dev"], &[("PORT", "0")]);
    let url = address(&dev.wait_for("web: "));
    let client = client();
    let page = Reply::of(client.get(&url)).await;
    assert!(page.status == 200 && page.text.contains("<title>"), "{}", page.text);
    assert_eq!(Reply::of(client.get(format!("{url}/readyz"))).await.status, 200);
    let models = Reply::of(client.get(format!("{url}/v1/models"))).await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1, "{models}");
    let ask = |mut body: serde_json::Value, model: &str| {
        body["model"] = model.into();
        let post = client.request(Method::POST, format!("{url}/v1/chat/completions"));
        post.header("content-type", "application/json").body(body.to_string())
    };
    let whole = Reply::of(ask(chat("a"), "m?tokens=3,rate=0,ttft=0")).await.json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text.split(' ').count(), 3);
    let mut stream = Sse::open(ask(streamed("b"), "m?tokens=100000,rate=50")).await;
    stream.block().await;
    let began = Instant::now();
    dev.signal("TERM");
    while stream.next().await.is_some() {}
    let (code, said) = dev.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
