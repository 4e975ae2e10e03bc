//! Processes and the oracle.

#[path = "../it/support/program.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use more of it")]
mod program;

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

pub use program::{MILLSTREAM, PRODUCER, WORKER};
use tokio::process::{Child, Command};

/// A program with this environment, whose standard error goes to a file.
pub fn command(program: &str, args: &[String], env: &[(&str, &str)], log: &Path) -> Command {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = Command::from(program::command(program, &args, env, log.parent().unwrap()));
    command
        .stdout(Stdio::null())
        .stderr(File::options().create(true).append(true).open(log).unwrap())
        .kill_on_drop(true);
    command
}

/// Sends a signal to a process that this test started and has not waited for.
pub fn signal(child: &Child, name: &str) {
    let Some(pid) = child.id() else { return };
    let sent = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(sent.unwrap().success(), "kill -s {name} {pid}");
}

/// Whether the programs know a key of the configuration.
pub fn knows(key: &str, value: &str) -> bool {
    let set = format!("{key}={value}");
    program::run(MILLSTREAM, &["config", "check", "--set", &set], &[]).code == Some(0)
}

/// Milliseconds since the epoch, as fences count them.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// What the simulator answers to these requests, told by the oracle outside the crate.
pub fn oracle(requests: &[String]) -> Vec<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle.py");
    let mut child = std::process::Command::new("python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines = requests.join("\n");
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
