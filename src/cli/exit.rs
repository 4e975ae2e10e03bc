//! How a program ends: exit codes, and errors of one line.

use std::{fmt, process::ExitCode};

use crate::{
    bench, broker, config, error, gateway, listener, producer, simulator, upstream, worker,
};

/// Why a program ended. The numbers do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked to.
    Ok = 0,
    /// Something that has no code of its own.
    Unexpected = 1,
    /// Wrong flags, or input that cannot be accepted.
    Usage = 2,
    /// A configuration that is wrong or lacks something.
    Configuration = 3,
    /// The broker cannot be reached or refuses, a queue is full, or no worker serves it.
    Broker = 4,
    /// The model's endpoint cannot be reached or refuses the key.
    Upstream = 5,
    /// A job failed, was not over in time, or its answer is not kept any more.
    Job = 6,
    /// A benchmark that was to be checked missed a budget.
    Missed = 7,
    /// The broker's memory is full.
    OutOfMemory = 8,
    /// The broker is a replica, which takes no writes.
    ReadOnly = 9,
    /// The broker takes no writes while it cannot save, or lacks replicas.
    Unsafe = 10,
    /// The broker is there, and not ready: it loads its data, is blocked, fails over, has all its clients.
    NotReady = 11,
    /// A lane of the queue, or its group, is gone, or takes no more entries.
    NoGroup = 12,
    /// The broker refuses user or password.
    Login = 13,
    /// The broker's ACL forbids a command or key.
    Permission = 14,
    /// What is at the address is no Redis.
    NotRedis = 15,
    /// TLS on one side only, or a certificate that is not trusted.
    Tls = 16,
    /// The broker does not have that database.
    Database = 17,
    /// The broker is a part of a Cluster.
    Cluster = 18,
    /// The broker drops jobs when its memory is full.
    Eviction = 19,
    /// The broker has lost a job before its end.
    Forgotten = 20,
    /// SIGINT or SIGTERM came before the end.
    Interrupted = 130,
}

/// The table of exit codes, as `--help` shows it.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  unexpected error
    2  wrong flags or bad input
    3  configuration wrong or missing
    4  broker unavailable, queue full, or no worker serves it
    5  model's endpoint unavailable, or it refuses the key
    6  a job failed, was not over in time, or its answer is not kept any more
    7  a budget was missed (bench --check)
    8  Redis is out of memory
    9  Redis is a replica, and takes no writes
   10  Redis cannot save or lacks replicas, and takes no writes
   11  Redis is not ready: it loads its data, is blocked, or fails over
   12  a lane of the queue is gone from Redis, or takes no more entries
   13  Redis refuses user or password
   14  Redis forbids a command or key (ACL)
   15  the address is not that of a Redis
   16  TLS on one side only, or a certificate that is not trusted
   17  Redis does not have that database
   18  Redis is one node of several of a Cluster
   19  Redis drops jobs when its memory is full
   20  a job is forgotten: Redis has lost it before its end
  130  interrupted";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// What the failure of a job means for the one who waits for it.
    pub(super) fn of(failure: &error::Failure) -> Self {
        match failure.code {
            error::Code::UpstreamAuth
            | error::Code::InsufficientQuota
            | error::Code::UpstreamConnection
            | error::Code::UpstreamRedirect => Self::Upstream,
            _ => Self::Job,
        }
    }

    /// What a broker that is there and cannot be used means.
    fn of_trouble(trouble: broker::Trouble) -> Self {
        use broker::Trouble as T;
        match trouble {
            T::OutOfMemory => Self::OutOfMemory,
            T::ReadOnly => Self::ReadOnly,
            T::Disk | T::Replicas => Self::Unsafe,
            T::Loading | T::Busy | T::Failover | T::Clients => Self::NotReady,
            T::NoGroup | T::Exhausted => Self::NoGroup,
            T::Login | T::Protected => Self::Login,
            T::Permission => Self::Permission,
            T::NotRedis => Self::NotRedis,
            T::Tls | T::Certificate => Self::Tls,
            T::Database => Self::Database,
            T::Cluster => Self::Cluster,
            T::Eviction => Self::Eviction,
        }
    }
}

