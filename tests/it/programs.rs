//! The programs as separate processes, against a private Redis and the simulator.

use std::{
    collections::{BTreeSet, HashMap},
    process::{Command, Stdio},
    time::Duration,
};

use millstream::{
    job::{ChatRequest, JobId},
    simulator,
};
use serde_json::Value;

use crate::support::{
    program::{
        Folder, GATEWAY, MILLSTREAM, PRODUCER, Ran, Running, WORKER, command, run, run_with,
    },
    redis::Server,
    stack::{expected, instant, oracle, paced, simulate},
    subject::soon,
};

/// Redis and simulator, and the environment that leads there.
pub struct Site {
    pub server: Server,
    base_url: String,
    _simulator: tokio_util::sync::DropGuard,
}

impl Site {
    pub async fn new(simulator: simulator::Options) -> Self {
        let (base_url, guard) = simulate(simulator).await;
        Self { server: Server::start().await, base_url, _simulator: guard }
    }

    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("REDIS_URL", self.server.url()),
            ("OPENAI_BASE_URL", self.base_url.clone()),
            ("OPENAI_API_KEY", "any".to_owned()),
        ]
    }

    pub fn worker(&self, args: &[&str]) -> Running {
        let env = self.env();
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Running::start(WORKER, args, &env)
    }

    /// Runs a program to its end, off the runtime that the simulator lives on.
    pub async fn run(&self, program: &'static str, args: &[&str], input: &[u8]) -> Ran {
        let env = self.env();
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let input = input.to_vec();
        let run = move || {
            let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            run_with(program, &args, &env, &input)
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }
}

