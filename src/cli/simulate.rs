//! `millstream simulate`: the simulated model as a server.

use clap::Args;

use super::{
    Context, Error, Exit,
    args::{self, Common},
    logging::{self, Level},
};
use crate::{
    config::Flag,
    simulator::{Fault, Simulator},
};

/// How the simulator answers where a request's own directives say nothing.
#[derive(Debug, Args)]
pub(super) struct Simulate {
    /// Address to listen on; port 0 takes any free one [default: 127.0.0.1:8099]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,

    /// Time to the first token [default: 200ms]
    #[arg(long, value_name = "DURATION", value_parser = args::span)]
    ttft: Option<String>,

    /// Tokens per second, 0 for as fast as possible [default: 50]
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,

    /// Tokens of an answer [default: 64]
    #[arg(long, value_name = "NUMBER")]
    tokens: Option<u32>,

    /// Give the same request another text at each attempt
    #[arg(long)]
    vary: bool,

    /// What goes wrong with every request: status:CODE, status:CODE:retry-after:SECONDS,
    /// status:CODE:retry-date:SECONDS, status:CODE:text, drop:N, truncate:N, error:N, silence:N or
    /// malformed:N (after N tokens); with *K behind it only the first K times
    #[arg(long, value_name = "FAULT")]
    fault: Option<Fault>,

    /// Ask for this key
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
}

impl Simulate {
    fn flags(&self) -> Vec<Flag> {
        let flag = |name: &str, value: Option<String>| {
            let key = format!("simulator.{}", name.replace('-', "_"));
            value.map(|value| Flag::new(&format!("--{name}"), &key, value))
        };
        [
            flag("listen", self.listen.clone()),
            flag("ttft", self.ttft.clone()),
            flag("rate", self.rate.map(|v| v.to_string())),
            flag("tokens", self.tokens.map(|v| v.to_string())),
            flag("vary", self.vary.then(|| "true".to_owned())),
            flag("fault", self.fault.map(|v| v.to_string())),
            flag("api-key", self.api_key.clone()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Answers until SIGINT or SIGTERM. The first line of standard output is the base URL.
pub(super) async fn run(args: Simulate, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let config = common.load(args.flags(), cx)?.config;
    logging::start(&config.log, Level::Info)?;
    let simulator = Simulator::bind(config.simulator).await?;
    let url = simulator.base_url();
    cx.terminal.line(&url)?;
    cx.terminal.say(format_args!("simulator: OPENAI_BASE_URL={url} uses it; Ctrl-C stops it"));
    let stats = simulator.run(cx.interrupt.clone()).await;
    cx.terminal.say(format_args!(
        "answered {} of {} requests; {} aborted, {} with a fault",
        stats.completed, stats.requests, stats.aborted, stats.faulted
    ));
    Ok(Exit::Ok)
}
