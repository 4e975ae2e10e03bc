//! Who may do what: keys, rights, browser tokens, hosts and origins.

use std::{collections::BTreeSet, time::Duration};

use millstream::{
    broker::Shared,
    gateway::{Error, Gateway, Options, Right, generate_key},
    job::{JobId, Tenant, Timestamp},
    listener::Listener,
};
use reqwest::Method;
use serde_json::json;

use crate::support::{
    program::Folder,
    stack::{Stack, instant},
    subject::soon,
    web::{Hand, Reply, Sse, Web, chat, embedded, options},
};

const SECRET: &str = "a secret of thirty-two bytes or more";

/// A file of keys and the gateway's options for it.
pub(super) struct Keys {
    folder: Folder,
    pub(super) text: String,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { folder: Folder::new(), text: String::new() }
    }

    /// Adds a key and gives it.
    pub(super) fn add(
        &mut self,
        id: &str,
        tenant: &str,
        rights: &[Right],
        expires: Option<Timestamp>,
    ) -> String {
        let tenant: Tenant = tenant.parse().unwrap();
        let (key, lines) = generate_key(SECRET, id, &tenant, rights, expires).unwrap();
        self.text.push_str(&lines);
        self.write(&self.text);
        key
    }

    pub(super) fn write(&self, text: &str) {
        self.folder.write("keys.toml", text);
    }

    pub(super) fn options(&self) -> Options {
        let keys = self.folder.path().join("keys.toml");
        Options { keys, secret: SECRET.to_owned(), ..options() }
    }
}

async fn asked(web: &Web, key: &str, method: Method, path: &str) -> Reply {
    Reply::of(web.ask(method, path).bearer_auth(key)).await
}

async fn posted(web: &Web, key: &str, path: &str) -> Reply {
    Reply::of(web.posted(path, &chat("a")).bearer_auth(key)).await
}

fn start(broker: &Shared, options: Options) -> Result<Gateway, Error> {
    let listener = Listener::new(broker.clone(), Default::default());
    Gateway::new(broker.clone(), listener, Default::default(), options)
}

#[tokio::test]
async fn a_key_is_asked_for_and_named_by_whoami() {
    let mut keys = Keys::new();
    let expires = Timestamp::now().after(Duration::from_secs(3600));
    let key = keys.add("web", "acme", &[Right::Enqueue, Right::Read], Some(expires));
    let web = Web::start(&embedded(), keys.options());
    let me = asked(&web, &key, Method::GET, "/whoami").await;
    let expected = json!({"tenant": "acme", "key": "web", "rights": ["enqueue", "read"], "expires_at": expires});
    assert_eq!(me.json(), expected);
    let by_name = Reply::of(web.ask(Method::GET, "/whoami").header("x-api-key", &key)).await;
    assert_eq!(by_name.json(), expected);
    for path in ["/whoami", "/v1/jobs", "/v1/models", "/metrics", "/v1/queues"] {
        let none = web.get(path).await;
        none.refused(401, "invalid_api_key");
        assert_eq!(none.header("www-authenticate"), "Bearer");
        for wrong in ["Basic eDp5", "Bearer", "Bearer ", "Bearer ms_web_x", "nothing", &key] {
            let request = web.ask(Method::GET, path).header("authorization", wrong);
            Reply::of(request).await.refused(401, "invalid_api_key");
        }
        let almost = &key[..key.len() - 1];
        asked(&web, almost, Method::GET, path).await.refused(401, "invalid_api_key");
    }
    // What tells nothing of anybody is open.
    for open in ["/healthz", "/readyz", "/openapi.json", "/"] {
        assert_eq!(web.get(open).await.status, 200, "{open}");
    }
}

#[tokio::test]
async fn without_keys_whoami_is_the_default_tenant() {
    let web = Web::start(&embedded(), options());
    let expected = json!({"tenant": "default", "key": null, "rights": ["enqueue", "read", "admin"],
        "expires_at": null});
    assert_eq!(web.get("/whoami").await.json(), expected);
}

