//! Many prompts in a file: what is told of them, and how a run that ended early goes on.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use serde_json::Value;

use crate::{
    programs::{Site, objects, request},
    support::{
        program::{Folder, MILLSTREAM, PRODUCER, Ran, command},
        stack::{expected, instant},
        subject::soon,
    },
};

const LANE: &str = "ms:{q:default:0}:normal";

fn lines(count: usize) -> String {
    (0..count).map(|n| request("m?tokens=3", &format!("pile {n}")) + "\n").collect()
}

fn field(site: &Site, job: &Value, name: &str) -> String {
    let key = format!("ms:{{job:{}}}", job["id"].as_str().unwrap());
    site.server.command(&["HGET", &key, name])
}

/// Runs the producer until the lane has so many entries, then interrupts it.
async fn interrupted(site: &Site, args: &[&str], entries: usize) -> Ran {
    let (env, folder) = (site.env(), Folder::new());
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut producer = command(PRODUCER, args, &env, folder.path());
    let child = producer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    soon(async {
        while site.server.command(&["XLEN", LANE]) != entries.to_string() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let pid = child.id().to_string();
    assert!(
        std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success()
    );
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Guards against answers that are paid for and whose IDs nobody was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_wait_names_every_job_that_is_not_over() {
    let site = Site::new(instant()).await;
    let folder = Folder::new();
    let file = folder.write("pile.jsonl", lines(3));
    let ran = interrupted(&site, &["--file", &file, "--wait"], 3).await;
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.err.contains("`millstream jobs wait --file -`"), "{ran:?}");
    let told = objects(&ran.out);
    let numbers: Vec<u64> = told.iter().map(|job| job["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3]);
    for job in &told {
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&"waiting".into(), &"interrupted".into())
        );
    }
    let worker = site.worker(&[]);
    let args = ["jobs", "wait", "--file", "-", "--output", "json"];
    let waited = objects(&site.run(MILLSTREAM, &args, ran.out.as_bytes()).await.out);
    let texts: BTreeSet<&str> = waited.iter().map(|job| job["text"].as_str().unwrap()).collect();
    let expected: Vec<String> =
        (0..3).map(|n| expected("m?tokens=3", &format!("pile {n}"))).collect();
    assert_eq!(texts, expected.iter().map(String::as_str).collect());

    // Under a prefix the same command gives them all, and nobody needs a list.
    let args = ["--file", &file, "--wait", "--idempotency-prefix", "p"];
    drop(worker);
    site.server.command(&["FLUSHALL"]);
    let ran = interrupted(&site, &args, 3).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(130), ""), "{ran:?}");
    assert!(ran.err.contains("--idempotency-prefix p"), "{ran:?}");
}

/// Guards against a dry run that ends at the first bad line, and against keys that clash only later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_checks_every_line_and_reports_all() {
    let site = Site::new(instant()).await;
    let named = |id: &str, text: &str| {
        format!(r#"{{"custom_id":"{id}","request":{}}}"#, request("m", text))
    };
    let input = [
        named("a", "one"),
        "{".to_owned(),
        named("a", "one"),
        named("a", "two"),
        r#"{"model":"m"}"#.to_owned(),
        named("b", "three"),
    ]
    .join("\n");
    let args = ["--file", "-", "--dry-run", "--idempotency-prefix", "p", "--output", "json"];
    let ran = site.run(PRODUCER, &args, input.as_bytes()).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let valid: Vec<u64> =
        objects(&ran.out).iter().map(|job| job["line"].as_u64().unwrap()).collect();
    assert_eq!(valid, [1, 3, 6]);
    for words in ["line 2: not JSON", "line 4: line 1 has the idempotency key `p:a`", "line 5: "] {
        assert!(ran.err.contains(words), "{words}: {ran:?}");
    }
    assert!(ran.err.contains("3 jobs valid, 3 lines refused"), "{ran:?}");
    assert_eq!(site.server.command(&["EXISTS", LANE]), "0");
}

