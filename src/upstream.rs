//! The upstream's port: a model endpoint that answers chat requests.

mod json;
pub mod openai;
mod sse;

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use serde_json::{Map, Value};

use crate::{error::Failure, event::Piece, job::ChatRequest};

/// What an upstream said at once: one chunk of a stream, or a whole answer. An empty part is a sign of life.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// The upstream's own ID of the answer.
    pub id: Option<String>,
    /// The model that answers, as it names itself.
    pub model: Option<String>,
    /// What the choices said.
    pub pieces: Vec<Piece>,
    /// The model's own count.
    pub usage: Option<Value>,
    /// The upstream says that the answer is whole: by `[DONE]`, or because it sent as much as it had announced.
    pub done: bool,
    /// Every other field.
    pub extra: Map<String, Value>,
}

/// A model that an upstream serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// Its name in requests.
    pub id: String,
    /// When it was made, in seconds since the epoch; 0 where that is not told.
    pub created: u64,
    /// Whose it is; empty where that is not told.
    pub owned_by: String,
}

/// An answer as it comes. Dropping it drops the call.
pub type Parts = Pin<Box<dyn Stream<Item = Result<Part, Failure>> + Send>>;

/// A model endpoint.
#[async_trait]
pub trait Upstream: Send + Sync {
    /// Asks for an answer, streamed or whole. No retry and no deadline: both are the caller's.
    /// A stream that ends without an error is whole where every choice has a finish reason, or where a part is
    /// [`done`](Part::done); else it was cut.
    async fn answer(&self, request: &ChatRequest, stream: bool) -> Result<Parts, Failure>;

    /// The models that it serves; none where it does not tell.
    async fn models(&self) -> Result<Vec<Model>, Failure> {
        Ok(Vec::new())
    }
}
