//! What values are allowed: the one table of ranges and contradictions.

mod gateway;

use std::{fmt, time::Duration};

use humantime_serde::re::humantime::format_duration;
use tracing_subscriber::EnvFilter;

use super::Config;
use crate::{broker::Limits, retry::Schedule, worker};

/// What is allowed for one key, and whether its value is.
pub(super) struct Rule {
    pub(super) key: &'static str,
    pub(super) met: String,
    pub(super) allowed: String,
    pub(super) holds: bool,
}

/// A duration, written for people.
#[derive(PartialEq, PartialOrd)]
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format_duration(self.0))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "numbers read better without an &")]
fn within<T: PartialOrd + fmt::Display>(key: &'static str, met: T, least: T, most: T) -> Rule {
    let allowed = format!("{least} to {most}");
    Rule { key, holds: met >= least && met <= most, met: met.to_string(), allowed }
}

fn span(key: &'static str, met: Duration, least: Duration, most: Duration) -> Rule {
    within(key, Span(met), Span(least), Span(most))
}

/// Not more than another key says.
fn below(key: &'static str, met: impl fmt::Display, other: impl fmt::Display, holds: bool) -> Rule {
    Rule { key, met: met.to_string(), allowed: format!("at most {other}"), holds }
}

fn text(key: &'static str, met: &str, holds: bool, allowed: &str) -> Rule {
    Rule { key, met: met.to_owned(), allowed: allowed.to_owned(), holds }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(24 * 365);
const MIB: usize = 1024 * 1024;
const GIB: usize = 1024 * MIB;

/// Every rule. The range of a key comes before the rules that tie it to others.
pub(super) fn rules(c: &Config) -> Vec<Rule> {
    let mut rules = brokers(c);
    let redis = ["redis.limits.max_jobs", "redis.limits.max_bytes"];
    rules.extend(limits(redis, "redis.limits.max_jobs_per_tenant", &c.redis.limits, c));
    let embedded = ["embedded.limits.max_jobs", "embedded.limits.max_bytes"];
    rules.extend(limits(embedded, "embedded.limits.max_jobs_per_tenant", &c.embedded.limits, c));
    rules.extend(clients(c));
    rules.extend(worker(&c.worker));
    rules.extend(retry(&c.worker.retry));
    rules.extend(ties(&c.worker));
    rules.extend(model(c));
    rules.extend(gateway::rules(c));
    rules
}

fn brokers(c: &Config) -> Vec<Rule> {
    let url = &c.redis.url;
    let schemes = ["redis://", "rediss://", "unix://", "redis+unix://"];
    let is_url = schemes.iter().any(|s| url.strip_prefix(s).is_some_and(|rest| !rest.is_empty()));
    let prefix = &c.redis.prefix;
    let is_prefix = (1..=32).contains(&prefix.len())
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    vec![
        text(
            "redis.url",
            url,
            url.is_empty() || is_url,
            "redis://[user:password@]host[:port][/db], rediss:// for TLS, unix:///path, or empty \
             for the embedded broker",
        ),
        text(
            "redis.ca_file",
            &c.redis.ca_file.display().to_string(),
            c.redis.ca_file.as_os_str().is_empty()
                || url.is_empty()
                || url.starts_with("rediss://"),
            "a file of certificates where redis.url begins with rediss://, or empty",
        ),
        text("redis.prefix", prefix, is_prefix, "1 to 32 of letters, digits and _ . -"),
        span("redis.connect_timeout", c.redis.connect_timeout, 10 * MS, 5 * MINUTE),
        span("redis.response_timeout", c.redis.response_timeout, 10 * MS, 5 * MINUTE),
        within("redis.pool_size", c.redis.pool_size, 1, 1024),
        span("redis.job_ttl", c.redis.job_ttl, MINUTE, YEAR),
        span("redis.result_ttl", c.redis.result_ttl, SECOND, YEAR),
        span("redis.key_ttl", c.redis.key_ttl, SECOND, YEAR),
        within("redis.dead_max", c.redis.dead_max, 1, 10_000_000),
        span("redis.dead_ttl", c.redis.dead_ttl, MINUTE, YEAR),
        within("redis.recent_jobs", c.redis.recent_jobs, 1, 1_000_000),
        within("embedded.max_jobs", c.embedded.max_jobs, 1, 10_000_000),
        within("embedded.max_bytes", c.embedded.max_bytes, MIB, 1024 * GIB),
        span("embedded.result_ttl", c.embedded.result_ttl, SECOND, YEAR),
        span("embedded.key_ttl", c.embedded.key_ttl, SECOND, YEAR),
        within("embedded.dead_max", c.embedded.dead_max, 1, 10_000_000),
        span("embedded.dead_ttl", c.embedded.dead_ttl, MINUTE, YEAR),
        within("embedded.recent_jobs", c.embedded.recent_jobs, 1, 1_000_000),
        text(
            "redis.result_ttl",
            &Span(c.redis.result_ttl).to_string(),
            c.redis.result_ttl >= (c.worker.lease + c.worker.sweep) * 5,
            "at least five times worker.lease and worker.sweep together: an entry that is delivered \
             again must find that its job is over",
        ),
        text(
            "redis.job_ttl",
            &Span(c.redis.job_ttl).to_string(),
            c.redis.job_ttl >= c.worker.refresh * 2,
            "at least twice worker.refresh: a job that runs must not be forgotten",
        ),
        below(
            "worker.total_timeout",
            Span(c.worker.total_timeout),
            format_args!("redis.job_ttl ({})", Span(c.redis.job_ttl)),
            c.worker.total_timeout <= c.redis.job_ttl,
        ),
    ]
}

/// The bounds of a queue; 0 is none.
fn limits(
    [jobs, bytes]: [&'static str; 2],
    of_tenant: &'static str,
    limits: &Limits,
    c: &Config,
) -> Vec<Rule> {
    let largest = c.producer.max_payload;
    vec![
        within(jobs, limits.max_jobs, 0, 1_000_000_000),
        within(of_tenant, limits.max_jobs_per_tenant, 0, 1_000_000_000),
        within(bytes, limits.max_bytes, 0, 1024 * GIB as u64),
        // A job above the bound would wait for ever.
        text(
            bytes,
            &limits.max_bytes.to_string(),
            limits.max_bytes == 0 || limits.max_bytes >= largest as u64,
            &format!("0, or at least producer.max_payload ({largest})"),
        ),
    ]
}

fn clients(c: &Config) -> Vec<Rule> {
    let filter = &c.log.filter;
    let is_filter = filter.is_empty() || EnvFilter::try_new(filter).is_ok();
    vec![
        within("producer.trim_every", c.producer.trim_every, 1, 1_000_000_000),
        within("producer.max_payload", c.producer.max_payload, 1, 512 * MIB),
        within("producer.batch", c.producer.batch, 1, 10_000),
        span("listener.ping", c.listener.ping, 100 * MS, HOUR),
        within("listener.buffer_bytes", c.listener.buffer_bytes, 1024, 64 * MIB),
        within("listener.page", c.listener.page, 1, 100_000),
        span("listener.idle_timeout", c.listener.idle_timeout, 100 * MS, YEAR),
        span("listener.forgotten_after", c.listener.forgotten_after, 100 * MS, HOUR),
        text(
            "log.filter",
            filter,
            is_filter,
            "directives such as info or millstream=debug,warn, or empty",
        ),
    ]
}

fn worker(w: &worker::Options) -> Vec<Rule> {
    let list = |items: &[String]| items.join(",");
    let queues: Vec<String> = w.queues.iter().map(ToString::to_string).collect();
    let distinct: std::collections::BTreeSet<_> = w.queues.iter().collect();
    let weights: Vec<String> = w.weights.iter().map(ToString::to_string).collect();
    let weighted = w.weights.iter().all(|weight| (1..=1000).contains(weight));
    vec![
        text(
            "worker.queues",
            &list(&queues),
            (1..=64).contains(&queues.len()) && distinct.len() == queues.len(),
            "1 to 64 different names of letters, digits and _ . - @",
        ),
        within("worker.concurrency", w.concurrency, 1, 65_536),
        text(
            "worker.name",
            &w.name,
            w.name.len() <= 64,
            "at most 64 bytes, or empty for the host's",
        ),
        text("worker.weights", &list(&weights), weighted, "three numbers of 1 to 1000"),
        // A worker that has not read for 45 s counts as dead.
        span("worker.block", w.block, 10 * MS, 30 * SECOND),
        span("worker.flush_interval", w.flush_interval, MS, MINUTE),
        within("worker.flush_bytes", w.flush_bytes, 1, 16 * MIB),
        span("worker.lease", w.lease, 500 * MS, HOUR),
        span("worker.renewal", w.renewal, 50 * MS, HOUR),
        text(
            "worker.renewal",
            &Span(w.renewal).to_string(),
            w.renewal * 2 < w.lease,
            "less than half of worker.lease",
        ),
        span("worker.sweep", w.sweep, 50 * MS, HOUR),
        span("worker.drain", w.drain, Duration::ZERO, DAY),
        span("worker.refresh", w.refresh, 100 * MS, DAY),
        span("worker.forget", w.forget, 100 * MS, 30 * DAY),
        within("worker.ack_batch", w.ack_batch, 1, 128),
        span("worker.total_timeout", w.total_timeout, 10 * MS, 7 * DAY),
        span("worker.first_token_timeout", w.first_token_timeout, 10 * MS, 7 * DAY),
        span("worker.idle_timeout", w.idle_timeout, 10 * MS, 7 * DAY),
        within("worker.buffer_bytes", w.buffer_bytes, 1024, GIB),
    ]
}

fn retry(r: &Schedule) -> Vec<Rule> {
    vec![
        within("worker.retry.max_attempts", r.max_attempts, 1, 100),
        within("worker.retry.max_crashes", r.max_crashes, 1, 100),
        span("worker.retry.initial", r.initial, MS, DAY),
        within("worker.retry.multiplier", r.multiplier, 1.0, 100.0),
        span("worker.retry.max", r.max, MS, 7 * DAY),
        within("worker.retry.jitter", r.jitter, 0.0, 1.0),
        below(
            "worker.retry.initial",
            Span(r.initial),
            format_args!("worker.retry.max ({})", Span(r.max)),
            r.initial <= r.max,
        ),
    ]
}

/// What ties the worker's values to each other.
fn ties(w: &worker::Options) -> Vec<Rule> {
    vec![
        text(
            "worker.forget",
            &Span(w.forget).to_string(),
            w.forget > w.block * 2,
            "more than twice worker.block: a live worker must not be forgotten",
        ),
        below(
            "worker.flush_bytes",
            w.flush_bytes,
            format_args!("worker.buffer_bytes ({})", w.buffer_bytes),
            w.flush_bytes <= w.buffer_bytes,
        ),
    ]
}

fn model(c: &Config) -> Vec<Rule> {
    let base = &c.upstream.base_url;
    vec![
        text(
            "upstream.base_url",
            base,
            crate::upstream::openai::is_address(base),
            "an http:// or https:// address without a #fragment, such as https://api.openai.com/v1, or empty",
        ),
        text(
            "upstream.api_key",
            &c.upstream.api_key,
            c.upstream.api_key.bytes().all(|b| (0x21..0x7f).contains(&b)),
            "printable ASCII without spaces, or empty",
        ),
        span("upstream.connect_timeout", c.upstream.connect_timeout, 10 * MS, 5 * MINUTE),
        within("upstream.max_answer_bytes", c.upstream.max_answer_bytes, 64 * 1024, GIB),
        span("simulator.ttft", c.simulator.ttft, Duration::ZERO, HOUR),
        within("simulator.rate", c.simulator.rate, 0.0, 1_000_000.0),
        within("simulator.tokens", c.simulator.tokens, 0, 1_000_000),
    ]
}
