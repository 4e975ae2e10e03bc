//! Which host a request names, on which the trust of a gateway without keys rests.

use super::*;
use crate::support::gate::brisk;

async fn ask(addr: SocketAddr, request: &str) -> Answer {
    Answer::of(&exchange(addr, request.as_bytes()).await)
}

/// Of two Host lines the first was believed, and a target that named another host was not.
#[tokio::test]
async fn a_request_names_one_host_and_names_it_once() {
    let gate = Gate::start(brisk()).await;
    let end = "connection: close\r\n\r\n";
    for (target, headers, status, code) in [
        ("/whoami", "host: localhost\r\n", 200, ""),
        ("/whoami", "host: localhost\r\nhost: localhost\r\n", 400, "bad_host"),
        ("/whoami", "host: localhost\r\nhost: evil.example\r\n", 400, "bad_host"),
        ("/whoami", "host: evil.example\r\nhost: localhost\r\n", 400, "bad_host"),
        ("/whoami", "", 400, "bad_host"),
        ("/healthz", "", 400, "bad_host"),
        ("/nowhere", "", 400, "bad_host"),
        ("/", "", 400, "bad_host"),
        ("/whoami", "host: a b\r\n", 400, "bad_host"),
        ("/whoami", "host: localhost/evil.example\r\n", 400, "bad_host"),
        ("/whoami", "host:\r\n", 403, "loopback_only"),
        ("/whoami", "host: evil.example\r\n", 403, "loopback_only"),
        ("http://evil.example/whoami", "host: localhost\r\n", 403, "loopback_only"),
        ("http://evil.example@localhost/whoami", "host: localhost\r\n", 403, "loopback_only"),
        ("http://localhost/whoami", "host: evil.example\r\n", 200, ""),
        ("http://127.0.0.1:9/whoami", "host: localhost\r\n", 200, ""),
        ("http://localhost/whoami", "", 400, "bad_host"),
    ] {
        let answer = ask(gate.addr, &format!("GET {target} HTTP/1.1\r\n{headers}{end}")).await;
        assert_eq!(answer.status, status, "{target} {headers:?}: {answer:?}");
        if status != 200 {
            assert_eq!(answer.error()["code"], code, "{target} {headers:?}");
        }
    }
    // HTTP/1.0 has no Host, and says by nothing that it is of this machine.
    assert_eq!(ask(gate.addr, "GET /healthz HTTP/1.0\r\n\r\n").await.status, 200);
    assert_eq!(ask(gate.addr, "GET /whoami HTTP/1.0\r\n\r\n").await.status, 403);
    unharmed(&gate).await;
}

/// The refusal named a host that was allowed, where the cause was a header.
#[tokio::test]
async fn a_refused_proxy_is_told_by_which_header() {
    let gate = Gate::start(brisk()).await;
    for name in ["Forwarded", "X-Forwarded-For"] {
        let request = format!(
            "GET /whoami HTTP/1.1\r\nhost: localhost\r\n{name}: for=10.0.0.1\r\nconnection: close\r\n\r\n"
        );
        let answer = ask(gate.addr, &request).await;
        assert_eq!((answer.status, &answer.error()["code"]), (403, &"loopback_only".into()));
        let message = answer.error()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(name) && !message.contains("`localhost`"), "{message}");
    }
    unharmed(&gate).await;
}
