//! A WebSocket's other end.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use futures_util::{SinkExt as _, StreamExt as _};
use millstream::{event::Event, job::JobId};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest as _,
        http::{HeaderName, Response, header},
    },
};

use crate::support::{gate::Gate, subject::soon};

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
    /// What came while something else was waited for.
    pub kept: VecDeque<Value>,
}

pub type Opened = Result<(Client, Response<Option<Vec<u8>>>), tungstenite::Error>;

pub async fn open_with(stream: TcpStream, headers: &[(HeaderName, &str)]) -> Opened {
    open_at(stream, "/v1/ws", headers).await
}

pub async fn open_at(stream: TcpStream, path: &str, headers: &[(HeaderName, &str)]) -> Opened {
    let addr = stream.peer_addr().unwrap();
    let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let (socket, response) = soon(client_async(request, stream)).await?;
    Ok((Client { socket, kept: VecDeque::new() }, response))
}

pub async fn try_open(addr: SocketAddr, headers: &[(HeaderName, &str)]) -> Opened {
    open_with(TcpStream::connect(addr).await.unwrap(), headers).await
}

pub async fn open(gate: &Gate) -> Client {
    try_open(gate.addr, &[]).await.unwrap().0
}

pub async fn open_as(gate: &Gate, key: &str) -> Client {
    let bearer = format!("Bearer {key}");
    try_open(gate.addr, &[(header::AUTHORIZATION, &bearer)]).await.unwrap().0
}

/// The status with which an upgrade is refused.
pub async fn refused(addr: SocketAddr, headers: &[(HeaderName, &str)]) -> u16 {
    match try_open(addr, headers).await {
        Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("refused with {other}"),
        Ok(_) => panic!("let in with {headers:?}"),
    }
}

impl Client {
    pub async fn send(&mut self, frame: &Value) {
        soon(self.socket.send(Message::text(frame.to_string()))).await.unwrap();
    }

    pub async fn frame(&mut self) -> Message {
        soon(self.socket.next()).await.expect("the socket is open").expect("a frame")
    }

    /// The next JSON frame.
    pub async fn next(&mut self) -> Value {
        let next = async {
            loop {
                match self.frame().await {
                    Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                    Message::Ping(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        soon(next).await
    }

    /// The next answer; what belongs to jobs is kept.
    pub async fn answer(&mut self) -> Value {
        loop {
            let frame = self.next().await;
            if frame.get("id").is_some() {
                return frame;
            }
            self.kept.push_back(frame);
        }
    }

    /// What is answered to a request.
    pub async fn ask(&mut self, request: Value) -> Value {
        self.send(&request).await;
        let answer = self.answer().await;
        assert_eq!(answer["id"], request["id"], "{answer}");
        answer
    }

    /// The next frame that belongs to a job.
    pub async fn event(&mut self) -> Value {
        if let Some(kept) = self.kept.pop_front() {
            return kept;
        }
        let frame = self.next().await;
        assert!(frame.get("id").is_none(), "{frame}");
        frame
    }

    /// Enqueues a question of that many tokens, at that many per second.
    pub async fn enqueue(&mut self, tokens: u32, rate: u32) -> JobId {
        let burst = if tokens > 5000 { tokens / 500 } else { 1 };
        let model = format!("m?tokens={tokens},rate={rate},burst={burst}");
        let messages = json!([{"role": "user", "content": JobId::new().to_string()}]);
        let job = json!({"model": model, "messages": messages});
        let answer = self.ask(json!({"id": "e", "op": "enqueue", "job": job})).await;
        answer["ok"]["id"].as_str().unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
    }

    pub async fn subscribe(&mut self, job: JobId, after: Option<&str>) -> Value {
        self.ask(json!({"id": "s", "op": "subscribe", "job": job, "after": after})).await
    }

    /// Every event up to the end of that many jobs.
    pub async fn until_over(&mut self, jobs: usize) -> HashMap<String, Vec<Value>> {
        let (mut events, mut over): (HashMap<String, Vec<Value>>, _) = (HashMap::new(), 0);
        while over < jobs {
            let frame = self.event().await;
            let job = frame["job"].as_str().unwrap().to_owned();
            if frame["end"] == true {
                assert_eq!(frame, json!({"job": job, "end": true}));
                over += 1;
            } else {
                events.entry(job).or_default().push(frame);
            }
        }
        events
    }

    /// With which code the gateway closes, and the frames before that.
    pub async fn closed(&mut self) -> (u16, String, Vec<Message>) {
        let mut before = Vec::new();
        loop {
            match self.frame().await {
                Message::Close(Some(close)) => {
                    // The handshake is answered, and the connection ends without an error.
                    assert!(soon(self.socket.next()).await.is_none());
                    return (close.code.into(), close.reason.to_string(), before);
                }
                other => before.push(other),
            }
        }
    }

    /// The code with which the gateway closes, whatever becomes of the connection.
    pub async fn code(&mut self) -> u16 {
        loop {
            match self.frame().await {
                Message::Close(Some(close)) => return close.code.into(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Events of a log, as a socket shows them.
pub fn shown(job: JobId, log: &[Event]) -> Vec<Value> {
    let show = |event: &Event| {
        let mut frame = json!({"job": job, "event": event.body.kind(), "event_id": event.id});
        let body = serde_json::to_value(event).unwrap();
        frame["data"] = body["data"].clone();
        frame
    };
    log.iter().map(show).collect()
}
