//! Every configured value reaches its effect.
//!
//! A field that is read from the file and then by nobody is worse than none. [`PROVEN`] names, for
//! every key of the configuration, a test that fails when the value no longer has its effect; a key
//! without one fails here. The other tests of this kind stand below, by who uses the value.

mod broker;
mod clients;
mod limits;
mod probe;
mod programs;
mod worker;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use millstream::{
    broker::{
        Partition, Shared,
        redis::{Options, Redis},
    },
    config::Config,
    simulator,
};
use serde_json::Value;

use crate::support::stack::Stack;

/// Each key, and the test that fails when its value has no effect.
const PROVEN: [(&str, &str); 108] = [
    ("redis.url", "a_broker_that_cannot_be_used_is_told_apart"),
    ("redis.ca_file", "a_certificate_must_be_of_a_trusted_authority_and_name_the_host"),
    ("redis.prefix", "every_key_and_channel_begins_with_the_prefix"),
    ("redis.connect_timeout", "a_server_that_takes_no_connection_is_given_up"),
    ("redis.response_timeout", "a_server_that_says_nothing_is_given_up"),
    ("redis.pool_size", "the_pool_opens_no_more_connections_than_allowed"),
    ("redis.job_ttl", "record_and_log_are_kept_while_the_job_is_not_over_and_after"),
    ("redis.result_ttl", "record_and_log_are_kept_while_the_job_is_not_over_and_after"),
    ("redis.key_ttl", "a_key_outlives_its_result_and_is_new_afterwards"),
    ("redis.dead_max", "the_newest_dead_letters_are_kept"),
    ("redis.dead_ttl", "a_dead_letter_beyond_its_time_goes"),
    ("redis.recent_jobs", "the_most_recent_jobs_of_a_tenant_are_kept"),
    ("redis.auto_migrate", "without_auto_migrate_the_operator_migrates"),
    ("redis.allow_eviction", "a_redis_that_drops_jobs_is_refused_unless_that_is_accepted"),
    ("redis.limits.max_jobs", "each_bound_of_a_queue_is_the_one_that_is_configured"),
    ("redis.limits.max_bytes", "each_bound_of_a_queue_is_the_one_that_is_configured"),
    ("redis.limits.max_jobs_per_tenant", "each_bound_of_a_queue_is_the_one_that_is_configured"),
    ("embedded.max_jobs", "a_full_broker_says_so_until_a_job_is_over"),
    ("embedded.max_bytes", "the_embedded_broker_has_the_bounds_that_are_configured"),
    ("embedded.result_ttl", "a_finished_job_outlives_its_time_only_while_its_entry_is_there"),
    ("embedded.key_ttl", "a_key_outlives_the_log_of_its_job"),
    ("embedded.dead_max", "the_oldest_dead_letter_goes_first"),
    ("embedded.dead_ttl", "a_dead_letter_that_is_too_old_goes"),
    ("embedded.recent_jobs", "the_most_recent_jobs_of_a_tenant_are_kept"),
    ("embedded.limits.max_jobs", "each_bound_of_a_queue_is_the_one_that_is_configured"),
    ("embedded.limits.max_bytes", "each_bound_of_a_queue_is_the_one_that_is_configured"),
    ("embedded.limits.max_jobs_per_tenant", "each_bound_of_a_queue_is_the_one_that_is_configured"),
    ("producer.trim_every", "a_lane_is_trimmed_once_every_so_many_enqueues"),
    ("producer.max_payload", "a_job_above_the_largest_payload_is_refused"),
    ("producer.batch", "jobs_go_to_the_server_in_batches"),
    ("listener.ping", "the_subscriber_connection_is_asked_at_every_ping"),
    ("listener.buffer_bytes", "a_reader_reads_the_log_again_once_its_buffer_is_passed"),
    ("listener.page", "a_log_is_read_page_by_page"),
    ("listener.idle_timeout", "a_reader_waits_as_long_as_its_listener_says"),
    ("listener.forgotten_after", "a_job_is_forgotten_once_its_record_has_been_missing_for_so_long"),
    ("gateway.listen", "a_gateway_that_would_let_everybody_in_does_not_start"),
    ("gateway.keys", "a_key_is_asked_for_and_named_by_whoami"),
    ("gateway.secret", "keys_and_tokens_are_good_under_their_secret_only"),
    ("gateway.second_secret", "the_secret_changes_while_everybody_is_let_in"),
    ("gateway.token_ttl", "a_browser_token_reads_one_job_for_a_while"),
    ("gateway.cors_origins", "pages_of_other_origins_are_served_where_they_are_named"),
    ("gateway.public_url", "what_a_gateway_names_stands_below_its_public_address"),
    ("gateway.models", "what_cannot_be_a_job_is_refused_in_words"),
    ("gateway.queue", "a_request_that_names_no_queue_goes_to_the_gateways_own"),
    ("gateway.queues", "a_request_names_a_queue_that_is_served_or_is_refused"),
    ("gateway.on_disconnect", "where_it_is_configured_a_job_goes_on_without_its_client"),
    ("gateway.dedupe", "a_request_that_repeats_another_within_the_window_gets_its_answer"),
    ("gateway.heartbeat", "an_open_stream_says_that_it_lives_as_often_as_configured"),
    ("gateway.notice", "a_gateway_that_is_stopped_is_not_ready_before_it_listens_no_more"),
    ("gateway.drain", "a_completion_longer_than_the_drain_names_its_job_which_goes_on"),
    ("gateway.cache_bytes", "without_room_nothing_is_kept"),
    ("gateway.limits.max_body", "a_body_above_the_limit_is_refused"),
    ("gateway.limits.max_bodies", "unfinished_bodies_take_no_more_memory_than_allowed"),
    ("gateway.limits.max_header", "headers_above_the_limit_are_refused"),
    ("gateway.limits.max_bulk", "an_array_has_no_more_jobs_than_allowed"),
    ("gateway.limits.keep_alive", "an_idle_connection_is_kept_as_long_as_it_is_told"),
    ("gateway.limits.read_timeout", "a_body_that_trickles_is_refused"),
    ("gateway.limits.write_timeout", "a_client_that_takes_nothing_is_cut_off"),
    ("gateway.limits.answer_timeout", "a_completion_that_takes_too_long_names_its_job"),
    ("gateway.limits.requests_per_minute", "a_minutes_requests_may_come_at_once"),
    ("gateway.limits.burst", "two_gateways_count_the_requests_of_a_tenant_together"),
    ("gateway.limits.requests_per_token", "one_browser_token_cannot_exhaust_its_tenants_share"),
    ("gateway.limits.max_connections", "no_more_connections_are_served_than_allowed"),
    ("gateway.limits.max_streams", "no_more_streams_are_open_than_allowed"),
    ("gateway.limits.max_streams_per_tenant", "no_more_streams_are_open_than_allowed"),
    ("gateway.limits.max_streams_per_token", "one_browser_token_cannot_exhaust_its_tenants_share"),
    ("gateway.limits.max_subscriptions", "a_socket_follows_no_more_jobs_than_allowed"),
    ("gateway.limits.socket_idle", "a_silent_socket_is_closed_with_a_code_that_says_so"),
    ("worker.queues", "only_the_queues_of_a_worker_are_served"),
    ("worker.concurrency", "no_more_jobs_run_at_once_than_allowed"),
    ("worker.name", "a_record_names_its_worker"),
    ("worker.weights", "full_lanes_are_served_in_proportion_to_their_weights"),
    ("worker.block", "an_idle_worker_reads_once_per_block"),
    ("worker.flush_interval", "deltas_are_gathered_for_the_interval"),
    ("worker.flush_bytes", "deltas_of_enough_bytes_do_not_wait_for_the_interval"),
    ("worker.codec", "chunks_are_written_with_the_codec"),
    ("worker.ack_batch", "entries_are_acknowledged_in_batches"),
    ("worker.first_token_timeout", "each_limit_ends_an_attempt_and_names_itself"),
    ("worker.idle_timeout", "each_limit_ends_an_attempt_and_names_itself"),
    ("worker.total_timeout", "each_limit_ends_an_attempt_and_names_itself"),
    ("worker.buffer_bytes", "the_model_waits_once_the_buffer_is_full"),
    ("worker.lease", "a_worker_that_was_frozen_past_its_lease_changes_nothing"),
    ("worker.renewal", "a_job_longer_than_its_lease_stays_where_it_is"),
    ("worker.sweep", "a_job_that_kills_its_workers_is_buried"),
    ("worker.refresh", "a_running_jobs_record_and_log_are_kept"),
    ("worker.forget", "a_worker_that_died_with_empty_hands_is_forgotten"),
    ("worker.drain", "a_job_that_outlasts_the_drain_is_named"),
    ("worker.retry.max_attempts", "delays_grow_from_the_first_to_the_longest"),
    ("worker.retry.max_crashes", "a_job_that_kills_its_workers_is_buried"),
    ("worker.retry.initial", "delays_grow_from_the_first_to_the_longest"),
    ("worker.retry.multiplier", "delays_grow_from_the_first_to_the_longest"),
    ("worker.retry.max", "delays_grow_from_the_first_to_the_longest"),
    ("worker.retry.jitter", "delays_are_spread_by_the_jitter"),
    ("upstream.base_url", "the_model_is_asked_there_and_with_the_key"),
    ("upstream.api_key", "the_model_is_asked_there_and_with_the_key"),
    ("upstream.connect_timeout", "an_upstream_that_takes_no_connection_is_given_up"),
    ("upstream.include_usage", "a_request_for_usage_that_is_refused_is_taken_back"),
    ("upstream.max_answer_bytes", "a_large_event_is_read_and_one_without_end_is_not"),
    ("simulator.listen", "a_simulator_answers_as_its_options_say"),
    ("simulator.ttft", "a_simulator_keeps_the_pace_of_its_options"),
    ("simulator.rate", "a_simulator_keeps_the_pace_of_its_options"),
    ("simulator.tokens", "a_simulator_answers_as_its_options_say"),
    ("simulator.vary", "a_simulator_answers_as_its_options_say"),
    ("simulator.fault", "a_simulator_answers_as_its_options_say"),
    ("simulator.api_key", "a_simulator_answers_as_its_options_say"),
    ("log.format", "the_log_has_the_format_and_the_filter_that_are_configured"),
    ("log.filter", "the_log_has_the_format_and_the_filter_that_are_configured"),
    ("log.audit_file", "the_trail_says_who_did_what_to_which_job"),
];

