//! Text that others wrote, on a real terminal and through a pipe.

use serde_json::json;

use crate::{
    programs::{Site, objects, request},
    support::{
        program::{Folder, MILLSTREAM, PRODUCER, Ran, command},
        stack::instant,
    },
};

/// Clears the screen, fills the clipboard, goes up and overwrites, opens a line, turns the direction of text.
const EVIL: &str =
    "x\u{1b}[2J\u{1b}]52;c;eA==\u{7}\u{1b}[1A\rforged\nstate          done\u{9b}2J\u{202e}y";
const ID: &str = "01932c07-27d1-7c3e-a4b1-5d3f8a6b9c0e";

/// Runs a program on a terminal of its own: output and errors as they reach it.
fn on_a_terminal(site: &Site, program: &str, args: &[&str]) -> String {
    let (env, folder) = (site.env(), Folder::new());
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let spawn = "import os, pty, sys; pty.spawn(sys.argv[1:])";
    let args = [&["-c", spawn, program], args].concat();
    let output = command("python3", &args, &env, folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A terminal is told to go back at each end of a line.
    String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n")
}

/// A job that is over, whose every text somebody else has written.
fn write_evil_job(site: &Site) {
    let (record, log) = (format!("ms:{{job:{ID}}}"), format!("ms:{{job:{ID}}}:log"));
    let labels = json!({ "user": EVIL, EVIL: "x" }).to_string();
    let error = json!({"code": "upstream_error", "message": EVIL}).to_string();
    let fields = [
        ("state", "failed"),
        ("queue", "default:0"),
        ("lane", "normal"),
        ("tenant", "default"),
        ("at", "1763640000123"),
        ("fence", "1763640000123"),
        ("attempt", "1"),
        ("model", EVIL),
        ("custom_id", EVIL),
        ("labels", &labels),
        ("error", &error),
        ("worker", EVIL),
        ("finish_reason", EVIL),
    ];
    for (name, value) in fields {
        site.server.command(&["HSET", &record, name, value]);
    }
    let delta = json!({"choices": [{"index": 0, "delta": {"content": EVIL}}]}).to_string();
    let failed = json!({"error": {"code": "upstream_error", "message": EVIL}, "attempts": 1,
        "custom_id": EVIL, "labels": {"user": EVIL}})
    .to_string();
    let started = json!({"attempt": 1, "worker": EVIL}).to_string();
    for (seq, kind, payload) in
        [(0, "started", started.as_str()), (1, "delta", &delta), (2, "failed", &failed)]
    {
        let event = format!("1763640000123-{seq}");
        site.server.command(&["XADD", &log, &event, kind, payload]);
    }
    let dead = "ms:{q:default:0}:dead";
    let letter = ["XADD", dead, "*", "id", ID, "error", &error, "attempts", "1", "fence", "7"];
    let more = ["at", "1", "lane", "normal", "run", "1", "history", "[]", "entry:job", EVIL];
    site.server.command(&[&letter[..], &more].concat());
    site.server.command(&["XADD", "ms:{q:default:0}:normal", "*", "job", "{}"]);
    let group = ["XGROUP", "CREATE", "ms:{q:default:0}:normal", "workers", "0"];
    let _ = site.server.ask(&group);
    let read = ["XREADGROUP", "GROUP", "workers", EVIL, "STREAMS", "ms:{q:default:0}:normal", ">"];
    site.server.command(&read);
}

/// The characters that a terminal obeys, but for our own colours.
fn harmful(text: &str) -> String {
    let colours = ["\u{1b}[1;31m", "\u{1b}[1;33m", "\u{1b}[0m"];
    let text = colours.iter().fold(text.to_owned(), |text, colour| text.replace(colour, ""));
    let is_harmful = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
    text.chars().filter(is_harmful).map(|c| c.escape_unicode().to_string()).collect()
}

/// Guards against text of others that reaches the terminal raw, or forges lines of what a program says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_text_neither_steers_a_terminal_nor_forges_a_line() {
    let site = Site::new(instant()).await;
    write_evil_job(&site);
    let commands: [&[&str]; 8] = [
        &["jobs", "show", ID],
        &["jobs", "tail", ID],
        &["jobs", "wait", ID],
        &["dlq", "list"],
        &["dlq", "show"],
        &["workers"],
        &["jobs", "show", ID, "--output", "json"],
        &["jobs", "tail", ID, "--output", "json"],
    ];
    for args in commands {
        let shown = tokio::task::block_in_place(|| on_a_terminal(&site, MILLSTREAM, args));
        assert!(shown.contains("forged"), "{args:?} says nothing of it: {shown}");
        assert_eq!(harmful(&shown), "", "{args:?}: {shown:?}");
        let ran: Ran = site.run(MILLSTREAM, args, b"").await;
        assert_eq!(harmful(&ran.out), "", "{args:?}: {ran:?}");
        assert_eq!(harmful(&ran.err), "", "{args:?}: {ran:?}");
        // The text itself is the last of what `show` tells, and has lines of its own.
        let told = ran.out.split("\n\n").next().unwrap();
        let forged = told.lines().filter(|line| line.starts_with("state          done")).count();
        assert_eq!(forged, 0, "{args:?}: {ran:?}");
    }
    let json = site.run(MILLSTREAM, &["jobs", "show", ID, "--output", "json"], b"").await;
    assert_eq!(objects(&json.out)[0]["custom_id"], EVIL, "escaped, and the same");
}

/// Guards against lines of a file that reach the terminal raw in what is said of them, and a bar that tells
/// nothing of the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_and_what_is_done_are_told_on_a_terminal() {
    let site = Site::new(instant()).await;
    let _worker = site.worker(&[]);
    let folder = Folder::new();
    let named = json!({"request": serde_json::from_str::<serde_json::Value>(&request("m", "a")).unwrap(),
        "custom_id": EVIL, "labels": {"a": EVIL}});
    let refused = json!({"request": {"model": "m", "messages": [{}]}, "lane": EVIL});
    let file = folder.write("jobs.jsonl", format!("{named}\n{refused}\n"));
    let args = ["--file", &file, "--on-error", "skip", "--wait"];
    let shown = tokio::task::block_in_place(|| on_a_terminal(&site, PRODUCER, &args));
    assert!(shown.contains(r"unknown lane `x\u{1b}[2J"), "{shown}");
    assert!(!shown.contains("\u{1b}[2J\u{1b}]52") && !shown.contains("\u{9b}"), "{shown:?}");
    assert!(!shown.lines().any(|line| line.starts_with("state ")), "{shown:?}");
}