/// Guards against "go on at line 2", which no command did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_that_is_named_goes_on_where_a_run_stopped() {
    let site = Site::new(instant()).await;
    let good = lines(4);
    let mut bad: Vec<&str> = good.lines().collect();
    bad[1] = "{";
    let ran = site.run(PRODUCER, &["--file", "-"], bad.join("\n").as_bytes()).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("the same command with --lines 2- goes on"), "{ran:?}");
    let args = ["--file", "-", "--lines", "2-", "--output", "json"];
    let ran = site.run(PRODUCER, &args, good.as_bytes()).await;
    let lines: Vec<u64> =
        objects(&ran.out).iter().map(|job| job["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 3, 4]);
    assert_eq!(site.server.command(&["XLEN", LANE]), "4");
}

/// Guards against results without labels, model and times, which `--help` promises.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_result_echoes_labels_and_tells_model_and_times() {
    let site = Site::new(instant()).await;
    let _worker = site.worker(&[]);
    let line = |model: &str| {
        let request = request(model, "told");
        format!(r#"{{"request":{request},"custom_id":"c","labels":{{"chat":"7"}}}}"#)
    };
    let input = [line("m?tokens=3"), line("m?fault=status:400")].join("\n");
    let args = ["--file", "-", "--label", "user=u", "--output", "json"];
    let enqueued = objects(&site.run(PRODUCER, &args, input.as_bytes()).await.out);
    let labels = serde_json::json!({"chat": "7", "user": "u"});
    assert!(enqueued.iter().all(|job| job["labels"] == labels), "{enqueued:?}");
    let ran = site.run(PRODUCER, &[&args[..], &["--wait"]].concat(), input.as_bytes()).await;
    let mut ended = objects(&ran.out);
    ended.sort_by_key(|job| job["line"].as_u64());
    let of =
        |job: &Value, name: &str| job[name].as_u64().unwrap_or_else(|| panic!("{name}: {job}"));
    for job in &ended {
        assert_eq!((&job["labels"], &job["custom_id"]), (&labels, &"c".into()), "{job}");
        assert!(job["model"].as_str().unwrap().starts_with("m?"), "{job}");
        let (began, ended) = (of(job, "began_at"), of(job, "ended_at"));
        assert!(of(job, "enqueued_at") <= began + 1 && began <= ended, "{job}");
    }
    assert_eq!((&ended[0]["state"], &ended[1]["state"]), (&"done".into(), &"failed".into()));
    assert!(of(&ended[0], "ttft_ms") <= of(&ended[0], "run_ms"));
}

/// Guards against a run without a terminal that is silent for hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_terminal_a_line_tells_now_and_then_how_far_it_is() {
    let site = Site::new(instant()).await;
    let args = ["--file", "-", "--wait", "--progress-every", "100ms", "--timeout", "700ms"];
    let ran = site.run(PRODUCER, &args, lines(3).as_bytes()).await;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(
        ran.err.lines().filter(|line| *line == "0 of 3 over, 3 waited for").count() > 2,
        "{ran:?}"
    );
    assert!(!ran.err.contains('\r') && !ran.err.contains('\u{1b}'), "{ran:?}");
    // It also says more than once that nobody will answer, and in the end what goes on.
    assert!(ran.err.matches("no live worker serves queue `default`").count() > 1, "{ran:?}");
    assert!(ran.err.contains("error: not over after 0.7 s; 3 jobs enqueued"), "{ran:?}");
    let told = objects(&ran.out);
    assert!(told.iter().all(|job| job["error"]["code"] == "listen_timeout"), "{told:?}");
    assert_eq!(told.len(), 3);

    let args = ["--model", "m", "--user", "u", "--stream", "--progress-every", "100ms"];
    let ran = site.run(PRODUCER, &[&args[..], &["--timeout", "500ms"]].concat(), b"").await;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.err.matches("no live worker serves queue `default`").count() > 1, "{ran:?}");
    assert!(
        ran.err.contains("is not over after 0.5 s; the job goes on, `millstream jobs tail"),
        "{ran:?}"
    );
}

