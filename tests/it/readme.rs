//! The README's commands do what it says.

use std::collections::BTreeSet;

use crate::support::{
    program::{Folder, GATEWAY, MILLSTREAM, PRODUCER, Ran, Running, WORKER, command, run},
    redis::Server,
    stack::{expected, instant, simulate},
};

const README: &str = include_str!("../../README.md");

/// The words of every command in the README's shell blocks, without what puts it behind.
fn commands() -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for block in README.split("```sh\n").skip(1) {
        for line in block.split("```").next().unwrap().lines().filter(|line| !line.is_empty()) {
            let mut words: Vec<String> = Vec::new();
            for (index, part) in line.trim_end_matches(" &").split('"').enumerate() {
                if index % 2 == 1 {
                    words.push(part.to_owned());
                } else {
                    words.extend(part.split_whitespace().map(str::to_owned));
                }
            }
            commands.push(words);
        }
    }
    commands
}

/// The program and arguments of a `cargo run --release [--bin NAME] -- …`.
fn program(words: &[String]) -> Option<(&'static str, Vec<String>)> {
    let start = words.iter().position(|word| word == "cargo")?;
    let rest = words[start..].strip_prefix(&["cargo", "run", "--release"].map(str::to_owned))?;
    let (program, rest) = match rest {
        [bin, name, rest @ ..] if bin == "--bin" => (
            match name.as_str() {
                "millstream-producer" => PRODUCER,
                "millstream-worker" => WORKER,
                "millstream-gateway" => GATEWAY,
                other => panic!("README runs `{other}`"),
            },
            rest,
        ),
        rest => (MILLSTREAM, rest),
    };
    Some((program, rest.strip_prefix(&["--".to_owned()]).unwrap_or_default().to_vec()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_readme_works() {
    let server = Server::start().await;
    let (base_url, _guard) = simulate(instant()).await;
    let url = server.url();
    let env = [
        ("REDIS_URL", url.as_str()),
        ("OPENAI_BASE_URL", base_url.as_str()),
        // Another process may have the usual port.
        ("MILLSTREAM_GATEWAY__LISTEN", "127.0.0.1:0"),
    ];
    let folder = Folder::new();
    let line = r#"{"model":"m","messages":[{"role":"user","content":"from a file"}]}"#;
    folder.write("jobs.jsonl", format!("{line}\n{line}\n"));
    let (mut id, mut event) = (String::new(), String::new());
    let mut workers = Vec::new();
    let mut done = BTreeSet::new();
    for words in commands() {
        let Some((program, args)) = program(&words) else {
            // What the test brings itself: Redis, its address, and the tests.
            let known = ["redis-server", "export", "make"].contains(&words[0].as_str());
            assert!(known, "the README's `{words:?}` is not covered");
            continue;
        };
        let args: Vec<&str> = args
            .iter()
            .map(|arg| match arg.as_str() {
                "ID" => id.as_str(),
                "EVENT" => event.as_str(),
                other => other,
            })
            .collect();
        let name = if program == GATEWAY { "gateway" } else { "worker" };
        done.insert(args.first().copied().unwrap_or(name).to_owned());
        let started = match (program, args.as_slice()) {
            (WORKER, _) => Some("serving"),
            (GATEWAY, _) => Some("gateway listens"),
            (_, ["simulate"]) => Some("simulator"),
            (_, ["dev"]) => Some("web: "),
            _ => None,
        };
        if let Some(words) = started {
            let mut running = Running::start(program, &args, &env);
            running.wait_for(words);
            workers.push(running);
            continue;
        }
        let ran = tokio::task::block_in_place(|| {
            if args.first() == Some(&"ask") {
                return run(program, &args, &[]);
            }
            let output = command(program, &args, &env, folder.path()).output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
        });
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        match args[0] {
            "ask" => assert_eq!(ran.out.trim_end(), expected("gpt-4o-mini", args[1]), "{ran:?}"),
            "--model" => assert_eq!(ran.out.trim_end(), expected("any", args[3]), "{ran:?}"),
            "--file" => {
                let job: serde_json::Value =
                    serde_json::from_str(ran.out.lines().next().unwrap()).unwrap();
                assert_eq!(job["text"], expected("m", "from a file"));
                id = job["id"].as_str().unwrap().to_owned();
                let fence = server.command(&["HGET", &format!("ms:{{job:{id}}}"), "fence"]);
                event = format!("{fence}-0");
            }
            _ => assert!(!ran.out.is_empty() || args[0] == "dlq", "{args:?}: {ran:?}"),
        }
    }
    let all = [
        "ask", "simulate", "worker", "--model", "--file", "queues", "jobs", "dlq", "gateway", "dev",
    ];
    assert!(all.iter().all(|name| done.contains(*name)), "{done:?}");
}
