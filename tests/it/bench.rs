//! The benchmarks run, small: what they return is looked at, not how fast it was.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    program::{Folder, MILLSTREAM, Ran, Running, run},
    redis::Server,
};

/// Leases that run out soon.
const QUICK: [&str; 6] =
    ["--set", "worker.lease=1s", "--set", "worker.renewal=300ms", "--set", "worker.sweep=200ms"];

async fn bench(args: &[&str], env: &[(&str, &str)]) -> Ran {
    let own = |text: &&str| (*text).to_owned();
    let args: Vec<String> = ["bench"].iter().chain(args).map(own).collect();
    let env: Vec<(String, String)> = env.iter().map(|(k, v)| (own(k), own(v))).collect();
    let run = move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        run(MILLSTREAM, &args, &env)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The figures of a report in JSON, once its shape is checked.
fn figures<'a>(report: &'a Value, scenario: &str, count: u64) -> &'a [Value] {
    assert_eq!(report["scenario"], scenario);
    assert!(report["machine"]["redis"].as_str().unwrap().contains(' '), "{report}");
    for claim in report["claims"].as_array().unwrap() {
        assert_eq!((&claim["held"], &claim["of"]), (&count.into(), &count.into()), "{report}");
    }
    let figures = report["figures"].as_array().unwrap();
    for figure in figures {
        // What only explains the others has as many samples as there was time for.
        let explains = figure["budgets"].as_array().unwrap().is_empty();
        let samples = figure["count"].as_u64().unwrap();
        assert!(if explains { samples > 0 } else { samples == count }, "{figure}");
        let marks = ["min", "p50", "p90", "p95", "p99", "max"];
        let marks = marks.map(|mark| figure[mark].as_f64().unwrap());
        assert!(marks.is_sorted() && marks[5] > 0.0, "{figure}");
        let bins = figure["histogram"].as_array().unwrap().iter();
        assert_eq!(
            bins.map(|bin| bin["count"].as_u64().unwrap()).sum::<u64>(),
            samples,
            "{figure}"
        );
    }
    figures
}

/// No key is left, and no process is connected any more.
async fn left_alone(server: &Server) {
    assert_eq!(server.command(&["DBSIZE"]), "0", "{}", server.command(&["KEYS", "*"]));
    while server.command(&["CLIENT", "LIST"]).lines().count() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn promotion_is_measured_beside_others_keys_and_leaves_none() {
    let server = Server::start().await;
    for key in ["ms:{q:default:0}:normal", "ms-bench-", "ms-bench-other:schema"] {
        server.command(&["SET", key, "another's"]);
    }
    let args = ["promotion", "--jobs", "50", "--over", "1s", "--json"];
    let ran = bench(&args, &[("REDIS_URL", &server.url())]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let [figure, _timers] = figures(&report, "promotion", 50) else { panic!("{report}") };
    assert_eq!(figure["budgets"][0]["limit"], 50.0, "{figure}");
    assert_eq!(server.command(&["DBSIZE"]), "3", "{}", server.command(&["KEYS", "*"]));
    assert_eq!(server.command(&["GET", "ms-bench-other:schema"]), "another's");
}

#[tokio::test]
async fn recovery_is_measured_on_a_server_of_its_own_that_is_gone_afterwards() {
    let folder = Folder::new();
    let tmp = folder.path().display().to_string();
    let ran =
        bench(&[&["recovery", "--kills", "2"], &QUICK[..]].concat(), &[("TMPDIR", &tmp)]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("private redis-server"), "{ran:?}");
    for words in [
        "recovery: 2 worker processes killed by SIGKILL in mid-answer",
        "FIGURE",
        "p50 at most 6 s",
        "max at most 9 s",
        "answers whole in spite of the kill: 2 of 2, met",
        "cores, ",
        "model: simulator",
    ] {
        assert!(ran.out.contains(words), "`{words}` is missing: {ran:?}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn recovery_as_json_counts_its_kills_and_ends_its_workers() {
    let server = Server::start().await;
    let args = [&["recovery", "--kills", "1", "--output", "json"], &QUICK[..]].concat();
    let ran = bench(&args, &[("REDIS_URL", &server.url())]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(figures(&report, "recovery", 1).len(), 1);
    left_alone(&server).await;
}

#[tokio::test]
async fn the_first_token_is_measured_directly_and_through_the_gateway() {
    let server = Server::start().await;
    let args = ["ttft", "--pairs", "5", "--json"];
    let ran = bench(&args, &[("REDIS_URL", &server.url())]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let [added, direct, queued, _timers] = figures(&report, "ttft", 5) else { panic!("{report}") };
    let limits = [0, 1].map(|at| added["budgets"][at]["limit"].clone());
    assert_eq!(limits, [1.5, 6.0], "{added}");
    assert_eq!([direct, queued].map(|figure| figure["count"].as_u64()), [Some(5); 2], "{report}");
    left_alone(&server).await;
}

#[tokio::test]
async fn cancel_is_measured_at_the_model_and_at_the_reader() {
    let server = Server::start().await;
    let args = ["cancel", "--jobs", "8", "--at-once", "4", "--json"];
    let ran = bench(&args, &[("REDIS_URL", &server.url())]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let [dropped, told, _timers] = figures(&report, "cancel", 8) else { panic!("{report}") };
    for figure in [dropped, told] {
        assert_eq!(figure["budgets"][0]["limit"], 250.0, "{figure}");
    }
    left_alone(&server).await;
}

#[tokio::test]
async fn an_interrupted_benchmark_cleans_up_too() {
    let server = Server::start().await;
    let url = server.url();
    let mut running = Running::start(MILLSTREAM, &["bench", "recovery"], &[("REDIS_URL", &url)]);
    running.wait_for("broker: ");
    while server.command(&["CLIENT", "LIST"]).matches("cmd=xreadgroup").count() < 12 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.signal("INT");
    let (code, said) = tokio::task::spawn_blocking(|| running.end()).await.unwrap();
    assert_eq!(code, Some(130), "{said}");
    left_alone(&server).await;
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let server = Server::start().await;
    let args = ["recovery", "--kills", "1", "--worker-bin", "/nonexistent/worker"];
    let ran = bench(&args, &[("REDIS_URL", &server.url())]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("/nonexistent/worker") && ran.err.contains("--worker-bin"), "{ran:?}");
    assert_eq!(server.command(&["DBSIZE"]), "0");
    let ran = bench(&["recovery", "--kills", "1", "--worker-bin", "/bin/false"], &[]).await;
    assert!(ran.err.contains("ended by itself"), "{ran:?}");
    let ran = bench(&["promotion"], &[("PATH", "/nonexistent")]).await;
    assert!(ran.err.contains("redis-server") && ran.err.contains("REDIS_URL"), "{ran:?}");
}
