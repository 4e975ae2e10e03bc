use std::path::PathBuf;

use serde_json::Value;

use super::{layers::leaves, *};

fn with(environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, Error> {
    let own = |pair: &(&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
    Layers {
        file: None,
        directory: PathBuf::from("/nonexistent"),
        environment: environment.iter().map(own).collect(),
        flags: flags.iter().map(|(key, value)| Flag::new("--set", key, *value)).collect(),
    }
    .load()
}

fn with_file(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Error> {
    let path = std::env::temp_dir().join(format!("ms-config-{}.toml", uuid::Uuid::new_v4()));
    std::fs::write(&path, text).unwrap();
    let own = |pair: &(&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
    let environment = environment.iter().map(own).collect();
    let loaded = Layers { file: Some(path.clone()), environment, ..Layers::default() }.load();
    std::fs::remove_file(path).unwrap();
    loaded
}

fn tree(config: &Config) -> Value {
    serde_json::to_value(config).unwrap()
}

fn message(result: Result<Loaded, Error>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Another valid value of every key.
const OTHERS: [(&str, &str); 108] = [
    ("redis.url", "redis://u:p@localhost:1/2"),
    ("redis.ca_file", "ca.pem"),
    ("redis.prefix", "other"),
    ("redis.connect_timeout", "3s"),
    ("redis.response_timeout", "7s"),
    ("redis.pool_size", "3"),
    ("redis.job_ttl", "2h"),
    ("redis.result_ttl", "5m"),
    ("redis.key_ttl", "2d"),
    ("redis.dead_max", "7"),
    ("redis.dead_ttl", "1h"),
    ("redis.recent_jobs", "12"),
    ("redis.auto_migrate", "false"),
    ("redis.allow_eviction", "true"),
    ("redis.limits.max_jobs", "4"),
    ("redis.limits.max_bytes", "3000000"),
    ("redis.limits.max_jobs_per_tenant", "2"),
    ("embedded.max_jobs", "5"),
    ("embedded.max_bytes", "2000000"),
    ("embedded.result_ttl", "9m"),
    ("embedded.key_ttl", "3d"),
    ("embedded.dead_max", "11"),
    ("embedded.dead_ttl", "2h"),
    ("embedded.recent_jobs", "13"),
    ("embedded.limits.max_jobs", "6"),
    ("embedded.limits.max_bytes", "1048576"),
    ("embedded.limits.max_jobs_per_tenant", "3"),
    ("producer.trim_every", "10"),
    ("producer.max_payload", "2048"),
    ("producer.batch", "2"),
    ("listener.ping", "1s"),
    ("listener.buffer_bytes", "4096"),
    ("listener.page", "9"),
    ("listener.idle_timeout", "5s"),
    ("listener.forgotten_after", "3s"),
    ("gateway.listen", "127.0.0.1:0"),
    ("gateway.keys", "keys.toml"),
    ("gateway.secret", "0123456789abcdef0123456789abcdef"),
    ("gateway.second_secret", "fedcba9876543210fedcba9876543210"),
    ("gateway.token_ttl", "1m"),
    ("gateway.cors_origins", "https://a.example,https://b.example"),
    ("gateway.public_url", "https://example.com/llm"),
    ("gateway.models", "a,b"),
    ("gateway.queue", "web"),
    ("gateway.queues", "slow,bulk"),
    ("gateway.on_disconnect", "continue"),
    ("gateway.dedupe", "1m"),
    ("gateway.heartbeat", "1s"),
    ("gateway.notice", "2s"),
    ("gateway.drain", "1s"),
    ("gateway.cache_bytes", "0"),
    ("gateway.limits.max_body", "2000000"),
    ("gateway.limits.max_bodies", "20000000"),
    ("gateway.limits.max_header", "2048"),
    ("gateway.limits.max_bulk", "2"),
    ("gateway.limits.keep_alive", "5s"),
    ("gateway.limits.read_timeout", "1s"),
    ("gateway.limits.write_timeout", "2s"),
    ("gateway.limits.answer_timeout", "3s"),
    ("gateway.limits.requests_per_minute", "60"),
    ("gateway.limits.burst", "5"),
    ("gateway.limits.requests_per_token", "70"),
    ("gateway.limits.max_connections", "9"),
    ("gateway.limits.max_streams", "8"),
    ("gateway.limits.max_streams_per_tenant", "7"),
    ("gateway.limits.max_streams_per_token", "3"),
    ("gateway.limits.max_subscriptions", "6"),
    ("gateway.limits.socket_idle", "4s"),
    ("worker.queues", "a, b"),
    ("worker.concurrency", "2"),
    ("worker.name", "123"),
    ("worker.weights", "3,2,1"),
    ("worker.block", "2s"),
    ("worker.flush_interval", "20ms"),
    ("worker.flush_bytes", "100"),
    ("worker.codec", "messagepack"),
    ("worker.lease", "7s"),
    ("worker.renewal", "1s"),
    ("worker.sweep", "2s"),
    ("worker.refresh", "2h"),
    ("worker.forget", "3h"),
    ("worker.drain", "0s"),
    ("worker.ack_batch", "1"),
    ("worker.first_token_timeout", "2s"),
    ("worker.idle_timeout", "3s"),
    ("worker.total_timeout", "2m"),
    ("worker.buffer_bytes", "100000"),
    ("worker.retry.max_attempts", "1"),
    ("worker.retry.max_crashes", "2"),
    ("worker.retry.initial", "10ms"),
    ("worker.retry.multiplier", "3"),
    ("worker.retry.max", "2s"),
    ("worker.retry.jitter", "0.5"),
    ("upstream.base_url", "http://127.0.0.1:9/v1"),
    ("upstream.api_key", "12345"),
    ("upstream.connect_timeout", "1s"),
    ("upstream.include_usage", "never"),
    ("upstream.max_answer_bytes", "100000"),
    ("simulator.listen", "127.0.0.1:0"),
    ("simulator.ttft", "1ms"),
    ("simulator.rate", "0"),
    ("simulator.tokens", "3"),
    ("simulator.vary", "true"),
    ("simulator.fault", "drop:3"),
    ("simulator.api_key", "secret"),
    ("log.format", "json"),
    ("log.filter", "debug"),
    ("log.audit_file", "audit.log"),
];

#[test]
fn every_key_is_set_by_its_variable_and_by_a_flag() {
    let defaults = tree(&Config::default());
    let keys: Vec<String> = leaves(&defaults).into_iter().map(|(key, _)| key).collect();
    let listed: Vec<&str> = OTHERS.iter().map(|(key, _)| *key).collect();
    for key in &keys {
        assert!(listed.contains(&key.as_str()), "{key} is not in OTHERS");
    }
    assert_eq!(keys.len(), listed.len(), "a key is gone or stands twice");
    for (key, value) in OTHERS {
        let variable = format!("MILLSTREAM_{}", key.to_uppercase().replace('.', "__"));
        let variable = tree(&with(&[(&variable, value)], &[]).unwrap().config);
        let flag = tree(&with(&[], &[(key, value)]).unwrap().config);
        assert_eq!(variable, flag, "{key}");
        let changed: Vec<String> = leaves(&flag)
            .into_iter()
            .filter(|leaf| !leaves(&defaults).contains(leaf))
            .map(|leaf| leaf.0)
            .collect();
        assert_eq!(changed, [key], "{key} = {value}");
    }
}

#[test]
fn a_configuration_survives_as_variables() {
    for (key, value) in OTHERS {
        let config = with(&[], &[(key, value)]).unwrap().config;
        let variables = variables(&config);
        let own: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(tree(&with(&own, &[]).unwrap().config), tree(&config), "{key}");
    }
}

#[test]
fn the_example_holds_every_key_at_its_default() {
    let text = include_str!("../../config.example.toml");
    let parsed: Config = toml::from_str(text).unwrap();
    assert_eq!(tree(&parsed), tree(&Config::default()));
    let written = serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap();
    let written: Vec<String> = leaves(&written).into_iter().map(|leaf| leaf.0).collect();
    for (key, value) in leaves(&tree(&Config::default())) {
        if value.is_null() {
            let name = key.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("\n# {name} = ")), "{key} is not mentioned");
        } else {
            assert!(written.contains(&key), "{key} is missing");
        }
    }
}

#[test]
fn flags_overrule_the_environment_and_it_the_file_and_it_the_defaults() {
    let file = "[worker]\nconcurrency = 2\n[redis]\nurl = \"redis://file\"\n";
    let of = |env: &[(&str, &str)]| with_file(file, env).unwrap().config;
    assert_eq!(of(&[]).worker.concurrency, 2);
    assert_eq!(of(&[]).worker.ack_batch, 128);
    assert_eq!(of(&[("MILLSTREAM_WORKER__CONCURRENCY", "3")]).worker.concurrency, 3);
    assert_eq!(of(&[("REDIS_URL", "redis://env")]).redis.url, "redis://env");
    assert_eq!(of(&[("REDIS_URL", "")]).redis.url, "redis://file");
    let long = [("MILLSTREAM_REDIS__URL", "redis://long"), ("REDIS_URL", "redis://env")];
    assert_eq!(of(&long).redis.url, "redis://long");
    let flag = with(&[("MILLSTREAM_WORKER__CONCURRENCY", "3")], &[("worker.concurrency", "4")]);
    assert_eq!(flag.unwrap().config.worker.concurrency, 4);
}

#[test]
fn a_file_is_named_by_a_variable_and_must_then_exist() {
    let error = with(&[("MILLSTREAM_CONFIG", "/nonexistent/c.toml")], &[]);
    assert!(message(error).contains("/nonexistent/c.toml"));
    assert!(with(&[], &[]).unwrap().file.is_none());
}

#[test]
fn each_refusal_names_key_value_place_and_what_is_allowed() {
    for (key, value, words) in [
        ("worker.concurrency", "0", "1 to 65536"),
        ("worker.concurrency", "many", "1 to 65536"),
        ("worker.concurrency", "-1", "1 to 65536"),
        ("worker.block", "soon", "10ms to 30s"),
        ("worker.block", "31s", "10ms to 30s"),
        ("worker.codec", "xml", "messagepack"),
        ("worker.queues", "", "1 to 64 different names"),
        ("worker.queues", "a,a", "different"),
        ("worker.queues", "a b", "letters"),
        ("worker.weights", "1,2", "three numbers"),
        ("worker.retry.max", "10ms", "at most worker.retry.max (10ms)"),
        ("worker.retry.jitter", "NaN", "0 to 1"),
        ("redis.url", "localhost:6379", "redis://"),
        ("redis.auto_migrate", "maybe", "boolean"),
        ("redis.limits.max_jobs", "-1", "0 to 1000000000"),
        ("redis.limits.max_bytes", "1000", "0, or at least producer.max_payload (1048576)"),
        ("upstream.base_url", "api.openai.com", "https://"),
        ("simulator.fault", "explode", "status:CODE"),
        ("simulator.listen", "here", "socket address"),
        ("log.filter", "a=b=c", "directives"),
    ] {
        let variable = format!("MILLSTREAM_{}", key.to_uppercase().replace('.', "__"));
        let text = message(with(&[(&variable, value)], &[]));
        assert!(text.contains(words), "{text} should contain {words}");
        if !words.contains("worker.retry.max") {
            assert!(text.contains(key) && text.contains(&variable), "{text}");
            assert!(text.contains(&format!("`{value}`")), "{text}");
        }
        assert!(with(&[], &[(key, value)]).unwrap_err().is_usage() || words.contains("retry.max"));
    }
}

#[test]
fn unknown_keys_and_variables_are_refused() {
    let text = message(with_file("[worker]\nconcurency = 2\n", &[]));
    assert!(text.contains("worker.concurency") && text.contains("concurrency, name"), "{text}");
    assert!(text.contains("ms-config-"), "{text}");
    let text = message(with_file("[wroker]\nconcurrency = 2\n", &[]));
    assert!(text.contains("`wroker`") && text.contains("redis, embedded"), "{text}");
    assert!(message(with_file("worker = 3\n", &[])).contains("worker is `3`"));
    let text = message(with_file("[worker]\nblock = = 3\n", &[]));
    assert!(text.contains("line 2"), "{text}");
    let text = message(with(&[("MILLSTREAM_WORKER_CONCURRENCY", "2")], &[]));
    assert!(text.contains("MILLSTREAM_WORKER__CONCURRENCY is probably meant"), "{text}");
    assert!(message(with(&[("MILLSTREAM_NONSENSE", "2")], &[])).contains("MILLSTREAM_NONSENSE"));
    assert!(message(with(&[], &[("worker", "2")])).contains("worker.block"));
    for link in ["SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR", "REDIS_PORT"] {
        with(&[(&format!("MILLSTREAM_{link}"), "tcp://10.0.0.1:80")], &[]).unwrap();
    }
}

/// Guards against a misspelt key that is answered only by a list of a hundred.
#[test]
fn a_misspelt_key_is_answered_by_the_one_that_was_meant() {
    for text in [
        message(with_file("[worker]\nconcurency = 2\n", &[])),
        message(with(&[], &[("worker.concurency", "2")])),
        message(with(&[("MILLSTREAM_WORKER__CONCURENCY", "2")], &[]))
            .replace("MILLSTREAM_WORKER__CONCURRENCY", "`worker.concurrency`"),
    ] {
        assert!(text.contains("`worker.concurrency` is probably meant"), "{text}");
    }
    let text = message(with_file("[wroker]\nconcurrency = 2\n", &[]));
    assert!(text.contains("`worker` is probably meant"), "{text}");
    assert!(!message(with(&[], &[("nonsense", "2")])).contains("probably"));
}

/// Guards against addresses that every other server takes, and this one refused.
#[test]
fn an_address_may_name_its_host_or_only_its_port() {
    for (text, meant) in [
        ("localhost:8080", "127.0.0.1:8080"),
        (":8080", "127.0.0.1:8080"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:1", "[::1]:1"),
        ("0.0.0.0:1", "0.0.0.0:1"),
    ] {
        for key in ["gateway.listen", "simulator.listen"] {
            let config = with(&[], &[(key, text)]).unwrap().config;
            let met = if key == "gateway.listen" {
                config.gateway.listen
            } else {
                config.simulator.listen
            };
            assert_eq!(met.to_string(), meant, "{key} {text}");
        }
    }
    for text in ["localhost", "localhost:x", ":65536", "no.such.host.invalid:1"] {
        let refused = message(with(&[], &[("gateway.listen", text)]));
        assert!(refused.contains("gateway.listen") && refused.contains(text), "{refused}");
    }
}

#[test]
fn rust_log_is_the_filter_unless_a_stronger_one_is_set() {
    let filter = |env: &[(&str, &str)]| with(env, &[]).unwrap().config.log.filter;
    assert_eq!(filter(&[("RUST_LOG", "debug")]), "debug");
    assert_eq!(filter(&[("RUST_LOG", "debug"), ("MILLSTREAM_LOG__FILTER", "warn")]), "warn");
}

#[test]
fn secrets_are_masked() {
    let loaded = with(
        &[
            ("REDIS_URL", "rediss://user:p@ss@host:6380/1"),
            ("OPENAI_API_KEY", "sk-hidden"),
            ("MILLSTREAM_SIMULATOR__API_KEY", "sim-hidden"),
            ("MILLSTREAM_GATEWAY__SECRET", "hidden-hidden-hidden-hidden-hidden"),
            ("MILLSTREAM_GATEWAY__SECOND_SECRET", "hidden-hidden-hidden-hidden-second"),
        ],
        &[],
    );
    let printed = printed(&loaded.unwrap().config);
    assert!(printed.contains("rediss://user:***@host:6380/1"), "{printed}");
    assert!(!printed.contains("hidden") && !printed.contains("p@ss"), "{printed}");
    let models = with(&[("OPENAI_BASE_URL", "https://u:hunter2@h/v1?key=hunter2")], &[]).unwrap();
    let printed = super::printed(&models.config);
    assert!(printed.contains("https://u:***@h/v1?key=***"), "{printed}");
    for (variable, value) in [
        ("REDIS_URL", "http://u:hunter2@h"),
        ("REDIS_URL", "redsi://:a?hunter2@h"),
        ("OPENAI_BASE_URL", "htp://hunter2@h/v1"),
        ("OPENAI_API_KEY", "hunter2 with space"),
    ] {
        let text = message(with(&[(variable, value)], &[]));
        assert!(!text.contains("hunter2") && text.contains(variable), "{text}");
    }
}

#[test]
fn what_is_printed_can_be_read_again() {
    let config = with(&[], &[("worker.retry.max", "5s"), ("simulator.fault", "drop:3")]).unwrap();
    let printed = printed(&config.config);
    assert_eq!(tree(&toml::from_str(&printed).unwrap()), tree(&config.config), "{printed}");
}