/// What ends a program early: one line that names the cause and what to do about it.
#[derive(Debug)]
pub struct Error {
    exit: Exit,
    line: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Text on one line.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Error {
    /// An error of a cause and a remedy; the remedy may be empty.
    pub(super) fn new(exit: Exit, cause: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        let (cause, remedy) = (one_line(&cause.to_string()), one_line(&remedy.to_string()));
        let line = if remedy.is_empty() { cause } else { format!("{cause}; {remedy}") };
        Self { exit, line, source: None }
    }

    /// An error caused by another one, whose own sources are told too.
    fn from_source(
        exit: Exit,
        source: impl std::error::Error + Send + Sync + 'static,
        remedy: &str,
    ) -> Self {
        let mut cause = source.to_string();
        let mut below = source.source();
        while let Some(error) = below {
            let text = error.to_string();
            if !cause.contains(&text) {
                cause = format!("{cause}: {text}");
            }
            below = error.source();
        }
        // A cause that says itself what to do needs no second opinion.
        let remedy = if cause.contains("; ") { "" } else { remedy };
        Self { source: Some(Box::new(source)), ..Self::new(exit, cause, remedy) }
    }

    /// SIGINT or SIGTERM came; `remedy` says how to go on.
    pub(super) fn interrupted(remedy: impl fmt::Display) -> Self {
        Self::new(Exit::Interrupted, "interrupted", remedy)
    }

    /// A worker stopped that was not to stop.
    pub(super) fn worker_ended(reason: worker::Reason) -> Self {
        let exit = match reason {
            worker::Reason::TaskEnded(_) => Exit::Unexpected,
            worker::Reason::Drained | worker::Reason::DrainTimeout => Exit::Broker,
        };
        Self::new(exit, format_args!("the worker stopped: {reason}"), "start it again")
    }

    /// The same error with another remedy behind it.
    pub(super) fn and(self, remedy: impl fmt::Display) -> Self {
        let line = one_line(&format!("{}; {remedy}", self.line));
        Self { line, ..self }
    }

    /// How the program ends.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl From<std::io::Error> for Error {
    /// A write to a terminal or pipe failed. A reader that has enough closes the pipe: that ends
    /// the program, but is no error.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Ok, "the output was closed", ""),
            _ => Self::from_source(Exit::Unexpected, error, ""),
        }
    }
}

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Self {
        let exit = if error.is_usage() { Exit::Usage } else { Exit::Configuration };
        let remedy = match error {
            config::Error::Unreadable { .. } => "name another by --config or MILLSTREAM_CONFIG",
            config::Error::Syntax { .. } => "config.example.toml shows how it should look",
            _ => "",
        };
        Self::from_source(exit, error, remedy)
    }
}

impl From<broker::Error> for Error {
    fn from(error: broker::Error) -> Self {
        use broker::Error as E;
        let (exit, remedy) = match &error {
            E::Unavailable { .. } => {
                (Exit::Broker, "start Redis there, or set REDIS_URL to where it runs")
            }
            E::Address(_) => (Exit::Configuration, "correct REDIS_URL (redis.url)"),
            E::Trouble { kind, .. } => (Exit::of_trouble(*kind), kind.remedy()),
            E::TooOld { .. } => (Exit::Broker, "upgrade it, or set REDIS_URL to another"),
            E::Schema(_) => (Exit::Configuration, ""),
            E::Full { .. } => (Exit::Broker, ""),
            E::Conflict { .. } => (Exit::Usage, ""),
            E::Protocol(_) => (Exit::Unexpected, "--set log.filter=debug tells more"),
        };
        Self::from_source(exit, error, remedy)
    }
}

impl From<producer::Error> for Error {
    fn from(error: producer::Error) -> Self {
        match error {
            producer::Error::Broker(error) => error.into(),
            other => Self::from_source(Exit::Usage, other, ""),
        }
    }
}