#[tokio::test]
async fn a_key_does_what_its_rights_say() {
    let mut keys = Keys::new();
    let [enqueue, read, admin] = [Right::Enqueue, Right::Read, Right::Admin]
        .map(|right| keys.add(&format!("{right:?}").to_lowercase(), "t", &[right], None));
    let web = Web::start(&embedded(), keys.options());
    let id = posted(&web, &enqueue, "/v1/jobs").await.json()["id"].as_str().unwrap().to_owned();
    let routes = [
        (&enqueue, Method::DELETE, format!("/v1/jobs/{id}")),
        (&read, Method::GET, "/v1/jobs".to_owned()),
        (&read, Method::GET, format!("/v1/jobs/{id}")),
        (&read, Method::GET, format!("/v1/jobs/{id}/events?limit=1")),
        (&read, Method::POST, format!("/v1/jobs/{id}/token")),
        (&read, Method::GET, "/v1/models".to_owned()),
        (&read, Method::GET, "/v1/models/m".to_owned()),
        (&admin, Method::GET, "/v1/queues".to_owned()),
        (&admin, Method::GET, "/metrics".to_owned()),
    ];
    for (right, method, path) in routes {
        for key in [&enqueue, &read, &admin] {
            let request = web.ask(method.clone(), &path).bearer_auth(key);
            let reply = Reply::of(request.header("accept", "application/json")).await;
            if key == right {
                assert!(reply.status == 200 || path == "/v1/models/m", "{path} {}", reply.text);
            } else {
                reply.refused(403, "missing_right");
            }
        }
    }
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        posted(&web, &read, path).await.refused(403, "missing_right");
    }
}

