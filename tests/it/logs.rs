//! What the programs say on standard error: in one format, and as much as is asked for.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    program::{GATEWAY, MILLSTREAM, PRODUCER, Ran, Running, WORKER, run},
    redis::Server,
    subject::soon,
};

const JSON: (&str, &str) = ("MILLSTREAM_LOG__FORMAT", "json");
const NOWHERE: (&str, &str) = ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1");

/// Every line as JSON; the last one tells of the error.
fn last(ran: &Ran) -> Value {
    let lines: Vec<Value> = ran
        .err
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let last = lines.last().unwrap_or_else(|| panic!("{ran:?}")).clone();
    assert_eq!(last["level"], "ERROR", "{ran:?}");
    last
}

/// Guards against a log of JSON lines whose last line is not one: that which says why the program ended.
#[test]
fn a_json_log_is_json_to_its_last_line() {
    for (program, args, env, code, words) in [
        (PRODUCER, &["--nonsense"][..], vec![JSON], 2, "--nonsense"),
        (WORKER, &["--set", "worker.block=soon"], vec![JSON], 2, "worker.block"),
        (GATEWAY, &["--set", "log.format=json"], vec![], 3, "no Redis is configured"),
        (GATEWAY, &[], vec![JSON, ("REDIS_URL", "nowhere")], 3, "redis.url"),
        (
            MILLSTREAM,
            &["queues"],
            vec![JSON, ("REDIS_URL", "redis://127.0.0.1:1")],
            4,
            "127.0.0.1:1",
        ),
        (MILLSTREAM, &["config", "check"], vec![JSON, ("MILLSTREAM_X", "1")], 3, "MILLSTREAM_X"),
    ] {
        let ran = run(program, args, &env);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        let told = last(&ran);
        assert!(told["fields"]["message"].as_str().unwrap().contains(words), "{words}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_log_is_json_when_a_program_stops_and_when_it_warns() {
    let server = Server::start().await;
    let url = server.url();
    for (program, begins) in [(WORKER, "serving"), (GATEWAY, "gateway listens")] {
        let mut running = Running::start(program, &[], &[("REDIS_URL", &url), JSON, NOWHERE]);
        running.wait_for(begins);
        running.signal("TERM");
        let (code, said) = running.end();
        assert_eq!(code, Some(0), "{said}");
        for line in said.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        }
        assert!(said.lines().last().unwrap().contains("stopped"), "{said}");
    }
    let line = ["--model", "m", "--user", "hi"];
    let ran = run(PRODUCER, &line, &[("REDIS_URL", &url), JSON]);
    let warning: Value = serde_json::from_str(ran.err.trim()).unwrap();
    assert_eq!(warning["level"], "WARN", "{ran:?}");
}

/// Guards against flags and a variable that every other program knows, and these did not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_says_as_much_as_it_is_asked_to() {
    let server = Server::start().await;
    let url = server.url();
    let redis = ("REDIS_URL", url.as_str());
    let line = ["--model", "m", "--user", "hi"];
    for (program, args) in [(PRODUCER, &line[..]), (MILLSTREAM, &["queues"])] {
        let debug = |flags: &[&str], env: &[(&str, &str)]| {
            let ran = run(program, &[args, flags].concat(), &[&[redis], env].concat());
            assert_eq!(ran.code, Some(0), "{ran:?}");
            (ran.err.contains("DEBUG"), ran.err)
        };
        assert!(!debug(&[], &[]).0);
        assert!(debug(&["-vv"], &[]).0);
        assert!(debug(&[], &[("RUST_LOG", "debug")]).0);
        assert!(!debug(&["-q"], &[("RUST_LOG", "debug")]).0);
        assert_eq!(debug(&["--quiet"], &[]).1, "");
        let both = run(program, &[args, &["-v", "-q"]].concat(), &[redis]);
        assert_eq!(both.code, Some(2), "{both:?}");
    }
    for (program, begins) in [(WORKER, "flags=b"), (GATEWAY, "cmd=subscribe")] {
        let running = Running::start(program, &["-q"], &[redis, NOWHERE]);
        soon(async {
            while !server.command(&["CLIENT", "LIST"]).contains(begins) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        running.signal("TERM");
        assert_eq!(running.end(), (Some(0), String::new()), "{program}");
        let mut running = Running::start(program, &["-v"], &[redis, NOWHERE]);
        running.wait_for(if program == WORKER { "serving" } else { "gateway listens" });
        running.signal("TERM");
        assert_eq!(running.end().0, Some(0), "{program}");
    }
    // What goes wrong is said.
    let ran = run(MILLSTREAM, &["queues", "-q"], &[("REDIS_URL", "redis://127.0.0.1:1")]);
    assert!(ran.code == Some(4) && ran.err.starts_with("error: "), "{ran:?}");
}
