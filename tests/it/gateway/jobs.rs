//! Jobs: taken, listed, shown and cancelled.

use millstream::{
    gateway::{Caller, Gateway, Options, Right},
    job::{JobId, QueueName, Tenant, Timestamp},
    listener::Listener,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    subject::far,
    web::{Hand, Reply, Web, chat, client, embedded, options},
};

/// A batch line, as `OpenAI`'s Batch files have them.
fn line(question: &str) -> Value {
    json!({"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": chat(question)})
}

#[tokio::test]
async fn a_job_comes_in_three_shapes() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let envelope = json!({"request": chat("b"), "lane": "high", "labels": {"team": "x"}});
    let mut seen = Vec::new();
    for (body, lane, custom_id) in [
        (chat("a"), "normal", json!(null)),
        (envelope, "high", json!(null)),
        (line("c"), "normal", json!("c1")),
    ] {
        let reply = web.post("/v1/jobs", &body).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        let job = reply.json();
        let id = job["id"].as_str().unwrap().to_owned();
        assert_eq!(job, json!({"id": id, "object": "job", "state": "waiting", "duplicate": false}));
        assert_eq!(reply.header("location"), format!("/v1/jobs/{id}"));
        assert_eq!(reply.header("x-millstream-job"), id);
        let shown = web.get(&format!("/v1/jobs/{id}")).await.json();
        assert_eq!((&shown["lane"], &shown["custom_id"]), (&json!(lane), &custom_id));
        assert_eq!((&shown["state"], &shown["model"]), (&json!("waiting"), &json!("m")));
        seen.push(id);
    }
    let later = json!({"request": chat("d"), "not_before": far()});
    let parked = web.post("/v1/jobs", &later).await;
    assert_eq!(parked.json()["state"], "parked", "{}", parked.text);
}

