//! The simulator over a real connection, read byte by byte: a client library would hide how a
//! stream ends.

mod answers;
mod faults;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;

/// What `tests/oracle.py` says to [`hello`] with 12 tokens; and its choice 1, and attempt 2 with
/// `vary`, with 6.
const TWELVE: &str =
    "with flowing barge gentle dusk green meadow singing brook water lantern flowing";
const CHOICE_1: &str = "beyond between gentle mill flowing green";
const ATTEMPT_2: &str = "stone along flour willow rain rain";

struct Running {
    addr: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Stats>,
}

impl Running {
    async fn start(options: Options) -> Self {
        let options = Options { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..options };
        let simulator = Simulator::bind(options).await.unwrap();
        let (addr, shutdown) = (simulator.addr(), CancellationToken::new());
        assert_eq!(simulator.base_url(), format!("http://{addr}/v1"));
        Self { addr, task: tokio::spawn(simulator.run(shutdown.clone())), shutdown }
    }

    /// As fast as possible, with six tokens per answer.
    async fn quick() -> Self {
        Self::start(Options { ttft: Duration::ZERO, rate: 0.0, tokens: 6, ..Options::default() })
            .await
    }

    async fn send(&self, method: &str, path: &str, header: &str, body: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.addr).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {}\r\n{header}\r\n",
            body.len()
        );
        connection.write_all((head + body).as_bytes()).await.unwrap();
        connection
    }

    async fn chat(&self, body: &Value) -> Reply {
        self.chat_with("", &body.to_string()).await
    }

    async fn chat_with(&self, header: &str, body: &str) -> Reply {
        Reply::read(self.send("POST", "/v1/chat/completions", header, body).await).await
    }

    async fn get(&self, path: &str) -> Reply {
        Reply::read(self.send("GET", path, "", "").await).await
    }

    async fn stats(&self) -> Stats {
        serde_json::from_str(&self.get("/stats").await.body).unwrap()
    }

    async fn stop(self) -> Stats {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
    /// Whether the body reached the end its head promised.
    whole: bool,
}

impl Reply {
    async fn read(mut connection: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A broken connection may end in a reset; what came before it counts.
        let _ = connection.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let chunked = head.contains("transfer-encoding: chunked");
        let (body, whole) = if chunked { unchunk(body) } else { (body.to_owned(), true) };
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_owned(), body, whole }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The data of every frame; each must be whole and alone in its block.
    fn frames(&self) -> Vec<&str> {
        self.body
            .split_terminator("\n\n")
            .map(|frame| frame.strip_prefix("data: ").unwrap())
            .collect()
    }

    fn chunks(&self) -> Vec<Value> {
        self.frames().iter().filter_map(|frame| serde_json::from_str(frame).ok()).collect()
    }

    /// What the deltas of choice `index` add up to in `field`, a JSON pointer into the delta.
    fn said(&self, index: u32, field: &str) -> String {
        let chunks = self.chunks();
        let choices = chunks.iter().filter_map(|chunk| chunk["choices"].as_array()).flatten();
        let mine = choices.filter(|choice| choice["index"] == index);
        mine.filter_map(|choice| choice["delta"].pointer(field).and_then(Value::as_str)).collect()
    }
}

fn unchunk(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let end = size.min(after.len());
        body.push_str(&after[..end]);
        rest = after.get(end + 2..).unwrap_or("");
    }
    (body, false)
}

/// The request that the fixed texts answer, with more fields.
fn hello(fields: &Value) -> Value {
    let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    for (key, value) in fields.as_object().unwrap() {
        request[key] = value.clone();
    }
    request
}

fn words(text: &str, count: usize) -> String {
    text.split(' ').take(count).collect::<Vec<_>>().join(" ")
}
