//! Connections without a request: how long they are kept, and what becomes of them at the end.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use millstream::gateway::{Limits, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    subject::soon,
    web::{Web, embedded, options},
};

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// A proxy's pool keeps connections for a minute, and the gateway closed them after half of one, unannounced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_kept_as_long_as_it_is_told() {
    assert!(Limits::default().keep_alive >= Duration::from_secs(75));
    let (read_timeout, keep_alive) = (Duration::from_millis(300), Duration::from_secs(2));
    let limits = Limits { read_timeout, keep_alive, ..Limits::default() };
    let web = Web::start(&embedded(), Options { limits, ..options() });
    let connect = async || tokio::net::TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    let ask = async |stream: &mut tokio::net::TcpStream| {
        stream.write_all(REQUEST).await.unwrap();
        let mut bytes = vec![0; 4096];
        let count = soon(stream.read(&mut bytes)).await.unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    // How long it takes until the gateway closes a connection.
    let end = async |stream: &mut tokio::net::TcpStream| {
        let began = Instant::now();
        assert_eq!(soon(stream.read(&mut [0; 16])).await.unwrap(), 0);
        began.elapsed()
    };
    let mut stream = connect().await;
    assert!(ask(&mut stream).await.contains("\r\nkeep-alive: timeout=2\r\n"));
    // Longer than a head may take.
    tokio::time::sleep(2 * read_timeout).await;
    let answer = ask(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let took = end(&mut stream).await;
    assert!(took > keep_alive * 9 / 10, "{took:?}");
    // A head that has begun has its own time.
    let mut slow = connect().await;
    ask(&mut slow).await;
    slow.write_all(b"GET /hea").await.unwrap();
    let took = end(&mut slow).await;
    assert!((read_timeout * 9 / 10..keep_alive).contains(&took), "{took:?}");
    // One that ends with its answer is told nothing of that.
    let mut last = connect().await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    last.write_all(request).await.unwrap();
    let mut text = String::new();
    soon(last.read_to_string(&mut text)).await.unwrap();
    assert!(text.contains("\r\nconnection: close\r\n") && !text.contains("keep-alive"), "{text}");
}

/// Connections that the system had accepted when the gateway was stopped were reset.
#[tokio::test]
async fn connections_that_wait_when_the_gateway_stops_are_answered() {
    let web = Web::start(&embedded(), options());
    assert_eq!(web.get("/healthz").await.status, 200);
    let port = web.port();
    // The one thread of this runtime is here: nobody accepts meanwhile.
    let mut waiting: Vec<TcpStream> = (0..50).map(|_| connect(port)).collect();
    for stream in &mut waiting {
        stream.write_all(REQUEST).unwrap();
    }
    web.stop.cancel();
    let ended = web.end().await;
    assert_eq!(ended.connections, 51, "each was served");
    for mut stream in waiting {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
    }
}

/// Those who choose among gateways met a refused connection before they could hear of the end.
#[tokio::test]
async fn a_gateway_that_is_stopped_is_not_ready_before_it_listens_no_more() {
    let notice = Duration::from_millis(800);
    let web = Web::start(&embedded(), Options { notice, ..options() });
    assert_eq!(web.get("/readyz").await.status, 200);
    let job = web.enqueue("a").await;
    let mut events = web.events(&job, "").await;
    let began = Instant::now();
    web.stop.cancel();
    soon(async {
        while web.get("/readyz").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let refused = web.get("/readyz").await;
    refused.refused(503, "closing");
    assert_eq!(refused.header("connection"), "close");
    // Everything else is served as before, on new connections too.
    let fresh = crate::support::web::client();
    let served = fresh.get(format!("{}/v1/jobs/{job}", web.url)).send().await.unwrap();
    assert_eq!(served.status(), 200);
    assert!(began.elapsed() < notice, "{:?}", began.elapsed());
    assert_eq!(events.block().await.event, "reconnect");
    assert!(began.elapsed() >= notice, "{:?}", began.elapsed());
    web.end().await;
}

/// SIGTERM took as long as a whole drain where a client of HTTP/2 was silent, or a head was not whole.
#[tokio::test]
async fn a_client_that_has_not_asked_yet_does_not_hold_up_the_end() {
    let limits = Limits { read_timeout: Duration::from_secs(60), ..Limits::default() };
    let drain = Duration::from_secs(60);
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (sent, told) in [(preface, 9), (&preface[..3], 0), ("GET /hea", 0), ("", 0)] {
        let web = Web::start(&embedded(), Options { limits: limits.clone(), drain, ..options() });
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        soon(stream.read_exact(&mut vec![0; told])).await.unwrap();
        web.until_metric("connections_open", 2.0).await;
        let began = Instant::now();
        assert_eq!(web.end().await.unfinished, 0);
        assert!(began.elapsed() < Duration::from_secs(10), "{sent:?}: {:?}", began.elapsed());
    }
}
