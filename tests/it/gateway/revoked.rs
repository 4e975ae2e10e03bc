//! Keys that are taken away, and what was open under them.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use millstream::gateway::{Options, Right};
use reqwest::Method;
use serde_json::json;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use super::access::Keys;
use crate::support::{
    subject::soon,
    web::{Hand, Reply, Sse, Web, chat, embedded, streamed},
};

#[tokio::test]
async fn an_event_stream_ends_with_its_key_and_goes_on_with_another() {
    let mut keys = Keys::new();
    let old = keys.add("old", "t", &Right::ALL, None);
    let mut left = Keys::new();
    let new = left.add("new", "t", &Right::ALL, None);
    keys.add("new", "t", &Right::ALL, None);
    let broker = embedded();
    let web = Web::start(&broker, keys.options());
    let job = Reply::of(web.posted("/v1/jobs", &chat("a")).bearer_auth(&old)).await.json();
    let path = format!("/v1/jobs/{}/events", job["id"].as_str().unwrap());
    let mut hand = Hand::begin(&broker).await;
    hand.say("before ").await;
    let mut stream = Sse::open(web.ask(Method::GET, &path).bearer_auth(&old)).await;
    stream.block().await;
    let seen = stream.block().await;
    assert_eq!(seen.says(), "before ");

    keys.write(&left.text);
    soon(async {
        let asked = || web.ask(Method::GET, "/whoami").bearer_auth(&old);
        while Reply::of(asked()).await.status != 401 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    hand.say("after").await;
    let last = stream.block().await;
    assert_eq!(
        (last.event.as_str(), &last.json()["code"]),
        ("interrupted", &"invalid_api_key".into())
    );
    assert!(last.id.is_empty() && stream.next().await.is_none());
    let request = web.ask(Method::GET, &path).bearer_auth(&new).header("last-event-id", &seen.id);
    assert_eq!(Sse::open(request).await.block().await.says(), "after");
}

/// Waits until a key is taken back everywhere.
async fn taken_back(web: &Web, key: &str) {
    soon(async {
        let asked = || web.ask(Method::GET, "/whoami").bearer_auth(key);
        while Reply::of(asked()).await.status != 401 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A chat completion went on under a key that HTTP refused, and so did its stream.
#[tokio::test]
async fn a_chat_completion_ends_with_its_key() {
    let mut keys = Keys::new();
    let old = keys.add("old", "t", &Right::ALL, None);
    let broker = embedded();
    let web = Web::start(&broker, keys.options());
    let stream = web.posted("/v1/chat/completions", &streamed("a")).bearer_auth(&old);
    let stream = tokio::spawn(Sse::open(stream));
    let mut first = Hand::begin(&broker).await;
    first.say("before ").await;
    let mut stream = soon(stream).await.unwrap();
    while stream.block().await.json()["choices"][0]["delta"]["content"] != "before " {}
    let whole = web.posted("/v1/chat/completions", &chat("b")).bearer_auth(&old);
    let whole = tokio::spawn(Reply::of(whole));
    let mut second = Hand::begin(&broker).await;
    keys.write("");
    taken_back(&web, &old).await;
    for hand in [&mut first, &mut second] {
        hand.say("after").await;
        hand.done().await;
    }
    let last = stream.rest().await;
    assert_eq!(last.len(), 1, "{last:?}");
    assert_eq!(last[0].json()["error"]["code"], "invalid_api_key");
    soon(whole).await.unwrap().refused(401, "invalid_api_key");
}

/// A browser token read on, and its stream went on, when the key that had made it was gone: also one of the same
/// name, made anew.
#[tokio::test]
async fn a_browser_token_dies_with_the_key_that_made_it() {
    let mut keys = Keys::new();
    let old = keys.add("web", "t", &Right::ALL, None);
    let mut anew = Keys::new();
    anew.add("web", "t", &Right::ALL, None);
    let mut elsewhere = keys.text.clone();
    elsewhere = elsewhere.replace("tenant = \"t\"", "tenant = \"other\"");
    let mute = keys.text.replace("\"read\", ", "");
    assert!(mute != keys.text && elsewhere != keys.text);
    for after in ["", anew.text.as_str(), &elsewhere, &mute] {
        keys.write(&keys.text);
        let broker = embedded();
        let web = Web::start(&broker, keys.options());
        let job = Reply::of(web.posted("/v1/jobs", &chat("a")).bearer_auth(&old)).await.json();
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        let token = web.ask(Method::POST, &format!("{path}/token")).bearer_auth(&old);
        let token = Reply::of(token).await.json()["token"].as_str().unwrap().to_owned();
        let (state, events) =
            (format!("{path}?token={token}"), format!("{path}/events?token={token}"));
        let mut hand = Hand::begin(&broker).await;
        hand.say("before").await;
        let mut stream = Sse::open(web.ask(Method::GET, &events)).await;
        stream.block().await;
        assert_eq!(stream.block().await.says(), "before");
        assert_eq!(web.get(&state).await.status, 200);

        keys.write(after);
        soon(async {
            while web.get(&state).await.status != 401 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        web.get(&events).await.refused(401, "invalid_token");
        hand.say("after").await;
        let last = stream.block().await;
        let told = (last.event.as_str(), last.json()["code"].as_str().unwrap().to_owned());
        assert_eq!(told, ("interrupted", "invalid_token".to_owned()));
    }
}

/// A socket that is never silent passed on events for as long as its key's next heartbeat was away.
#[tokio::test]
async fn a_socket_passes_on_no_event_of_a_key_that_is_taken_back() {
    let mut keys = Keys::new();
    let old = keys.add("old", "t", &Right::ALL, None);
    let broker = embedded();
    let heartbeat = Duration::from_secs(3600);
    let web = Web::start(&broker, Options { heartbeat, ..keys.options() });
    let job = Reply::of(web.posted("/v1/jobs", &chat("a")).bearer_auth(&old)).await.json();
    let addr = ("127.0.0.1", web.port());
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let mut request = format!("ws://127.0.0.1:{}/v1/ws", addr.1).into_client_request().unwrap();
    request.headers_mut().append("authorization", format!("Bearer {old}").parse().unwrap());
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let frame = json!({"op": "subscribe", "job": job["id"]}).to_string();
    socket.send(Message::text(frame)).await.unwrap();
    let mut hand = Hand::begin(&broker).await;
    hand.say("before").await;
    while !soon(socket.next()).await.unwrap().unwrap().to_string().contains("before") {}
    keys.write("");
    taken_back(&web, &old).await;
    hand.say("after").await;
    // The first heartbeat is due at once.
    let mut said = soon(socket.next()).await.unwrap().unwrap();
    while said.is_ping() {
        said = soon(socket.next()).await.unwrap().unwrap();
    }
    let Message::Close(Some(close)) = said else { panic!("not closed, but told {said}") };
    assert_eq!(u16::from(close.code), 1008, "{close:?}");
}
