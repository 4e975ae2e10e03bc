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
    clippy::missing_errors_doc,
    reason = "nothing here is exported"
)]
#![allow(
    clippy::default_trait_access,
    clippy::items_after_statements,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    clippy::print_stdout,
    clippy::too_many_lines,
    reason = "a test reads from top to bottom"
)]

mod admission;
mod answers;
mod audit;
mod bad_input;
mod bench;
mod cancel;
mod claim;
mod conformance;
mod console;
mod cost;
mod crash;
mod crash_steps;
mod databases;
mod dead_letters;
mod durability;
mod entries;
mod examples;
mod faults;
mod forgetting;
mod gateway;
mod hostile;
mod http_doc;
mod idempotency;
mod interruptions;
mod keys;
mod lifecycle;
mod listen;
mod log_content;
mod logs;
mod migrate;
mod model;
mod options;
mod piles;
mod presence;
mod programs;
mod promotion;
mod readme;
mod redis_loss;
mod redis_says;
mod redis_setup;
mod redis_tls;
mod retention;
mod roles;
mod rolling;
mod schema;
mod sdk;
mod soak;
mod socket;
mod steps;
mod support;
mod takeover;
mod tenancy;
mod terminal;
mod trim;
mod upstream;
