//! `/v1/ws`: many jobs over one WebSocket.
//!
//! Frames are JSON text. A request has an `id` of the client's own, an `op` and what that needs:
//!
//! | `op` | fields | answer |
//! |---|---|---|
//! | `enqueue` | `job`: as for `POST /v1/jobs` | the job, as there |
//! | `subscribe` | `job`: its ID, `after`: the last event that was seen | `{"job", "state"}`, then events |
//! | `unsubscribe` | `job`: its ID | `{"job", "followed"}` |
//! | `cancel` | `job`: its ID | as of `DELETE /v1/jobs/ID` |
//!
//! Each is answered, in order, by `{"id", "ok"}` or `{"id", "error"}`. Events come as `{"job", "event",
//! "event_id", "data"}`, and behind the last of a job `{"job", "end": true}`.
//!
//! One task serves a socket, and all that it follows ends with it. It reads no further ahead than the client
//! takes: a slow client falls behind its live messages and catches up from the log.
//!
//! Close codes: 1002 for what is no WebSocket frame, 1003 for a binary frame, 1007 for text that is not UTF-8, 1008 after [`FAULTS`] frames that are no requests, 1009 for one that is
//! too large, 1012 when the gateway closes (come back at once), 1013 for one without room, 4408 when nothing was said or heard for
//! `socket_idle`.

mod end;
pub(super) mod frame;
mod handshake;
mod open;

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        State,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{HeaderMap, StatusCode},
    response::Response,
};
use end::{End, NO_ROOM, Step};
use frame::{Op, Request};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
pub(super) use handshake::Upgrade;
use open::Open;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::StreamMap;

use super::{
    app::App,
    audit::Trail,
    auth::{self, Caller, Known, Right},
    bodies::Meter,
    error::Refusal,
    jobs, presence,
    slots::Slot,
    view,
};
use crate::{
    event::{Event, EventId},
    job::JobId,
    listener::{self, Room},
};

/// Frames that are no requests which one client may send.
pub const FAULTS: u32 = 10;

/// The close code of a socket that was silent on both sides.
pub const IDLE: u16 = 4408;

/// The subprotocol, beside which a browser's script names its key as `bearer.KEY`.
pub(super) const PROTOCOL: &str = "millstream";

/// How long a client has to hear the last words, and to answer them.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A send that took longer had to wait until the client took something, and so has heard of it.
const AT_ONCE: Duration = Duration::from_millis(1);

/// What is read ahead of a socket, in bytes.
const READ_AHEAD: usize = 8 * 1024;

/// The bytes of a ping or pong of a client beside its content: the head and the mask.
const BESIDE: usize = 6;

/// What a subscription takes beside the events that wait, in bytes.
const SUBSCRIPTION: usize = 4 * 1024;

/// A job's events, and `None` behind the last.
type Events = BoxStream<'static, Option<Result<Event, listener::Error>>>;

/// A socket in use.
struct Session {
    app: Arc<App>,
    caller: Arc<Caller>,
    socket: WebSocket,
    meter: Meter,
    followed: StreamMap<JobId, Events>,
    /// What waits for the client, of all jobs that it follows.
    room: Room,
    /// The largest message so far: the library keeps as much space for the next one.
    largest: usize,
    faults: u32,
    /// When anything but a ping was last said or heard.
    active: Instant,
    /// When the client last sent anything at all.
    heard: Instant,
    slot: Slot,
    trail: Trail,
    _open: Open,
}

pub(super) fn upgrade(
    State(app): State<Arc<App>>,
    Known(caller): Known,
    headers: &HeaderMap,
    Upgrade(upgrade, meter): Upgrade,
    trail: Trail,
) -> Result<Response, Refusal> {
    let scheme = meter.is_some().then_some("http");
    handshake::same_site(&app.options.cors_origins, headers, scheme)?;
    open(&app, upgrade, caller, meter.unwrap_or_default(), trail)
}

/// Serves a caller on an upgraded connection of an application's own server.
pub(super) fn serve(
    app: &Arc<App>,
    headers: &HeaderMap,
    upgrade: WebSocketUpgrade,
    caller: Arc<Caller>,
) -> Result<Response, Refusal> {
    handshake::same_site(&app.options.cors_origins, headers, None)?;
    let trail = Trail::of(&caller);
    open(app, upgrade, caller, Meter::default(), trail)
}