/// Guards against failed jobs of a keyed file that no run of it can bring back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_failed_puts_back_what_failed_and_nothing_else() {
    let site = Site::new(instant()).await;
    let _worker = site.worker(&[]);
    let other =
        site.run(PRODUCER, &["--model", "m?fault=status:400", "--user", "other", "--wait"], b"");
    assert_eq!(other.await.code, Some(6));
    let input = [
        request("m?tokens=3", "good"),
        request("m?tokens=3,fault=status:400*1", "bad"),
        request("m?tokens=3,fault=status:400*1", "purged"),
    ]
    .join("\n");
    let args = ["--file", "-", "--idempotency-prefix", "p", "--wait", "--output", "json"];
    let states = |ran: &Ran| -> Vec<String> {
        let mut jobs = objects(&ran.out);
        jobs.sort_by_key(|job| job["line"].as_u64());
        jobs.iter().map(|job| job["state"].as_str().unwrap().to_owned()).collect()
    };
    let first = site.run(PRODUCER, &args, input.as_bytes()).await;
    assert_eq!(
        (first.code, states(&first)),
        (Some(6), vec!["done".into(), "failed".into(), "failed".into()])
    );
    let again = site.run(PRODUCER, &args, input.as_bytes()).await;
    assert_eq!((again.code, states(&again)), (Some(6), states(&first)), "{again:?}");
    let purged = objects(&first.out).into_iter().find(|job| job["line"] == 3).unwrap();
    let purge = ["dlq", "purge", purged["id"].as_str().unwrap(), "--yes"];
    soon(async { while site.run(MILLSTREAM, &purge, b"").await.code != Some(0) {} }).await;

    let retried =
        site.run(PRODUCER, &[&args[..], &["--retry-failed"]].concat(), input.as_bytes()).await;
    assert_eq!(states(&retried), ["done", "done", "failed"], "{retried:?}");
    assert!(
        retried.err.contains("line 3: job") && retried.err.contains("no dead letter"),
        "{retried:?}"
    );
    assert!(retried.err.contains("1 of these failed before and put back"), "{retried:?}");
    let jobs = objects(&retried.out);
    let run = |line: u64| field(&site, jobs.iter().find(|job| job["line"] == line).unwrap(), "run");
    assert_eq!((run(1).as_str(), run(2).as_str()), ("", "2"));
    assert_eq!(site.server.command(&["XLEN", "ms:{q:default:0}:dead"]), "1", "the other one stays");
}

/// Guards against flags of the request that a file does not take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_system_and_parameters_are_set_for_all_lines() {
    let site = Site::new(instant()).await;
    let bare = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    let input = format!("{bare}\n{{\"request\":{bare}}}\n{{\"body\":{bare}}}\n");
    let args =
        ["--file", "-", "--model", "m", "--system", "be brief", "--param", "temperature=0.20"];
    let ran = site.run(PRODUCER, &args, input.as_bytes()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let entries = site.server.command(&["XRANGE", LANE, "-", "+"]);
    let sent = r#"{"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}],"model":"m","temperature":0.20}"#;
    assert_eq!(entries.matches(sent).count(), 3, "{entries}");
}

/// Guards against a wait that is given up without a word about a job that is only parked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_given_up_tells_where_the_job_stands() {
    let site = Site::new(instant()).await;
    let args = ["--model", "m", "--user", "u", "--at", "2999-01-01T00:00:00Z"];
    let id = site.run(PRODUCER, &args, b"").await.out.trim().to_owned();
    let args = ["jobs", "wait", &id, "--timeout", "100ms"];
    let ran = site.run(MILLSTREAM, &args, b"").await;
    assert_eq!(
        (ran.code, ran.out.trim_end()),
        (Some(6), format!("{id} parked").as_str()),
        "{ran:?}"
    );
    assert!(ran.err.contains("it is parked until 2999-01-01T00:00:00Z"), "{ran:?}");
    assert!(!ran.err.contains("no live worker"), "it waits for its time: {ran:?}");
}

/// Guards against a wait for jobs that nobody will answer, which says nothing for hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_jobs_that_nobody_serves_says_so_again_and_again() {
    let site = Site::new(instant()).await;
    let mut ids = Vec::new();
    for queue in ["default", "other"] {
        let args = ["--model", "m", "--user", "u", "--queue", queue];
        ids.push(site.run(PRODUCER, &args, b"").await.out.trim().to_owned());
    }
    let args = ["jobs", "wait", &ids[0], &ids[1], "--warn-every", "100ms", "--timeout", "800ms"];
    let ran = site.run(MILLSTREAM, &args, b"").await;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    for queue in ["default", "other"] {
        let words = format!("no live worker serves queue `{queue}`");
        assert!(ran.err.matches(&words).count() > 1, "{ran:?}");
    }
    // More often than anybody can read is refused, and not made a busy loop.
    for args in [
        (MILLSTREAM, &["jobs", "wait", &ids[0], "--warn-every", "0s"][..]),
        (PRODUCER, &["--file", "-", "--wait", "--progress-every", "0s"]),
    ] {
        let ran = site.run(args.0, args.1, b"").await;
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains("100ms or longer"), "{ran:?}");
    }
}

