//! What producers, listeners, the upstream client and the simulator do with their options.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use millstream::{
    error::{Code, Failure},
    job::{ChatRequest, Job},
    listener::{self, Listener},
    producer::{self, Producer},
    simulator,
    upstream::{
        Upstream as _,
        openai::{OpenAi, Options},
    },
};

use super::{broker::Deaf, until};
use crate::support::{
    stack::{Stack, expected, instant, simulate},
    web::Hand,
};

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| Job::new(ChatRequest::ask("m", &format!("question {n}")))).collect()
}

/// What an upstream answers to this question, not streamed.
pub async fn said(options: Options, model: &str, question: &str) -> Result<String, Failure> {
    let upstream = OpenAi::new(&options).unwrap();
    let mut parts = upstream.answer(&ChatRequest::ask(model, question), false).await?;
    let mut text = String::new();
    while let Some(part) = parts.next().await {
        for piece in part?.pieces {
            text.push_str(piece.delta["content"].as_str().unwrap());
        }
    }
    Ok(text)
}

#[tokio::test]
async fn a_lane_is_trimmed_once_every_so_many_enqueues() {
    for (trim_every, trims) in [(10, 4), (20, 2)] {
        let stack = Stack::start(instant()).await;
        let options = producer::Options { trim_every, ..producer::Options::default() };
        let results = Producer::new(stack.broker.clone(), options).enqueue_all(jobs(40)).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(stack.command_counts()["xinfo|groups"], trims, "every {trim_every}");
    }
}

#[tokio::test]
async fn a_job_above_the_largest_payload_is_refused() {
    let stack = Stack::start(instant()).await;
    let job = || Job::new(ChatRequest::ask("m", &"x".repeat(500)));
    let bytes = serde_json::to_vec(&job()).unwrap().len();
    let with = |max_payload| {
        let options = producer::Options { max_payload, ..producer::Options::default() };
        Producer::new(stack.broker.clone(), options)
    };
    let error = with(bytes - 1).enqueue(job()).await.unwrap_err();
    assert!(
        matches!(error, producer::Error::TooLarge { bytes: met, max } if (met, max) == (bytes, bytes - 1)),
        "{error}"
    );
    with(bytes).enqueue(job()).await.unwrap();
}

#[tokio::test]
async fn jobs_go_to_the_server_in_batches() {
    const JOBS: usize = 60;
    let stack = Stack::start(instant()).await;
    // How often the server has read from its connections: a batch is one pipeline.
    let reads = || -> u64 {
        let info = stack.server.command(&["INFO", "stats"]);
        let line = info.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        line.unwrap().trim().parse().unwrap()
    };
    let cost = async |batch| {
        let options = producer::Options { batch, ..producer::Options::default() };
        let producer = Producer::new(stack.broker.clone(), options);
        let before = reads();
        assert!(producer.enqueue_all(jobs(JOBS)).await.iter().all(Result::is_ok));
        reads() - before
    };
    let (one_by_one, at_once) = (cost(1).await, cost(JOBS).await);
    println!("{JOBS} jobs: {one_by_one} reads one by one, {at_once} at once");
    assert!(one_by_one >= JOBS as u64 && at_once <= JOBS as u64 / 2);
}

#[tokio::test]
async fn the_subscriber_connection_is_asked_at_every_ping() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "quiet").await;
    let pings = || stack.command_counts().get("ping").copied().unwrap_or_default();
    let with = |ping| {
        let options = listener::Options { ping, ..listener::Options::default() };
        Listener::new(stack.broker.clone(), options)
    };
    let seldom = with(Duration::from_mins(1));
    let reader = tokio::spawn(seldom.listen(id).answer());
    until("a subscription", || stack.command_counts().get("subscribe") == Some(&1)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(pings(), 0);
    reader.abort();
    let often = with(Duration::from_millis(100));
    let began = Instant::now();
    let reader = tokio::spawn(often.listen(id).answer());
    until("four pings", || pings() >= 4).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(390) && took < Duration::from_secs(3), "{took:?}");
    reader.abort();
}

#[tokio::test]
async fn a_reader_waits_as_long_as_its_listener_says() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "nobody works").await;
    for idle_timeout in [Duration::from_millis(50), Duration::from_millis(400)] {
        let options = listener::Options { idle_timeout, ..listener::Options::default() };
        let began = Instant::now();
        let listener = Listener::new(stack.broker.clone(), options);
        let error = listener.listen(id).answer().await.unwrap_err();
        assert!(matches!(error, listener::Error::Idle(limit) if limit == idle_timeout), "{error}");
        assert!(began.elapsed() >= idle_timeout);
    }
}

#[tokio::test]
async fn a_job_is_forgotten_once_its_record_has_been_missing_for_so_long() {
    for forgotten_after in [Duration::from_millis(100), Duration::from_millis(600)] {
        let mut stack = Stack::start(instant()).await;
        let id = stack.ask("m", "forgotten").await;
        let options = listener::Options { forgotten_after, ..listener::Options::default() };
        let listener = Listener::new(stack.broker.clone(), options);
        let mut events = listener.listen(id).events();
        assert!(tokio::time::timeout(Duration::from_millis(100), events.next()).await.is_err());
        stack.server.stop();
        stack.server.restart().await;
        let began = Instant::now();
        let error = events.next().await.unwrap().unwrap_err();
        assert!(matches!(error, listener::Error::Forgotten(job) if job == id), "{error}");
        assert!(began.elapsed() >= forgotten_after);
    }
}