#[tokio::test]
async fn each_job_of_an_array_is_taken_or_refused_by_itself() {
    let web = Web::start(&embedded(), options());
    let jobs =
        json!([chat("a"), {"model": "m"}, line("b"), 7, {"request": chat("c"), "tenant": "other"}]);
    let reply = web.post("/v1/jobs", &jobs).await;
    assert_eq!(reply.status, 200);
    let body = reply.json();
    assert_eq!(
        (&body["object"], &body["accepted"], &body["refused"]),
        (&json!("list"), &json!(2), &json!(3))
    );
    for (index, taken) in [true, false, true, false, false].into_iter().enumerate() {
        let item = &body["data"][index];
        assert_eq!(item["index"], index);
        assert_eq!(
            (item.get("job").is_some(), item.get("error").is_some()),
            (taken, !taken),
            "{item}"
        );
    }
    assert_eq!(body["data"][1]["error"]["type"], "invalid_request_error");
    assert_eq!(web.get("/v1/jobs").await.json()["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_same_key_gives_the_same_job_and_not_to_another_request() {
    let web = Web::start(&embedded(), options());
    let keyed =
        |body: Value, key: &str| web.posted("/v1/jobs", &body).header("idempotency-key", key);
    let first = Reply::of(keyed(chat("a"), "k1")).await.json();
    let again = Reply::of(keyed(chat("a"), "k1")).await;
    assert_eq!(again.status, 202);
    let again = again.json();
    assert_eq!((&again["id"], &again["duplicate"]), (&first["id"], &json!(true)));
    let conflict = Reply::of(keyed(chat("b"), "k1")).await;
    assert!(conflict.refused(409, "idempotency_conflict").contains(first["id"].as_str().unwrap()));
    assert_eq!(conflict.header("x-should-retry"), "false");
    // The same key in the body; and two that differ.
    let body = json!({"request": chat("a"), "idempotency_key": "k1"});
    assert_eq!(web.post("/v1/jobs", &body).await.json()["id"], first["id"]);
    assert_eq!(Reply::of(keyed(body.clone(), "k1")).await.json()["id"], first["id"]);
    let clash = Reply::of(keyed(body, "k2")).await;
    clash.refused(400, "invalid_parameter");
    assert_eq!(clash.json()["error"]["param"], "Idempotency-Key");
    Reply::of(keyed(json!([chat("a")]), "k1")).await.refused(400, "invalid_parameter");
    Reply::of(keyed(chat("a"), &"k".repeat(257))).await.refused(400, "invalid_job");
    // What was asked for twice is listed once.
    assert_eq!(web.get("/v1/jobs").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_a_job_is_refused_in_words() {
    let web = Web::start(&embedded(), Options { models: vec!["m".to_owned()], ..options() });
    let foreign = web.post("/v1/jobs", &json!({"request": chat("a"), "tenant": "other"})).await;
    assert!(foreign.refused(400, "invalid_parameter").contains("`other`"));
    let mut unknown = chat("a");
    unknown["model"] = "n".into();
    assert!(web.post("/v1/jobs", &unknown).await.refused(404, "model_not_found").contains("`n`"));
    let completion = web.post("/v1/chat/completions", &unknown).await;
    completion.refused(404, "model_not_found");
    assert_eq!(completion.json()["error"]["param"], "model");
    for body in ["", "{", "7", "\"x\"", "{}", "[1,", "{\"model\":\"m\"}", "{\"messages\":[]}"] {
        let request = web.ask(Method::POST, "/v1/jobs").header("content-type", "application/json");
        Reply::of(request.body(body)).await.refused(400, "invalid_job");
    }
    web.post("/v1/jobs", &json!([])).await.refused(400, "too_many_jobs");
    assert_eq!(web.get("/v1/models").await.json()["data"][0]["id"], "m");
    assert_eq!(web.get("/v1/models/m").await.json()["object"], "model");
    web.get("/v1/models/n").await.refused(404, "model_not_found");
    web.get("/v1/models/%FF").await.refused(400, "invalid_path");
}

#[tokio::test]
async fn a_request_that_names_no_queue_goes_to_the_gateways_own() {
    let broker = embedded();
    let queue: QueueName = "web".parse().unwrap();
    let web = Web::start(&broker, Options { queue: queue.clone(), ..options() });
    let id = web.enqueue("a").await;
    let hand = Hand::begin_at(&broker, queue).await;
    assert_eq!(hand.attempt.job.to_string(), id);
    let depth = web.get("/v1/queues").await.json();
    assert_eq!(
        (&depth["data"][0]["queue"], &depth["data"][0]["in_flight"]),
        (&json!("web"), &json!(1))
    );
    let other = web.get("/v1/queues?queue=none").await.json();
    assert_eq!(other["data"][0]["in_flight"], 0);
}

/// A job in a queue that nobody serves would wait for ever.
#[tokio::test]
async fn a_request_names_a_queue_that_is_served_or_is_refused() {
    let broker = embedded();
    let slow: QueueName = "slow".parse().unwrap();
    let web = Web::start(&broker, Options { queues: vec![slow.clone()], ..options() });
    let to = |queue: &str| json!({"request": chat("a"), "queue": queue});
    let refused = web.post("/v1/jobs", &to("slwo")).await;
    assert!(refused.refused(400, "invalid_parameter").contains("`slwo`"));
    assert_eq!(refused.json()["error"]["param"], "queue");
    let depth = web.get("/v1/queues?queue=slwo").await.json();
    assert_eq!(depth["data"][0]["waiting"], 0, "{depth}");
    let id = web.post("/v1/jobs", &to("slow")).await.json()["id"].clone();
    assert_eq!(Hand::begin_at(&broker, slow).await.attempt.job.to_string(), id.as_str().unwrap());
    assert_eq!(web.post("/v1/jobs", &to("default")).await.status, 202);
}

#[tokio::test]
async fn times_and_names_have_an_end() {
    let web = Web::start(&embedded(), options());
    let beyond = Timestamp(Timestamp::MAX.0 + 1);
    for (field, at) in [
        ("not_before", json!(beyond)),
        ("expires_at", json!(beyond)),
        ("not_before", json!(u64::MAX)),
    ] {
        let refused = web.post("/v1/jobs", &json!({"request": chat("a"), field: at})).await;
        assert!(refused.refused(400, "invalid_job").contains("9999-12-30"), "{}", refused.text);
    }
    let last = json!({"request": chat("a"), "not_before": Timestamp::MAX, "idempotency_key": "k"});
    assert_eq!(web.post("/v1/jobs", &last).await.json()["state"], "parked");
    let named = |length| json!({"model": "m".repeat(length), "messages": [{"role": "user"}]});
    assert_eq!(web.post("/v1/jobs", &named(256)).await.status, 202);
    assert!(web.post("/v1/jobs", &named(257)).await.refused(400, "invalid_job").contains("257"));
    web.post("/v1/chat/completions", &named(257)).await.refused(400, "invalid_request");
}

#[tokio::test]
async fn the_newest_jobs_come_first_and_page_by_page() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let mut ids = Vec::new();
    for n in 0..5 {
        let body =
            json!({"request": chat(&n.to_string()), "labels": {"parity": (n % 2).to_string()}});
        ids.push(web.post("/v1/jobs", &body).await.json()["id"].clone());
    }
    ids.reverse();
    let list = async |query: &str| web.get(&format!("/v1/jobs{query}")).await.json();
    let listed = |list: &Value| -> Vec<Value> {
        list["data"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect()
    };
    let all = list("").await;
    assert_eq!(
        (listed(&all), &all["has_more"], &all["next"]),
        (ids.clone(), &json!(false), &json!(null))
    );
    assert!(all["data"][0].get("text").is_none(), "a list needs no log");
    // Page by page the same, and the last page says that it is the last.
    let (mut met, mut query) = (Vec::new(), String::from("?limit=2"));
    loop {
        let page = list(&query).await;
        met.extend(listed(&page));
        let Some(next) = page["next"].as_str() else {
            assert_eq!(page["has_more"], false);
            break;
        };
        assert_eq!(page["has_more"], true);
        query = format!("?limit=2&before={next}");
    }
    assert_eq!(met, ids);
    let odd = list("?label=parity:1").await;
    assert_eq!(listed(&odd), [ids[1].clone(), ids[3].clone()]);
    web.delete(&format!("/v1/jobs/{}", ids[2].as_str().unwrap())).await;
    assert_eq!(listed(&list("?state=cancelled").await), [ids[2].clone()]);
    assert_eq!(listed(&list("?state=waiting").await).len(), 4);
    for wrong in [
        "limit=0",
        "limit=101",
        "limit=x",
        "state=gone",
        "label=x",
        "label=:x",
        "before=x",
        "colour=red",
    ] {
        web.get(&format!("/v1/jobs?{wrong}")).await.refused(400, "invalid_parameter");
    }
    // Each names the parameter, and what it may be; what the parser says of itself did neither.
    for (wrong, param, words) in [
        ("/v1/jobs?limit=abc", "limit", "limit is `abc`; allowed: 1 to 100"),
        ("/v1/jobs?limit=", "limit", "limit is ``; allowed: 1 to 100"),
        ("/v1/jobs?limit=0", "limit", "limit is 0; allowed: 1 to 100"),
        ("/v1/jobs?limit=1&state=slow", "state", "allowed: waiting, parked, running, done"),
        ("/v1/jobs?before=x", "before", "before is `x`; allowed: a job's ID"),
        ("/v1/jobs?limit=1&limit=2", "limit", "limit is given twice"),
        ("/v1/jobs?colour=red", "colour", "allowed: state, label, limit, before"),
        ("/v1/queues?queue=a%20b", "queue", "queue is `a b`; allowed: 1 to 64"),
    ] {
        let reply = web.get(wrong).await;
        let message = reply.refused(400, "invalid_parameter");
        assert!(message.contains(words), "{wrong}: {message}");
        assert_eq!(reply.json()["error"]["param"], param, "{wrong}");
    }
    let unknown = format!("/v1/jobs?before={}", JobId::new());
    web.get(&unknown).await.refused(404, "job_not_found");
}

#[tokio::test]
async fn a_job_shows_what_it_has_said_so_far_and_whole_when_done() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let id = web.enqueue("a").await;
    let path = format!("/v1/jobs/{id}");
    let mut hand = Hand::begin(&broker).await;
    hand.say("one").await;
    let running = web.get(&path).await;
    assert_eq!(
        (running.header("cache-control"), running.header("x-millstream-job")),
        ("no-store", &*id)
    );
    let running = running.json();
    assert_eq!((&running["state"], &running["text"]), (&json!("running"), &json!("one")));
    assert_eq!(running["last_event_id"], format!("{}-1", hand.attempt.fence));
    assert_eq!((&running["run_ms"], &running["finish_reason"]), (&json!(null), &json!(null)));
    // A new attempt discards what the one before it said.
    hand.lose().await;
    hand.say("two").await;
    assert_eq!(web.get(&path).await.json()["text"], "two");
    hand.done().await;
    let done = web.get(&path).await.json();
    assert_eq!(
        (&done["state"], &done["text"], &done["attempt"]),
        (&json!("done"), &json!("two"), &json!(2))
    );
    assert_eq!((&done["ttft_ms"], &done["run_ms"]), (&json!(7), &json!(9)));
    assert_eq!(done["usage"]["total_tokens"], 3);
    assert_eq!(done["choices"][0]["message"], json!({"role": "assistant", "content": "two"}));
    assert_eq!(done["choices"][0]["finish_reason"], "stop");
    for none in [JobId::new().to_string(), "x".to_owned()] {
        web.get(&format!("/v1/jobs/{none}")).await.refused(404, "job_not_found");
    }
    web.get("/v1/jobs/%FF").await.refused(400, "invalid_path");
}

#[tokio::test]
async fn a_job_is_cancelled_wherever_it_is() {
    let broker = embedded();
    let web = Web::start(&broker, options());
    let cancel = async |id: &str| {
        let reply = web.delete(&format!("/v1/jobs/{id}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.header("x-millstream-job"), id);
        let told = reply.json();
        assert_eq!((&told["id"], &told["object"]), (&json!(id), &json!("job.cancellation")));
        (told["outcome"].as_str().unwrap().to_owned(), told["state"].as_str().unwrap().to_owned())
    };
    let told = |outcome: &str, state: &str| (outcome.to_owned(), state.to_owned());
    let running = web.enqueue("b").await;
    Hand::begin(&broker).await;
    assert_eq!(cancel(&running).await, told("asked", "cancelled"));
    assert_eq!(cancel(&running).await, told("asked", "cancelled"));
    assert_eq!(web.get(&format!("/v1/jobs/{running}")).await.json()["cancelling"], true);
    let done = web.enqueue("c").await;
    let mut hand = Hand::begin(&broker).await;
    hand.done().await;
    assert_eq!(cancel(&done).await, told("over", "done"));
    let waiting = web.enqueue("a").await;
    assert_eq!(cancel(&waiting).await, told("cancelled", "cancelled"));
    assert_eq!(cancel(&waiting).await, told("over", "cancelled"));
    web.delete(&format!("/v1/jobs/{}", JobId::new())).await.refused(404, "job_not_found");
}

/// An application that knows its users by itself: a tenant's jobs are nobody else's, on any route.
#[tokio::test]
async fn jobs_of_others_are_not_there() {
    let broker = embedded();
    let listener = Listener::new(broker.clone(), Default::default());
    let gateway = Gateway::new(broker.clone(), listener, Default::default(), options()).unwrap();
    let (mine, theirs) = (tenant(&gateway, "mine").await, tenant(&gateway, "theirs").await);
    let id =
        post(&mine, "/v1/jobs", &chat("secret")).await.json()["id"].as_str().unwrap().to_owned();
    let mut hand = Hand::begin(&broker).await;
    hand.say("told").await;
    let paths = |id: &str| {
        [
            (Method::GET, format!("/v1/jobs/{id}")),
            (Method::GET, format!("/v1/jobs/{id}/events")),
            (Method::GET, format!("/v1/jobs/{id}/events?after=9999999999999-9")),
            (Method::POST, format!("/v1/jobs/{id}/token")),
            (Method::DELETE, format!("/v1/jobs/{id}")),
        ]
    };
    let client = client();
    let refused = async |id: &str| {
        for (method, path) in paths(id) {
            for accept in ["*/*", "application/json"] {
                let request = client.request(method.clone(), format!("{theirs}{path}"));
                let reply = Reply::of(request.header("accept", accept)).await;
                reply.refused(404, "job_not_found");
            }
        }
    };
    refused(&id).await;
    // Neither when it is over, nor when the answer to its owner is cached.
    hand.done().await;
    for _ in 0..2 {
        let shown = Reply::of(client.get(format!("{mine}/v1/jobs/{id}"))).await;
        assert_eq!(
            (shown.json()["text"].clone(), shown.status),
            (json!("told"), reqwest::StatusCode::OK)
        );
        refused(&id).await;
    }
    let listed = Reply::of(client.get(format!("{theirs}/v1/jobs"))).await.json();
    assert_eq!(listed["data"], json!([]));
    Reply::of(client.get(format!("{theirs}/v1/jobs?before={id}")))
        .await
        .refused(404, "job_not_found");
    // A key of one tenant is no other's.
    let keyed = json!({"request": chat("k"), "idempotency_key": "k"});
    let [a, b] = [post(&mine, "/v1/jobs", &keyed).await, post(&theirs, "/v1/jobs", &keyed).await];
    assert_ne!(a.json()["id"], b.json()["id"]);
}

async fn post(url: &str, path: &str, body: &Value) -> Reply {
    let request = client().post(format!("{url}{path}"));
    Reply::of(request.header("content-type", "application/json").body(body.to_string())).await
}

/// The same gateway as one tenant sees it, in an application's own server.
async fn tenant(gateway: &Gateway, name: &str) -> String {
    let tenant: Tenant = name.parse().unwrap();
    let app = gateway.router().layer(axum::Extension(Caller::new(tenant, Right::ALL)));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// A model whose name has slashes was not found by clients that do not encode them.
#[tokio::test]
async fn a_models_name_may_have_slashes() {
    let name = "hf.co/unsloth/Qwen3-Coder:Q4_K_M";
    let web = Web::start(&embedded(), Options { models: vec![name.to_owned()], ..options() });
    for path in [name.to_owned(), name.replace('/', "%2F"), name.replacen('/', "%2F", 1)] {
        assert_eq!(web.get(&format!("/v1/models/{path}")).await.json()["id"], name);
    }
    web.get("/v1/models/hf.co/unsloth").await.refused(404, "model_not_found");
    web.get("/v1/models/hf.co/%FF").await.refused(400, "invalid_path");
}
