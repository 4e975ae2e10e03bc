//! `SECURITY.md`: each role works with the rights that it is given there, and has no others.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use millstream::{
    broker::redis::{Options, Redis},
    event::Event,
    job::{JobId, Timestamp},
    listener::{self, Listener},
};
use redis::Value;
use serde_json::json;

use crate::support::{
    program::{GATEWAY, MILLSTREAM, PRODUCER, Ran, Running, WORKER, run},
    redis::Server,
    stack::{paced, simulate},
    subject::soon,
    web::{Reply, Sse, chat, client},
};

const DOCUMENT: &str = include_str!("../../SECURITY.md");

/// The document's commands, which make the users.
fn lines() -> Vec<Vec<&'static str>> {
    let block = DOCUMENT.split("```redis\n").nth(1).unwrap().split("```").next().unwrap();
    let lines = block.lines().filter(|line| !line.is_empty());
    lines.map(|line| line.split(' ').collect()).collect()
}

/// A Redis with a user for each role.
struct Site(Server);

impl Site {
    async fn start() -> Self {
        let server = Server::start().await;
        for line in lines() {
            assert_eq!(line[..2], ["ACL", "SETUSER"]);
            assert_eq!(server.command(&line), "OK", "{line:?}");
        }
        Self(server)
    }

    fn url(&self, role: &str) -> String {
        format!("redis://{role}:PASSWORD@127.0.0.1:{}", self.0.port())
    }

    /// Runs a command of a program in a role.
    fn run(&self, role: &str, program: &str, args: &[&str]) -> Ran {
        let ran = run(program, args, &[("REDIS_URL", &self.url(role))]);
        assert_eq!(ran.code, Some(0), "{role} {args:?}: {ran:?}");
        ran
    }

    fn worker(&self, base_url: &str) -> Running {
        let url = self.url("worker");
        let env = [("REDIS_URL", url.as_str()), ("OPENAI_BASE_URL", base_url)];
        let mut worker = Running::start(
            WORKER,
            &["--set", "worker.lease=2s", "--set", "worker.renewal=500ms"],
            &env,
        );
        worker.wait_for("serving");
        worker
    }

    /// One command in a role: whether it is allowed.
    fn may(&self, role: &str, command: &str) -> bool {
        let client = redis::Client::open(self.url(role)).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut words = redis::Cmd::new();
        words.arg(command.split(' ').collect::<Vec<_>>());
        match words.query::<Value>(&mut connection) {
            Err(error) if error.code() == Some("NOPERM") => false,
            Ok(_) => true,
            Err(error) => panic!("{role}: {command}: {error}"),
        }
    }
}

