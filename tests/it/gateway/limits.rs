//! What is refused: too large, too much, too often, and what nobody understands.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use millstream::{
    broker::redis::{Options as RedisOptions, Redis},
    gateway::{Caller, Gateway, Limits, Options, Right},
    listener::Listener,
};
use reqwest::Method;
use serde_json::json;

use crate::support::{
    proxy::Proxy,
    redis::Server,
    stack::connect,
    subject::soon,
    web::{Hand, Reply, Sse, Web, chat, client, embedded, options, streamed},
};

fn limited(limits: Limits) -> Options {
    Options { limits, ..options() }
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let max_body = 2000;
    let web = Web::start(&embedded(), limited(Limits { max_body, ..Limits::default() }));
    let body = |bytes: usize| {
        let length = chat("").to_string().len();
        chat(&"x".repeat(bytes - length))
    };
    assert_eq!(web.post("/v1/jobs", &body(max_body)).await.status, 202);
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        for bytes in [max_body + 1, 4_000_000] {
            let reply = web.post(path, &body(bytes)).await;
            assert!(reply.refused(413, "body_too_large").contains("2000"), "{}", reply.text);
        }
    }
    // Of unknown length.
    let parts = futures_util::stream::iter(
        (0..30).map(|_| Ok::<_, std::io::Error>([b' '; 100].as_slice())),
    );
    let request = web.ask(Method::POST, "/v1/jobs").header("content-type", "application/json");
    let reply = Reply::of(request.body(reqwest::Body::wrap_stream(parts))).await;
    reply.refused(413, "body_too_large");
    assert_eq!(web.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_job_above_the_brokers_limit_is_refused_as_too_large() {
    let broker = embedded();
    let listener = Listener::new(broker.clone(), Default::default());
    let producer = millstream::producer::Options { max_payload: 500, ..Default::default() };
    let gateway = Gateway::new(broker, listener.clone(), producer, options()).unwrap();
    let web = Web::of(gateway, listener);
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        web.post(path, &chat(&"x".repeat(600))).await.refused(413, "job_too_large");
    }
}

/// A refusal said the client's own value again, of megabytes, and held it until a client that read nothing was gone.
#[tokio::test]
async fn a_refusal_repeats_little_of_what_was_sent() {
    let web = Web::start(&embedded(), options());
    let long = "x".repeat(300_000);
    let request = chat("a");
    let with = |name: &str, value: serde_json::Value| {
        let mut job = json!({"request": request});
        job[name] = value;
        job
    };
    let mut bodies = vec![
        json!({"model": "m", "messages": [{"role": "user"}], "stream": long}),
        json!({"model": long, "messages": [{"role": "user"}]}),
        json!({"model": "m", "messages": long}),
        json!({"custom_id": "a", "url": long, "method": "POST", "body": request}),
        json!({"custom_id": "a", "url": "/v1/chat/completions", "method": long, "body": request}),
        with(&long, 1.into()),
        with("labels", json!({&long: long})),
    ];
    for name in [
        "lane",
        "deadline_ms",
        "queue",
        "not_before",
        "expires_at",
        "dead_letter",
        "labels",
        "max_attempts",
        "tenant",
        "idempotency_key",
    ] {
        bodies.push(with(name, long.clone().into()));
        bodies.push(with(name, vec![0; 100_000].into()));
    }
    for body in bodies {
        let reply = web.post("/v1/jobs", &body).await;
        let name: String = body.to_string().chars().take(200).collect();
        assert!(reply.status.is_client_error(), "{} {name}", reply.status);
        assert!(reply.text.len() < 1_500, "{} {name}", reply.text.len());
        let reply = web.post("/v1/chat/completions", &body).await;
        assert!(reply.status.is_client_error() && reply.text.len() < 1_500, "{name}");
    }
    let many = vec![json!({"request": request, "lane": "x".repeat(3000)}); 100];
    let reply = web.post("/v1/jobs", &many.into()).await;
    assert_eq!((&reply.json()["refused"], reply.text.len() < 150_000), (&json!(100), true));
}

