//! One suite for every broker: each behaviour runs on the embedded adapter and on Redis.
//!
//! A behaviour is an `async fn` over a [`Subject`]. The table at the end of this file makes two
//! tests of each, `memory::NAME` and `redis::NAME`, and the meta test of each adapter runs the
//! same table through a recorder: it fails where a port method or a row of the transition table is
//! exercised by no behaviour.

mod claim;
mod control;
mod enqueue;
mod forgotten;
mod inspect;
mod lease;
mod limits;
mod log;
mod runs;
mod settle;
mod tenancy;

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use millstream::{broker::Shared, state::TRANSITIONS};

use crate::support::{
    recorder::{Row, Seen},
    subject::{Adapter, Subject, memory_broker, partitions, redis_broker},
};

type Run = for<'a> fn(&'a Subject) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Makes the table of behaviours, and of each row a test per adapter.
macro_rules! behaviours {
    ($($role:ident { $($name:ident),+ $(,)? })+) => {
        const BEHAVIOURS: &[(&str, Run)] = &[
            $($((stringify!($name), |subject| Box::pin($role::$name(subject))),)+)+
        ];

        mod memory {
            use super::*;

            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                run(stringify!($name), memory_broker(), Arc::default()).await;
            })+)+

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn every_method_and_every_transition_is_exercised() {
                is_complete(memory_broker()).await;
            }
        }

        mod redis {
            use super::*;

            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let name = stringify!($name);
                run(name, redis_broker(&partitions(name)).await, Arc::default()).await;
            })+)+

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn every_method_and_every_transition_is_exercised() {
                let all: Vec<_> =
                    BEHAVIOURS.iter().flat_map(|(name, _)| partitions(name)).collect();
                is_complete(redis_broker(&all).await).await;
            }
        }
    };
}

async fn run(name: &str, broker: (Shared, Adapter), seen: Arc<Seen>) {
    let (_, behaviour) = BEHAVIOURS.iter().find(|row| row.0 == name).unwrap();
    behaviour(&Subject::new(name, broker, seen)).await;
}

/// Runs the whole table on one broker and compares what was seen with what there is.
#[expect(clippy::print_stdout, reason = "shown on failure: the behaviour that was running")]
async fn is_complete(broker: (Shared, Adapter)) {
    let seen = Arc::new(Seen::default());
    for (name, _) in BEHAVIOURS {
        println!("behaviour {name}");
        run(name, broker.clone(), seen.clone()).await;
    }
    let mut all = port_methods(include_str!("../../src/broker.rs"));
    all.extend(port_methods(include_str!("../../src/broker/control.rs")));
    all.extend(port_methods(include_str!("../../src/broker/tenancy.rs")));
    assert!(all.len() > 20, "the ports cannot be read: {all:?}");
    let missing: Vec<_> = all.difference(&seen.methods()).cloned().collect();
    assert!(missing.is_empty(), "port methods that no behaviour calls: {missing:?}");

    let rows = seen.rows();
    let unseen: Vec<Row> = TRANSITIONS.into_iter().filter(|row| !rows.contains(row)).collect();
    assert!(unseen.is_empty(), "transitions that no behaviour shows: {unseen:?}");
    let unknown: Vec<_> = rows.iter().filter(|row| !TRANSITIONS.contains(row)).collect();
    assert!(unknown.is_empty(), "transitions that the table does not allow: {unknown:?}");
}

/// Every `async fn` of every public trait in the ports' source, as `Trait::method`.
fn port_methods(source: &str) -> BTreeSet<String> {
    let name = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default().to_owned()
    };
    let mut current = None;
    let mut methods = BTreeSet::new();
    for line in source.lines() {
        if let Some(rest) = line.strip_prefix("pub trait ") {
            current = Some(name(rest));
        } else if line == "}" {
            current = None;
        } else if let (Some(port), Some(rest)) = (&current, line.strip_prefix("    async fn ")) {
            methods.insert(format!("{port}::{}", name(rest)));
        }
    }
    methods
}

#[test]
fn the_ports_are_read_from_their_source() {
    let source = "pub trait A: Send {\n    async fn one(&self);\n    async fn two(\n    );\n}\n\
                  impl B {\n    async fn three() {}\n}\n";
    let expected = ["A::one", "A::two"].map(str::to_owned);
    assert_eq!(port_methods(source), expected.into());
}

