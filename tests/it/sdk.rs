//! The official `OpenAI` SDK for Python against the programs. The cases stand in `tests/sdk`.

use std::process::Command;

use crate::support::program::{GATEWAY, MILLSTREAM, WORKER};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");

fn cases(file: &str) {
    // `tests/setup.sh` brings it, and `make test` puts it on the PATH.
    let ran = Command::new("pytest")
        .args(["--quiet", "-p", "no:cacheprovider", "-p", "no:schemathesis", file])
        .current_dir(FOLDER)
        .envs([("MILLSTREAM", MILLSTREAM), ("WORKER", WORKER), ("GATEWAY", GATEWAY)])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("pytest is on the PATH; see `make test`");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn the_sdk_is_answered_as_by_openai() {
    cases("test_openai.py");
}

#[test]
fn the_sdk_raises_the_error_that_is_meant() {
    cases("test_errors.py");
}

#[test]
fn the_sdk_gets_the_whole_answer_when_workers_die() {
    cases("test_deaths.py");
}
