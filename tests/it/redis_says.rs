//! What Redis says is told as it is: each trouble under a code, an exit code and a remedy of its own.
//! Guards against every one of them being told as a Redis that is not running.

use std::time::Duration;

use millstream::broker::{
    Error,
    redis::{Options, Redis},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{
    program::{PRODUCER, Ran, run},
    redis::Server,
    stack::{Stack, connect, instant},
    subject::soon,
    web::{Reply, Web, chat, options},
};

const LINE: [&str; 4] = ["--model", "m", "--user", "hi"];

/// The producer, asked to enqueue there; never told that Redis may not be running.
async fn enqueue(url: String) -> Ran {
    let run = move || run(PRODUCER, &LINE, &[("REDIS_URL", &*url)]);
    let ran = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(!ran.err.contains("is Redis running"), "{ran:?}");
    ran
}

/// It ends with this code and says these words.
async fn ends(url: String, code: i32, words: &[&str]) {
    let ran = enqueue(url).await;
    assert_eq!(ran.code, Some(code), "{ran:?}");
    for word in words {
        assert!(ran.err.contains(word), "{word}: {ran:?}");
    }
    assert!(ran.err.trim_end().lines().count() == 1, "{ran:?}");
}

/// Gives a server more than it may hold.
fn fill(server: &Server) {
    server.command(&["SET", "filler", &"x".repeat(7_000_000)]);
    server.command(&["CONFIG", "SET", "maxmemory", "6mb"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_says_how_full_it_is() {
    let stack = Stack::start(instant()).await;
    fill(&stack.server);
    let words = ["Redis is full: used ", "of 6.0 MB", "noeviction", "raise its maxmemory"];
    ends(stack.server.url(), 8, &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_says_that_it_takes_no_writes() {
    let stack = Stack::start(instant()).await;
    stack.server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    ends(stack.server.url(), 9, &["READONLY", "name the primary"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_cannot_save_says_so() {
    let server = Server::with(&["--enable-protected-configs", "yes"]).await;
    let stack = Stack::on(server, instant()).await;
    let place = stack.server.folder().join("gone");
    std::fs::create_dir(&place).unwrap();
    stack.server.command(&["CONFIG", "SET", "dir", &place.display().to_string()]);
    std::fs::remove_dir(&place).unwrap();
    stack.server.command(&["CONFIG", "SET", "save", "3600 1000000"]);
    let _ = stack.server.ask(&["BGSAVE"]);
    soon(async {
        while !stack.server.command(&["INFO", "persistence"]).contains("bgsave_status:err") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    ends(stack.server.url(), 10, &["MISCONF", "cannot save"]).await;
    stack.server.command(&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    stack.server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    ends(stack.server.url(), 10, &["NOREPLICAS", "min-replicas-to-write"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_loads_its_data_says_so() {
    let mut server = Server::durable().await;
    let url = server.url();
    let fill = "for i = 1, 20000 do redis.call('SET', 'k' .. i, i) end";
    server.command(&["EVAL", fill, "0"]);
    server.stop();
    // Four seconds of it.
    server.start_again(&["--key-load-delay", "200"]);
    soon(async {
        while !matches!(server.ask(&["GET", "k1"]), Err(e) if e.code() == Some("LOADING")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    ends(url, 11, &["LOADING", "wait until it has read its data"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_blocks_redis_and_clients_without_room_are_told() {
    let stack = Stack::start(instant()).await;
    stack.server.command(&["CONFIG", "SET", "busy-reply-threshold", "1"]);
    let url = stack.server.url();
    let script = std::thread::spawn(move || {
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_connection().unwrap();
        let _ = redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut connection);
    });
    soon(async {
        while !matches!(stack.server.ask(&["GET", "k"]), Err(e) if e.code() == Some("BUSY")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    ends(stack.server.url(), 11, &["BUSY", "SCRIPT KILL"]).await;
    stack.server.command(&["SCRIPT", "KILL"]);
    script.join().unwrap();
    let held = redis::Client::open(stack.server.url()).unwrap().get_connection().unwrap();
    stack.server.command(&["CONFIG", "SET", "maxclients", "1"]);
    ends(stack.server.url(), 11, &["max number of clients", "maxclients"]).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_learns_why() {
    let server = Server::with(&["--databases", "4"]).await;
    let at = |user: &str, rest: &str| server.url().replace("//", &format!("//{user}")) + rest;
    let words = ["DB index is out of range", "name another in REDIS_URL"];
    ends(at("", "/9"), 17, &words).await;
    server.command(&["ACL", "SETUSER", "app", "on", ">pw", "~ms:*", "&*", "+@all", "-xadd"]);
    connect(&server.url()).await;
    ends(at("app:pw@", ""), 14, &["NOPERM", "xadd", "ACL SETUSER"]).await;
    // A new user has no channels. Its messages would vanish without a word, and with them the times of jobs
    // that it parks and its wishes to cancel.
    server.command(&["ACL", "SETUSER", "mute", "on", ">pw", "~ms:*", "resetchannels", "+@all"]);
    ends(at("mute:pw@", ""), 14, &["NOPERM", "channel", "ACL SETUSER", "&ms:*"]).await;
    ends(at("app:wrong@", ""), 13, &["authentication", "correct user and password"]).await;
    server.command(&["CONFIG", "SET", "requirepass", "pw"]);
    ends(at("", ""), 13, &["NOAUTH", "correct user and password"]).await;
    ends(at("", "/1"), 13, &["Authentication required"]).await;
}

/// Something at an address that answers each request with the same bytes.
async fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                while client.read(&mut asked).await.is_ok_and(|length| length > 0) {
                    let _ = client.write_all(bytes).await;
                }
            });
        }
    });
    address.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_redis_is_told_from_one_that_is_away() {
    let web = Web::start(&crate::support::web::embedded(), options());
    let there = web.url.replace("http", "redis");
    ends(there.clone(), 15, &["is a web server, and no Redis", "correct host and port"]).await;
    let other = answering(b"220 mail.example ESMTP\r\n").await;
    ends(format!("redis://{other}"), 15, &["is no Redis", "220 mail"]).await;
    let sealed = answering(b"\x15\x03\x01\0\x02\x02\x28").await;
    ends(format!("redis://{sealed}"), 16, &["speaks only TLS", "rediss://"]).await;
    let server = Server::start().await;
    let sealed = server.url().replace("redis://", "rediss://");
    ends(sealed, 16, &["speaks no TLS", "redis://"]).await;
    let error = Redis::connect(Options { url: there, ..Options::default() }).await.unwrap_err();
    assert!(matches!(error, Error::Trouble { .. }) && !error.is_transient(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_not_ready_while_redis_takes_no_writes() {
    let server = Server::start().await;
    let broker = connect(&server.url()).await;
    let web = Web::start(&broker, options());
    assert_eq!(web.get("/readyz").await.status, 200);
    fill(&server);
    let not_ready = async |code: &str| -> Reply {
        soon(async {
            loop {
                let reply = web.get("/readyz").await;
                if reply.status == 503 && reply.json()["error"]["code"] == code {
                    break reply;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    };
    assert_eq!(not_ready("broker_out_of_memory").await.header("retry-after"), "10");
    let refused = web.post("/v1/jobs", &chat("a")).await;
    assert!(refused.refused(503, "broker_out_of_memory").contains("nothing was added"));
    server.command(&["FLUSHALL"]);
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let reply = not_ready("broker_unavailable").await;
    assert!(reply.text.contains("broker_read_only"), "{}", reply.text);
}

/// Guards against a load balancer, or anybody else, who asks Redis as often as he likes without a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_for_readiness_costs_redis_next_to_nothing() {
    let server = Server::start().await;
    let broker = connect(&server.url()).await;
    let web = Web::start(&broker, options());
    server.command(&["CONFIG", "RESETSTAT"]);
    let began = std::time::Instant::now();
    let asked = futures_util::future::join_all((0..1000).map(|_| web.get("/readyz"))).await;
    assert!(asked.iter().all(|reply| reply.status == 200));
    let seconds = began.elapsed().as_secs() + 1;
    let stats = server.command(&["INFO", "stats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    let commands: u64 = line.unwrap().trim().parse().unwrap();
    // One write that changes nothing and one look at the workers of three lanes, and the reader's own.
    assert!(commands <= 10 * seconds, "{commands} commands in {seconds} s");
}