impl From<listener::Error> for Error {
    fn from(error: listener::Error) -> Self {
        let (exit, remedy) = match error {
            listener::Error::Broker(error) => return error.into(),
            listener::Error::NotFound(_) => {
                (Exit::Usage, "check the ID, REDIS_URL and redis.prefix")
            }
            listener::Error::Forgotten(_) => (Exit::Forgotten, ""),
            listener::Error::Expired(_) => (
                Exit::Job,
                "`millstream jobs show` tells how it ended, if its record is still there",
            ),
            listener::Error::Idle(_) => {
                (Exit::Broker, "`millstream workers` shows whether any is alive")
            }
            listener::Error::Timeout(_) => (Exit::Job, ""),
        };
        Self::from_source(exit, error, remedy)
    }
}

impl From<upstream::openai::Error> for Error {
    fn from(error: upstream::openai::Error) -> Self {
        let exit = match error {
            upstream::openai::Error::Address(_) => Exit::Configuration,
            upstream::openai::Error::Client(_) => Exit::Upstream,
        };
        Self::from_source(exit, error, "correct OPENAI_BASE_URL (upstream.base_url)")
    }
}

impl From<simulator::Error> for Error {
    fn from(error: simulator::Error) -> Self {
        Self::from_source(Exit::Configuration, error, "")
    }
}

impl From<gateway::Error> for Error {
    fn from(error: gateway::Error) -> Self {
        Self::from_source(Exit::Configuration, error, "")
    }
}

impl From<bench::Error> for Error {
    fn from(error: bench::Error) -> Self {
        let remedy = match error {
            bench::Error::Broker(error) => return error.into(),
            bench::Error::Producer(error) => return error.into(),
            bench::Error::Listener(error) => return error.into(),
            bench::Error::Simulator(error) => return error.into(),
            bench::Error::Upstream(error) => return error.into(),
            bench::Error::Folder { .. } => "set TMPDIR to a folder that can be written",
            bench::Error::Program { ref program, .. } if program.is_absolute() => {
                "build it (cargo build --bins), or name it by --worker-bin"
            }
            bench::Error::Program { .. } => "install it, or set REDIS_URL to where Redis runs",
            _ => "",
        };
        Self::from_source(Exit::Unexpected, error, remedy)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn an_error_is_one_line_of_cause_and_remedy_and_keeps_its_source() {
        let io = std::io::Error::other("connection\nrefused");
        let broker =
            broker::Error::Unavailable { message: "host:1".to_owned(), source: Some(io.into()) };
        let error = Error::from(broker);
        assert_eq!(
            error.to_string(),
            "broker unavailable: host:1: connection refused; start Redis there, or set REDIS_URL \
             to where it runs"
        );
        assert_eq!(error.exit(), Exit::Broker);
        assert!(error.source().unwrap().source().is_some());
    }

    #[test]
    fn each_kind_has_its_code() {
        let code = |error: Error| error.exit() as u8;
        let trouble = |kind| broker::Error::Trouble { kind, message: "m".to_owned(), source: None };
        for (kind, number) in [
            (broker::Trouble::OutOfMemory, 8),
            (broker::Trouble::ReadOnly, 9),
            (broker::Trouble::Loading, 11),
            (broker::Trouble::NoGroup, 12),
            (broker::Trouble::Login, 13),
            (broker::Trouble::NotRedis, 15),
            (broker::Trouble::Database, 17),
        ] {
            assert_eq!(code(trouble(kind).into()), number);
            assert!(EXIT_CODES.contains(&format!("\n   {number:>2}  ")), "{number}");
        }
        assert_eq!(code(broker::Error::TooOld { met: String::new() }.into()), 4);
        assert_eq!(code(broker::Error::Address(String::new()).into()), 3);
        assert_eq!(code(producer::Error::TooLarge { bytes: 2, max: 1 }.into()), 2);
        assert_eq!(code(listener::Error::NotFound(crate::job::JobId::new()).into()), 2);
        assert_eq!(code(listener::Error::Forgotten(crate::job::JobId::new()).into()), 20);
        assert_eq!(code(Error::interrupted("")), 130);
        let ended = worker::Reason::TaskEnded(worker::Task::Lease);
        assert_eq!(code(Error::worker_ended(ended)), 1);
        let failure = |code| error::Failure::new(code, "");
        assert_eq!(Exit::of(&failure(error::Code::UpstreamAuth)), Exit::Upstream);
        assert_eq!(Exit::of(&failure(error::Code::InvalidRequest)), Exit::Job);
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let error = Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(error.exit(), Exit::Ok);
    }
}
