//! What the programs share: arguments, the parts a process is made of, and terminal output.
//!
//! A program is `parse → build → run → exit code`. Arguments are parsed before anything else
//! happens, then turned into layers of the configuration, and everything that goes wrong after
//! that is one [`Error`]: one line with cause and remedy, and an [`Exit`] code of its own kind.
//!
//! Answers and data go to standard output, everything for people to standard error. Nothing here
//! writes to a terminal by itself: commands write to the [`Terminal`] that the program passes in.

mod answer;
mod args;
mod ask;
mod audit;
mod bench;
mod clean;
mod dev;
mod dlq;
mod ended;
mod engine;
mod exit;
pub mod gateway;
mod jobs;
mod keys;
mod logging;
mod migrate;
pub mod millstream;
mod parts;
mod process;
pub mod producer;
mod queues;
mod settings;
mod simulate;
mod tables;
mod terminal;
mod unserved;
pub mod worker;

pub use exit::{Error, Exit};
pub use process::{Context, main, main_that_drains};
pub use terminal::Terminal;
