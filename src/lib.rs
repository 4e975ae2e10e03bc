//! Millstream is an LLM job queue on Redis Streams.
//!
//! A chat request becomes a durable job; any worker runs it against any OpenAI-compatible model;
//! its tokens stream to any number of readers, and the answer arrives whole when a tab reloads, a
//! worker is killed or Redis restarts.
//!
//! # Layout
//!
//! From the ground up; dependencies only go down.
//!
//! - [`job`], [`event`], [`state`], [`retry`], [`error`], [`mask`]: the domain, pure
//! - [`broker`]: the ports, and their adapters [`broker::redis`] and [`broker::memory`]
//! - `upstream`: the model's port, and its adapter `upstream::openai`; `simulator` stands in for
//!   a model
//! - [`producer`] enqueues, [`listener`] follows, `worker` executes, [`admin`] cancels, requeues and
//!   drains
//! - `gateway` serves jobs to the web
//! - `config` gathers everyone's options; `bench` measures; `cli` is what the programs share
//!
//! # Features
//!
//! - `worker` (default): claiming and executing jobs
//! - `gateway` (default): the web handler, an axum router
//! - `simulator`: the model simulator, an HTTP server of its own
//! - `cli` (default): what the binaries need; implies all of them
//!
//! Without them an application embeds producer and listener alone.

pub mod admin;
#[cfg(feature = "cli")]
pub mod bench;
pub mod broker;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod config;
pub mod error;
pub mod event;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod job;
pub mod listener;
pub mod mask;
pub mod producer;
pub mod retry;
#[cfg(feature = "simulator")]
pub mod simulator;
pub mod state;
#[cfg(feature = "worker")]
pub mod upstream;
#[cfg(feature = "worker")]
pub mod worker;

/// TLS needs one cryptography provider per process; whoever comes first installs it.
fn install_tls_provider() {
    // An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
