//! Values that only the programs bring to their effect.

use std::process::Stdio;

use millstream::{error::Code, upstream::openai::Options};
use serde_json::Value;

use super::{clients::said, until};
use crate::support::{
    program::{Folder, MILLSTREAM, Running, WORKER, command, run},
    redis::Server,
    stack::oracle,
};

/// A place where no model is: none is asked in these tests.
const NOWHERE: (&str, &str) = ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1");

#[tokio::test]
async fn without_auto_migrate_the_operator_migrates() {
    let server = Server::start().await;
    let url = server.url();
    let env = [("REDIS_URL", url.as_str()), ("MILLSTREAM_REDIS__AUTO_MIGRATE", "false"), NOWHERE];
    let refused = run(WORKER, &[], &env);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.err.contains("`millstream migrate up`"), "{refused:?}");
    assert_eq!(server.command(&["DBSIZE"]), "0", "nothing is written without being asked for");
    let migrated = run(MILLSTREAM, &["migrate", "up"], &env);
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
    let mut worker = Running::start(WORKER, &[], &env);
    worker.wait_for("serving");
    worker.signal("TERM");
    assert_eq!(worker.end().0, Some(0));
}

#[tokio::test]
async fn the_log_has_the_format_and_the_filter_that_are_configured() {
    let server = Server::start().await;
    let url = server.url();
    let start = |format, filter| {
        let env = [
            ("REDIS_URL", url.as_str()),
            ("MILLSTREAM_LOG__FORMAT", format),
            ("MILLSTREAM_LOG__FILTER", filter),
            NOWHERE,
        ];
        Running::start(WORKER, &[], &env)
    };
    // Empty means `info`.
    let mut worker = start("json", "");
    let line: Value = serde_json::from_str(&worker.wait_for("serving")).unwrap();
    assert_eq!((&line["level"], &line["fields"]["message"]), (&"INFO".into(), &"serving".into()));
    worker.signal("TERM");
    worker.end();
    let mut worker = start("text", "millstream::worker=info,warn");
    let line = worker.wait_for("serving");
    assert!(line.contains("INFO") && serde_json::from_str::<Value>(&line).is_err(), "{line}");
    worker.signal("TERM");
    let (_, said) = worker.end();
    assert!(!said.contains("worker starts"), "another module's line: {said}");
    let worker = start("text", "error");
    until("a blocking read", || server.command(&["CLIENT", "LIST"]).contains("flags=b")).await;
    worker.signal("TERM");
    let (code, said) = worker.end();
    assert!(code == Some(0) && said.contains("worker stopped"), "{said}");
    assert!(!said.contains("serving"), "{said}");
}

#[tokio::test]
async fn a_simulator_answers_as_its_options_say() {
    let flags = ["--listen", "127.0.0.2:0", "--ttft", "0ms", "--rate", "0", "--tokens", "5"];
    let more = ["--vary", "--fault", "status:503*1", "--api-key", "right"];
    let mut simulator =
        Running::start(MILLSTREAM, &[&["simulate"], &flags[..], &more].concat(), &[]);
    let line = simulator.wait_for("OPENAI_BASE_URL=");
    let (_, url) = line.split_once("OPENAI_BASE_URL=").unwrap();
    let base_url = url.split_whitespace().next().unwrap();
    assert!(base_url.starts_with("http://127.0.0.2:"), "{base_url}");
    let ask = async |key: &str| {
        let options = Options {
            base_url: base_url.to_owned(),
            api_key: key.to_owned(),
            ..Options::default()
        };
        said(options, "m", "what?").await
    };
    assert_eq!(ask("left").await.unwrap_err().code, Code::UpstreamAuth);
    assert_eq!(ask("right").await.unwrap_err().status, Some(503), "the first time");
    let texts = [ask("right").await.unwrap(), ask("right").await.unwrap()];
    assert!(texts.iter().all(|text| text.split(' ').count() == 5), "{texts:?}");
    assert_ne!(texts[0], texts[1]);
    let request = r#"{"model":"m","messages":[{"role":"user","content":"what?"}]}"#.to_owned();
    let plain = oracle(&[request], &["--tokens", "5"]).remove(0);
    assert!(!texts.contains(&plain), "{texts:?} with vary, {plain} without");
    simulator.signal("TERM");
    assert_eq!(simulator.end().0, Some(0));
}

#[test]
fn the_embedded_broker_has_the_bounds_that_are_configured() {
    let folder = Folder::new();
    let question = folder.write("question", format!("{}\n", "x".repeat(1_200_000)));
    let env = [
        ("MILLSTREAM_EMBEDDED__MAX_BYTES", "1048576"),
        ("MILLSTREAM_PRODUCER__MAX_PAYLOAD", "4000000"),
    ];
    let mut dev = command(MILLSTREAM, &["dev"], &env, folder.path());
    dev.stdin(std::fs::File::open(question).unwrap()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut dev = Running::spawn(dev, folder);
    let refusal = dev.wait_for("queue full");
    assert!(refusal.contains("max_bytes is 1048576"), "{refusal}");
}
