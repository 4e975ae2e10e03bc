//! Keys that are taken away, and what was open under them.

use std::time::Duration;

use millstream::gateway::Right;
use reqwest::Method;

use super::access::Keys;
use crate::support::{
    subject::soon,
    web::{Hand, Reply, Sse, Web, chat, embedded},
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