/// Guards against rights in `SECURITY.md` with which a role does not work: every one runs under its own, through what
/// it is there for, and Redis has refused none of them anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_works_with_the_rights_of_the_document() {
    let site = Site::start().await;
    let (base_url, _simulator) = simulate(paced(0.0)).await;
    site.run("operator", MILLSTREAM, &["migrate", "up"]);
    let redis = site.url("gateway");
    let env = [
        ("REDIS_URL", redis.as_str()),
        ("MILLSTREAM_GATEWAY__LIMITS__REQUESTS_PER_MINUTE", "6000"),
        ("MILLSTREAM_REDIS__LIMITS__MAX_JOBS", "1000"),
        ("MILLSTREAM_PRODUCER__TRIM_EVERY", "1"),
    ];
    let mut gateway = Running::start(GATEWAY, &[], &env);
    let line = gateway.wait_for("gateway listens");
    let at = line.find("http://").unwrap();
    let url = line[at..].split(['"', ' ']).next().unwrap().to_owned();
    let client = client();
    let post = |path: &str, body: serde_json::Value| {
        let request = client.post(format!("{url}{path}"));
        request.header("content-type", "application/json").body(body.to_string())
    };
    let worker = site.worker(&base_url);

    // The gateway enqueues, follows, lists, counts and cancels; the worker runs.
    let whole = Reply::of(post("/v1/chat/completions", chat("a"))).await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    let keyed = || post("/v1/jobs", chat("b")).header("idempotency-key", "k");
    let first = Reply::of(keyed()).await.json();
    assert_eq!(Reply::of(keyed()).await.json()["id"], first["id"]);
    let later =
        json!({"request": chat("c"), "not_before": Timestamp::now().after(Duration::from_secs(1))});
    let bulk = Reply::of(post("/v1/jobs", json!([later, chat("d")]))).await.json();
    assert_eq!(bulk["accepted"], 2, "{bulk}");
    let id = first["id"].as_str().unwrap().to_owned();
    let events = client.get(format!("{url}/v1/jobs/{id}/events"));
    assert_eq!(Sse::open(events).await.rest().await.last().unwrap().event, "done");
    for path in ["/v1/jobs", "/v1/queues", "/readyz", "/metrics"] {
        assert_eq!(Reply::of(client.get(format!("{url}{path}"))).await.status, 200, "{path}");
    }
    let mut slow = chat("e");
    slow["model"] = "m?tokens=400,rate=40".into();
    let slow = Reply::of(post("/v1/jobs", slow.clone())).await.json()["id"].clone();
    let slow = slow.as_str().unwrap();
    let mut stream = Sse::open(client.get(format!("{url}/v1/jobs/{slow}/events"))).await;
    while stream.block().await.event != "delta" {}

    // A worker dies in mid-answer: another takes over, and the job is cancelled in its hands.
    drop(worker);
    let worker = site.worker(&base_url);
    while stream.block().await.event != "started" {}
    let cancel = client.delete(format!("{url}/v1/jobs/{slow}"));
    assert_eq!(Reply::of(cancel).await.json()["outcome"], "asked");
    while let Some(block) = stream.next().await {
        if block.event == "cancelled" {
            break;
        }
    }

    // Producers, of the library and of any language.
    let ask = |model: &str, more: &[&str]| {
        let args = [&["--model", model, "--user", "hi"], more].concat();
        let ran = site.run("producer", PRODUCER, &args);
        ran.out.trim().parse::<JobId>().unwrap()
    };
    let plain = ask("m?tokens=3", &[]);
    ask("m?tokens=3", &["--delay", "1s", "--set", "redis.limits.max_jobs=1000"]);
    ask("m?tokens=3", &["--idempotency-key", "q", "--set", "producer.trim_every=1"]);
    let entry = format!(
        "XADD ms:{{q:default:0}}:normal * job {}",
        json!(chat("x")).to_string().replace(' ', "")
    );
    assert!(site.may("xadd", &entry));

    // A reader, from the log and live.
    let options = Options { url: site.url("reader"), ..Options::default() };
    let reader = Listener::new(
        std::sync::Arc::new(Redis::connect(options).await.unwrap()),
        listener::Options::default(),
    );
    let unfinished = ask("m?tokens=20,rate=20", &[]);
    for job in [plain, unfinished] {
        let events: Vec<Event> = soon(reader.listen(job).events().try_collect()).await.unwrap();
        assert!(events.last().unwrap().body.is_terminal());
    }
    site.run("reader", MILLSTREAM, &["jobs", "show", &plain.to_string()]);

    // The operator looks, and decides on dead letters.
    let dead = ask("m?fault=status:400", &[]);
    soon(async {
        while site.0.command(&["XLEN", "ms:{q:default:0}:dead"]) != "1" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for words in [
        "dlq list",
        "dlq show",
        "dlq requeue --all",
        "queues",
        "queues reconcile",
        "workers",
        "migrate status",
        &format!("jobs show {dead}"),
        "dlq purge --all --yes",
    ] {
        site.run("operator", MILLSTREAM, &words.split(' ').collect::<Vec<_>>());
    }
    for (name, running) in [("worker", worker), ("gateway", gateway)] {
        running.signal("TERM");
        let (code, said) = running.end();
        assert_eq!(code, Some(0), "{name}: {said}");
    }
    // Some refusals are survived without a word.
    assert_eq!(site.0.command(&["ACL", "LOG"]), "");
}

/// Guards against roles that can do more than they are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_has_rights_beyond_its_own() {
    let site = Site::start().await;
    const ALL: [&str; 6] = ["gateway", "worker", "producer", "xadd", "reader", "operator"];
    const JOB: &str = "ms:{job:01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e}";
    let refused = |roles: &[&str], command: &str| {
        for role in roles {
            assert!(!site.may(role, command), "{role} may {command}");
        }
    };
    for command in [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "CONFIG GET *",
        "CONFIG SET dir /tmp",
        "SHUTDOWN NOSAVE",
        "ACL LIST",
        "MONITOR",
        "REPLICAOF NO ONE",
        "MODULE LIST",
        "CLIENT LIST",
        "CLIENT KILL ID 1",
        "SAVE",
        "SORT ms:x",
        // A neighbour's.
        "GET other",
        "SET other 1",
        "DEL other",
        "XADD other * a b",
        "SUBSCRIBE other",
        "PUBLISH other x",
    ] {
        refused(&ALL, command);
    }
    for lane in ["high", "normal", "low"] {
        let read = format!("XRANGE ms:{{q:default:0}}:{lane} - +");
        refused(&["xadd", "reader"], &read);
        refused(&["reader"], &format!("XADD ms:{{q:default:0}}:{lane} * job 1"));
    }
    // Only workers take jobs.
    let take = "XREADGROUP GROUP workers w STREAMS ms:{q:default:0}:normal >";
    refused(&["gateway", "producer", "xadd", "reader"], take);
    let claim = "XCLAIM ms:{q:default:0}:normal workers w 0 1-1";
    refused(&["gateway", "producer", "xadd", "reader"], claim);
    // Only who must reads answers, writes them, and hears of them.
    refused(&["producer", "xadd"], &format!("XRANGE {JOB}:log - +"));
    refused(&["producer", "xadd", "reader"], &format!("XADD {JOB}:log 1-1 e delta d x"));
    refused(&["xadd", "reader"], &format!("HSET {JOB} state done"));
    refused(&["xadd"], &format!("HGETALL {JOB}"));
    refused(&["producer", "xadd"], &format!("SUBSCRIBE {JOB}"));
    // Whether they may publish is asked of all programs as they start.
    refused(&["xadd"], &format!("PUBLISH {JOB} x"));
    refused(&["producer", "xadd", "reader"], "PUBLISH ms:worker:w drain");
    refused(&["xadd", "reader"], "XRANGE ms:{q:default:0}:dead - +");
    refused(&["xadd"], "XADD ms:{q:default:0}:dead * a b");
    refused(&["worker", "producer", "xadd", "reader"], "ZRANGE ms:{t:acme}:jobs 0 -1");
    // The layout of keys is the operator's.
    refused(&["gateway", "worker", "producer", "xadd", "reader"], "HSET ms:schema 1 x");
    refused(&ALL[..5], "DEL ms:{q:default:0}:normal");
    assert!(site.may("operator", "DEL ms:{q:default:0}:normal"));
}

/// Guards against a command in a script that runs only after a fault, and that no test meets: the roles that run
/// scripts have all that these name.
#[test]
fn the_roles_that_run_scripts_have_the_commands_of_all_scripts() {
    let granted: std::collections::BTreeSet<String> = lines()
        .into_iter()
        .filter(|line| ["gateway", "worker"].contains(&line[2]))
        .flat_map(|line| line.into_iter().filter_map(|word| word.strip_prefix('+')))
        .map(str::to_uppercase)
        .collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/broker/redis/lua");
    let mut met = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        for call in script.split("call('").skip(1) {
            let (name, rest) = call.split_once('\'').unwrap();
            let first = rest.strip_prefix(", '").and_then(|rest| rest.split('\'').next());
            let with = first.map(|first| format!("{name}|{first}"));
            let is_granted =
                granted.contains(name) || with.is_some_and(|with| granted.contains(&with));
            assert!(is_granted, "{name} of {} is granted to nobody in SECURITY.md", path.display());
            met += 1;
        }
    }
    assert!(met > 100, "{met}");
}
