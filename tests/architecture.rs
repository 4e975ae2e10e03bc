//! The house's layers, read from the imports: dependencies only go down, each outside crate has one
//! home, keys are built in one module, and files stay small.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What each module may use of this crate. `config`, `bench` and `cli` stand above everything.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("job", &[]),
    ("mask", &[]),
    ("error", &[]),
    ("retry", &[]),
    ("state", &[]),
    ("event", &["error", "job"]),
    ("broker", &["error", "event", "job", "mask", "retry", "state"]),
    ("upstream", &["error", "event", "job", "mask"]),
    ("simulator", &[]),
    ("admin", &["broker", "error", "job", "state"]),
    ("producer", &["broker", "job", "retry"]),
    ("listener", &["broker", "event", "job", "retry"]),
    ("worker", &["broker", "error", "event", "job", "listener", "retry", "upstream"]),
    (
        "gateway",
        &["admin", "broker", "error", "event", "job", "listener", "producer", "retry", "state"],
    ),
    (
        "config",
        &[
            "broker",
            "event",
            "gateway",
            "job",
            "listener",
            "mask",
            "producer",
            "retry",
            "simulator",
            "upstream",
            "worker",
        ],
    ),
    (
        "bench",
        &[
            "admin",
            "broker",
            "config",
            "event",
            "job",
            "listener",
            "producer",
            "simulator",
            "upstream",
            "worker",
        ],
    ),
];

/// Outside crates that only some places may name. Paths are relative to the repository.
const HOMES: [(&str, &[&str]); 8] = [
    ("redis", &["src/broker/redis.rs", "src/broker/redis/"]),
    ("bb8_redis", &["src/broker/redis/pool.rs"]),
    ("async_openai", &["src/upstream/openai.rs", "src/upstream/openai/"]),
    ("reqwest", &["src/upstream/openai.rs", "src/upstream/openai/"]),
    ("axum", &["src/gateway.rs", "src/gateway/", "src/simulator.rs", "src/simulator/"]),
    ("clap", &["src/cli.rs", "src/cli/", "bin/"]),
    ("anyhow", &["src/cli.rs", "src/cli/", "bin/"]),
    ("backoff", &["src/retry.rs"]),
];

/// The domain is pure.
const PURE: [&str; 6] = ["src/mask", "src/job", "src/event", "src/state", "src/retry", "src/error"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Source files below `folder`, with their paths relative to the repository and without tests.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(path: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    found
        .into_iter()
        .filter(|path| {
            !path.ends_with("tests.rs") && !path.components().any(|c| c.as_os_str() == "tests")
        })
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned();
            (name, code)
        })
        .collect()
}

/// Code lines: neither comments nor strings that only look like code would hide here.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The first names behind `prefix`, in `use prefix::{a, b::c}` as in `prefix::a::b()`.
fn names_behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let (mut depth, mut fresh) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => fresh = true,
                _ if fresh && c.is_alphabetic() => {
                    names.insert(word(&group[at..]));
                    fresh = false;
                }
                _ => {}
            }
        }
    }
    names.remove("");
    names
}

fn module(path: &str) -> &str {
    path.trim_start_matches("src/").split(['/', '.']).next().unwrap()
}

#[test]
fn dependencies_only_go_down() {
    let mut checked = 0;
    for (path, text) in sources("src") {
        let module = module(&path);
        if ["lib", "cli"].contains(&module) {
            continue;
        }
        let allowed = MAY_USE.iter().find(|row| row.0 == module);
        let allowed = allowed.unwrap_or_else(|| panic!("{path}: `{module}` stands in no layer")).1;
        for used in names_behind(&code(&text), "crate::") {
            let fine = used == module
                || allowed.contains(&used.as_str())
                || used == "install_tls_provider";
            assert!(fine, "{path}: `{module}` must not use `{used}`; allowed: {allowed:?}");
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} imports were found: the reader is broken");
}

#[test]
fn each_outside_crate_has_one_home() {
    for (path, text) in sources("src").into_iter().chain(sources("bin")) {
        let code = code(&text);
        for (name, homes) in HOMES {
            if homes.iter().any(|home| path.starts_with(home)) {
                continue;
            }
            // Above the adapters `redis::` is the adapter; the crate would have to be imported.
            let above = name == "redis"
                && ["src/bench", "src/cli", "src/config", "bin/"]
                    .iter()
                    .any(|place| path.starts_with(place));
            let named = !above
                && code.match_indices(&format!("{name}::")).any(|(at, _)| {
                    let before = code[..at].chars().next_back().unwrap_or(' ');
                    !(before.is_alphanumeric() || before == '_' || before == ':')
                });
            let imported = code.lines().any(|line| {
                let line = line.trim().trim_end_matches(';');
                line == format!("use {name}") || line.starts_with(&format!("use {name}::"))
            });
            assert!(!named && !imported, "{path} names `{name}`; its home is {homes:?}");
        }
    }
}

#[test]
fn the_domain_is_pure() {
    for (path, text) in sources("src") {
        if PURE.iter().any(|pure| path.starts_with(pure)) {
            for outside in ["tokio::", "redis::", "axum::", "reqwest::", "tracing::"] {
                assert!(!code(&text).contains(outside), "{path} names `{outside}`");
            }
        }
    }
}

#[test]
fn keys_are_built_in_one_module() {
    for (path, text) in sources("src") {
        if path == "src/broker/redis/keys.rs" || path.starts_with("src/broker/memory") {
            continue;
        }
        for literal in ["\"ms:", "{{q:", "{{job:", "{{t:", "ms:schema"] {
            assert!(!code(&text).contains(literal), "{path} builds a key: {literal}");
        }
    }
}

#[test]
fn files_stay_under_four_hundred_lines() {
    for (path, text) in sources("src").into_iter().chain(sources("bin")) {
        let lines = text.lines().count();
        assert!(
            lines <= 400,
            "{path} has {lines} lines of code; 400 are allowed: split it by task"
        );
    }
}

#[test]
fn every_script_opens_with_its_contract() {
    let folder = root().join("src/broker/redis/lua");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let header: String = text.lines().take_while(|line| line.starts_with("--")).collect();
        for part in ["KEYS[1]", "ARGV", "Returns", "Replay"] {
            let fine = header.contains(part) || (part == "ARGV" && !text.contains("ARGV"));
            assert!(fine, "{} says nothing of {part}", path.display());
        }
        count += 1;
    }
    assert!(count >= 8);
}