fn open(
    app: &Arc<App>,
    upgrade: WebSocketUpgrade,
    caller: Arc<Caller>,
    meter: Meter,
    trail: Trail,
) -> Result<Response, Refusal> {
    let slot = app.slots.take(&caller.tenant)?;
    let (open, cutoff) = (Open::new(app), app.cutoff.clone());
    let max = app.options.limits.max_body;
    let app = Arc::clone(app);
    meter.begin(app.bodies.room(&caller.tenant));
    let upgrade = upgrade.max_message_size(max).max_frame_size(max).protocols([PROTOCOL]);
    Ok(upgrade.read_buffer_size(READ_AHEAD).on_upgrade(async move |socket| {
        let now = Instant::now();
        let (followed, room) = (StreamMap::new(), app.listener.room());
        let session = Session {
            app,
            caller,
            socket,
            meter,
            followed,
            room,
            largest: 0,
            faults: 0,
            active: now,
            heard: now,
            slot,
            trail,
            _open: open,
        };
        cutoff.run_until_cancelled_owned(session.run()).await;
    }))
}

impl Session {
    async fn run(mut self) {
        let heartbeat = self.app.options.heartbeat;
        let mut ticks = tokio::time::interval(heartbeat.min(self.app.options.limits.socket_idle));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let closing = self.app.closing.clone();
        let end = loop {
            let step = tokio::select! {
                biased;
                () = closing.cancelled() => {
                    Err(End::Close(close_code::RESTART, "the gateway closes; come back".to_owned()))
                }
                message = self.socket.recv() => self.hear(message).await,
                // Before what may be ready for minutes on end.
                _ = ticks.tick() => self.beat().await,
                Some((job, event)) = self.followed.next(), if !self.followed.is_empty() => {
                    self.tell(job, event).await
                }
            };
            if let Err(end) = step {
                break end;
            }
        };
        // What follows ends now, not when the client has answered.
        self.followed.clear();
        let _ = timeout(LAST_WORDS, self.part(end)).await;
    }

    /// Says why, and reads on until the client has answered: where something is left unread the system
    /// drops what was said last.
    async fn part(&mut self, end: End) {
        let mut legible = true;
        if let End::Close(code, reason) = end {
            legible = !end::ILLEGIBLE.contains(&code);
            let close = CloseFrame { code, reason: reason.into() };
            if self.socket.send(Message::Close(Some(close))).await.is_err() {
                return;
            }
        }
        while let Some(Ok(_)) = self.socket.recv().await {}
        if !legible {
            // What follows a frame that is too large, or none, is not read: the client has its time to hear why.
            std::future::pending::<()>().await;
        }
    }

    /// Sends a frame, unless the client takes nothing for too long.
    async fn send(&mut self, message: Message) -> Step {
        let limit = self.app.options.limits.write_timeout;
        let began = Instant::now();
        match timeout(limit, self.socket.send(message)).await {
            Ok(Ok(())) => {
                if began.elapsed() > AT_ONCE {
                    self.heard = Instant::now();
                }
                Ok(())
            }
            _ => Err(End::Gone),
        }
    }

    async fn say(&mut self, text: String) -> Step {
        self.active = Instant::now();
        self.send(Message::Text(text.into())).await
    }

    /// A socket does not outlive its key.
    fn is_let_in(&self) -> Step {
        if self.app.keys.holds(&self.caller) {
            return Ok(());
        }
        Err(End::Close(close_code::POLICY, "the API key is not valid any more".to_owned()))
    }

    /// Keeps the connection alive, and notices one that is dead or idle.
    async fn beat(&mut self) -> Step {
        let limits = &self.app.options.limits;
        let idle = limits.socket_idle;
        self.is_let_in()?;
        if self.active.elapsed() >= idle {
            let text = format!("nothing said or heard for {} s", idle.as_secs_f64());
            return Err(End::Close(IDLE, text));
        }
        if self.heard.elapsed() > limits.write_timeout.max(self.app.options.heartbeat * 2) {
            return Err(End::Gone);
        }
        self.send(Message::Ping(Vec::new().into())).await
    }