/// Carries the job out with many events.
async fn at_length(stack: &Stack) {
    let mut hand = Hand::begin(&stack.broker).await;
    for word in 0..20 {
        hand.say(&format!("{word} ")).await;
    }
    hand.done().await;
}

#[tokio::test]
async fn a_log_is_read_page_by_page() {
    let stack = Stack::start(instant()).await;
    let id = stack.ask("m", "pages").await;
    at_length(&stack).await;
    let mut lengths = Vec::new();
    for page in [512, 2] {
        let options = listener::Options { page, ..listener::Options::default() };
        stack.reset_counts();
        let listener = Listener::new(stack.broker.clone(), options);
        let events: Vec<_> = listener.listen(id).events().collect().await;
        assert!(events.len() > 8, "{} events", events.len());
        lengths.push(events.len());
        let reads = stack.command_counts()["xrange"];
        let pages = events.len().div_ceil(page) as u64;
        assert!((pages..=pages + 1).contains(&reads), "{reads} reads of {} events", events.len());
    }
    assert_eq!(lengths[0], lengths[1]);
}

#[tokio::test]
async fn a_reader_reads_the_log_again_once_its_buffer_is_passed() {
    for (buffer_bytes, again) in [(1024, true), (32 * 1024, false)] {
        let stack = Stack::start(instant()).await;
        let id = stack.ask("m", "slow reader").await;
        let options = listener::Options { buffer_bytes, ..listener::Options::default() };
        let listener = Listener::new(stack.broker.clone(), options);
        let mut events = listener.listen(id).events();
        // It follows live before the job begins, hears of the beginning, and is away until the end.
        let worker = async {
            until("a replay", || stack.command_counts().get("xrange") == Some(&1)).await;
            at_length(&stack).await;
        };
        let (first, ()) = tokio::join!(events.next(), worker);
        stack.reset_counts();
        let rest: Vec<_> = events.map(Result::unwrap).collect().await;
        assert!(rest.len() > 8, "{} events", rest.len());
        assert_eq!(
            stack.command_counts().contains_key("xrange"),
            again,
            "buffer of {buffer_bytes}"
        );
        let log: Vec<_> = stack.listener().listen(id).events().map(Result::unwrap).collect().await;
        assert_eq!((first.unwrap().unwrap(), rest.as_slice()), (log[0].clone(), &log[1..]));
    }
}

#[tokio::test]
async fn the_model_is_asked_there_and_with_the_key() {
    let locked = simulator::Options { api_key: Some("right".to_owned()), ..instant() };
    let (locked, _locked) = simulate(locked).await;
    let with = |base_url: &str, api_key: &str| Options {
        base_url: base_url.to_owned(),
        api_key: api_key.to_owned(),
        ..Options::default()
    };
    assert_eq!(said(with(&locked, "right"), "m", "who?").await.unwrap(), expected("m", "who?"));
    for wrong in ["left", ""] {
        let refusal = said(with(&locked, wrong), "m", "who?").await.unwrap_err();
        assert_eq!(refusal.code, Code::UpstreamAuth, "{refusal}");
    }
    // Another address, another model.
    let (short, _short) = simulate(simulator::Options { tokens: 3, ..instant() }).await;
    let text = said(with(&short, "any"), "m", "who?").await.unwrap();
    assert_eq!(text, expected("m?tokens=3", "who?"));
}

#[tokio::test]
async fn an_upstream_that_takes_no_connection_is_given_up() {
    let deaf = Deaf::new().await;
    for connect_timeout in [Duration::from_millis(200), Duration::from_millis(700)] {
        let base_url = format!("http://{}/v1", deaf.address);
        let options = Options { base_url, connect_timeout, ..Options::default() };
        let began = Instant::now();
        let failure = said(options, "m", "anyone?").await.unwrap_err();
        let took = began.elapsed();
        assert_eq!(failure.code, Code::UpstreamConnection, "{failure}");
        let late = connect_timeout + Duration::from_secs(3);
        assert!(took >= connect_timeout && took < late, "{took:?} for {connect_timeout:?}");
    }
}

#[tokio::test]
async fn a_simulator_keeps_the_pace_of_its_options() {
    let took = async |ttft: u64, rate| {
        let ttft = Duration::from_millis(ttft);
        let options = simulator::Options { ttft, rate, tokens: 10, ..instant() };
        let (base_url, _guard) = simulate(options).await;
        let began = Instant::now();
        said(Options { base_url, ..Options::default() }, "m", "when?").await.unwrap();
        began.elapsed().as_millis()
    };
    let (at_once, late, slow) = (took(0, 0.0).await, took(1000, 0.0).await, took(0, 10.0).await);
    assert!(at_once < 900, "{at_once} ms");
    assert!((1000..1900).contains(&late), "{late} ms to the first token");
    assert!((1000..1900).contains(&slow), "{slow} ms for ten tokens at ten per second");
}
