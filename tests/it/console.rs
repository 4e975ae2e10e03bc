//! The console page in a real browser. The cases stand in `tests/web`.

use std::{path::Path, process::Command};

use crate::support::program::{GATEWAY, MILLSTREAM, WORKER};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/web");

/// What the cases need beside the programs; `tests/setup.sh` brings it.
fn demand(program: &str) {
    let ran = Command::new(program).arg("--version").output();
    assert!(
        ran.is_ok_and(|ran| ran.status.success()),
        "{program} is missing; install it by tests/setup.sh"
    );
}

fn cases(file: &str) {
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    demand("node");
    demand(&chromium);
    let driver = Path::new(FOLDER).join("node_modules/playwright-core");
    assert!(driver.exists(), "playwright-core is missing; install it by tests/setup.sh");
    let ran = Command::new("node")
        .arg(Path::new(FOLDER).join(file))
        .envs([("MILLSTREAM", MILLSTREAM), ("WORKER", WORKER), ("GATEWAY", GATEWAY)])
        .env("CHROMIUM", chromium)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn answers_grow_on_the_page_and_can_be_stopped() {
    cases("answers.mjs");
}

#[test]
fn the_page_ends_with_the_whole_text_whatever_happens_in_mid_answer() {
    cases("interruptions.mjs");
}

#[test]
fn the_page_says_what_is_wrong_and_what_to_do() {
    cases("trouble.mjs");
}

#[test]
fn the_documented_page_of_an_application_follows_its_job() {
    cases("snippet.mjs");
}

#[test]
fn the_page_is_whole_and_readable_narrow_and_wide_light_and_dark() {
    cases("looks.mjs");
}