/// Waits until so many workers wait for jobs.
pub async fn serve(site: &Site, workers: usize) {
    soon(async {
        loop {
            let clients = site.server.command(&["CLIENT", "LIST"]);
            if clients.lines().filter(|client| client.contains(" flags=b ")).count() == workers {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub fn request(model: &str, question: &str) -> String {
    serde_json::to_string(&ChatRequest::ask(model, question)).unwrap()
}

pub fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn ask_answers_with_nothing_installed_and_says_that_it_is_simulated() {
    let question = "Why is the sky blue?";
    let ran = run(MILLSTREAM, &["ask", question, "--model", "m?ttft=0,rate=0"], &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.out.trim_end(), expected("m?ttft=0,rate=0", question));
    assert!(ran.err.contains("simulat"), "{ran:?}");
}

#[tokio::test]
async fn ask_on_redis_says_when_no_worker_takes_the_job() {
    let server = Server::start().await;
    let url = server.url();
    let ran = run(MILLSTREAM, &["ask", "hi", "--wait-for-worker", "200ms"], &[("REDIS_URL", &url)]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.err.contains("worker"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_by_two_workers_under_a_procfile_runner() {
    let site = Site::new(instant()).await;
    let folder = Folder::new();
    // The repository's own Procfile, and the programs that were built for this test.
    let mut procfile = include_str!("../../Procfile").to_owned();
    for (name, program) in
        [("worker:", WORKER.to_owned()), ("web:", format!("{GATEWAY} --listen 127.0.0.1:0"))]
    {
        let line = procfile.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        procfile = procfile.replace(&line, &format!("{name} exec {program}"));
    }
    folder.write("Procfile", procfile);
    let env = site.env();
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut honcho = command("honcho", &["start", "-c", "worker=2"], &env, folder.path());
    honcho.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut runner = Running::spawn(honcho, folder);
    serve(&site, 2).await;

    let lines: Vec<String> =
        (0..1000).map(|n| request("m?tokens=12", &format!("question {n} of many"))).collect();
    let input = lines.join("\n");
    let ran =
        site.run(PRODUCER, &["--file", "-", "--wait", "--output", "json"], input.as_bytes()).await;
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let expected = oracle(&lines, &[]);
    let results = objects(&ran.out);
    assert_eq!(results.len(), 1000);
    let mut seen = BTreeSet::new();
    for result in &results {
        let line = usize::try_from(result["line"].as_u64().unwrap()).unwrap();
        assert_eq!(result["state"], "done", "{result}");
        assert_eq!(result["text"], expected[line - 1], "line {line}");
        assert_eq!((&result["finish_reason"], &result["attempts"]), (&"stop".into(), &1.into()));
        assert!(result["usage"]["completion_tokens"] == 12 && result["error"].is_null());
        assert!(seen.insert(line), "line {line} twice");
    }

    // Both had a share.
    let mut shares: HashMap<String, u32> = HashMap::new();
    for result in &results {
        let key = format!("ms:{{job:{}}}", result["id"].as_str().unwrap());
        *shares.entry(site.server.command(&["HGET", &key, "worker"])).or_default() += 1;
    }
    assert!(shares.len() == 2 && shares.values().all(|jobs| *jobs >= 100), "{shares:?}");

    runner.signal("TERM");
    let status = runner.child.wait().unwrap();
    drop(runner);
    // honcho ends by the signal that it was given, once its children have ended.
    assert!(matches!(status.code(), Some(0 | 143)) || status.code().is_none(), "{status:?}");
    let pending = site.server.command(&["XPENDING", "ms:{q:default:0}:normal", "workers"]);
    assert!(pending.starts_with('0'), "{pending}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_wait_show_and_tail_tell_the_same() {
    let site = Site::new(paced(200.0)).await;
    let _worker = site.worker(&[]);
    let args = ["--model", "m?tokens=40", "--user", "stream me", "--custom-id", "c7"];
    let text = expected("m?tokens=40", "stream me");
    let ran = site.run(PRODUCER, &[&args[..], &["--stream"]].concat(), b"").await;
    assert_eq!((ran.code, ran.out.trim_end()), (Some(0), text.as_str()), "{ran:?}");

    let ran = site.run(PRODUCER, &[&args[..], &["--wait", "--output", "json"]].concat(), b"").await;
    let result = &objects(&ran.out)[0];
    assert_eq!(result["text"], text);
    assert_eq!((&result["custom_id"], &result["line"]), (&"c7".into(), &1.into()), "{result}");
    let id = result["id"].as_str().unwrap();

    let shown = site.run(MILLSTREAM, &["jobs", "show", id, "--output", "json"], b"").await;
    let shown = &objects(&shown.out)[0];
    assert_eq!((&shown["state"], &shown["custom_id"]), (&"done".into(), &"c7".into()), "{shown}");

    let tail = site.run(MILLSTREAM, &["jobs", "tail", id, "--output", "json"], b"").await;
    let events = objects(&tail.out);
    assert_eq!(events.first().unwrap()["event"], "started");
    assert_eq!(events.last().unwrap()["event"], "done");
    let third = events[2]["id"].as_str().unwrap();
    let args = ["jobs", "tail", id, "--after", third, "--output", "json"];
    let rest = site.run(MILLSTREAM, &args, b"").await;
    assert_eq!(objects(&rest.out), events[3..]);

    let waited = site.run(MILLSTREAM, &["jobs", "wait", id, "--output", "json"], b"").await;
    assert_eq!(objects(&waited.out)[0]["text"], text);
    let folder = Folder::new();
    let file = folder.write("ids", format!("{id}\n{id}\n"));
    let args = ["jobs", "wait", "--file", &file, "--output", "json"];
    let waited = site.run(MILLSTREAM, &args, b"").await;
    assert!(objects(&waited.out).iter().all(|answer| answer["text"] == text));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_file_runs_again_without_duplicates() {
    let site = Site::new(instant()).await;
    let lines: Vec<String> = (0..300)
        .map(|n| {
            let custom = if n % 2 == 0 { format!(r#","custom_id":"c{n}""#) } else { String::new() };
            format!(r#"{{"request":{}{custom}}}"#, request("m", &format!("again {n}")))
        })
        .collect();
    let args = ["--file", "-", "--idempotency-prefix", "import", "--output", "json"];
    let half = lines[..170].join("\n");
    let first = objects(&site.run(PRODUCER, &args, half.as_bytes()).await.out);
    let second = objects(&site.run(PRODUCER, &args, lines.join("\n").as_bytes()).await.out);
    let ids = |results: &[Value]| -> Vec<String> {
        let mut results = results.to_vec();
        results.sort_by_key(|result| result["line"].as_u64());
        results.iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&first)[..], ids(&second)[..170]);
    assert_eq!(site.server.command(&["XLEN", "ms:{q:default:0}:normal"]), "300");
    assert!(second.iter().all(|result| result["state"] == "waiting"), "{:?}", second.first());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_waits_for_redis_and_says_so() {
    let mut site = Site::new(instant()).await;
    site.server.stop();
    let mut worker = site.worker(&[]);
    worker.wait_for("waiting for Redis");
    site.server.restart().await;
    let env = [("REDIS_URL", site.server.url())];
    let args = ["--model", "m", "--user", "late", "--wait"];
    let ran = site.run(PRODUCER, &args, b"").await;
    assert_eq!(
        (ran.code, ran.out.trim_end()),
        (Some(0), expected("m", "late").as_str()),
        "{env:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_worker_finishes_what_it_runs_and_claims_no_more() {
    let site = Site::new(paced(50.0)).await;
    let worker = site.worker(&["--concurrency", "1"]);
    let enqueue = ["--model", "m?tokens=50", "--user", "drain", "--output", "json"];
    let first = site.run(PRODUCER, &enqueue, b"").await;
    let id = objects(&first.out)[0]["id"].as_str().unwrap().to_owned();
    let key = format!("ms:{{job:{id}}}");
    while site.server.command(&["HGET", &key, "state"]) != "running" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.signal("TERM");
    let second = site.run(PRODUCER, &enqueue, b"").await;
    assert_eq!(second.code, Some(0));
    let (code, said) = tokio::task::spawn_blocking(|| worker.end()).await.unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("drained") && said.contains("1 "), "{said}");
    assert_eq!(site.server.command(&["HGET", &key, "state"]), "done");
    let depth = site.run(MILLSTREAM, &["queues", "--output", "json"], b"").await;
    assert_eq!(site.server.command(&["XLEN", "ms:{q:default:0}:normal"]), "1", "{depth:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_job_waits_and_then_runs_on_time() {
    let site = Site::new(instant()).await;
    let _worker = site.worker(&[]);
    let args = ["--model", "m", "--user", "later", "--delay", "2s", "--output", "json"];
    let enqueued = &objects(&site.run(PRODUCER, &args, b"").await.out)[0];
    assert_eq!(enqueued["state"], "parked", "{enqueued}");
    let id = enqueued["id"].as_str().unwrap();
    let waited = site.run(MILLSTREAM, &["jobs", "wait", id, "--output", "json"], b"").await;
    assert_eq!(objects(&waited.out)[0]["text"], expected("m", "later"));
    let field = |name: &str| -> u64 {
        let key = format!("ms:{{job:{id}}}");
        site.server.command(&["HGET", &key, name]).parse().unwrap()
    };
    let late = field("began").checked_sub(field("not_before")).expect("it began before its time");
    assert!(late <= 3000, "{late} ms late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_run_enqueues_nothing_and_a_pipe_sees_no_progress_bar() {
    let site = Site::new(instant()).await;
    let input = format!("{}\n{}\n", request("m", "a"), request("m", "b"));
    let ran = site.run(PRODUCER, &["--file", "-", "--dry-run"], input.as_bytes()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(site.server.command(&["EXISTS", "ms:{q:default:0}:normal"]), "0");
    let ran = site.run(PRODUCER, &["--file", "-"], input.as_bytes()).await;
    assert_eq!((ran.code, ran.out.lines().count()), (Some(0), 2), "{ran:?}");
    assert!(ran.out.lines().all(|line| line.parse::<JobId>().is_ok()));
    assert!(!ran.err.contains('\r') && !ran.err.contains('\u{1b}'), "{ran:?}");
    assert!(ran.err.contains("no live worker serves queue `default`"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_an_openai_batch_file_keep_their_names() {
    let site = Site::new(instant()).await;
    let _worker = site.worker(&[]);
    let line = |n: u32| {
        format!(
            r#"{{"custom_id":"request-{n}","method":"POST","url":"/v1/chat/completions","body":{}}}"#,
            request("m", &format!("batch {n}"))
        )
    };
    let input = [line(1), line(2)].join("\n");
    let args = ["--file", "-", "--wait", "--output", "json"];
    let mut results = objects(&site.run(PRODUCER, &args, input.as_bytes()).await.out);
    results.sort_by_key(|result| result["line"].as_u64());
    for (n, result) in (1..).zip(&results) {
        assert_eq!(result["custom_id"], format!("request-{n}"));
        assert_eq!(result["text"], expected("m", &format!("batch {n}")));
    }
    assert_eq!(results.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_added_by_plain_xadd_from_python_runs() {
    let site = Site::new(instant()).await;
    let _worker = site.worker(&[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/enqueue.py");
    let url = site.server.url();
    let run = move || {
        let mut python = Command::new("python3");
        python.args([script, "from Python"]).env("REDIS_URL", url).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.trim_end(), expected("any", "from Python"));
}
