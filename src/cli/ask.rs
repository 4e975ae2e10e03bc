//! `millstream ask`: one question, its answer on the terminal.

use std::time::Duration;

use clap::Args;

use super::{
    Context, Error, Exit,
    answer::{self, Follow},
    args::{self, Common, MODEL, Param},
    engine::Engine,
    logging::{self, Level},
    parts::Broker,
};
use crate::{
    admin::{Admin, Cancelled},
    config::Config,
    job::{Job, JobId, QueueName},
    listener::Listener,
    producer::Producer,
};

/// What to ask.
#[derive(Debug, Args)]
pub(super) struct Ask {
    /// The question
    question: String,

    /// The model; the simulator takes any name
    #[arg(long, value_name = "NAME", default_value = MODEL)]
    model: String,

    /// What the model is told before the question
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// A field of the request, such as temperature=0.2; JSON where it can be read as such,
    /// otherwise text; can be repeated
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = args::param)]
    params: Vec<Param>,

    /// The queue
    #[arg(long, value_name = "NAME", default_value_t)]
    queue: QueueName,

    /// On Redis: how long a worker may take to begin
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = args::duration)]
    wait_for_worker: Duration,
}

/// Answers on the embedded broker with a worker of its own, or through Redis where it is
/// configured.
pub(super) async fn run(ask: Ask, common: &Common, cx: &mut Context) -> Result<Exit, Error> {
    let config = common.load(Vec::new(), cx)?.config;
    logging::start(&config.log, Level::Quiet)?;
    let (model, system) = (&ask.model, ask.system.as_deref());
    let request = args::request(model, system, Vec::new(), Some(&ask.question), &ask.params)?;
    let job = Job { queue: ask.queue.clone(), ..Job::new(request) };
    let broker = cx.unless_interrupted(Broker::open(&config), "").await??;
    cx.unless_interrupted(broker.prepare(std::slice::from_ref(&ask.queue)), "").await??;
    if config.is_embedded() {
        embedded(config, broker, job, cx).await
    } else {
        shared(&config, &broker, job, ask.wait_for_worker, cx).await
    }
}

async fn embedded(
    mut config: Config,
    broker: Broker,
    job: Job,
    cx: &mut Context,
) -> Result<Exit, Error> {
    config.worker.queues = vec![job.queue.clone()];
    // What is unfinished ends with this process: there is nothing to wait for.
    config.worker.drain = Duration::ZERO;
    let listener = Listener::new(broker.shared.clone(), config.listener.clone());
    let engine = Engine::start(&config, broker.shared.clone(), &listener).await?;
    if engine.simulated().is_some() {
        say_simulated(cx);
    }
    let producer = Producer::new(broker.shared, config.producer);
    let follow = Follow { idle: Some(config.listener.idle_timeout), ..Follow::default() };
    let answered = match producer.enqueue(job).await {
        Ok(receipt) => answer::show(follow, &listener, receipt.id, cx).await,
        Err(error) => Err(error.into()),
    };
    engine.stop().await;
    answered.map(|_| Exit::Ok)
}

/// Says that no model answers.
pub(super) fn say_simulated(cx: &mut Context) {
    cx.terminal.say(
        "simulated: no model is configured, so the simulator answers; set OPENAI_API_KEY or \
         OPENAI_BASE_URL for a real one",
    );
}

async fn shared(
    config: &Config,
    broker: &Broker,
    job: Job,
    begin: Duration,
    cx: &mut Context,
) -> Result<Exit, Error> {
    let producer = Producer::new(broker.shared.clone(), config.producer.clone());
    let listener = Listener::new(broker.shared.clone(), config.listener.clone());
    let queue = job.queue.clone();
    let receipt = producer.enqueue(job).await?;
    if producer.live_workers(&queue).await.is_ok_and(|workers| workers == 0) {
        cx.terminal.warn(format_args!(
            "no live worker serves queue `{queue}`; waiting {} s for one (millstream-worker)",
            begin.as_secs_f64()
        ));
    }
    let idle = Some(config.listener.idle_timeout);
    let follow = Follow { begin: Some(begin), idle, durable: true, ..Follow::default() };
    match answer::show(follow, &listener, receipt.id, cx).await {
        Ok(_) => Ok(Exit::Ok),
        // Nobody reads an answer that comes later: it is not to be paid for.
        Err(error) if error.exit() == Exit::Broker => {
            Err(take_back(broker, receipt.id, error).await)
        }
        Err(error) => Err(error),
    }
}

/// Cancels a job that nobody waits for any more; the error says what became of it.
async fn take_back(broker: &Broker, job: JobId, error: Error) -> Error {
    match Admin::new(broker.shared.clone()).cancel(job).await {
        Ok(Cancelled::Cancelled) => error.and(format_args!("job {job} is cancelled")),
        Ok(Cancelled::Asked { worker, .. }) => {
            error.and(format_args!("job {job} runs on {worker} and is being cancelled"))
        }
        Ok(Cancelled::Over { .. }) => error.and(format_args!(
            "job {job} has ended just now, `millstream jobs show {job}` tells how"
        )),
        Ok(Cancelled::Unknown) => error.and(format_args!("job {job} is gone")),
        Err(_) => error.and(format_args!(
            "the job waits, `millstream jobs cancel {job}` takes it back and `millstream jobs tail \
             {job}` follows it"
        )),
    }
}