#[tokio::test]
async fn an_expired_key_is_none_even_while_its_verdict_is_remembered() {
    let mut keys = Keys::new();
    let soon_over = Timestamp::now().after(Duration::from_millis(1500));
    let key = keys.add("short", "t", &[Right::Read], Some(soon_over));
    let old = keys.add("old", "t", &[Right::Read], Some(Timestamp(1)));
    let web = Web::start(&embedded(), keys.options());
    asked(&web, &old, Method::GET, "/whoami").await.refused(401, "invalid_api_key");
    assert_eq!(asked(&web, &key, Method::GET, "/whoami").await.status, 200);
    soon(async {
        while asked(&web, &key, Method::GET, "/whoami").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(Timestamp::now() >= soon_over);
    asked(&web, &key, Method::GET, "/v1/jobs").await.refused(401, "invalid_api_key");
}

/// The tenant of whoami, or the status that it is refused with.
async fn known(web: &Web, key: &str) -> String {
    let reply = asked(web, key, Method::GET, "/whoami").await;
    match reply.status.as_u16() {
        200 => reply.json()["tenant"].as_str().unwrap().to_owned(),
        status => status.to_string(),
    }
}

#[tokio::test]
async fn a_changed_file_of_keys_is_in_force_within_seconds_and_a_broken_one_is_not() {
    let mut keys = Keys::new();
    let first = keys.add("first", "one", &[Right::Read], None);
    let web = Web::start(&embedded(), keys.options());
    let until = async |key: &str, tenant: &str| {
        soon(async {
            while known(&web, key).await != tenant {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    assert_eq!(known(&web, &first).await, "one");
    // A stranger's verdict is forgotten with the file.
    let mut elsewhere = Keys::new();
    let second = elsewhere.add("second", "two", &[Right::Read], None);
    assert_eq!(known(&web, &second).await, "401");
    let etag = asked(&web, &first, Method::GET, "/whoami").await.header("etag").to_owned();
    keys.write("[[keys]]\nid = ");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(
        (known(&web, &first).await, known(&web, &second).await),
        ("one".into(), "401".into())
    );
    let began = std::time::Instant::now();
    keys.write(&(keys.text.replace("\"one\"", "\"eins\"") + &elsewhere.text));
    until(&second, "two").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // So is who somebody was.
    let request =
        web.ask(Method::GET, "/whoami").bearer_auth(&first).header("if-none-match", &etag);
    let me = Reply::of(request).await;
    assert_eq!((me.status.as_u16(), &me.json()["tenant"]), (200, &json!("eins")));
    keys.write(&elsewhere.text);
    until(&first, "401").await;
    assert_eq!(known(&web, &second).await, "two");
}

#[tokio::test]
async fn a_gateway_that_would_let_everybody_in_does_not_start() {
    let broker = embedded();
    let mut keys = Keys::new();
    let missing = start(&broker, keys.options()).unwrap_err();
    assert!(matches!(&missing, Error::Keys { .. }), "{missing}");
    keys.write("[[keys]]\nid = \"x\"");
    let unread = start(&broker, keys.options()).unwrap_err();
    assert!(unread.to_string().contains("missing field"), "{unread}");
    keys.add("web", "t", &[Right::Read], None);
    let unhashed = start(&broker, Options { secret: String::new(), ..keys.options() }).unwrap_err();
    assert!(matches!(unhashed, Error::NoSecret), "{unhashed}");
    let everywhere = ([0, 0, 0, 0], 0).into();
    let open = start(&broker, Options { listen: everywhere, ..options() }).unwrap();
    let open = open.bind().unwrap_err();
    assert!(matches!(open, Error::Open(_)) && open.code() == "gateway_open", "{open}");
    let keyed = start(&broker, Options { listen: everywhere, ..keys.options() }).unwrap();
    let bound = keyed.bind().unwrap();
    let taken = start(&broker, Options { listen: bound.addr(), ..keys.options() }).unwrap();
    assert!(matches!(taken.bind().unwrap_err(), Error::Bind { .. }));
}

/// A key hashed under another secret is none: the secret is part of what lets in.
#[tokio::test]
async fn keys_and_tokens_are_good_under_their_secret_only() {
    let mut keys = Keys::new();
    let key = keys.add("web", "t", &Right::ALL, None);
    let broker = embedded();
    let web = Web::start(&broker, keys.options());
    let again = Web::start(&broker, keys.options());
    let secret = "another secret of thirty-two bytes or so".to_owned();
    let other = Web::start(&broker, Options { secret, ..keys.options() });
    let id = posted(&web, &key, "/v1/jobs").await.json()["id"].as_str().unwrap().to_owned();
    let token = asked(&web, &key, Method::POST, &format!("/v1/jobs/{id}/token")).await.json();
    let path = format!("/v1/jobs/{id}?token={}", token["token"].as_str().unwrap());
    assert_eq!(
        (web.get(&path).await.status, again.get(&path).await.status),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    other.get(&path).await.refused(401, "invalid_token");
    assert_eq!(known(&other, &key).await, "401");
}

/// Changing the secret shut everybody out until every key was made anew, and ended all tokens.
#[tokio::test]
async fn the_secret_changes_while_everybody_is_let_in() {
    const NEXT: &str = "the secret that follows, of thirty-two bytes";
    let mut keys = Keys::new();
    let old = keys.add("old", "t", &Right::ALL, None);
    let (new, lines) = generate_key(NEXT, "new", &"t".parse().unwrap(), &Right::ALL, None).unwrap();
    keys.write(&(keys.text.clone() + &lines));
    let broker = embedded();
    let with = |secret: &str, second: &str| Options {
        secret: secret.to_owned(),
        second_secret: second.to_owned(),
        ..keys.options()
    };
    // Step by step, all gateways let in who is let in by one.
    let steps = [with(SECRET, ""), with(SECRET, NEXT), with(NEXT, SECRET), with(NEXT, "")];
    let steps = steps.map(|options| Web::start(&broker, options));
    let id = posted(&steps[0], &old, "/v1/jobs").await.json()["id"].as_str().unwrap().to_owned();
    let token = format!("/v1/jobs/{id}/token");
    let mut good = Vec::new();
    for (maker, key) in [(0, &old), (1, &old), (1, &new), (2, &old), (2, &new), (3, &new)] {
        let token = asked(&steps[maker], key, Method::POST, &token).await.json();
        let path = format!("/v1/jobs/{id}?token={}", token["token"].as_str().unwrap());
        let mut statuses = Vec::new();
        for web in &steps {
            statuses.push(web.get(&path).await.status.as_u16());
        }
        good.push(statuses);
    }
    let (by_old, by_new) = (vec![200, 200, 200, 401], vec![401, 200, 200, 200]);
    let [a, b, c] = [by_old.clone(), by_old.clone(), by_old];
    assert_eq!(good, [a, b, c, by_new.clone(), by_new.clone(), by_new]);
    for (key, expected) in [(&old, ["t", "t", "t", "401"]), (&new, ["401", "t", "t", "t"])] {
        let mut met = Vec::new();
        for web in &steps {
            met.push(known(web, key).await);
        }
        assert_eq!(met, expected);
    }
}

#[tokio::test]
async fn a_browser_token_reads_one_job_for_a_while() {
    let mut keys = Keys::new();
    let key = keys.add("web", "t", &[Right::Enqueue, Right::Read], None);
    let broker = embedded();
    let token_ttl = Duration::from_millis(1500);
    let web = Web::start(&broker, Options { token_ttl, ..keys.options() });
    let enqueue =
        async || posted(&web, &key, "/v1/jobs").await.json()["id"].as_str().unwrap().to_owned();
    let (id, other) = (enqueue().await, enqueue().await);
    let before = Timestamp::now();
    let reply = asked(&web, &key, Method::POST, &format!("/v1/jobs/{id}/token")).await;
    assert_eq!(reply.header("x-millstream-job"), id);
    let told = reply.json();
    let token = told["token"].as_str().unwrap();
    let expires = told["expires_at"].as_u64().unwrap();
    assert!((before.after(token_ttl).0..=Timestamp::now().after(token_ttl).0).contains(&expires));
    assert_eq!(
        (&told["object"], &told["events_url"]),
        (&json!("job.token"), &json!(format!("/v1/jobs/{id}/events?token={token}")))
    );
    let mut stream = Sse::open(web.ask(Method::GET, told["events_url"].as_str().unwrap())).await;
    assert_eq!(web.get(&format!("/v1/jobs/{id}?token={token}")).await.status, 200);
    // For nothing else.
    for path in [format!("/v1/jobs/{other}"), format!("/v1/jobs/{other}/events")] {
        web.get(&format!("{path}?token={token}")).await.refused(401, "invalid_token");
    }
    web.get(&format!("/v1/jobs?token={token}")).await.refused(401, "invalid_api_key");
    let cancel = web.delete(&format!("/v1/jobs/{id}?token={token}")).await;
    cancel.refused(401, "invalid_api_key");
    asked(&web, token, Method::GET, &format!("/v1/jobs/{id}"))
        .await
        .refused(401, "invalid_api_key");
    // Nor forged.
    let (_, rest) = token.split_once('.').unwrap();
    let (_, made) = rest.split_once('.').unwrap();
    let later = format!("{}.{rest}", expires + 60_000);
    let theirs = format!("{expires}.{}.{made}", "b3RoZXI");
    let keyless = token.replace(".web.", "..");
    for forged in [later.as_str(), &theirs, &keyless, &token[..token.len() - 2], "", "x"] {
        web.get(&format!("/v1/jobs/{id}?token={forged}")).await.refused(401, "invalid_token");
    }
    soon(async {
        while web.get(&format!("/v1/jobs/{id}?token={token}")).await.status == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(Timestamp::now().0 >= expires);
    web.get(&format!("/v1/jobs/{id}/events?token={token}")).await.refused(401, "invalid_token");
    // A stream that is open goes on.
    Hand::begin(&broker).await.done().await;
    assert_eq!(stream.block().await.event, "started");
    let none = asked(&web, &key, Method::POST, &format!("/v1/jobs/{}/token", JobId::new())).await;
    none.refused(404, "job_not_found");
}

/// What Redis was asked, and for how long it worked, told whether another tenant has a job: IDs that come of
/// idempotency keys can be computed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_job_costs_what_none_does() {
    let stack = Stack::start(instant()).await;
    let mut keys = Keys::new();
    let mine = keys.add("mine", "mine", &Right::ALL, None);
    let theirs = keys.add("theirs", "theirs", &Right::ALL, None);
    let web = Web::start(&stack.broker, keys.options());
    let id = posted(&web, &theirs, "/v1/jobs").await.json()["id"].as_str().unwrap().to_owned();
    let mut hand = Hand::begin(&stack.broker).await;
    hand.say(&"x".repeat(100_000)).await;
    // The scripts are there.
    asked(&web, &theirs, Method::GET, &format!("/v1/jobs/{id}")).await;
    for (method, route, accept) in [
        (Method::GET, "", ""),
        (Method::DELETE, "", ""),
        (Method::POST, "/token", ""),
        (Method::GET, "/events", "application/json"),
        (Method::GET, "/events", "text/event-stream"),
    ] {
        let mut costs = Vec::new();
        for job in [JobId::new().to_string(), id.clone()] {
            stack.reset_counts();
            let path = format!("/v1/jobs/{job}{route}");
            let request = web.ask(method.clone(), &path).bearer_auth(&mine);
            let reply = Reply::of(request.header("accept", accept)).await;
            let said = reply.refused(404, "job_not_found").replace(&job, "ID");
            let mut counts = stack.command_counts();
            for own in ["config|resetstat", "info", "ping", "subscribe", "unsubscribe"] {
                counts.remove(own);
            }
            costs.push((said, counts));
        }
        assert_eq!(costs[0], costs[1], "{method} {route} {accept}");
        assert!(["hgetall", "xrange"].iter().all(|name| !costs[1].1.contains_key(*name)));
    }
}

/// Answers could be kept by whoever lies in between, and be taken for what they are not.
#[tokio::test]
async fn answers_are_kept_by_nobody_and_are_what_they_say() {
    let web = Web::start(&embedded(), options());
    let id = web.enqueue("a").await;
    let token = format!("/v1/jobs/{id}/token");
    let events = format!("/v1/jobs/{id}/events?limit=1");
    for (method, path, caching) in [
        (Method::GET, "/v1/jobs", "no-store"),
        (Method::GET, "/v1/queues", "no-store"),
        (Method::GET, "/metrics", "no-store"),
        (Method::GET, "/readyz", "no-store"),
        (Method::GET, &events, "no-store"),
        (Method::POST, &token, "no-store"),
        (Method::GET, "/v1/jobs?limit=0", "no-store"),
        (Method::GET, "/nowhere", "no-store"),
        (Method::GET, "/whoami", "private, max-age=30"),
        (Method::GET, "/", "no-cache"),
    ] {
        let request = web.ask(method, path).header("accept", "application/json");
        let reply = Reply::of(request).await;
        assert_eq!(reply.header("cache-control"), caching, "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
    }
}

/// Load tools ask for another name, and lint what is counted.
#[tokio::test]
async fn health_has_two_names_and_each_figure_is_explained() {
    let web = Web::start(&embedded(), options());
    assert_eq!(web.get("/health").await.text, web.get("/healthz").await.text);
    let metrics = web.get("/metrics").await.text;
    let lines: Vec<&str> = metrics.lines().collect();
    for three in lines.chunks(3) {
        let [help, kind, figure] = three else { panic!("{three:?}") };
        let name = figure.split(' ').next().unwrap();
        assert!(help.strip_prefix(&format!("# HELP {name} ")).is_some_and(|text| text.len() > 9));
        assert!(kind.starts_with(&format!("# TYPE {name} ")), "{kind}");
    }
}

/// A page whose name leads to this machine is still not of this machine.
#[tokio::test]
async fn without_keys_only_this_machine_is_served() {
    let web = Web::start(&embedded(), options());
    let with = |host: &str| web.ask(Method::GET, "/v1/jobs").header("host", host);
    for host in
        ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "app.localhost", "LOCALHOST"]
    {
        assert_eq!(Reply::of(with(host)).await.status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "localhost.evil.example",
    ] {
        assert!(Reply::of(with(host)).await.refused(403, "loopback_only").contains(host));
    }
    // A proxy on this machine asks for others.
    let proxied = with("localhost").header("x-forwarded-for", "10.0.0.1");
    Reply::of(proxied).await.refused(403, "loopback_only");
    let mut keys = Keys::new();
    let key = keys.add("web", "t", &[Right::Read], None);
    let keyed = Web::start(&embedded(), keys.options());
    let request = keyed.ask(Method::GET, "/v1/jobs").header("host", "api.example").bearer_auth(key);
    assert_eq!(Reply::of(request).await.status, 200);
}

/// A router in an application's server, which may listen anywhere.
async fn embed(gateway: Gateway) -> String {
    let app = axum::Router::new().nest("/llm", gateway.router());
    // The router alone keeps the gateway going.
    drop(gateway);
    let socket = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/llm", socket.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(socket, app).await });
    url
}

#[tokio::test]
async fn a_router_serves_nobody_whom_neither_keys_nor_the_application_know() {
    let url = embed(start(&embedded(), options()).unwrap()).await;
    let client = crate::support::web::client();
    let asked = Reply::of(client.get(format!("{url}/v1/jobs"))).await;
    asked.refused(403, "unknown_caller");
    let mut keys = Keys::new();
    let key = keys.add("web", "t", &[Right::Read, Right::Enqueue], None);
    let url = embed(start(&embedded(), keys.options()).unwrap()).await;
    let request = client.post(format!("{url}/v1/jobs")).header("content-type", "application/json");
    let job = Reply::of(request.bearer_auth(&key).body(chat("nested").to_string())).await;
    // What it is told leads back into the application.
    assert!(job.header("location").starts_with("/llm/v1/jobs/"), "{:?}", job.headers);
    // The page finds its files with and without the slash behind the path.
    let page = Reply::of(client.get(&url)).await;
    assert!(page.text.contains("\"llm/console/console.js\""), "{}", page.text);
    assert_eq!(Reply::of(client.get(format!("{url}/console/console.js"))).await.status, 200);
    keys.write("");
    let gone = async || {
        let request = client.get(format!("{url}/whoami")).bearer_auth(&key);
        Reply::of(request).await.status == 401
    };
    soon(async {
        while !gone().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Behind a proxy that strips a path, what the gateway named led past it.
#[tokio::test]
async fn what_a_gateway_names_stands_below_its_public_address() {
    let public_url = "https://example.com/llm/".to_owned();
    let web = Web::start(&embedded(), Options { public_url, ..options() });
    let job = web.post("/v1/jobs", &chat("a")).await;
    let id = job.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(job.header("location"), format!("https://example.com/llm/v1/jobs/{id}"));
    let token = Reply::of(web.ask(Method::POST, &format!("/v1/jobs/{id}/token"))).await.json();
    let events = token["events_url"].as_str().unwrap();
    assert!(events.starts_with(&format!("https://example.com/llm/v1/jobs/{id}/events?token=")));
    let page = web.get("/").await;
    assert!(page.text.contains("\"/llm/console/console.js\""), "{}", page.text);
    let lost = web.post("/chat/completions", &chat("a")).await.refused(404, "not_found");
    assert!(lost.contains("https://example.com/llm/v1"), "{lost}");
}

#[tokio::test]
async fn pages_of_other_origins_are_served_where_they_are_named() {
    let origin = "https://app.example";
    let broker = embedded();
    let preflight = |web: &Web, path: &str, origin: &str| {
        web.ask(Method::OPTIONS, path)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,last-event-id,x-stainless-os")
    };
    let off = Web::start(&broker, options());
    let refused = Reply::of(preflight(&off, "/v1/jobs", origin)).await;
    refused.refused(405, "method_not_allowed");
    let simple = Reply::of(off.ask(Method::GET, "/v1/jobs").header("origin", origin)).await;
    for reply in [&refused, &simple] {
        assert!(reply.headers.keys().all(|name| !name.as_str().starts_with("access-control")));
    }
    let cors_origins = vec![origin.to_owned()];
    let on = Web::start(&broker, Options { cors_origins, ..options() });
    let allowed = Reply::of(preflight(&on, "/v1/jobs", origin)).await;
    assert_eq!(allowed.header("access-control-allow-origin"), origin);
    let names = allowed.header("access-control-allow-headers");
    assert!(
        ["authorization", "last-event-id", "x-stainless-os"]
            .iter()
            .all(|name| names.contains(name))
    );
    let other = Reply::of(preflight(&on, "/v1/jobs", "https://evil.example")).await;
    assert_eq!(other.header("access-control-allow-origin"), "");
    let simple = Reply::of(on.ask(Method::GET, "/v1/jobs/x").header("origin", origin)).await;
    simple.refused(404, "job_not_found");
    assert_eq!(simple.header("access-control-allow-origin"), origin);
    let any = Web::start(&broker, Options { cors_origins: vec!["*".to_owned()], ..options() });
    let allowed =
        Reply::of(any.ask(Method::GET, "/healthz").header("origin", "https://b.example")).await;
    assert_eq!(allowed.header("access-control-allow-origin"), "*");
}

/// Headers that a client sends, or that are for no script.
const OTHERS: &[&str] = &[
    "Accept",
    "Authorization",
    "Host",
    "Idempotency-Key",
    "If-None-Match",
    "Keep-Alive",
    "Last-Event-ID",
    "Sec-WebSocket-Version",
    "X-Content-Type-Options",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "content-encoding",
    "content-type",
    "millstream-gateway",
    "no-store",
    "x-api-key",
];

/// Guards against a header that the documentation tells and a page's script cannot read.
#[tokio::test]
async fn a_page_of_another_origin_may_read_every_header_that_is_told() {
    let cors_origins = vec!["https://app.example".to_owned()];
    let web = Web::start(&embedded(), Options { cors_origins, ..options() });
    let request = web.posted("/v1/jobs", &chat("a")).header("origin", "https://app.example");
    let reply = Reply::of(request).await;
    let exposed = reply.header("access-control-expose-headers");
    let exposed: BTreeSet<&str> = exposed.split(',').map(str::trim).collect();
    let document = web.get("/openapi.json").await.json();
    let items = document["paths"].as_object().unwrap().values();
    let operations = items.flat_map(|item| item.as_object().unwrap().values());
    let responses = operations.filter_map(|operation| operation["responses"].as_object());
    let described: BTreeSet<String> = responses
        .flat_map(|responses| responses.values())
        .filter_map(|response| response["headers"].as_object())
        .flat_map(|headers| headers.keys().map(|name| name.to_ascii_lowercase()))
        .collect();
    let document = include_str!("../../../docs/HTTP.md");
    let spans = document.split('`').skip(1).step_by(2).map(|span| span.split(':').next().unwrap());
    let is_name = |name: &&str| {
        let parts: Vec<&str> = name.split('-').collect();
        let is_word =
            |part: &&str| part.bytes().all(|b| b.is_ascii_alphabetic()) && !part.is_empty();
        parts.iter().all(is_word)
            && (parts.len() > 1 || ["Allow", "ETag", "Location"].contains(name))
    };
    let told: BTreeSet<String> = spans
        .filter(is_name)
        .filter(|name| !OTHERS.contains(name))
        .map(str::to_ascii_lowercase)
        .collect();
    let sent: BTreeSet<String> = reply.headers.keys().map(ToString::to_string).collect();
    let sent = sent.into_iter().filter(|name| name.starts_with("x-") && !name.contains("content"));
    for name in described.iter().chain(&told).cloned().chain(sent) {
        assert!(exposed.contains(name.as_str()), "{name} is not among {exposed:?}");
    }
    for name in ["x-millstream-warning", "x-millstream-job", "retry-after", "x-request-id"] {
        assert!(described.contains(name) && told.contains(name), "{name}: {described:?}, {told:?}");
    }
}
