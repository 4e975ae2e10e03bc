//! Every kind of bad input: one line that names cause and remedy, an exit code of its own kind,
//! nothing half done.

use std::time::Duration;

use millstream::{
    admin::{Admin, Cancelled},
    broker::redis::keys::Keys,
    job::{ChatRequest, Job, JobId, Lane, Timestamp},
    retry::Schedule,
    simulator,
    state::State,
    worker,
};

use crate::support::{
    port,
    program::{MILLSTREAM, PRODUCER, Ran, WORKER, run, run_with},
    redis::Server,
    stack::{Stack, expected, instant, simulate},
    subject::soon,
};

/// One line with these words, and this code.
fn refused(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    let line = ran.err.lines().find(|line| line.starts_with("error: "));
    let line = line.unwrap_or_else(|| panic!("no error line: {ran:?}"));
    for word in words {
        assert!(line.contains(word), "`{word}` is missing in: {line}");
    }
    assert_eq!(ran.err.matches("error: ").count(), 1, "{ran:?}");
    assert!(!ran.err.contains("panicked") && !ran.err.contains("RUST_BACKTRACE"), "{ran:?}");
}

fn entries(server: &Server) -> u64 {
    let mut sum = 0;
    for lane in ["high", "normal", "low"] {
        let key = format!("ms:{{q:default:0}}:{lane}");
        sum += server.command(&["XLEN", &key]).parse::<u64>().unwrap();
    }
    sum
}

