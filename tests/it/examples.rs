//! The examples, run as they stand.

use std::{path::PathBuf, process::Stdio, time::Duration};

use futures_util::StreamExt as _;
use millstream::{event::EventId, job::JobId, worker};

use crate::support::{
    port,
    program::{Folder, Running, command},
    stack::{Stack, expected, paced},
};

/// `target/…/examples`, beside the folder of this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

struct Web {
    port: u16,
    process: Running,
}

impl Web {
    async fn start(stack: &Stack) -> Self {
        let port = port::free();
        let (url, number) = (stack.server.url(), port.to_string());
        let env = [("REDIS_URL", url.as_str()), ("PORT", number.as_str())];
        let folder = Folder::new();
        let program = example("axum_sse");
        let mut process = command(program.to_str().unwrap(), &[], &env, folder.path());
        process.stdout(Stdio::null()).stderr(Stdio::piped());
        let process = Running::spawn(process, folder);
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { port, process }
    }

    async fn get(&self, id: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        self.at(&format!("/jobs/{id}"), headers).await
    }

    async fn at(&self, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut request = reqwest::Client::new().get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }
}

/// The text and the IDs of the events in a body of server-sent events.
fn read(body: &str) -> (String, Vec<EventId>) {
    let (mut text, mut ids) = (String::new(), Vec::new());
    for block in body.split("\n\n").filter(|block| block.contains("id:")) {
        let field = |name: &str| {
            block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start)
        };
        ids.push(field("id:").unwrap().parse().unwrap());
        let data: serde_json::Value = serde_json::from_str(field("data:").unwrap()).unwrap();
        for piece in data["choices"].as_array().into_iter().flatten() {
            text.push_str(piece["delta"]["content"].as_str().unwrap_or_default());
        }
    }
    (text, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_sse_streams_resumes_and_checks_the_owner() {
    millstream::upstream::openai::OpenAi::new(&Default::default()).unwrap();
    let stack = Stack::start(paced(100.0)).await;
    let web = Web::start(&stack).await;
    let (_stop, _worker) = stack.worker(worker::Options::default());
    let job = stack.ask("m?tokens=60", "over the web").await;
    let id = job.to_string();
    let mine = ("x-tenant", "default");

    // A tab that is closed in the middle.
    let mut first = web.get(&id, &[mine]).await.bytes_stream();
    let mut part = String::new();
    while part.matches("event: delta").count() < 2 {
        part.push_str(std::str::from_utf8(&first.next().await.unwrap().unwrap()).unwrap());
    }
    drop(first);
    let whole = part.rfind("\n\n").unwrap() + 2;
    let (seen, ids) = read(&part[..whole]);
    let last = ids.last().unwrap().to_string();
    let (rest, more) =
        read(&web.get(&id, &[mine, ("last-event-id", &last)]).await.text().await.unwrap());
    assert_eq!(seen + &rest, expected("m?tokens=60", "over the web"));
    assert!(more.first() > ids.last());

    let end = more.last().unwrap().to_string();
    assert_eq!(web.get(&id, &[mine, ("last-event-id", &end)]).await.status(), 204);
    assert_eq!(web.get(&id, &[mine, ("last-event-id", "-1")]).await.status(), 400);
    assert_eq!(web.get(&id, &[("x-tenant", "other")]).await.status(), 404);
    assert_eq!(web.get(&id, &[]).await.status(), 404);
    assert_eq!(web.get(&JobId::new().to_string(), &[mine]).await.status(), 404);

    // The gateway below it believes whom the application introduces.
    let below = format!("/llm/v1/jobs/{id}");
    let told = web.at(&below, &[mine]).await.text().await.unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["text"], expected("m?tokens=60", "over the web"));
    assert_eq!(web.at(&below, &[("x-tenant", "other")]).await.status(), 404);
    assert_eq!(web.at(&below, &[]).await.status(), 401);
    let who = web.at("/llm/whoami", &[("x-tenant", "other")]).await.text().await.unwrap();
    assert!(who.contains("\"tenant\":\"other\"") && !who.contains("admin"), "{who}");
    assert_eq!(web.at("/llm/v1/queues", &[mine]).await.status(), 403);

    // A server that is to stop asks its readers to come back.
    let waiting = stack.ask("m?ttft=60000", "for long").await.to_string();
    let open = web.get(&waiting, &[mine]).await;
    assert_eq!(open.status(), 200);
    web.process.signal("TERM");
    let said = open.text().await.unwrap();
    assert!(said.contains("event: reconnect"), "{said}");
    let (code, said) = tokio::task::block_in_place(|| web.process.end());
    assert_eq!(code, Some(0), "{said}");
}
