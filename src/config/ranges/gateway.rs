//! What values are allowed for the gateway.

use std::time::Duration;

use super::{DAY, GIB, HOUR, MIB, MINUTE, MS, Rule, SECOND, span, text, within};
use crate::{config::Config, gateway::Limits};

/// Every rule of the section `gateway`.
pub(super) fn rules(c: &Config) -> Vec<Rule> {
    let g = &c.gateway;
    let origins = g.cors_origins.iter().all(|origin| {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        origin == "*" || rest.is_some_and(|host| !host.is_empty() && !host.contains('/'))
    });
    let public = {
        let rest =
            g.public_url.strip_prefix("https://").or_else(|| g.public_url.strip_prefix("http://"));
        let plain = |c: char| c.is_ascii_graphic() && !"?#@\"'<>\\".contains(c);
        g.public_url.is_empty()
            || rest.is_some_and(|rest| {
                !rest.starts_with('/') && !rest.is_empty() && rest.chars().all(plain)
            })
    };
    let named = g.models.iter().all(|model| !model.is_empty());
    let mut rules = vec![
        text(
            "gateway.secret",
            &g.secret,
            g.secret.is_empty() || g.secret.len() >= 32,
            "at least 32 bytes, such as from `openssl rand -base64 32`, or empty",
        ),
        text(
            "gateway.second_secret",
            &g.second_secret,
            g.second_secret.is_empty() || g.second_secret.len() >= 32,
            "at least 32 bytes, or empty",
        ),
        span("gateway.token_ttl", g.token_ttl, SECOND, DAY),
        text(
            "gateway.cors_origins",
            &g.cors_origins.join(","),
            origins,
            "origins such as https://app.example.com, without a path, or *",
        ),
        text(
            "gateway.cors_origins",
            "*",
            !g.keys.as_os_str().is_empty() || !g.cors_origins.iter().any(|origin| origin == "*"),
            "* only with gateway.keys: without keys every page that is open on this machine would have all rights",
        ),
        text(
            "gateway.public_url",
            &g.public_url,
            public,
            "an address such as https://example.com/llm, without ? and #, or empty",
        ),
        text("gateway.models", &g.models.join(","), named, "names of models"),
        span("gateway.dedupe", g.dedupe, Duration::ZERO, HOUR),
        span("gateway.heartbeat", g.heartbeat, 100 * MS, 5 * MINUTE),
        span("gateway.notice", g.notice, Duration::ZERO, HOUR),
        span("gateway.drain", g.drain, Duration::ZERO, DAY),
        within("gateway.cache_bytes", g.cache_bytes, 0, 64 * GIB as u64),
    ];
    rules.extend(limits(&g.limits, c.producer.max_payload));
    rules
}

fn limits(l: &Limits, largest: usize) -> Vec<Rule> {
    vec![
        within("gateway.limits.max_body", l.max_body, 1024, GIB),
        text(
            "gateway.limits.max_body",
            &l.max_body.to_string(),
            l.max_body >= largest,
            &format!("at least producer.max_payload ({largest})"),
        ),
        within("gateway.limits.max_bodies", l.max_bodies, 2048, 64 * GIB),
        text(
            "gateway.limits.max_bodies",
            &l.max_bodies.to_string(),
            l.max_bodies / 2 >= l.max_body,
            &format!("at least twice gateway.limits.max_body ({})", l.max_body),
        ),
        within("gateway.limits.max_header", l.max_header, 1024, MIB),
        within("gateway.limits.max_bulk", l.max_bulk, 1, 100_000),
        span("gateway.limits.keep_alive", l.keep_alive, SECOND, HOUR),
        span("gateway.limits.read_timeout", l.read_timeout, 100 * MS, 5 * MINUTE),
        span("gateway.limits.write_timeout", l.write_timeout, SECOND, HOUR),
        span("gateway.limits.answer_timeout", l.answer_timeout, 100 * MS, DAY),
        within("gateway.limits.requests_per_minute", l.requests_per_minute, 0, 10_000_000),
        within("gateway.limits.burst", l.burst, 0, 10_000_000),
        within("gateway.limits.requests_per_token", l.requests_per_token, 0, 10_000_000),
        within("gateway.limits.max_connections", l.max_connections, 1, 1_000_000),
        within("gateway.limits.max_streams", l.max_streams, 1, 1_000_000),
        within("gateway.limits.max_streams_per_tenant", l.max_streams_per_tenant, 1, 1_000_000),
        within("gateway.limits.max_streams_per_token", l.max_streams_per_token, 1, 1_000_000),
        within("gateway.limits.max_subscriptions", l.max_subscriptions, 1, 100_000),
        span("gateway.limits.socket_idle", l.socket_idle, 100 * MS, DAY),
    ]
}
