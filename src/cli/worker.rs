//! `millstream-worker`: claims jobs, calls the model, publishes the answers.

#![expect(clippy::doc_markdown, reason = "the comments of arguments are the text of --help")]

use clap::Parser;

use super::{
    Context, Error, Exit,
    args::Common,
    exit::EXIT_CODES,
    logging::{self, Level},
    parts::{self, Broker},
};
use crate::{
    config::{self, Config, Flag},
    job::QueueName,
    listener::Listener,
    retry::Backoff,
    worker::{Reason, Stopped, Worker},
};

/// Run jobs of Redis against an OpenAI-compatible endpoint until SIGTERM
///
/// REDIS_URL and OPENAI_API_KEY are all it needs, or OPENAI_BASE_URL for an endpoint other than
/// OpenAI's. It waits for Redis at start. SIGTERM or SIGINT drains it: running jobs may end within
/// worker.drain, the others go to other workers. A second signal gives them back at once, a third
/// ends it without a word. `millstream workers drain ID` does what the first signal does.
#[derive(Debug, Parser)]
#[command(name = "millstream-worker", version, after_help = EXIT_CODES)]
pub struct Args {
    /// The queues it serves, separated by commas [default: worker.queues, `default`]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    queues: Vec<QueueName>,

    /// Most jobs that run at once [default: worker.concurrency, 64]
    #[arg(long, value_name = "NUMBER")]
    concurrency: Option<usize>,

    /// What its ID begins with [default: worker.name, the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    #[command(flatten)]
    common: Common,
}

impl Args {
    fn flags(&self) -> Vec<Flag> {
        let queues: Vec<&str> = self.queues.iter().map(QueueName::as_str).collect();
        let queues = (!queues.is_empty()).then(|| queues.join(","));
        let concurrency = self.concurrency.map(|number| number.to_string());
        [
            queues.map(|value| Flag::new("--queues", "worker.queues", value)),
            concurrency.map(|value| Flag::new("--concurrency", "worker.concurrency", value)),
            self.name.clone().map(|value| Flag::new("--name", "worker.name", value)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Works until it is stopped, then tells what it finished and what it left.
pub async fn run(args: Args, cx: &mut Context) -> Result<Exit, Error> {
    let config = args.common.load(args.flags(), cx)?.config;
    logging::start(&config.log, Level::Info)?;
    parts::needs_redis(&config)?;
    if !config.has_upstream() {
        return Err(Error::new(
            Exit::Configuration,
            "no model is configured",
            "set OPENAI_API_KEY, or OPENAI_BASE_URL for another endpoint than OpenAI's \
             (`millstream simulate` is one that needs no model)",
        ));
    }
    let upstream = parts::upstream(&config)?;
    let Some(broker) = connect(&config, cx).await? else { return Ok(Exit::Ok) };
    tracing::info!(
        broker = %config::masked_url(&config.redis.url),
        queues = ?config.worker.queues.iter().map(QueueName::as_str).collect::<Vec<_>>(),
        concurrency = config.worker.concurrency,
        "worker starts"
    );
    let hub = Listener::new(broker.shared.clone(), config.listener).hub();
    let worker = Worker::new(broker.shared, hub, upstream, parts::named(config.worker));
    let (hurry, give_back) = (cx.hurry.clone(), worker.hurry());
    let hurried = async {
        hurry.cancelled().await;
        give_back.cancel();
        std::future::pending::<()>().await;
    };
    let stopped = tokio::select! {
        stopped = worker.run(cx.interrupt.clone()) => stopped,
        () = hurried => return Ok(Exit::Ok),
    };
    tell(&stopped, cx);
    match stopped.reason {
        Reason::Drained | Reason::DrainTimeout => Ok(Exit::Ok),
        Reason::TaskEnded(_) => Err(Error::worker_ended(stopped.reason)),
    }
}

/// Waits until Redis can be used, and says so; what will not pass by waiting ends it at once.
async fn connect(config: &Config, cx: &mut Context) -> Result<Option<Broker>, Error> {
    let broker = Broker::unconnected(config)?;
    let found = cx.unless_interrupted(until_there(&broker, config), "").await;
    match found {
        Err(_) => Ok(None),
        Ok(found) => found.map(|()| Some(broker)),
    }
}

/// Waits until Redis can be used, and has what the queues need.
pub(super) async fn until_there(broker: &Broker, config: &Config) -> Result<(), Error> {
    let mut backoff = Backoff::connecting();
    loop {
        let attempt = async {
            broker.check().await?;
            broker.prepare(&config.worker.queues).await
        };
        let error = match attempt.await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_transient() => error,
            Err(error) => return Err(error.into()),
        };
        let delay = backoff.next_delay();
        tracing::warn!(%error, retry_in = ?delay, "waiting for Redis");
        tokio::time::sleep(delay).await;
    }
}

fn tell(stopped: &Stopped, cx: &mut Context) {
    let Stopped { reason, finished, fenced, taken_over, unfinished } = stopped;
    cx.terminal.say(format_args!(
        "worker stopped ({reason}): {finished} jobs finished, {} left to other workers",
        unfinished.len()
    ));
    if fenced + taken_over > 0 {
        cx.terminal.say(format_args!(
            "it took {taken_over} jobs over from other workers, and lost {fenced} to others"
        ));
    }
    for job in unfinished {
        cx.terminal.say(format_args!("left: {job}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_set_their_keys() {
        let args = ["millstream-worker", "--queues", "a,b", "--concurrency", "2", "--name", "w"];
        let flags = Args::try_parse_from(args).unwrap().flags();
        let set: Vec<(&str, &str)> =
            flags.iter().map(|flag| (flag.key.as_str(), flag.value.as_str())).collect();
        assert_eq!(
            set,
            [("worker.queues", "a,b"), ("worker.concurrency", "2"), ("worker.name", "w")]
        );
    }
}
