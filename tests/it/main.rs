//! Integration tests: whole parts against real servers.

#![allow(missing_docs, reason = "tests say what they do in their names")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation is a failed test, in the helpers too"
)]
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "nothing here is exported"
)]

mod bad_input;
mod conformance;
mod cost;
mod examples;
mod listen;
mod migrate;
mod programs;
mod readme;
mod redis_loss;
mod support;
mod trim;
