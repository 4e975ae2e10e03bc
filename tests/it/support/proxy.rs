//! A proxy in front of a server, which cuts a connection at a chosen request.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Where a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The request of this number, from 1, is carried out, and its reply is lost.
    Reply(usize),
    /// The request of this number is lost; every earlier one was answered.
    Request(usize),
}

/// The requests that came since it was armed.
#[derive(Default)]
struct State {
    cut: Option<Cut>,
    requests: usize,
    hold: Option<String>,
}

/// The proxy. It carries everything until it is armed, and again once it has cut.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
    /// Whether anything passes.
    open: Arc<watch::Sender<bool>>,
    /// Whether a reply waits.
    waits: Arc<watch::Sender<bool>>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// A proxy of the server at this port.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<State>>::default();
        let open = Arc::new(watch::Sender::new(true));
        let waits = Arc::new(watch::Sender::new(false));
        let (shared, gates) = (state.clone(), (open.clone(), waits.clone()));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                tokio::spawn(carry(client, server, shared.clone(), gates.clone()));
            }
        });
        Self { port, state, open, waits, _task: AbortOnDropHandle::new(task) }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The next requests count; one connection is cut.
    pub fn arm(&self, cut: Cut) {
        *self.state.lock().unwrap() = State { cut: Some(cut), ..State::default() };
    }

    /// The next request that holds this text is carried out; its reply, and whatever comes behind it,
    /// waits until it is let through.
    pub fn hold_behind(&self, text: String) {
        self.state.lock().unwrap().hold = Some(text);
    }

    /// Waits until that request has come.
    pub async fn holds(&self) {
        self.open.subscribe().wait_for(|open| !open).await.unwrap();
    }

    /// Waits until it has been carried out, and its reply is here.
    pub async fn replied(&self) {
        self.waits.subscribe().wait_for(|waits| *waits).await.unwrap();
    }

    /// Lets everything through.
    pub fn let_through(&self) {
        self.waits.send_replace(false);
        self.open.send_replace(true);
    }

    /// Carries everything again; whether it had not cut.
    pub fn disarm(&self) -> bool {
        self.state.lock().unwrap().cut.take().is_some()
    }
}

/// What becomes of a request.
enum Verdict {
    Carry,
    /// The last one.
    CarryAndCut,
    Cut,
}

impl State {
    fn judge(&mut self) -> Verdict {
        self.requests += 1;
        let verdict = match self.cut {
            Some(Cut::Reply(at)) if at == self.requests => Verdict::CarryAndCut,
            Some(Cut::Request(at)) if at == self.requests => Verdict::Cut,
            _ => return Verdict::Carry,
        };
        self.cut = None;
        verdict
    }
}

/// Carries one connection until either side ends it or it is cut.
async fn carry(
    client: TcpStream,
    server: TcpStream,
    state: Arc<Mutex<State>>,
    (gate, waits): (Arc<watch::Sender<bool>>, Arc<watch::Sender<bool>>),
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mute = CancellationToken::new();
    let (muted, mut may_return) = (mute.clone(), gate.subscribe());
    let mut may_go = gate.subscribe();
    let back = tokio::spawn(async move {
        let mut bytes = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if !*may_return.borrow_and_update() {
                waits.send_replace(true);
            }
            may_return.wait_for(|open| *open).await.unwrap();
            // What is lost is read all the same: the server must not wait for its reader.
            if !muted.is_cancelled() && to_client.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    });
    let mut bytes = Vec::new();
    'open: while let Ok(1..) = from_client.read_buf(&mut bytes).await {
        while let Some(length) = request(&bytes) {
            let request: Vec<u8> = bytes.drain(..length).collect();
            may_go.wait_for(|open| *open).await.unwrap();
            let verdict = {
                let mut state = state.lock().unwrap();
                if state.hold.take_if(|text| contains(&request, text.as_bytes())).is_some() {
                    gate.send_replace(false);
                }
                state.judge()
            };
            if !matches!(verdict, Verdict::Carry) {
                mute.cancel();
            }
            if !matches!(verdict, Verdict::Cut) && to_server.write_all(&request).await.is_err() {
                break 'open;
            }
            if mute.is_cancelled() {
                break 'open;
            }
        }
    }
    // The server reads what it was sent and closes; only then is the client told.
    drop(to_server.shutdown().await);
    drop(back.await);
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// The length of the first request, once all of it is there: an array of bulk strings.
fn request(bytes: &[u8]) -> Option<usize> {
    let number = |at: usize| -> Option<(usize, usize)> {
        let end = at + bytes.get(at..)?.windows(2).position(|pair| pair == b"\r\n")?;
        Some((std::str::from_utf8(&bytes[at + 1..end]).ok()?.parse().ok()?, end + 2))
    };
    let (words, mut at) = number(0)?;
    for _ in 0..words {
        let (length, start) = number(at)?;
        at = start + length + 2;
    }
    (at <= bytes.len()).then_some(at)
}

#[test]
fn a_request_is_whole_or_not_there() {
    let bytes = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n$4\r\nPI";
    assert_eq!(request(bytes), Some(20));
    assert_eq!(request(&bytes[20..]), None);
    assert_eq!(request(b""), None);
}
