//! What the gateway says of itself is true: `schemathesis` asks it everything that `/openapi.json` allows, and
//! much that it forbids.

use std::process::Command;

use crate::{
    http_doc::address,
    support::{
        program::{Folder, GATEWAY, MILLSTREAM, Running, WORKER, run},
        redis::Server,
        stack::{instant, simulate},
    },
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_does_what_its_description_says_and_nothing_else() {
    let server = Server::start().await;
    let (base_url, _simulator) = simulate(instant()).await;
    let (redis, folder) = (server.url(), Folder::new());
    let keys = folder.write("keys.toml", "");
    let env = [
        ("REDIS_URL", redis.as_str()),
        ("OPENAI_BASE_URL", base_url.as_str()),
        ("OPENAI_API_KEY", "any"),
        ("MILLSTREAM_GATEWAY__LISTEN", "127.0.0.1:0"),
        ("MILLSTREAM_GATEWAY__SECRET", "0123456789abcdef0123456789abcdef"),
        ("MILLSTREAM_GATEWAY__KEYS", keys.as_str()),
        // A stream without events is read to its end all the same.
        ("MILLSTREAM_GATEWAY__HEARTBEAT", "1s"),
    ];
    let made = run(MILLSTREAM, &["keys", "create", "all", "--rights", "enqueue,read,admin"], &env);
    let mut worker = Running::start(WORKER, &[], &env);
    worker.wait_for("serving");
    let mut gateway = Running::start(GATEWAY, &[], &env);
    let url = address(&gateway.wait_for("gateway listens"));

    // It is OpenAPI, its examples are what they are examples of, and each event has data of its own.
    let answer = crate::support::web::client().get(format!("{url}/openapi.json")).send().await;
    let text = answer.unwrap().text().await.unwrap();
    let mut check = Command::new("python");
    check.arg(format!("{FOLDER}/description.py")).arg(folder.write("openapi.json", &text));
    let checked = tokio::task::block_in_place(|| check.output()).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    // `tests/setup.sh` brings it, and `make test` puts it on the PATH.
    let mut command = Command::new("schemathesis");
    command
        .args(["--config-file", &format!("{FOLDER}/schemathesis.toml"), "run", "--no-color"])
        .args(["--header", &format!("Authorization: Bearer {}", made.out.trim())])
        .arg(format!("{url}/openapi.json"))
        .env("SCHEMATHESIS_HOOKS", format!("{FOLDER}/rules.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(folder.path());
    let ran = tokio::task::block_in_place(|| command.output());
    let ran = ran.expect("schemathesis is on the PATH; see `make test`");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(!said.contains("Warnings:"), "{said}");
}
