//! `millstream dev`: broker, worker and gateway in one process, until it is stopped.

use std::{io::IsTerminal, time::Duration};

use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio_util::sync::CancellationToken;

use super::{
    Context, Error, Exit,
    answer::{self, Follow},
    args::{Common, MODEL},
    ask,
    engine::Engine,
    gateway,
    logging::{self, Level},
    parts::Broker,
};
use crate::{
    config::{self, Config},
    gateway::Bound,
    job::{ChatRequest, Job},
    listener::Listener,
    producer::Producer,
    worker::Stopped,
};

/// Runs until SIGINT or SIGTERM. No other process reaches the embedded broker, so each line of
/// standard input is a question to it.
pub(super) async fn run(common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let mut config = common.load(Vec::new(), cx)?.config;
    logging::start(&config.log, if config.is_embedded() { Level::Quiet } else { Level::Info })?;
    gateway::bound_tenants(&mut config);
    let broker = cx.unless_interrupted(Broker::open(&config), "").await??;
    cx.unless_interrupted(broker.prepare(&config.worker.queues), "").await??;
    if config.is_embedded() {
        // What is unfinished ends with this process: there is nothing to wait for.
        config.worker.drain = Duration::ZERO;
        config.gateway.drain = Duration::ZERO;
    }
    let listener = Listener::new(broker.shared.clone(), config.listener.clone());
    gateway::listen_on_port(&mut config)?;
    let mut engine = Engine::start(&config, broker.shared.clone(), &listener).await?;
    if let Some(url) = engine.simulated() {
        // The gateway tells the simulator's models, too.
        url.clone_into(&mut config.upstream.base_url);
    }
    // What its worker serves, its gateway takes.
    config.gateway.queues.extend(config.worker.queues.iter().cloned());
    let bound = gateway::build(&config, &broker, listener.clone())?.bind()?;
    introduce(&config, &engine, &bound, cx);
    let closing = CancellationToken::new();
    let web = tokio::spawn(bound.run(closing.clone()));
    let interrupt = cx.interrupt.clone();
    let result = tokio::select! {
        stopped = engine.failed() => Err(worker_ended(stopped.as_ref())),
        result = converse(&config, &broker, &listener, cx), if config.is_embedded() => result,
        () = interrupt.cancelled(), if !config.is_embedded() => Ok(()),
    };
    cx.terminal.say("stopping");
    // Answers in progress end with their worker.
    let (_, web) = tokio::join!(engine.stop(), async {
        closing.cancel();
        web.await
    });
    if let Err(error) = web {
        cx.terminal.fail(format_args!("the gateway broke off: {error}"));
    }
    result.map(|()| Exit::Ok)
}

fn introduce(config: &Config, engine: &Engine, bound: &Bound, cx: &mut Context) {
    let queues: Vec<String> = config.worker.queues.iter().map(ToString::to_string).collect();
    if config.is_embedded() {
        cx.terminal.say("broker: embedded, in this process; jobs end with it");
    } else {
        cx.terminal.say(format_args!("broker: {}", config::masked_url(&config.redis.url)));
    }
    cx.terminal.say(format_args!(
        "worker: queues {}, up to {} jobs at once",
        queues.join(", "),
        config.worker.concurrency
    ));
    match engine.simulated() {
        Some(url) => {
            cx.terminal.say(format_args!("model: simulated, {url}"));
            ask::say_simulated(cx);
        }
        None if config.upstream.base_url.is_empty() => cx.terminal.say("model: OpenAI"),
        None => {
            let url = config::masked_url(&config.upstream.base_url);
            cx.terminal.say(format_args!("model: {url}"));
        }
    }
    let addr = bound.addr();
    cx.terminal.say(format_args!("web: http://{addr} (console), OPENAI_BASE_URL=http://{addr}/v1"));
    cx.terminal.say(if config.is_embedded() {
        "Type a question and press Enter; Ctrl-C stops it."
    } else {
        "Enqueue with `millstream-producer` or `millstream ask`; Ctrl-C stops it."
    });
}

/// The worker of this process ended although nobody stopped it.
fn worker_ended(stopped: Option<&Stopped>) -> Error {
    match stopped {
        Some(stopped) => Error::worker_ended(stopped.reason),
        None => Error::new(Exit::Unexpected, "the worker broke off", "start it again"),
    }
}

/// Answers questions from standard input until a signal comes. The end of what a person types ends
/// it too; behind a pipe or file the process goes on.
async fn converse(
    config: &Config,
    broker: &Broker,
    listener: &Listener,
    cx: &mut Context,
) -> Result<(), Error> {
    let producer = Producer::new(broker.shared.clone(), config.producer.clone());
    let queue = config.worker.queues.first().cloned().unwrap_or_default();
    let idle = Some(config.listener.idle_timeout);
    let mut lines: Lines<BufReader<Stdin>> = BufReader::new(tokio::io::stdin()).lines();
    loop {
        let question = match cx.unless_interrupted(lines.next_line(), "").await {
            Err(_) => return Ok(()),
            Ok(Ok(Some(question))) => question,
            Ok(Ok(None)) if std::io::stdin().is_terminal() => return Ok(()),
            Ok(end) => {
                if let Err(error) = end {
                    cx.terminal.fail(format_args!("cannot read standard input: {error}"));
                }
                cx.interrupt.cancelled().await;
                return Ok(());
            }
        };
        if question.trim().is_empty() {
            continue;
        }
        let request = ChatRequest::ask(MODEL, &question);
        let job = Job { queue: queue.clone(), ..Job::new(request) };
        let answered = match producer.enqueue(job).await {
            Ok(receipt) => {
                answer::show(Follow { idle, ..Follow::default() }, listener, receipt.id, cx)
                    .await
                    .map(|_| ())
            }
            Err(error) => Err(error.into()),
        };
        match answered {
            Err(error) if matches!(error.exit(), Exit::Interrupted | Exit::Ok) => return Ok(()),
            Err(error) => cx.terminal.fail(error),
            Ok(()) => {}
        }
    }
}
