//! What the house promises in figures, measured.
//!
//! A scenario runs in a [`Lab`], a corner of a Redis with a prefix of its own, and returns a
//! [`Report`]: distributions with their budgets, and claims that hold or do not. Nothing here
//! writes to a terminal. The model is the simulator, so what is measured is this system alone.

pub mod cancel;
mod crowd;
mod distribution;
mod fleet;
mod folder;
mod lab;
mod noise;
mod process;
pub mod promotion;
pub mod recovery;
mod report;
mod server;
pub mod streams;
pub mod ttft;
mod watch;

use std::{io, path::PathBuf, time::Duration};

pub use distribution::{Bin, Distribution, Mark};
pub use lab::Lab;
pub use report::{Amount, Budget, Claim, Figure, Machine, Report};

use crate::{broker, job::JobId, listener, producer, simulator, upstream};

/// Called for each sample.
pub type Progress<'a> = &'a (dyn Fn() + Send + Sync);

/// Why a scenario could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused, or cannot be reached.
    #[error(transparent)]
    Broker(#[from] broker::Error),
    /// A job was not enqueued.
    #[error(transparent)]
    Producer(#[from] producer::Error),
    /// A job could not be followed.
    #[error(transparent)]
    Listener(#[from] listener::Error),
    /// The simulator does not start.
    #[error(transparent)]
    Simulator(#[from] simulator::Error),
    /// The simulator's address is not accepted.
    #[error(transparent)]
    Upstream(#[from] upstream::openai::Error),
    /// A temporary folder or file cannot be used.
    #[error("cannot use {}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program cannot be started.
    #[error("cannot start {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process ended that should have gone on.
    #[error("{name} ended by itself: {said}")]
    Ended {
        /// What it was there for.
        name: String,
        /// The last that it wrote.
        said: String,
    },
    /// A call of the model was not answered as it must be.
    #[error("a call was answered by: {said}")]
    Refused {
        /// What was answered.
        said: String,
    },
    /// Something did not happen.
    #[error("{what} for {}", humantime_serde::re::humantime::format_duration(*.waited))]
    Stalled {
        /// What did not happen.
        what: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A job ended before it was measured.
    #[error("job {id} {what}")]
    Job {
        /// The job.
        id: JobId,
        /// What became of it.
        what: String,
    },
}

impl Error {
    /// A name that does not change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Broker(error) => error.code(),
            Self::Producer(error) => error.code(),
            Self::Listener(error) => error.code(),
            Self::Simulator(error) => error.code(),
            Self::Upstream(_) => "bench_upstream",
            Self::Folder { .. } => "bench_folder",
            Self::Program { .. } => "bench_program",
            Self::Ended { .. } => "bench_ended",
            Self::Refused { .. } => "bench_refused",
            Self::Stalled { .. } => "bench_stalled",
            Self::Job { .. } => "bench_job",
        }
    }
}

/// A random time below `limit`, each as likely as the other.
fn random_below(limit: Duration) -> Duration {
    let nanos = limit.as_nanos().max(1);
    Duration::from_nanos(u64::try_from(uuid::Uuid::new_v4().as_u128() % nanos).unwrap_or(0))
}