/// A field was read into values, of many times its bytes, before anybody asked how large the request is.
#[tokio::test]
async fn the_size_of_a_job_is_asked_before_anything_else() {
    let broker = embedded();
    let listener = Listener::new(broker.clone(), Default::default());
    let producer = millstream::producer::Options { max_payload: 500, ..Default::default() };
    let dedupe = Duration::from_secs(60);
    let gateway =
        Gateway::new(broker, listener.clone(), producer, Options { dedupe, ..options() }).unwrap();
    let web = Web::of(gateway, listener);
    let mut request = chat("a");
    request["stream"] = vec![0; 10_000].into();
    let bad = "[".repeat(20_000);
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        web.post(path, &request).await.refused(413, "job_too_large");
        let post = web.ask(Method::POST, path).header("content-type", "application/json");
        let body = format!("{{\"model\":{bad}");
        Reply::of(post.body(body)).await.refused(413, "job_too_large");
    }
}

/// A job that was on its way to a slow broker took room no more: a tenant could send as many as it liked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_counts_until_the_broker_has_its_job() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.port()).await;
    let limits = Limits { max_bodies: 3_000, ..Limits::default() };
    let web = Web::start(&connect(&proxy.url()).await, limited(limits));
    let first = chat(&"first".repeat(200));
    proxy.hold_behind("firstfirst".to_owned());
    let first = tokio::spawn(Reply::of(web.posted("/v1/chat/completions", &first)));
    soon(proxy.holds()).await;
    let second = web.post("/v1/chat/completions", &chat(&"second".repeat(100))).await;
    second.refused(503, "too_many_bodies");
    proxy.let_through();
    // Once it is there, its answer may take as long as it will.
    web.until_metric("streams_open", 1.0).await;
    soon(async {
        while web.post("/v1/jobs", &chat(&"third".repeat(100))).await.status != 202 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    first.abort();
}

#[tokio::test]
async fn headers_above_the_limit_are_refused() {
    let limits = Limits { max_header: 2048, ..Limits::default() };
    let web = Web::start(&embedded(), limited(limits));
    let with =
        |bytes: usize| web.ask(Method::GET, "/healthz").header("x-filler", "x".repeat(bytes));
    assert_eq!(Reply::of(with(1500)).await.status, 200);
    assert!(Reply::of(with(2048)).await.refused(431, "headers_too_large").contains("2048"));
    let path = format!("/healthz?{}", "x".repeat(2048));
    web.get(&path).await.refused(431, "headers_too_large");
    // Far beyond, nothing of it is kept.
    assert_eq!(Reply::of(with(200_000)).await.status, 431);
}

#[tokio::test]
async fn an_array_has_no_more_jobs_than_allowed() {
    let limits = Limits { max_bulk: 3, ..Limits::default() };
    let web = Web::start(&embedded(), limited(limits));
    let jobs = |count: usize| json!(vec![chat("a"); count]);
    assert_eq!(web.post("/v1/jobs", &jobs(3)).await.json()["accepted"], 3);
    web.post("/v1/jobs", &jobs(4)).await.refused(400, "too_many_jobs");
    assert_eq!(web.get("/v1/jobs").await.json()["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_one_shape() {
    let web = Web::start(&embedded(), options());
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        for path in ["/v1/jobs", "/v1/chat/completions"] {
            let request = web.ask(Method::POST, path).header("content-type", kind);
            Reply::of(request.body(chat("a").to_string())).await.refused(415, "not_json");
        }
    }
    let bare = web.ask(Method::POST, "/v1/jobs").body(chat("a").to_string());
    Reply::of(bare).await.refused(415, "not_json");
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/batch+json"] {
        let request = web.ask(Method::POST, "/v1/jobs").header("content-type", kind);
        assert_eq!(Reply::of(request.body(chat("a").to_string())).await.status, 202, "{kind}");
    }
    for (method, path, allowed) in [
        (Method::PUT, "/v1/jobs", "GET,HEAD,POST"),
        (Method::DELETE, "/v1/chat/completions", "POST"),
        (Method::POST, "/v1/models", "GET,HEAD"),
        (Method::PATCH, "/v1/jobs/x", "DELETE,GET,HEAD"),
        (Method::OPTIONS, "/healthz", "GET,HEAD"),
    ] {
        let reply = Reply::of(web.ask(method, path)).await;
        reply.refused(405, "method_not_allowed");
        let mut names: Vec<&str> = reply.header("allow").split(',').collect();
        names.sort_unstable();
        assert_eq!(names.join(","), allowed, "{path}");
    }
    for nowhere in
        ["/v1", "/v1/job", "/v2/jobs", "/v1/jobs/x/y", "/console/none.js", "/%FF", "/v1/jobs/"]
    {
        web.get(nowhere).await.refused(404, "not_found");
    }
    web.get("/console/%FF").await.refused(400, "invalid_path");
    // A request keeps the ID that it came with.
    let named = web.ask(Method::GET, "/healthz").header("x-request-id", "mine");
    assert_eq!(Reply::of(named).await.header("x-request-id"), "mine");
    let long = web.ask(Method::GET, "/healthz").header("x-request-id", "x".repeat(500));
    assert!((1..=128).contains(&Reply::of(long).await.header("x-request-id").len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_count_the_requests_of_a_tenant_together() {
    let server = Server::start().await;
    let limits = Limits { requests_per_minute: 20, burst: 4, ..Limits::default() };
    let mut urls = Vec::new();
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let broker = connected(&server).await;
        let listener = Listener::new(broker.clone(), Default::default());
        let gateway =
            Gateway::new(broker, listener, Default::default(), limited(limits.clone())).unwrap();
        for tenant in ["busy", "quiet"] {
            let caller = Caller::new(tenant.parse().unwrap(), Right::ALL);
            let app = gateway.router().layer(axum::Extension(caller));
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            urls.push(format!("http://{}", listener.local_addr().unwrap()));
            tokio::spawn(async move { axum::serve(listener, app).await });
        }
        gateways.push(gateway);
    }
    let client = client();
    let ask = async |url: &str, path: &str| Reply::of(client.get(format!("{url}{path}"))).await;
    let mut refused = None;
    for n in 0..5 {
        let reply = ask(&urls[2 * (n % 2)], "/v1/jobs").await;
        if reply.status != 200 {
            assert_eq!(n, 4, "{}", reply.text);
            refused = Some(reply);
        }
    }
    let refused = refused.expect("the fifth request is one too many");
    assert!(refused.refused(429, "too_many_requests").contains("20"));
    assert!((1..=3).contains(&refused.header("retry-after").parse::<u32>().unwrap()));
    // As OpenAI's API says it.
    let told = ["limit", "remaining", "reset"];
    let told = told.map(|what| refused.header(&format!("x-ratelimit-{what}-requests")).to_owned());
    assert_eq!(told[..2], ["20", "0"]);
    assert_eq!(told[2], format!("{}s", refused.header("retry-after")));
    for url in [&urls[0], &urls[2]] {
        ask(url, "/v1/models").await.refused(429, "too_many_requests");
        assert_eq!(ask(url, "/healthz").await.status, 200);
    }
    assert_eq!(ask(&urls[1], "/v1/jobs").await.status, 200);
    // Three seconds bring one more.
    soon(async {
        let began = Instant::now();
        while ask(&urls[2], "/v1/jobs").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(began.elapsed() < Duration::from_secs(10));
    })
    .await;
}

async fn connected(server: &Server) -> millstream::broker::Shared {
    let options = RedisOptions { url: server.url(), ..RedisOptions::default() };
    std::sync::Arc::new(Redis::connect(options).await.unwrap())
}

/// Whoever had one page's token could take every stream and every request of its tenant.
#[tokio::test]
async fn one_browser_token_cannot_exhaust_its_tenants_share() {
    let limits = Limits {
        requests_per_minute: 100,
        requests_per_token: 7,
        max_streams_per_token: 2,
        ..Limits::default()
    };
    let web = Web::start(&embedded(), limited(limits));
    let (id, id_of_other) = (web.enqueue("a").await, web.enqueue("b").await);
    let token = async |id: &str| {
        let request = web.ask(Method::POST, &format!("/v1/jobs/{id}/token"));
        Reply::of(request).await.json()["token"].as_str().unwrap().to_owned()
    };
    let (greedy, other) = (token(&id).await, token(&id_of_other).await);
    let of = |token: &str| if token == greedy { &id } else { &id_of_other };
    let state =
        |token: &str| web.ask(Method::GET, &format!("/v1/jobs/{}?token={token}", of(token)));
    let events =
        |token: &str| web.ask(Method::GET, &format!("/v1/jobs/{}/events?token={token}", of(token)));
    let open = [Sse::open(events(&greedy)).await, Sse::open(events(&greedy)).await];
    for refused in [Reply::of(state(&greedy)).await, Reply::of(events(&greedy)).await] {
        let words = refused.refused(429, "too_many_streams");
        assert!(words.contains("this token has 2"), "{words}");
    }
    let _other = Sse::open(events(&other)).await;
    drop(open);
    web.until_metric("streams_open", 1.0).await;
    for _ in 0..3 {
        assert_eq!(Reply::of(state(&greedy)).await.status, 200);
    }
    let refused = Reply::of(state(&greedy)).await;
    assert!(refused.refused(429, "too_many_requests").contains("this token"), "{}", refused.text);
    assert_eq!(refused.header("x-ratelimit-limit-requests"), "7");
    assert_eq!(Reply::of(state(&other)).await.status, 200);
    assert_eq!(web.get(&format!("/v1/jobs/{id}")).await.status, 200);
}

/// An array of a thousand jobs was one request.
#[tokio::test]
async fn an_array_of_jobs_counts_as_so_many_requests() {
    let server = Server::start().await;
    for broker in [embedded(), connect(&server.url()).await] {
        let limits = Limits { requests_per_minute: 10, ..Limits::default() };
        let web = Web::start(&broker, limited(limits));
        let jobs = |count: usize| json!(vec![chat("a"); count]);
        let whole = web.post("/v1/jobs", &jobs(13)).await;
        assert!(whole.refused(400, "too_many_jobs").contains("1 to 12"), "{}", whole.text);
        assert_eq!(web.post("/v1/jobs", &jobs(7)).await.json()["accepted"], 7);
        let more = web.post("/v1/jobs", &jobs(7)).await;
        more.refused(429, "too_many_requests");
        assert!(more.header("retry-after").parse::<u32>().unwrap() >= 1);
        // All of it is refused, or nothing.
        let data = web.get("/v1/jobs").await.json();
        assert_eq!(data["data"].as_array().unwrap().len(), 7);
    }
}

/// A burst that is not named is a whole minute's.
#[tokio::test]
async fn a_minutes_requests_may_come_at_once() {
    let limits = Limits { requests_per_minute: 20, ..Limits::default() };
    let web = Web::start(&embedded(), limited(limits));
    for _ in 0..20 {
        assert_eq!(web.get("/v1/jobs").await.status, 200);
    }
    let next = web.get("/v1/jobs").await;
    next.refused(429, "too_many_requests");
    assert!((1..=3).contains(&next.header("retry-after").parse::<u32>().unwrap()));
}

/// A page that opens asks for several things at once, and a small limit refused the half of them.
#[tokio::test]
async fn a_burst_that_is_not_named_fits_a_page() {
    let limits = Limits { requests_per_minute: 5, ..Limits::default() };
    let web = Web::start(&embedded(), limited(limits));
    for _ in 0..12 {
        assert_eq!(web.get("/v1/jobs").await.status, 200);
    }
    let next = web.get("/v1/jobs").await;
    next.refused(429, "too_many_requests");
    assert!((10..=12).contains(&next.header("retry-after").parse::<u32>().unwrap()));
}

#[tokio::test]
async fn no_more_streams_are_open_than_allowed() {
    for (limits, words) in [
        (Limits { max_streams: 2, ..Limits::default() }, "this gateway has 2"),
        (Limits { max_streams_per_tenant: 2, ..Limits::default() }, "your tenant has 2"),
    ] {
        let broker = embedded();
        let web = Web::start(&broker, limited(limits));
        let id = web.enqueue("a").await;
        let first = web.events(&id, "").await;
        let request = web.posted("/v1/chat/completions", &chat("b"));
        let waiting = tokio::spawn(Reply::of(request));
        web.until_metric("streams_open", 2.0).await;
        for request in [
            web.ask(Method::GET, &format!("/v1/jobs/{id}/events")),
            web.posted("/v1/chat/completions", &streamed("c")),
            web.posted("/v1/chat/completions", &chat("c")),
            // An answer that is to be read takes memory as a stream does.
            web.ask(Method::GET, &format!("/v1/jobs/{id}")),
            web.ask(Method::GET, &format!("/v1/jobs/{id}/events"))
                .header("accept", "application/json"),
        ] {
            let reply = Reply::of(request).await;
            assert!(reply.refused(429, "too_many_streams").contains(words), "{}", reply.text);
            assert_eq!(reply.header("retry-after"), "5");
        }
        // Whoever goes makes room, be it in the middle.
        drop(first);
        web.until_metric("streams_open", 1.0).await;
        let page = web.ask(Method::GET, &format!("/v1/jobs/{id}/events"));
        assert_eq!(Reply::of(page.header("accept", "application/json")).await.status, 200);
        assert_eq!(web.get(&format!("/v1/jobs/{id}")).await.status, 200);
        waiting.abort();
        web.until_metric("streams_open", 0.0).await;
        let mut whole = web.events(&id, "").await;
        let mut hand = Hand::begin(&broker).await;
        hand.done().await;
        while whole.next().await.is_some() {}
        web.until_metric("streams_open", 0.0).await;
    }
}

#[tokio::test]
async fn no_more_connections_are_served_than_allowed() {
    let limits = Limits { max_connections: 2, ..Limits::default() };
    let web = Web::start(&embedded(), limited(limits));
    let port = web.port();
    let connect = move || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let ask = |mut stream: &TcpStream| {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        let mut bytes = [0; 2048];
        let count = stream.read(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
    };
    let answers = tokio::task::spawn_blocking(move || {
        let (first, second) = (connect(), connect());
        let mut answers = vec![ask(&first).unwrap(), ask(&second).unwrap()];
        let mut text = String::new();
        connect().read_to_string(&mut text).unwrap();
        answers.push(text);
        drop(first);
        // Room comes with the end of one.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            // One that is refused reads why, or meets a connection that has ended.
            let text = ask(&connect()).unwrap_or_default();
            if !text.is_empty() && !text.starts_with("HTTP/1.1 503 ") {
                answers.push(text);
                return answers;
            }
            assert!(Instant::now() < deadline, "no room");
        }
    })
    .await
    .unwrap();
    for served in [0, 1, 3] {
        assert!(answers[served].starts_with("HTTP/1.1 200 OK"), "{}", answers[served]);
    }
    let (head, body) = answers[2].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head} {body}");
    let error: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(error["error"]["code"], "too_many_connections");
}

/// Long enough for whoever waits, and its job goes on.
#[tokio::test]
async fn a_completion_that_takes_too_long_names_its_job() {
    let broker = embedded();
    let answer_timeout = Duration::from_millis(200);
    let web = Web::start(&broker, limited(Limits { answer_timeout, ..Limits::default() }));
    let began = Instant::now();
    let reply = web.post("/v1/chat/completions", &chat("a")).await;
    assert!((200..5000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let job = reply.header("x-millstream-job").to_owned();
    assert!(reply.refused(504, "answer_timeout").contains(&format!("/v1/jobs/{job}")));
    assert_eq!(reply.header("x-should-retry"), "false");
    Hand::begin(&broker).await.done().await;
    assert_eq!(web.get(&format!("/v1/jobs/{job}")).await.json()["state"], "done");
    // What streams is not held to it.
    let mut stream = Sse::open(web.posted("/v1/chat/completions", &streamed("b"))).await;
    tokio::time::sleep(2 * answer_timeout).await;
    let mut hand = Hand::begin(&broker).await;
    hand.say("b").await;
    assert_eq!(stream.block().await.says(), "b");
}
