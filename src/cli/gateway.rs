//! `millstream-gateway`: serves jobs to the web.

#![expect(clippy::doc_markdown, reason = "the comments of arguments are the text of --help")]

use std::convert::Infallible;

use clap::Parser;

use super::{
    Context, Error, Exit,
    args::Common,
    exit::EXIT_CODES,
    logging::{self, Level},
    parts::{self, Broker},
    worker,
};
use crate::{
    config::{Config, Flag},
    gateway::{self, Door, Gateway, Stopped},
    listener::Listener,
    upstream::Model,
};

/// Serve jobs, their events, and OpenAI-compatible routes over HTTP until SIGTERM
///
/// REDIS_URL is all it needs on one machine; to be reached from others it needs API keys
/// (`millstream keys create`). SIGTERM or SIGINT ends event streams with a hint to come back, and gives
/// chat completions gateway.drain to end. A second signal ends it at once.
#[derive(Debug, Parser)]
#[command(name = "millstream-gateway", version, after_help = EXIT_CODES)]
pub struct Args {
    /// The address, such as 127.0.0.1:8080, localhost:8080, or :8080 for this machine alone; port 0 takes
    /// any free one [default: gateway.listen, 127.0.0.1:8080, with the port of PORT where that is set]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,

    /// The file of API keys [default: gateway.keys]
    #[arg(long, value_name = "PATH")]
    keys: Option<String>,

    #[command(flatten)]
    common: Common,
}

impl Args {
    fn flags(&self) -> Vec<Flag> {
        let listen = self.listen.as_ref().map(|addr| Flag::new("--listen", "gateway.listen", addr));
        let keys = self.keys.as_ref().map(|path| Flag::new("--keys", "gateway.keys", path));
        listen.into_iter().chain(keys).collect()
    }
}

/// Serves until it is stopped. The first line of standard output is its address.
pub async fn run(args: Args, cx: &mut Context) -> Result<Exit, Error> {
    let mut config = args.common.load(args.flags(), cx)?.config;
    logging::start(&config.log, Level::Info)?;
    parts::needs_redis(&config)?;
    if args.listen.is_none() {
        listen_on_port(&mut config)?;
    }
    many_descriptors();
    let door = Door::open(&config.gateway)?;
    let url = format!("http://{}", door.addr());
    cx.terminal.line(&url)?;
    bound_tenants(&mut config);
    let broker = Broker::unconnected(&config)?;
    let listener = Listener::new(broker.shared.clone(), config.listener.clone());
    let gateway = build(&config, &broker, listener)?;
    let opening = gateway.closed();
    let stop = cx.interrupt.child_token();
    let serving = gateway.behind(door).run(stop.clone());
    tokio::pin!(serving);
    let there = async {
        worker::until_there(&broker, &config).await?;
        opening.open();
        tracing::info!(url, "gateway listens");
        std::future::pending::<Result<Infallible, Error>>().await
    };
    let stopped = tokio::select! {
        stopped = &mut serving => stopped,
        Err(error) = there => {
            // No time mends it: whoever asked is told to come back, and finds another one.
            stop.cancel();
            serving.await;
            return Err(error);
        }
    };
    let Stopped { connections, streams, unfinished } = stopped;
    cx.terminal.say(format_args!(
        "gateway stopped: {connections} connections served, {streams} streams open at the end, {unfinished} \
         answers cut off"
    ));
    Ok(Exit::Ok)
}

/// Jobs that a queue may hold of a tenant that has come by its key, where nothing is configured.
const WAITING: u64 = 100_000;

/// Where keys tell tenants apart, none may fill the queues for all others. Without keys everything is one
/// person's.
pub(super) fn bound_tenants(config: &mut Config) {
    if config.gateway.keys.as_os_str().is_empty() {
        return;
    }
    let half = (config.embedded.max_jobs as u64 / 2).max(1);
    for (limits, most) in
        [(&mut config.redis.limits, WAITING), (&mut config.embedded.limits, WAITING.min(half))]
    {
        if limits.max_jobs_per_tenant == 0 {
            limits.max_jobs_per_tenant = most;
        }
    }
}

/// `PORT` is how platforms say where a web process is to listen.
pub(super) fn listen_on_port(config: &mut Config) -> Result<(), Error> {
    let Some(port) = std::env::var("PORT").ok().filter(|port| !port.is_empty()) else {
        return Ok(());
    };
    let Ok(number) = port.parse() else {
        let cause = format!("PORT is `{port}`; allowed: 0 to 65535");
        return Err(Error::new(Exit::Configuration, cause, "unset it, or give --listen"));
    };
    config.gateway.listen.set_port(number);
    Ok(())
}

/// A gateway. It asks the upstream for its models, where one is configured.
pub(super) fn build(
    config: &Config,
    broker: &Broker,
    listener: Listener,
) -> Result<Gateway, Error> {
    let options = config.gateway.clone();
    let gateway = Gateway::new(broker.shared.clone(), listener, config.producer.clone(), options)?;
    if config.has_upstream() {
        let upstream = parts::upstream(config)?;
        gateway.models_from(std::sync::Arc::new(move || {
            let upstream = std::sync::Arc::clone(&upstream);
            Box::pin(async move {
                let models = upstream.models().await.map_err(|failure| failure.to_string())?;
                let model =
                    |Model { id, created, owned_by }| gateway::Model { id, created, owned_by };
                Ok(models.into_iter().map(model).collect())
            })
        }));
    }
    Ok(gateway)
}

/// Every open stream is a descriptor: as many as the system allows.
pub(super) fn many_descriptors() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "open files allowed"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tenant could fill the queues of all others, where nobody had thought of a limit.
    #[test]
    fn only_where_keys_tell_tenants_apart_each_is_bounded() {
        let bound = |keys: &str, own: u64| {
            let mut config = Config::default();
            config.gateway.keys = keys.into();
            config.redis.limits.max_jobs_per_tenant = own;
            bound_tenants(&mut config);
            [config.redis.limits, config.embedded.limits].map(|limits| limits.max_jobs_per_tenant)
        };
        assert_eq!(bound("", 0), [0, 0]);
        assert_eq!(bound("keys.toml", 0), [WAITING, 5000]);
        assert_eq!(bound("keys.toml", 7), [7, 5000]);
    }

    #[test]
    fn flags_set_their_keys() {
        let args = ["millstream-gateway", "--listen", "127.0.0.1:1", "--keys", "k"];
        let flags = Args::try_parse_from(args).unwrap().flags();
        let set: Vec<(&str, &str)> =
            flags.iter().map(|flag| (flag.key.as_str(), flag.value.as_str())).collect();
        assert_eq!(set, [("gateway.listen", "127.0.0.1:1"), ("gateway.keys", "k")]);
    }
}
