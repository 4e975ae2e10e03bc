//! `docs/HTTP.md` tells every route, and what it shows works.

use std::{collections::BTreeSet, process::Stdio};

use crate::support::{
    program::{Folder, GATEWAY, Running, WORKER, command},
    redis::Server,
    stack::{expected, instant, simulate},
    web::client,
};

const DOC: &str = include_str!("../../docs/HTTP.md");

/// The fenced blocks of one language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    let parts = DOC.split(opening.as_str()).skip(1);
    parts.map(|part| part.split("```").next().unwrap()).collect()
}

/// `GET /whoami` and the like, of the headings.
fn told() -> BTreeSet<String> {
    let headings = DOC.lines().filter_map(|line| line.strip_prefix("### `"));
    headings.map(|heading| heading.trim_end_matches('`').to_owned()).collect()
}

struct Site {
    url: String,
    _parts: (Server, tokio_util::sync::DropGuard, Running, Running),
}

impl Site {
    async fn start() -> Self {
        let server = Server::start().await;
        let (base_url, simulator) = simulate(instant()).await;
        let redis = server.url();
        let env = [
            ("REDIS_URL", redis.as_str()),
            ("OPENAI_BASE_URL", base_url.as_str()),
            ("OPENAI_API_KEY", "any"),
            ("MILLSTREAM_GATEWAY__LISTEN", "127.0.0.1:0"),
        ];
        let mut worker = Running::start(WORKER, &[], &env);
        worker.wait_for("serving");
        let mut gateway = Running::start(GATEWAY, &[], &env);
        let url = address(&gateway.wait_for("gateway listens"));
        Self { url, _parts: (server, simulator, worker, gateway) }
    }

    /// Runs a program on a text of the documentation.
    fn run(&self, program: &str, args: &[&str], text: &str) -> String {
        let folder = Folder::new();
        let path = folder.write("text", text);
        let env = [("URL", self.url.as_str()), ("KEY", "any")];
        let mut command = command(program, &[args, &[path.as_str()]].concat(), &env, folder.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = tokio::task::block_in_place(|| command.output()).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(ran.status.success(), "{}\n{}", text(&ran.stdout), text(&ran.stderr));
        text(&ran.stdout)
    }
}

/// The address in a gateway's line.
pub fn address(line: &str) -> String {
    let start = line.find("http://").unwrap_or_else(|| panic!("no address in {line}"));
    line[start..].split(['"', ' ']).next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documentation_names_every_route_and_no_other() {
    let site = Site::start().await;
    let answer = client().get(format!("{}/openapi.json", site.url)).send().await.unwrap();
    let document: serde_json::Value =
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|key| key.len() <= 6) {
            described.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    assert_eq!(told(), described);
    for route in &described {
        assert!(DOC.contains(&format!("| [`{route}`](#")), "{route} is missing in the table");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_documentation_shows_works() {
    let site = Site::start().await;
    let script = blocks("sh").concat();
    let (shown, routes) = (script.matches("curl ").count(), told().len());
    assert!(shown >= routes, "{shown} commands for {routes} routes");
    let said = site.run("sh", &["-eu"], &script);
    for word in [
        "\"duplicate\":false",
        "\"refused\":1",
        "\"has_more\":",
        "\"state\":\"done\"",
        "\"outcome\":\"",
        "event: started",
        "\"next_after\":",
        "101 Switching Protocols",
        "chat.completion.chunk",
        "data: [DONE]",
        "\"owned_by\"",
        "\"in_flight\"",
        "\"rights\"",
        "\"ok\"",
        "\"ready\"",
        "millstream_gateway_streams_open",
        "\"openapi\":\"3.2.0\"",
    ] {
        assert!(said.contains(word), "{word} is missing in {said}");
    }
    // The job was cancelled before anybody had looked at its events, which then had no text.
    let stream = said.split("event: started").nth(1).unwrap_or_default();
    let told = stream.split("event: done").next().unwrap_or_default();
    assert!(told.contains("\"delta\":{") && told.len() < stream.len(), "no text in {stream}");
    let place = |word: &str| script.find(word).unwrap_or_else(|| panic!("no {word}"));
    assert!(place("/events\"") < place("-X DELETE"));
    for text in blocks("python") {
        let said = site.run("python", &[], text);
        let answer = expected("any", "Why is the sky blue?");
        assert_eq!(said.trim_end(), answer.repeat(2));
    }
    for text in blocks("json") {
        let whole = text.replace("…", "");
        assert!(serde_json::from_str::<serde_json::Value>(&whole).is_ok(), "{text}");
    }
}