#[tokio::test]
async fn lines_that_are_no_jobs_are_refused_by_number() {
    let server = Server::start().await;
    let url = server.url();
    let env = [("REDIS_URL", url.as_str())];
    let good = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let large = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}]}}"#,
        "x".repeat(1024 * 1024)
    );
    let cases: [(&str, &[&str]); 9] = [
        (&good.replacen('{', r#"{"lane":"high","#, 1), &["line 2", "`lane`", "request"]),
        ("{\"model\":", &["line 2", "not JSON"]),
        (r#"{"model":"m"}"#, &["line 2", "`messages`", "at least one message"]),
        (r#"{"messages":[{}]}"#, &["line 2", "`model`"]),
        (
            &format!(r#"{{"request":{good},"lane":"fast"}}"#),
            &["line 2", "`fast`", "high, normal, low"],
        ),
        (&format!(r#"{{"request":{good},"priority":1}}"#), &["line 2", "`priority`", "lane"]),
        (&format!(r#"{{"request":{good},"not_before":1000}}"#), &["line 2", "has passed"]),
        (&large, &["line 2", "1048576", "max_payload"]),
        ("42", &["line 2", "not a job"]),
    ];
    for (bad, words) in cases {
        let input = format!("{good}\n{bad}\n{good}\n");
        let before = entries(&server);
        let ran = run_with(PRODUCER, &["--file", "-"], &env, input.as_bytes());
        refused(&ran, 2, words);
        assert_eq!(ran.out.lines().count(), 1, "only the first is enqueued: {ran:?}");
        assert_eq!(entries(&server), before + 1);
        let ran =
            run_with(PRODUCER, &["--file", "-", "--on-error", "skip"], &env, input.as_bytes());
        assert_eq!((ran.code, ran.out.lines().count()), (Some(2), 2), "{ran:?}");
    }
    let ran = run_with(PRODUCER, &["--file", "-"], &env, b"\xff\xfe\n");
    refused(&ran, 2, &["line 1", "UTF-8"]);
}

#[tokio::test]
async fn flags_that_make_no_sense_are_usage() {
    let server = Server::start().await;
    let url = server.url();
    let env = [("REDIS_URL", url.as_str())];
    let one = ["--model", "m", "--user", "u"];
    for (more, words) in [
        (&["--lane", "fast"][..], &["fast", "high, normal, low"][..]),
        (&["--at", "2020-01-01T00:00:00Z"], &["has passed"]),
        (&["--at", "tomorrow"], &["RFC 3339"]),
        (&["--queue", "a b"], &["a b", "letters"]),
        (&["--max-attempts", "0"], &["1..=100"]),
        (&["--wat"], &["--wat"]),
    ] {
        let ran = run(PRODUCER, &[&one[..], more].concat(), &env);
        refused(&ran, 2, words);
    }
    refused(&run(PRODUCER, &["--file", "nowhere.jsonl"], &env), 2, &["nowhere.jsonl"]);
    refused(&run(MILLSTREAM, &["jobs", "show", "seven"], &env), 2, &["`seven`", "UUID"]);
    let id = JobId::new().to_string();
    refused(
        &run(MILLSTREAM, &["jobs", "tail", &id, "--after", "x"], &env),
        2,
        &["`x`", "event ID"],
    );
    assert_eq!(entries(&server), 0, "nothing is half enqueued");
}

#[tokio::test]
async fn an_unknown_job_is_named() {
    let server = Server::start().await;
    let url = server.url();
    let id = JobId::new().to_string();
    for verb in ["show", "tail", "wait"] {
        let ran = run(MILLSTREAM, &["jobs", verb, &id], &[("REDIS_URL", &url)]);
        assert_ne!(ran.code, Some(0), "{verb}: {ran:?}");
        assert!(ran.err.contains(&id) && ran.err.contains("expired"), "{verb}: {ran:?}");
    }
}

#[tokio::test]
async fn a_broker_that_cannot_be_used_is_told_apart() {
    let enqueue = ["--model", "m", "--user", "u"];
    let free = format!("127.0.0.1:{}", port::free());
    let url = format!("redis://{free}");
    let ran = run(PRODUCER, &enqueue, &[("REDIS_URL", &url)]);
    refused(&ran, 4, &["unavailable", &free, "is Redis running"]);

    let ran = run(PRODUCER, &enqueue, &[("REDIS_URL", "http://localhost")]);
    refused(&ran, 3, &["http://localhost", "redis://"]);
    let ran = run(WORKER, &[], &[("REDIS_URL", "http://localhost"), ("OPENAI_API_KEY", "k")]);
    refused(&ran, 3, &["http://localhost", "redis://"]);

    let server = Server::start().await;
    server.command(&["CONFIG", "SET", "requirepass", "right"]);
    let wrong = server.url().replace("://", "://:wr0ng@");
    for ran in [
        run(PRODUCER, &enqueue, &[("REDIS_URL", &wrong)]),
        run(WORKER, &[], &[("REDIS_URL", &wrong), ("OPENAI_API_KEY", "k")]),
    ] {
        refused(&ran, 13, &["password"]);
        assert!(!ran.err.contains("wr0ng"), "the password is shown: {ran:?}");
    }
    let none = server.url();
    refused(&run(PRODUCER, &enqueue, &[("REDIS_URL", &none)]), 13, &["password"]);
}

/// A server that says that it is Redis 6.2.
#[tokio::test]
async fn a_redis_older_than_seven_is_named() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let info = "redis_version:6.2.14\r\n";
                    let text = String::from_utf8_lossy(&buffer[..length]).to_uppercase();
                    let reply = if text.contains("INFO") {
                        format!("${}\r\n{info}\r\n", info.len())
                    } else {
                        "+OK\r\n".to_owned()
                    };
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let ran = tokio::task::spawn_blocking(move || {
        run(PRODUCER, &["--model", "m", "--user", "u"], &[("REDIS_URL", &url)])
    });
    refused(&ran.await.unwrap(), 4, &["Redis 6.2.14", "7.0"]);
}

#[tokio::test]
async fn the_embedded_broker_is_for_one_process() {
    let ran = run(PRODUCER, &["--model", "m", "--user", "u"], &[]);
    refused(&ran, 3, &["REDIS_URL"]);
    refused(&run(WORKER, &[], &[("OPENAI_API_KEY", "k")]), 3, &["REDIS_URL"]);
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_refused_with_key_and_value() {
    for (name, value, words) in [
        ("MILLSTREAM_WORKER__CONCURRENCY", "0", &["worker.concurrency", "0"][..]),
        ("MILLSTREAM_WORKER__CONCURENCY", "4", &["CONCURENCY"]),
        ("MILLSTREAM_WORKER__BLOCK", "soon", &["worker.block", "soon"]),
        ("MILLSTREAM_WORKER__CODEC", "xml", &["xml", "json"]),
        ("MILLSTREAM_CONFIG", "/nowhere/config.toml", &["/nowhere/config.toml"]),
    ] {
        let ran = run(MILLSTREAM, &["config", "check"], &[(name, value)]);
        refused(&ran, 3, words);
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_the_key_is_exit_5_and_names_it() {
    let options = simulator::Options { api_key: Some("right".to_owned()), ..instant() };
    let (url, _guard) = simulate(options).await;
    let ask = move || {
        let env = [("OPENAI_BASE_URL", url.as_str()), ("OPENAI_API_KEY", "wr0ng")];
        run(MILLSTREAM, &["ask", "hi"], &env)
    };
    let ran = tokio::task::spawn_blocking(ask).await.unwrap();
    refused(&ran, 5, &["401"]);
    assert!(!ran.err.contains("wr0ng"), "{ran:?}");
}

#[tokio::test]
async fn a_job_that_fails_is_exit_6() {
    let ran = run(MILLSTREAM, &["ask", "hi", "--model", "m?fault=status:400"], &[]);
    refused(&ran, 6, &["400"]);
}

#[tokio::test]
async fn malformed_entries_become_dead_letters_and_the_worker_goes_on() {
    let stack = Stack::start(instant()).await;
    let lane = Keys::new("ms").lane(&stack.partition, Lane::Normal);
    let bad: [(&str, &[u8]); 5] = [
        ("wrong", b"field"),
        ("job", b"{not json"),
        ("job", b"\xff\xfe\x00bytes"),
        ("job", br#"{"model":"m","messages":[]}"#),
        ("job", b""),
    ];
    for (field, value) in bad {
        let words: [&[u8]; 5] = [b"XADD", lane.as_bytes(), b"*", field.as_bytes(), value];
        stack.server.command(&words);
    }
    let id = stack.ask("m", "after the bad ones").await;
    let (stop, worker) = stack.worker(worker::Options::default());
    let answer = stack.listener().listen(id).answer().await.unwrap();
    assert_eq!(answer.text, expected("m", "after the bad ones"));
    stop.cancel();
    worker.await.unwrap();
    let letters = stack.broker.dead_letters(&stack.partition, None, 10).await.unwrap();
    assert_eq!(letters.len(), bad.len());
    for (field, value) in bad {
        let kept = (field.as_bytes().to_vec(), value.to_vec());
        let letter = letters.iter().find(|letter| letter.fields.contains(&kept));
        let letter = letter.unwrap_or_else(|| panic!("{field} {value:?} is lost"));
        assert_eq!(letter.error.code.as_str(), "invalid_job");
        // Its history ends with the same reason, under the ID that its place gives it.
        let answer = stack.listener().listen(letter.id).answer().await.unwrap();
        assert_eq!(answer.outcome.unwrap_err().error, letter.error);
    }
    let depth = stack.broker.depth(&stack.partition).await.unwrap();
    assert_eq!((depth.lanes, depth.dead), (Default::default(), bad.len() as u64));
}

/// Guards against one parked job that cannot be read keeping back all that are due: its script failed,
/// and the next found the same job first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_job_that_cannot_be_read_becomes_a_dead_letter_and_the_others_go_on() {
    let stack = Stack::start(instant()).await;
    let keys = Keys::new("ms");
    let (parked, jobs) = (keys.parked(&stack.partition), keys.parked_jobs(&stack.partition));
    let park = |id: &str, stored: Option<&str>| {
        if let Some(stored) = stored {
            stack.server.command(&["HSET", &jobs, id, stored]);
        }
        stack.server.command(&["ZADD", &parked, "1", id]);
    };
    // One waits for its second attempt, and has a record that says so.
    let patient = worker::Options {
        retry: Schedule { initial: Duration::from_hours(1), ..Schedule::default() },
        ..worker::Options::default()
    };
    let (stop, working) = stack.worker(patient);
    let retried = stack.ask("m?fault=status:503", "retried").await;
    soon(async {
        while stack.broker.depth(&stack.partition).await.unwrap().parked == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    stop.cancel();
    working.await.unwrap();
    let plain = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let (ids, newer) = ([(); 4].map(|()| JobId::new()), JobId::new());
    park(&retried.to_string(), Some("torn"));
    park(&ids[0].to_string(), Some("torn"));
    park(&ids[1].to_string(), Some(plain));
    park(&ids[2].to_string(), Some("normal 1 soon {}"));
    park(&ids[3].to_string(), None);
    // One that is cancelled goes, as every other does.
    let later =
        Job { not_before: Some(Timestamp::now().after(Duration::from_hours(1))), ..ask_job() };
    let unwanted = stack.producer().enqueue(later).await.unwrap().id;
    stack.server.command(&["HSET", &jobs, &unwanted.to_string(), "torn"]);
    let cancelled = Admin::new(stack.broker.clone()).cancel(unwanted).await.unwrap();
    assert_eq!(cancelled, Cancelled::Cancelled);
    assert_eq!(stack.server.command(&["HEXISTS", &jobs, &unwanted.to_string()]), "0");
    // A lane of a newer version is no reason to lose the job.
    park(&newer.to_string(), Some(&format!("urgent 1763640000123 0 {plain}")));
    let good =
        Job { not_before: Some(Timestamp::now().after(Duration::from_millis(50))), ..ask_job() };
    let good = stack.producer().enqueue(good).await.unwrap().id;

    let (_stop, _working) = stack.worker(worker::Options::default());
    let ended = async |id: JobId| loop {
        let record = stack.broker.job(id).await.unwrap();
        match record.filter(|record| record.state.is_terminal() && record.attempt < 2) {
            Some(record) => return record,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    for id in [newer, good] {
        assert_eq!(soon(ended(id)).await.state, State::Done);
    }
    for id in ids.into_iter().chain([retried]) {
        let record = soon(ended(id)).await;
        assert_eq!(record.state, State::Failed);
        assert_eq!(record.error.unwrap().code.as_str(), "invalid_job");
    }
    soon(async {
        while stack.broker.depth(&stack.partition).await.unwrap().dead < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let letters = stack.broker.dead_letters(&stack.partition, None, 9).await.unwrap();
    let kept = |id: JobId, bytes: &str| {
        let letter = letters.iter().find(|letter| letter.id == id).unwrap();
        let field = (b"parked".to_vec(), bytes.as_bytes().to_vec());
        assert!(letter.fields.contains(&field) && letter.error.message.contains("parked job"));
    };
    // Nobody knows how often those were tried; of the other its record tells.
    for (id, tried) in [(ids[0], 0), (retried, 1)] {
        let answer = stack.listener().listen(id).answer().await.unwrap();
        assert_eq!(answer.outcome.unwrap_err().attempts, tried);
    }
    kept(ids[0], "torn");
    kept(ids[1], plain);
    kept(retried, "torn");
    assert_eq!(stack.server.command(&["EXISTS", &parked, &jobs]), "0");
}

fn ask_job() -> Job {
    Job::new(ChatRequest::ask("m", "good"))
}
