//! `millstream`: all in one, and administration.

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::{
    Context, Error, Exit,
    args::Common,
    ask::{self, Ask},
    bench::{self, Bench},
    dev, dlq,
    exit::EXIT_CODES,
    gateway,
    jobs::{self, Jobs},
    keys::{self, Keys},
    migrate::{self, Migrate},
    producer,
    queues::{self, Overview},
    settings::{self, Settings},
    simulate::{self, Simulate},
    tables::{self, Workers},
    worker,
};

/// An LLM job queue on Redis Streams: ask, run everything in one process, administer
#[derive(Debug, Parser)]
#[command(name = "millstream", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a question and stream the answer
    ///
    /// Without Redis, broker and worker run inside this process. Where no model is configured, the
    /// simulator answers, and standard error says so.
    Ask(Ask),

    /// Run broker, worker and gateway in this process until Ctrl-C
    ///
    /// With Redis configured, it is the broker, and jobs come from anywhere. Without it the broker
    /// is embedded, no other process reaches it, and each line of standard input is a question.
    Dev,

    /// Show, follow, await or cancel jobs
    #[command(subcommand)]
    Jobs(Jobs),

    /// Show how much waits, runs, is parked and is dead, by lane, and what counts against the limits
    Queues(Overview),

    /// Show the workers that have read the queues, or drain one
    Workers(Workers),

    /// List, show, put back or delete dead letters
    #[command(subcommand)]
    Dlq(dlq::Letters),

    /// Make API keys for the gateway
    #[command(subcommand)]
    Keys(Keys),

    /// Apply or show migrations of the key layout
    #[command(subcommand)]
    Migrate(Migrate),

    /// Check or print the configuration
    #[command(subcommand)]
    Config(Settings),

    /// Run an OpenAI-compatible server that needs no model
    ///
    /// What it says is a pure function of the request. The first line of standard output is its
    /// base URL.
    Simulate(Simulate),

    /// Measure what is promised in figures: crash recovery, lateness, cancel
    ///
    /// Runs on the Redis that is configured, under a key prefix of its own, and removes what it
    /// made; with none configured, on a private redis-server found on the PATH. The model is the
    /// simulator.
    #[command(subcommand)]
    Bench(Bench),

    /// Write a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,

        /// The program
        #[arg(long, value_enum, default_value_t)]
        program: Program,
    },
}

/// A program that can be completed.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Program {
    #[default]
    Millstream,
    MillstreamProducer,
    MillstreamWorker,
    MillstreamGateway,
}

/// Runs the command.
pub async fn run(args: Args, cx: &mut Context) -> Result<Exit, Error> {
    let common = &args.common;
    match args.command {
        Command::Ask(ask) => ask::run(ask, common, cx).await,
        Command::Dev => dev::run(common, cx).await,
        Command::Jobs(what) => jobs::run(what, common, cx).await,
        Command::Queues(what) => queues::run(what, common, cx).await,
        Command::Workers(what) => tables::workers(what, common, cx).await,
        Command::Dlq(what) => dlq::run(what, common, cx).await,
        Command::Keys(what) => keys::run(&what, common, cx),
        Command::Migrate(what) => migrate::run(what, common, cx).await,
        Command::Config(what) => settings::run(&what, common, cx),
        Command::Simulate(args) => simulate::run(args, common, cx).await,
        Command::Bench(what) => bench::run(what, common, cx).await,
        Command::Completions { shell, program } => completions(shell, program, cx),
    }
}

fn completions(shell: Shell, program: Program, cx: &mut Context) -> Result<Exit, Error> {
    let mut command = match program {
        Program::Millstream => Args::command(),
        Program::MillstreamProducer => producer::Args::command(),
        Program::MillstreamWorker => worker::Args::command(),
        Program::MillstreamGateway => gateway::Args::command(),
    };
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    cx.terminal.out().write_all(&script)?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn programs() -> [Command; 4] {
        let [producer, worker] = [producer::Args::command(), worker::Args::command()];
        [Args::command(), producer, worker, gateway::Args::command()]
    }

    fn each(command: &Command, check: &mut dyn FnMut(&Command)) {
        check(command);
        command.get_subcommands().for_each(|below| each(below, check));
    }

    #[test]
    fn every_flag_and_command_is_documented() {
        for command in programs() {
            command.clone().debug_assert();
            each(&command, &mut |command| {
                assert!(command.get_about().is_some(), "{}", command.get_name());
                for arg in command.get_arguments() {
                    assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
                }
            });
        }
    }

    #[test]
    fn every_program_tells_its_exit_codes() {
        for mut command in programs() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("130  interrupted"), "{help}");
        }
    }
}