/// Guards against a question whose answer is paid for after the one who asked has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ask_takes_its_job_back_when_it_gives_up() {
    let site = Site::new(instant()).await;
    let ran = site.run(MILLSTREAM, &["ask", "hi", "--wait-for-worker", "100ms"], b"").await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let words: Vec<&str> = ran.err.split_whitespace().collect();
    let job = words.windows(2).find(|pair| pair[0] == "job").unwrap()[1];
    assert!(ran.err.contains(&format!("job {job} is cancelled")), "{ran:?}");
    let state = site.server.command(&["HGET", &format!("ms:{{job:{job}}}"), "state"]);
    assert_eq!(state, "cancelled");
}

/// Guards against a wait for jobs that Redis has forgotten, which never ended and said nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_jobs_that_redis_has_forgotten_ends_with_a_word_of_its_own() {
    let mut site = Site::new(instant()).await;
    let (env, folder) = (site.env(), Folder::new());
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let file = folder.write("pile.jsonl", lines(3));
    let set = "listener.forgotten_after=200ms";
    let args = ["--file", &file, "--wait", "--output", "json", "--set", set];
    let mut producer = command(PRODUCER, &args, &env, folder.path());
    let child = producer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    soon(async {
        while site.server.command(&["PUBSUB", "CHANNELS", "ms:{job:*"]).lines().count() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // It keeps nothing on disk.
    site.server.stop();
    site.server.restart().await;
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(20), "{err}");
    let ended = objects(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(ended.len(), 3);
    for job in &ended {
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&"forgotten".into(), &"job_forgotten".into())
        );
    }
    assert!(err.contains("3 of these forgotten by Redis"), "{err}");
}

/// Guards against a file that is run again after its answers have expired, and pays for everything once more
/// without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_run_again_after_its_answers_have_expired_pays_for_nothing() {
    let site = Site::new(instant()).await;
    let _worker = site.worker(&[]);
    let args = ["--file", "-", "--idempotency-prefix", "p", "--wait", "--output", "json"];
    let first = objects(&site.run(PRODUCER, &args, lines(2).as_bytes()).await.out);
    for job in &first {
        let key = format!("ms:{{job:{}}}", job["id"].as_str().unwrap());
        let ttl =
            |key: &str| site.server.command(&["PTTL", key]).parse::<u64>().unwrap() / 3_600_000;
        assert_eq!((ttl(&key), ttl(&format!("{key}:log"))), (7 * 24 - 1, 23), "hours");
        site.server.command(&["DEL", &format!("{key}:log")]);
    }
    let again = site.run(PRODUCER, &args, lines(2).as_bytes()).await;
    assert_eq!(again.code, Some(6), "{again:?}");
    for job in &objects(&again.out) {
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&"done".into(), &"events_expired".into())
        );
    }
    let told =
        "2 of them there already, 2 over, 2 of these with answers that are not kept any more";
    assert!(again.err.contains(told), "{again:?}");
    let began = |job: &Value| field(&site, job, "attempt");
    assert!(first.iter().all(|job| began(job) == "1"));
    // Each way to ask for such an answer ends with the same code; the record is still shown.
    let id = first[0]["id"].as_str().unwrap();
    for what in ["tail", "wait"] {
        let ran = site.run(MILLSTREAM, &["jobs", what, id], b"").await;
        assert_eq!(ran.code, Some(6), "{what}: {ran:?}");
        assert!(ran.err.contains("expired") || ran.err.contains("not kept any more"), "{ran:?}");
    }
    let shown = site.run(MILLSTREAM, &["jobs", "show", id], b"").await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.err.contains("is not kept any more"), "{shown:?}");
}
