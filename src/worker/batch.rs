//! Gathers deltas into chunks, and remembers what an answer's end needs.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{
    event::{Chunk, Piece},
    upstream::Part,
};

/// Decides when deltas go out: the first at once, then by interval or size.
#[derive(Debug)]
pub(super) struct Batch {
    chunk: Chunk,
    /// Nothing has gone out yet.
    first: bool,
    /// What has gathered is worth a flush.
    spoke: bool,
    interval: Duration,
    most: usize,
    /// When the last chunk went out.
    flushed: Instant,
    /// Chunk-level fields as they were last sent.
    extra: Map<String, Value>,
    /// The model that answers, as far as readers know: the one that was asked for, or as it names itself.
    model: String,
}

impl Batch {
    pub(super) fn new(interval: Duration, most: usize, model: String) -> Self {
        Self {
            model,
            chunk: Chunk::default(),
            first: true,
            spoke: false,
            interval,
            most,
            flushed: Instant::now(),
            extra: Map::new(),
        }
    }

    /// Adds what the upstream said.
    pub(super) fn push(&mut self, part: &mut Part) {
        for piece in part.pieces.drain(..) {
            self.spoke |= piece.speaks();
            self.chunk.push(piece);
        }
        if let Some(model) = part.model.take().filter(|model| *model != self.model) {
            self.chunk.extra.insert("model".to_owned(), model.as_str().into());
            self.model = model;
        }
        for (name, value) in std::mem::take(&mut part.extra) {
            if self.extra.get(&name) != Some(&value) {
                self.extra.insert(name.clone(), value.clone());
                self.chunk.extra.insert(name, value);
            }
        }
    }

    /// When the chunk is to go out; `None` while it tells nothing beyond a role.
    pub(super) fn due(&self) -> Option<Instant> {
        if !self.spoke {
            return None;
        }
        if self.first || self.chunk.weight() >= self.most {
            return Some(self.flushed);
        }
        Some(self.flushed + self.interval)
    }

    /// The bytes that wait, roughly.
    pub(super) fn weight(&self) -> usize {
        self.chunk.weight()
    }

    /// Takes what has gathered, if anything.
    pub(super) fn take(&mut self) -> Option<Chunk> {
        if self.chunk.is_empty() {
            return None;
        }
        self.first = false;
        self.spoke = false;
        self.flushed = Instant::now();
        Some(std::mem::take(&mut self.chunk))
    }
}

/// What the end of an answer needs.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) usage: Option<Value>,
    pub(super) model: Option<String>,
    pub(super) upstream_id: Option<String>,
    /// The upstream called the answer whole.
    pub(super) done: bool,
    /// Something was said.
    pub(super) spoke: bool,
}

impl Summary {
    /// Notes what a part tells.
    pub(super) fn note(&mut self, part: &Part) {
        self.spoke |= part.pieces.iter().any(Piece::speaks);
        self.done |= part.done;
        if part.usage.is_some() {
            self.usage.clone_from(&part.usage);
        }
        if self.model.is_none() {
            self.model.clone_from(&part.model);
        }
        if self.upstream_id.is_none() {
            self.upstream_id.clone_from(&part.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn part(text: &str) -> Part {
        Part {
            pieces: vec![
                serde_json::from_value(json!({"index": 0, "delta": {"content": text}})).unwrap(),
            ],
            extra: json!({"system_fingerprint": "fp"}).as_object().unwrap().clone(),
            ..Part::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_goes_at_once_then_by_interval_or_size() {
        let mut batch = Batch::new(Duration::from_millis(100), 100, String::new());
        let role = json!({"index": 0, "delta": {"role": "assistant", "content": ""}});
        batch.push(&mut Part {
            pieces: vec![serde_json::from_value(role).unwrap()],
            ..Part::default()
        });
        assert_eq!(batch.due(), None);
        batch.push(&mut part("a"));
        assert!(batch.due().is_some_and(|at| at <= Instant::now()));
        assert_eq!(batch.take().unwrap().text(), "a");
        batch.push(&mut part("b"));
        batch.push(&mut part("c"));
        assert_eq!(batch.due(), Some(Instant::now() + Duration::from_millis(100)));
        batch.push(&mut part(&"x".repeat(100)));
        assert!(batch.due().is_some_and(|at| at <= Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_field_beside_the_choices_goes_out_once() {
        let mut batch = Batch::new(Duration::ZERO, 1, "m".to_owned());
        batch.push(&mut part("a"));
        assert_eq!(batch.take().unwrap().extra.len(), 1);
        batch.push(&mut part("b"));
        assert!(batch.take().unwrap().extra.is_empty());
    }

    /// The name behind an alias was told at the end alone, when a stream had named the alias throughout.
    #[tokio::test(start_paused = true)]
    async fn the_model_behind_another_name_is_told_with_the_first_words() {
        let mut batch = Batch::new(Duration::ZERO, 1, "m".to_owned());
        for (named, told) in [("m", json!(null)), ("m-1", json!("m-1")), ("m-1", json!(null))] {
            let mut part = Part { model: Some(named.to_owned()), ..part("a") };
            batch.push(&mut part);
            let chunk = batch.take().unwrap();
            assert_eq!(chunk.extra.get("model").unwrap_or(&Value::Null), &told);
        }
    }

    #[test]
    fn a_role_alone_says_nothing() {
        let mut summary = Summary::default();
        let role = json!({"index": 0, "delta": {"role": "assistant", "content": ""}});
        summary
            .note(&Part { pieces: vec![serde_json::from_value(role).unwrap()], ..Part::default() });
        assert!(!summary.spoke);
        summary.note(&part("a"));
        assert!(summary.spoke && !summary.done);
    }
}
