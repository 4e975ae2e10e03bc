//! From `main` to exit code: arguments, runtime, signals.

use std::{fmt, io, process::ExitCode, time::Duration};

use clap::{Parser, error::ErrorKind};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Error, Exit, Terminal, exit::one_line};
use crate::config::{self, Layers};

/// What a command runs in.
#[derive(Debug)]
pub struct Context {
    /// Where it writes.
    pub terminal: Terminal,
    /// Cancelled by the first SIGINT or SIGTERM. The second one ends the program at once, unless it
    /// drains.
    pub interrupt: CancellationToken,
    /// Cancelled by the second signal where the program drains; the third one ends it at once.
    pub hurry: CancellationToken,
}

impl Context {
    /// The result of `work`, unless a signal comes first; `remedy` then says how to go on.
    pub(super) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = T>,
        remedy: impl fmt::Display,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.interrupt.cancelled() => Err(Error::interrupted(remedy)),
            result = work => Ok(result),
        }
    }
}

/// Runs a program: parses its arguments, hands them to `command`, and tells how it ended.
pub fn main<A: Parser>(
    command: impl AsyncFnOnce(A, &mut Context) -> Result<Exit, Error>,
) -> ExitCode {
    start(command, false)
}

/// As [`main`], for a program that has something to put down even in a hurry.
pub fn main_that_drains<A: Parser>(
    command: impl AsyncFnOnce(A, &mut Context) -> Result<Exit, Error>,
) -> ExitCode {
    start(command, true)
}

fn start<A: Parser>(
    command: impl AsyncFnOnce(A, &mut Context) -> Result<Exit, Error>,
    drains: bool,
) -> ExitCode {
    let mut terminal = Terminal::standard();
    // What flags and file say of it is known only where the arguments can be read.
    let layers = Layers { environment: config::environment(), ..Layers::default() };
    terminal.speak(layers.log_format(), false);
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(error) => return refused(&error, &mut terminal).into(),
    };
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal.fail(format_args!("cannot start the runtime: {error}"));
            return Exit::Unexpected.into();
        }
    };
    let exit = runtime.block_on(run(args, command, terminal, drains));
    // A thread that waits for a line of standard input would hold the process for ever.
    runtime.shutdown_timeout(Duration::from_millis(100));
    exit.into()
}

async fn run<A: Parser>(
    args: A,
    command: impl AsyncFnOnce(A, &mut Context) -> Result<Exit, Error>,
    terminal: Terminal,
    drains: bool,
) -> Exit {
    let [interrupt, hurry, at_once] = std::array::from_fn(|_| CancellationToken::new());
    let mut context = Context { terminal, interrupt: interrupt.clone(), hurry: hurry.clone() };
    let mut steps = vec![interrupt, hurry, at_once.clone()];
    if !drains {
        steps.remove(1);
    }
    let watch = match watch(steps) {
        Ok(watch) => watch,
        Err(error) => {
            context.terminal.fail(format_args!("cannot watch for signals: {error}"));
            return Exit::Unexpected;
        }
    };
    let result = tokio::select! {
        biased;
        () = at_once.cancelled() => Ok(Exit::Interrupted),
        result = command(args, &mut context) => result,
    };
    watch.abort();
    match result {
        Ok(exit) => exit,
        Err(error) => {
            match error.exit() {
                Exit::Ok => {}
                Exit::Interrupted => context.terminal.say(&error),
                _ => context.terminal.fail(&error),
            }
            error.exit()
        }
    }
}

/// Cancels one token with each signal.
fn watch(steps: Vec<CancellationToken>) -> io::Result<JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::spawn(async move {
        for token in steps {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
        }
    }))
}

/// Help and version are asked for; everything else is an error of one line.
fn refused(error: &clap::Error, terminal: &mut Terminal) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            Exit::Ok
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Exit::Usage
        }
        _ => {
            terminal.fail(condensed(&error.render().to_string()));
            Exit::Usage
        }
    }
}

/// clap's message on one line, without its usage text.
fn condensed(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let ends = ["\nUsage:", "\nFor more information"].map(|end| message.find(end));
    let end = ends.into_iter().flatten().min().unwrap_or(message.len());
    let line = one_line(&message[..end]).replace(" tip: ", "; ");
    format!("{line}; see --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Probe {
        #[arg(long)]
        lane: Option<crate::job::Lane>,
        question: String,
    }

    fn refusal(args: &[&str]) -> String {
        let args = [&["probe"], args].concat();
        condensed(&Probe::try_parse_from(args).unwrap_err().render().to_string())
    }

    #[test]
    fn wrong_arguments_are_told_in_one_line() {
        assert_eq!(
            refusal(&["--lane", "fast", "x"]),
            "invalid value 'fast' for '--lane <LANE>': unknown lane `fast`; allowed: high, \
             normal, low; see --help"
        );
        assert_eq!(
            refusal(&[]),
            "the following required arguments were not provided: <QUESTION>; see --help"
        );
        let text = refusal(&["--lene", "high", "x"]);
        assert!(text.contains("'--lene'") && text.contains("'--lane'"), "{text}");
        assert!(!text.contains('\n') && !text.contains("Usage"), "{text}");
    }
}