behaviours! {
    enqueue {
        an_enqueued_job_waits_in_its_lane,
        a_batch_is_answered_and_added_in_order,
        a_scheduled_job_is_parked_and_wakes,
        a_time_that_has_passed_does_not_park,
        a_key_gives_one_job,
        a_key_held_by_another_request_is_refused,
        the_same_key_of_two_tenants_is_two_jobs,
        a_key_tells_whether_its_job_is_parked,
        a_key_tells_whether_its_job_waits_for_a_retry,
        a_key_of_a_finished_job_adds_nothing,
        sixteen_enqueues_of_one_key_run_once,
        trim_keeps_everything_unread_or_pending,
    }
    claim {
        a_read_gives_at_most_what_is_asked_for,
        an_entry_goes_to_one_reader,
        a_wait_gives_at_most_one_entry_of_each_lane,
        a_wait_ends_when_an_entry_comes,
        a_wait_ends_after_its_time_without_turning,
        a_wait_stops_on_the_token,
        a_wait_with_a_cancelled_token_does_not_block,
        pending_is_what_was_given_and_not_settled,
        begin_opens_an_attempt,
        a_repeated_begin_gives_the_same_attempt,
        a_begin_that_arrives_late_fences_nobody,
        another_worker_takes_over,
        a_second_entry_of_a_job_is_removed,
        a_second_entry_stays_nobodys_when_the_job_is_given_back,
        an_entry_whose_retry_was_promoted_is_not_run,
        a_running_job_has_one_entry_whatever_another_claims,
        an_entry_older_than_the_last_attempt_is_removed,
        a_plain_entry_needs_only_its_job,
        a_plain_entry_whose_time_has_not_come_is_parked,
        plain_entries_of_one_key_are_one_job,
        an_entry_that_names_another_tenants_job_touches_nothing_of_it,
        an_entry_that_names_another_job_of_its_tenant_is_refused,
        an_entry_opens_no_run_by_saying_so,
        a_plain_entry_of_a_key_with_another_request_is_refused_by_name,
        what_runs_under_a_key_keeps_its_fingerprint,
        a_record_of_an_earlier_version_believes_its_entry,
        an_entry_that_forges_a_broken_parked_job_fails_none,
        a_job_that_was_accepted_is_not_judged_by_newer_bounds,
        promote_moves_what_is_due_exactly_once,
        whoever_parks_the_first_job_says_when_it_is_due,
        promote_goes_by_time_and_stops_at_what_is_asked,
        a_promoted_job_runs_and_its_parked_copy_is_gone,
        a_wait_ends_when_a_job_is_promoted,
    }
    lease {
        what_ran_out_of_lease_is_taken_over,
        a_lease_lasts_as_long_as_its_worker_has_announced,
        a_renewed_lease_does_not_run_out,
        renewing_steals_nothing_back,
        of_two_sweepers_one_takes_an_entry,
        a_sweep_takes_no_more_than_asked_and_tells_whether_anything_is_in_flight,
        a_released_entry_keeps_its_place_and_its_budget,
        a_job_that_has_just_ended_gives_its_entry_back,
        a_giving_back_that_arrives_late_takes_nothing,
        a_retry_that_comes_after_a_release_is_fenced,
        an_entry_that_never_began_can_be_released,
        a_wake_is_heard_by_all_and_so_is_a_sweep,
        an_attempt_lost_with_its_worker_is_a_crash,
        an_attempt_that_its_own_worker_lost_is_a_crash,
        what_was_given_back_is_no_crash,
        an_entry_delivered_too_often_is_not_parsed,
        a_plain_entry_delivered_too_often_fails_as_the_job_of_its_key,
        a_renewal_makes_earlier_deliveries_good,
        entries_deleted_under_a_worker_are_counted,
        entries_deleted_under_a_worker_are_not_given_to_it_again,
        a_lane_refused_on_one_queue_stops_no_takeover_on_others,
        workers_that_hold_nothing_are_forgotten,
        a_worker_that_listens_lives_however_long_it_is_idle,
        a_kept_job_has_its_whole_time_again,
        a_job_that_is_over_keeps_the_time_of_its_end,
    }
    control {
        a_waiting_job_is_cancelled_once,
        a_parked_job_is_cancelled_and_unparked,
        a_job_between_two_attempts_is_cancelled,
        a_cancel_that_arrives_late_is_for_the_run_that_was_meant,
        a_running_job_ends_as_cancelled_and_in_no_other_way,
        whoever_takes_over_a_cancelled_job_ends_it,
        a_wish_to_cancel_outlives_a_release,
        what_is_over_or_unknown_is_not_cancelled,
        a_job_that_has_not_begun_in_time_is_refused,
        a_job_that_has_begun_does_not_expire,
        an_order_reaches_the_worker_it_is_for,
    }
    runs {
        a_dead_job_gets_a_new_run,
        a_new_run_is_opened_once_whatever_dies_in_between,
        a_letter_purged_under_a_requeue_leaves_no_run_without_an_entry,
        a_new_run_needs_neither_record_nor_log,
        a_stale_letter_opens_nothing,
        a_reopening_that_arrives_late_opens_nothing,
        a_new_run_of_a_record_that_tells_nothing_tells_all,
        a_retry_within_a_new_run_belongs_to_it,
        a_late_unparking_leaves_a_later_run_its_retry,
        a_requeued_job_does_not_expire,
        a_cancelled_run_can_be_opened_again,
        purged_letters_are_gone,
        a_letter_that_is_being_put_back_does_not_expire,
        a_letter_that_is_being_put_back_is_not_dropped_for_newer_ones,
        a_letter_that_is_being_put_back_is_not_purged,
    }
    settle {
        done_ends_a_job_once,
        a_job_that_is_over_is_known_until_its_entry_is_gone,
        a_job_whose_entry_is_removed_by_another_has_the_time_of_its_end,
        a_job_that_is_over_has_the_whole_time_of_its_end,
        a_refused_move_loses_no_entry,
        what_a_full_server_holds_comes_to_its_end,
        a_finished_record_stays_small,
        a_retry_keeps_what_else_its_entry_says,
        a_failed_job_is_buried_by_whoever_is_next,
        a_failed_job_may_be_removed_as_well_as_buried,
        a_retry_is_parked_by_whoever_is_next,
        a_retry_replaces_a_stale_parked_copy,
        a_retried_job_runs_again,
        a_stale_fence_changes_nothing,
        an_end_that_is_behind_changes_nothing,
        what_cannot_be_read_is_refused_and_buried,
        a_waiting_job_can_be_refused,
        refusing_a_running_job_ends_its_attempt,
        refusing_repeats_what_an_entry_is_owed,
        entries_of_any_lane_are_removed_together,
        what_is_removed_is_neither_parked_nor_buried,
        of_two_ends_of_an_entry_one_counts,
        a_dead_letter_goes_when_its_time_is_over,
        a_plain_entry_keeps_its_bytes_and_its_id_when_parked,
    }
    limits {
        a_full_queue_refuses_and_keeps_what_it_has,
        bytes_are_bounded_and_a_smaller_job_still_fits,
        a_tenant_is_bounded_and_the_others_go_on,
        a_batch_is_decided_job_by_job,
        in_order_nothing_overtakes_what_was_refused,
        each_queue_has_its_own_bound,
        a_count_is_given_back_once,
        a_buried_job_counts_no_more,
        a_retried_job_counts_all_along,
        a_scheduled_job_counts_from_its_enqueue,
        a_cancelled_parked_job_counts_no_more,
        a_parked_copy_that_is_replaced_counts_no_more,
        a_parked_job_that_cannot_be_read_counts_until_it_ends,
        a_taken_over_entry_still_says_what_it_counts,
        a_duplicate_is_not_counted,
        a_refused_key_can_be_tried_again,
        a_refused_key_leaves_nothing_behind,
        what_nobody_counted_weighs_nothing,
        what_leaves_a_full_server_counts_no_more,
        producers_at_work_together_never_pass_a_bound,
        a_recount_sets_the_counters_right,
        where_nothing_is_held_nothing_counts,
        what_nobody_counted_asks_for_no_recount,
    }
    log {
        appended_events_are_read_in_either_codec,
        a_log_is_read_in_pages,
        a_page_ends_where_its_bytes_do,
        nothing_lies_behind_a_cursor_beyond_the_end,
        what_is_not_above_the_top_is_behind,
        a_log_that_is_gone_is_missing_until_it_is_healed,
        healing_appends_only_what_is_missing,
        healing_gives_way_to_a_higher_fence_and_to_an_end,
        open_gives_the_record_and_a_page,
        a_feed_hears_what_the_log_holds,
        a_feed_hears_only_what_it_subscribes_to,
        a_refused_write_is_not_heard,
    }
    forgotten {
        whatever_entry_is_left_takes_over_a_healed_job,
        two_entries_of_a_healed_job_share_no_fence,
        whatever_entry_is_left_of_a_healed_job_is_parked_for_its_retry,
        whatever_entry_is_left_of_a_healed_job_is_buried_for_its_failure,
        whatever_entries_are_left_of_a_healed_job_its_failure_has_one_letter,
        whatever_entry_is_left_of_a_healed_job_runs_after_a_release,
        healing_gives_way_to_an_end_under_a_lower_fence,
        a_worker_that_has_begun_before_gets_a_new_fence,
        a_healed_attempt_belongs_to_its_run,
        a_healed_record_is_whole,
        a_record_that_names_no_owner_is_nobodys,
        a_young_record_has_its_whole_time_once_it_runs,
        record_and_log_each_tell_of_a_higher_fence,
    }
    inspect {
        what_is_not_there_is_empty,
        depth_follows_a_job_through_its_life,
        partitions_are_apart,
        workers_are_those_that_have_read,
        dead_letters_come_oldest_first,
        a_tenant_is_given_its_own_jobs_only,
        records_come_in_the_order_in_which_they_are_asked_for,
        a_record_that_cannot_be_read_hides_no_other,
        a_job_that_is_over_says_how_long_it_is_kept,
    }
    tenancy {
        recent_jobs_come_newest_first,
        a_page_follows_a_job_and_says_where_that_is_unknown,
        a_job_noted_again_moves,
        a_burst_is_admitted_and_then_one_token_at_a_time,
        many_requests_are_admitted_together_or_not_at_all,
        a_refused_tenant_is_admitted_when_it_was_told,
        those_who_ask_at_once_share_one_bucket,
        a_new_rate_holds_at_once,
    }
}
