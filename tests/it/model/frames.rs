//! The events that workers write, and what events say.

use std::time::Duration;

use millstream::{
    broker::{self, Attempt, Outcome},
    error::Failure,
    event::{Body, Cancelled, Chunk, Codec, Done, Failed, Frame, Piece},
};

use super::terms::{End, Refusal, WorkerNo};
use crate::support::subject;

/// How an attempt ends, and the event `seq` that says so.
pub fn ended(attempt: &Attempt, seq: u64, end: End) -> (Outcome, Frame) {
    let error = subject::failure("no");
    match end {
        End::Done => {
            let outcome = Outcome::Done { finish_reason: Some("stop".to_owned()), usage: None };
            let done = Done { attempts: attempt.number, ..Done::default() };
            (outcome, Frame::new(seq, &Body::Done(done), Codec::Json).unwrap())
        }
        End::Failed => (Outcome::Failed(error.clone()), failed(seq, error, attempt.number)),
        End::Retry { far } => {
            let delay = if far { Duration::from_hours(1) } else { Duration::ZERO };
            (Outcome::Retry { error, delay }, subject::retrying(seq, attempt))
        }
        End::Cancelled => (Outcome::Cancelled { usage: None }, cancelled(seq, attempt.number)),
    }
}

/// How a job is refused, and its event.
pub fn refused(how: Refusal) -> (broker::Refusal, Frame) {
    match how {
        Refusal::Failed(code) => {
            let error = Failure::new(code, "refused");
            (broker::Refusal::Failed(error.clone()), failed(0, error, 0))
        }
        Refusal::Cancelled => (broker::Refusal::Cancelled, cancelled(0, 0)),
    }
}

fn failed(seq: u64, error: Failure, attempts: u32) -> Frame {
    let labels = millstream::job::Labels::default();
    let body = Failed { error, attempts, custom_id: None, labels };
    Frame::new(seq, &Body::Failed(body), Codec::Json).unwrap()
}

fn cancelled(seq: u64, attempts: u32) -> Frame {
    let body = Cancelled { attempts, ..Cancelled::default() };
    Frame::new(seq, &Body::Cancelled(body), Codec::Json).unwrap()
}

/// What an event says beside its kind, as the reference notes it.
pub fn note(body: &Body, worker: impl Fn(&str) -> WorkerNo) -> String {
    match body {
        Body::Started(data) => format!("{} by {}", data.attempt, worker(&data.worker)),
        Body::Delta(chunk) => said(chunk),
        Body::Retrying(data) => data.attempt.to_string(),
        Body::Done(data) => data.attempts.to_string(),
        Body::Failed(data) => data.attempts.to_string(),
        Body::Cancelled(data) => data.attempts.to_string(),
        Body::Requeued(data) => data.run.to_string(),
        other => format!("{other:?}"),
    }
}

fn said(chunk: &Chunk) -> String {
    let text = |piece: &Piece| {
        piece.delta.get("content").and_then(|text| text.as_str()).unwrap_or_default().to_owned()
    };
    chunk.choices.iter().map(text).collect()
}