/// Waits until this holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A broker with these options, and its schema.
async fn connected(options: Options) -> Shared {
    let redis = Redis::connect(options).await.unwrap();
    redis.ensure_schema(&[Partition::first(Default::default())]).await.unwrap();
    Arc::new(redis)
}

/// A stack whose broker has these options, on a server that holds nothing else.
async fn stack_with(options: Options, simulator: simulator::Options) -> Stack {
    let mut stack = Stack::start(simulator).await;
    stack.server.command(&["FLUSHALL"]);
    stack.broker = connected(Options { url: stack.server.url(), ..options }).await;
    stack
}

fn leaves(above: &str, tree: &Value, found: &mut Vec<String>) {
    for (name, value) in tree.as_object().unwrap() {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if value.is_object() {
            leaves(&key, value, found);
        } else {
            found.push(key);
        }
    }
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// Whether a test of this name stands in the text: the function, and an attribute right above it.
fn is_test(text: &str, name: &str) -> bool {
    text.split("[test]\n").chain(text.split("[tokio::test")).skip(1).any(|after| {
        let function = after.split_once("fn ").map_or("", |(_, function)| function);
        function.strip_prefix(name).is_some_and(|rest| rest.starts_with("()"))
    })
}

#[test]
fn every_key_has_a_test_that_proves_its_effect() {
    let mut keys = Vec::new();
    leaves("", &serde_json::to_value(Config::default()).unwrap(), &mut keys);
    let listed: Vec<&str> = PROVEN.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, listed, "the keys of the configuration and those of PROVEN, in their order");
    let mut text = String::new();
    for folder in ["src", "tests/it"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut text);
    }
    for (key, test) in PROVEN {
        assert!(is_test(&text, test), "{key}: there is no test `{test}`");
    }
    assert!(!is_test(&text, "is_test"), "a function is not a test");
}