    async fn hear(&mut self, message: Option<Result<Message, axum::Error>>) -> Step {
        self.heard = Instant::now();
        match message {
            None | Some(Ok(Message::Close(_))) => Err(End::Gone),
            // It may stand between the parts of a message, which keep their room.
            Some(Ok(Message::Ping(content) | Message::Pong(content))) => {
                self.meter.give_back(BESIDE + content.len());
                Ok(())
            }
            Some(Ok(Message::Binary(_))) => Err(End::Close(
                close_code::UNSUPPORTED,
                "binary frame; allowed: JSON text".to_owned(),
            )),
            Some(Err(error)) => Err(End::of(error)),
            Some(Ok(Message::Text(text))) => {
                self.is_let_in()?;
                self.active = Instant::now();
                let taken = self.meter.taken();
                let answer = self.reply(&text).await;
                self.largest = self.largest.max(text.len());
                // The client may take its time for the answer.
                drop(text);
                self.meter.give_back(taken);
                self.say(answer).await?;
                if self.weigh(self.followed.len()).is_err() {
                    return Err(End::Close(close_code::AGAIN, NO_ROOM.to_owned()));
                }
                if self.faults < FAULTS {
                    return Ok(());
                }
                let text = format!("{FAULTS} frames were no requests; see docs/HTTP.md");
                Err(End::Close(close_code::POLICY, text))
            }
        }
    }

    /// What is said to a message.
    async fn reply(&mut self, text: &Utf8Bytes) -> String {
        match frame::read(text) {
            Ok((id, request)) => {
                let answer = self.answer(&request).await;
                self.trail.frame(&request, &answer);
                frame::answered(id, answer)
            }
            Err(fault) => {
                self.faults += 1;
                frame::answered(fault.0, Err::<(), _>(fault.1))
            }
        }
    }

    /// Counts the socket as what it takes when it follows so many jobs.
    fn weigh(&mut self, followed: usize) -> Result<(), Refusal> {
        self.slot.widen(self.largest + followed * SUBSCRIPTION)
    }

    async fn answer(&mut self, request: &Request<'_>) -> Result<Value, Refusal> {
        let app = Arc::clone(&self.app);
        let tenant = &self.caller.tenant;
        let op = request.op();
        if !matches!(op, Ok(Op::Unsubscribe)) {
            auth::admit(&app, tenant).await?;
        }
        match op? {
            Op::Enqueue => {
                self.caller.needs(Right::Enqueue)?;
                let submission =
                    jobs::submission(&app, tenant, request.payload()?.as_bytes(), None)?;
                let queue = submission.partition.queue.clone();
                let receipt = jobs::submit(&app, tenant, submission).await?;
                let warning = presence::warning(&app, &queue).await;
                Ok(json!(view::Accepted { warning, ..(&receipt).into() }))
            }
            Op::Cancel => {
                self.caller.needs(Right::Enqueue)?;
                Ok(json!(jobs::cancelled(&app, tenant, request.job()?).await?))
            }
            Op::Subscribe => {
                self.caller.needs(Right::Read)?;
                self.subscribe(request.job()?, request.after()?).await
            }
            Op::Unsubscribe => {
                let job = request.job()?;
                let followed = self.followed.remove(&job).is_some();
                Ok(json!({"job": job, "followed": followed}))
            }
        }
    }

    /// Follows a job from behind a cursor; one that is followed already, from there anew.
    async fn subscribe(&mut self, job: JobId, after: EventId) -> Result<Value, Refusal> {
        let most = self.app.options.limits.max_subscriptions;
        if self.followed.len() >= most && !self.followed.contains_key(&job) {
            let text = format!(
                "{most} jobs are followed, the most that one socket may; unsubscribe from one"
            );
            let status = StatusCode::TOO_MANY_REQUESTS;
            return Err(Refusal::new(status, "too_many_subscriptions", text));
        }
        self.weigh(self.followed.len() + 1)?;
        let tenant = self.caller.tenant.clone();
        let listen = self.app.listener.listen(job).after(after).owned_by(tenant);
        let listen = listen.within(self.room.clone()).idle_timeout(None);
        let following = self.app.noticed(listen.open().await)?;
        let state = following.record().map(|record| record.state);
        let events = following.events().map(Some).chain(stream::once(async { None }));
        self.followed.insert(job, events.boxed());
        Ok(json!({"job": job, "state": state}))
    }

    /// Passes on an event of a job.
    async fn tell(&mut self, job: JobId, event: Option<Result<Event, listener::Error>>) -> Step {
        self.is_let_in()?;
        let Some(event) = event else {
            self.followed.remove(&job);
            return self.say(json!({"job": job, "end": true}).to_string()).await;
        };
        match event {
            Ok(event) => self.say(frame::shown(job, &event)).await,
            Err(error) => {
                self.followed.remove(&job);
                let refusal = Refusal::from(error);
                self.say(json!({"job": job, "end": true, "error": refusal.error}).to_string()).await
            }
        }
    }
}
