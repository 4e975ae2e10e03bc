#!/usr/bin/env python3
"""Switches off one mechanism at a time and shows which test goes red for it.

    tests/mutations.py              all of them, about half a minute each
    tests/mutations.py NAME...      only those whose names contain one of these words
    tests/mutations.py --list       what there is

It works on a copy below target/, so the sources stay as they are; the copy shares nothing with them
but the compiled dependencies. The exit code is 1 where a mechanism is guarded by no test, or where a
mutation does not fit the sources any more.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Another place lets two runs go on beside each other.
PLACE = pathlib.Path(os.environ.get("MUTATIONS_DIR", ROOT / "target" / "mutations"))
COPY = PLACE / "copy"
TARGET = PLACE / "target"
LUA = "src/broker/redis/lua/"

# Mechanism, file, what stands there, what stands there instead, tests that may notice.
MUTATIONS = [
    ("fence: an end under a stale fence", LUA + "conclude.lua",
     "if r[1] ~= fence then return 'fenced' end", "", "a_stale_fence or model"),
    ("fence: begin raises it", LUA + "begin.lua",
     "  fence = math.max(fence, now) + 1\n", "", "conformance"),
    ("fence: a terminal state is never left", LUA + "conclude.lua",
     "if r[2] ~= 'running' then return r[2] == state and 'yes' or 'fenced' end", "",
     "done_ends_a_job_once or model"),
    ("fence: an entry of another place does not take over", LUA + "begin.lua",
     "if state == 'running' and not same then return answer('remove') end", "",
     "a_second_entry or a_running_job_has_one_entry or model"),
    ("fence: the embedded broker refuses a stale one", "src/broker/memory/attempt.rs",
     ".filter(|run| run.record.fence == attempt.fence)", ".filter(|_| true)",
     "memory and a_stale_fence"),
    ("forgetting: a job whose entry is forgotten is parked without it", LUA + "park.lua",
     "if there == 0 and (ARGV[6] ~= '1' or parked_as_far()) then", "if there == 0 then",
     "a_job_whose_entry_is_forgotten or forgets_loses"),
    ("forgetting: a copy of fewer attempts replaces none of more", LUA + "park.lua",
     "if there == 0 and (ARGV[6] ~= '1' or parked_as_far()) then",
     "if there == 0 and ARGV[6] ~= '1' then", "a_job_whose_entry_is_forgotten"),
    ("forgetting: a job whose entry is forgotten is buried without it", LUA + "bury.lua",
     "if there == 0 and (ARGV[5] ~= '1' or is_buried()) then", "if there == 0 then",
     "a_job_whose_entry_is_forgotten"),
    ("forgetting: a failure has one letter", LUA + "bury.lua",
     "if there == 0 and (ARGV[5] ~= '1' or is_buried()) then",
     "if there == 0 and ARGV[5] ~= '1' then", "a_job_whose_entry_is_forgotten"),
    ("forgetting: an entry of a session that is over is not begun", "src/broker/redis/claim.rs",
     "self.pool.script_within(entry.session, &call)", "self.pool.script_within(u64::MAX, &call)",
     "an_entry_of_a_session_that_is_over"),
    ("lease: renewing claims nothing back", LUA + "renew.lua",
     "if mine[ARGV[i]] then ids", "if true then ids", "renewing_steals_nothing_back"),
    ("lease: what is held is renewed", "src/worker/lease.rs",
     "            renew(&context, &partition, &places).await;", "            let _ = (&partition, &places);",
     "a_job_longer_than_its_lease"),
    ("lease: grace after an outage", "src/broker/redis/lease.rs",
     "idle: if grace { RELEASED } else { sweep.lease },", "idle: sweep.lease,",
     "an_outage_longer_than_the_lease"),
    ("lease: a clock that is set begins a new calm", "src/broker/redis/connect.rs",
     "(calm.since, calm.after_outage) = (Some(Instant::now()), true);", "let _ = &mut calm;",
     "a_clock_that_is_set_forward"),
    ("lease: a takeover looks at the clock", LUA + "take_over.lua",
     "if latest > 0 and", "if false and", "a_clock_that_is_set_forward"),
    ("lease: of two sweepers one takes an entry", LUA + "take_over.lua",
     "'IDLE', ARGV[2], id, id, 1)[1]", "id, id, 1)[1]", "of_two_sweepers or renewed_lease"),
    ("lease: a claim that waited too long is renewed before begin", "src/worker/execute.rs",
     "    if hold.age() > context.options.lease / 2 {", "    if hold.age() == std::time::Duration::MAX {",
     "frozen_claim or frozen_in_its_read"),
    ("lease: a reply that was found late is dated", "src/worker/claim.rs",
     "reply = &mut reply => return (reply, before),",
     "reply = &mut reply => return (reply, Instant::now()),", "frozen_in_its_read"),
    ("lease: a reader that is refused ends the calm", "src/broker/redis/read.rs",
     "        connector.failed(&self.partition, &error);\n", "", "was_a_replica"),
    ("lease: a queue that is refused leaves the others calm", "src/broker/redis/connect.rs",
     "        if error.is_transient() {\n            self.disturbed();", "        if true {\n            self.disturbed();",
     "refused_on_one_queue"),
    ("lease: a queue that was refused has its grace", "src/broker/redis/connect.rs",
     "            refused.insert(partition.clone(), None);\n", "            let _ = &mut refused;\n",
     "refused_on_one_queue"),
    ("lease: a fenced worker drops the model call", "src/worker/lease.rs",
     "Ok(Some(record)) if record.fence > fence => stop.fenced.cancel(),",
     "Ok(Some(record)) if record.fence > fence => {}", "a_fenced_worker_drops"),
    ("lease: an added job wakes the sweepers", "src/broker/redis/enqueue.rs",
     "        for partition in &told {\n            pipe.publish",
     "        for partition in told.iter().take(0) {\n            pipe.publish", "unspoken_death"),
    ("broker: a node without every slot of its Cluster is refused", "src/broker/redis/server.rs",
     "if owned == SLOTS && ", "if owned <= SLOTS && ", "a_part_of_a_cluster or only_a_node"),
    ("broker: a server that drops any key is refused", "src/broker/redis/server.rs",
     'if policy.starts_with("allkeys") && !allowed', 'if policy.starts_with("nothing") && !allowed',
     "a_redis_that_drops_jobs"),
    ("gateway: whoever asks for readiness asks Redis once", "src/gateway/latest.rs",
     "at.elapsed() < self.kept", "at.elapsed() < Duration::ZERO", "whoever_asks_for_readiness or ask_once"),
    ("gateway: a stream that nobody serves begins at once", "src/gateway/openai/stream.rs",
     "if warning.is_some() { Duration::ZERO } else { heartbeat }", "heartbeat", "nobody_serves_says_so"),
    ("crash: an attempt lost with its worker is counted", LUA + "begin.lua",
     "if lost and ARGV[7] == '1' then crashes = crashes + 1 end", "",
     "a_crash or kills_its_workers or model"),
    ("crash: a suspect runs alone", LUA + "begin.lua",
     "if lost and crashes >= 2 and ARGV[10] ~= '1' then return answer('alone') end", "",
     "lost_with_its_worker_is_a_crash"),
    ("crash: neighbours of a poisonous job are not buried with it", "src/worker.rs",
     "suspect: Arc::new(Semaphore::new(1)),", "suspect: Arc::new(Semaphore::new(1000)),",
     "neighbours"),
    ("crash: a suspect waits without a slot", "src/worker/execute.rs",
     "            *slot = None;\n", "", "wait_without_a_slot"),
    ("crash: an attempt that its own worker lost is counted", LUA + "begin.lua",
     "(r[6] ~= worker or ARGV[7] == '1')", "(r[6] ~= worker)",
     "its_own_worker_lost or always_panics"),
    ("crash: a task that panicked lets go of its entry", "src/worker/hands.rs",
     "        self.hands.lock().remove(&self.place);",
     "        if !std::thread::panicking() { self.hands.lock().remove(&self.place); }", "panicked"),
    ("crash: none is counted in the wake of an outage", "src/broker/redis/lease.rs",
     "entry.crashed = !terms.disturbed && idle", "entry.crashed = idle", "wake_of_an_outage"),
    ("crash: an entry that kills its reader is not parsed", "src/broker/redis/lease.rs",
     "if deliveries > terms.deliveries {", "if false {", "delivered_too_often"),
    ("order of effects: a failed job's entry is buried by whoever is next", LUA + "begin.lua",
     "if state == 'failed' then return answer(same and 'bury' or 'remove') end",
     "if state == 'failed' then return answer('remove') end", "buried_by_whoever or step"),
    ("order of effects: a retry's entry is parked by whoever is next", LUA + "begin.lua",
     "if state == 'parked' and same then return answer('park') end", "",
     "parked_by_whoever or step"),
    ("order of effects: the queue's slot acts once", LUA + "park.lua",
     "  if there == 0 then return 0 end", "", "neither_parked or two_ends or model"),
    ("order of effects: burying acts once", LUA + "bury.lua",
     "if there == 0 then return {0, 0} end", "", "buried_by_whoever or two_ends or model"),
    ("order of effects: a job that is over is not begun again", LUA + "begin.lua",
     "if state == 'done' or state == 'cancelled' then return answer('remove') end", "",
     "over_an_answer_that_comes_whole"),
    ("promotion: exactly once", LUA + "promote.lua",
     "  redis.call('HDEL', KEYS[2], id)\n  redis.call('ZREM', KEYS[1], id)\n", "", "promote"),
    ("promotion: what cannot be read keeps nobody back", LUA + "promote.lua",
     "  if not lane then\n", "  if false then\n", "a_parked_job_that_cannot_be_read"),
    ("promotion: nobody asks what all were told", "src/worker/promoter.rs",
     "self.told = true;", "self.told = false;", "was_told"),
    ("promotion: of many workers one is first", "src/worker/promoter.rs",
     "Instant::now() + due).max(soonest) + self.turn()", "Instant::now() + due).max(soonest)",
     "about_one_script"),
    ("promotion: a retry keeps its run", LUA + "promote.lua",
     "    fields[#fields + 1] = name\n    fields[#fields + 1] = value\n", "",
     "a_retry_within_a_new_run"),
    ("trim: never what is pending", LUA + "trim.lua",
     "if group['pending'] > 0 then", "if false then", "trim"),
    ("log: an append needs the log", "src/broker/redis/log.rs",
     '.arg(&log).arg("NOMKSTREAM").arg(id)', ".arg(&log).arg(id)", "missing_until"),
    ("log: nothing is sent on a younger connection", "src/broker/redis/pool.rs",
     "        if connection.born > session {\n            return Ok(None);\n        }\n        self.pipeline_on",
     "        let _ = session;\n        self.pipeline_on", "what_a_crash_took"),
    ("log: an event that is refused for a while is kept", "src/worker/publish.rs",
     "                    self.pause(&mut backoff, &error).await?;\n                    self.verify().await?;",
     "                    let _ = (&mut backoff, error);\n                    return Err(Over::Lost);",
     "interruptions"),
    ("claim: a plain entry waits for its time", LUA + "begin.lua",
     "    if now < begins then", "    if false then", "time_has_not_come"),
    ("claim: an entry does not take another tenant's job", LUA + "begin.lua",
     "if stranger then return answer('foreign') end", "",
     "names_another_tenants_job"),
    ("claim: a plain entry has its key's ID", "src/broker/entry.rs",
     "let id = keyed.map_or_else(|| id.unwrap_or(derived), Job::assign_id);", "let id = keyed.map_or_else(|| id.clone().unwrap_or(derived), |_| id.clone().unwrap_or(derived));",
     "job_of_its_key or one_key_are_one_job"),
    ("claim: a read that cannot be ended is closed", "src/broker/redis/read.rs",
     "            Err(error) if !error.is_transient() => {\n                tracing",
     "            Err(error) if false && !error.is_transient() => {\n                tracing",
     "may_not_unblock"),
    ("claim: a blocking read ends with the last slot", "src/worker/claim.rs",
     "() = context.slots.full() => {", "() = std::future::pending::<()>() => {",
     "without_a_free_slot"),
    ("claim: an entry without a slot is given back", "src/worker/claim.rs",
     "() = self.out_of_patience() => {", "() = self.out_of_patience(), if false => {",
     "finds_no_slot"),
    ("claim: a reader that was thrown out comes back", "src/worker/claim.rs",
     "let Err(error) = self.serve(&stop, &mut backoff).await else { break };",
     "let Err(error) = self.serve(&stop, &mut backoff).await else { break };\n            if true { break; }",
     "thrown_out"),
    ("claim: a lost group is made again", "src/broker/redis/read.rs",
     'if error.code() == Some("NOGROUP") {', "if false {", "group"),
    ("log: what a server forgot is written again", "src/worker/publish.rs",
     "            match self.broker.heal(&self.attempt, &frames).await {\n                Ok(Written::Yes) => {",
     "            match Ok::<_, Error>(Written::Yes) {\n                Ok(Written::Yes) => {",
     "redis_loss"),
    ("forgotten: a higher fence in the record is not healed over", LUA + "heal.lua",
     "if known > tonumber(fence) then return 'fenced' end", "", "tell_of_a_higher_fence"),
    ("forgotten: a higher fence in the log is not healed over", LUA + "heal.lua",
     "if top_fence > tonumber(fence) then return 'fenced' end", "",
     "tell_of_a_higher_fence"),
    ("forgotten: an end under the same fence is not healed over", LUA + "heal.lua",
     "if known == tonumber(fence) and r[2] ~= 'running' then return 'fenced' end", "",
     "healing or model"),
    ("forgotten: no end is healed over", LUA + "heal.lua",
     "if r[2] == 'done' or r[2] == 'failed' or r[2] == 'cancelled' then return 'fenced' end", "",
     "under_a_lower_fence"),
    ("forgotten: a healed job keeps no place", LUA + "heal.lua",
     "  redis.call('HDEL', record, 'place')\n", "", "promotion_is_forgotten"),
    ("forgotten: a healed job keeps its run", LUA + "heal.lua",
     "if tonumber(ARGV[6]) > 1 then redis.call('HSET', record, 'run', ARGV[6]) end", "",
     "belongs_to_its_run"),
    ("forgotten: a healed record is whole", LUA + "heal.lua",
     "if not r[3] then redis.call('HSET', record, unpack(ARGV, 8, first - 1)) end\n", "",
     "a_healed_record_is_whole or names_no_owner"),
    ("forgotten: a record that names no owner is nobody's", "src/broker/redis/inspect.rs",
     "tenant: text(\"tenant\").and_then", "tenant: text(\"tenant\").or(Some(\"default\".to_owned())).and_then",
     "names_no_owner"),
    ("forgotten: a record with little time left is given its whole time", LUA + "begin.lua",
     "if not r[9] or old or (r[18] and not r[19]) then", "if not r[9] or old then", "a_young_record"),
    ("forgotten: any entry carries a healed job", LUA + "begin.lua",
     " or (r[1] and not r[5])", "", "healed_job or promotion_is_forgotten"),
    ("forgotten: two entries of a healed job share no fence", LUA + "begin.lua",
     "if state == 'running' and r[5] and r[6]", "if state == 'running' and r[6]", "share_no_fence"),
    ("forgotten: a healed job is parked once for a retry", LUA + "begin.lua",
     "and (r[5] or tonumber(ARGV[5]) < attempt) then", "then", "parked_for_its_retry"),
    ("forgotten: the embedded broker keeps no place", "src/broker/memory/run.rs",
     "        self.place = None;\n", "", "memory and healed_job"),
    ("forgotten: a run that is not known is not over", LUA + "begin.lua",
     "  state, attempt, failures, crashes, same = 'waiting', 0, 0, 0, false\n",
     "  if state ~= 'cancelled' then state = 'waiting' end\n  attempt, failures, crashes, same = 0, 0, 0, false\n",
     "of_a_run_that_is_forgotten"),
    ("second step: no entry is removed for an end that may be forgotten",
     "src/broker/redis/settle.rs", "self.pool.pipeline_within(session, &mut pipe)",
     "self.pool.pipeline_within(u64::MAX.max(session), &mut pipe)", "forgetting"),
    ("second step: none is parked, buried or unparked", "src/broker/redis/pool.rs",
     "            if connection.born > session {\n                return Ok(None);\n            }\n            let result = script",
     "            let _ = session;\n            let result = script", "forgetting"),
    ("second step: what is forgotten is left", "src/worker/settle.rs",
     "        known\n    });", "        true\n    });", "forgetting"),
    ("second step: what is owed is asked again", "src/worker/owed.rs",
     "    settled != Some(Settled::Stale)", "    settled.is_some() || settled != Some(Settled::Stale)",
     "settled_at_once"),
    ("listener: a gap is read from the log", "src/listener/follow.rs",
     "} else if first || self.read_to.precedes(event.id) {", "} else if event.id > self.read_to {",
     "listen"),
    ("listener: a new connection asks for the record", "src/listener/follow.rs",
     "                self.synced = number;\n                Phase::Look", "                self.synced = number;\n                Phase::Live",
     "has_forgotten_is_told"),
    ("listener: an empty read asks for the record", "src/listener/follow.rs",
     "        if events.is_empty() {\n            self.phase = Phase::Look;", "        if events.is_empty() {\n            self.settle(false);",
     "expires_in_mid_replay"),
    ("listener: a cursor that no event has is found out", "src/listener/follow.rs",
     "            if let Some(claim) = &mut self.cursor {", "            if let Some(claim) = self.cursor.as_mut().filter(|_| false) {",
     "a_cursor_above"),
    ("listener: a run behind an end is read", "src/listener/follow.rs",
     "if self.ended || (self.over && self.phase != Phase::Replay) {", "if self.ended || self.over {",
     "one_history"),
    ("cancel: the run ends in no other way", LUA + "conclude.lua",
     "if r[4] and state ~= 'cancelled' then return 'cancelled' end", "",
     "in_no_other_way or comes_with_the_end"),
    ("cancel: the worker is told", LUA + "cancel.lua",
     "  redis.pcall('PUBLISH', ARGV[1] .. (r[4] or ''), 'cancel ' .. job)\n", "",
     "in_no_other_way or drops_its_model_call"),
    ("cancel: a deaf worker reads the record", "src/worker/control.rs",
     "            _ = ticks.tick(), if down => look(&context).await,\n",
     "            _ = ticks.tick(), if down => {}\n", "hears_nothing"),
    ("cancel: whoever is next ends it", LUA + "begin.lua",
     "if r[13] and event ~= 'cancelled' then return answer('cancel') end", "",
     "takes_over_a_cancelled or outlives_a_release"),
    ("cancel: a higher fence", LUA + "cancel.lua",
     "'state', 'cancelled', 'fence', fence,", "'state', 'cancelled',", "two_attempts_is_cancelled"),
    ("cancel: a late unparking leaves a later run's retry", LUA + "unpark.lua",
     "  if run > tonumber(ARGV[2]) then return 0 end\n", "", "late_unparking or model"),
    ("cancel: the embedded broker's unparking names a run", "src/broker/memory/queue/shelf.rs",
     "if slot.get().run > run {", "if false {", "memory and late_unparking"),
    ("cancel: a call that is made again is the same", LUA + "cancel.lua",
     "r[8] == ARGV[3] and 'waiting' or state", "state", "reply_was_lost_is_told"),
    ("release: the attempt is given back", LUA + "release.lua",
     "'attempt', r[3] - 1", "'attempt', r[3]", "keeps_its_place_and_its_budget or rolling"),
    ("release: a second signal gives back at once", "src/cli/worker.rs",
     "        give_back.cancel();\n", "", "second_signal"),
    ("release: only what is one's own", LUA + "hand_back.lua",
     "if #mine == 0 then return 0 end", "", "never_began_can_be_released"),
    ("requeue: an open run is not opened again", LUA + "reopen.lua",
     "if r[4] == letter and not over and state ~= 'done' then", "if false then",
     "opened_once or new_run"),
    ("requeue: a letter gives one entry", LUA + "requeue.lua",
     "if not there and ARGV[3] ~= '1' then return 0 end", "",
     "opened_once or a_dead_job_gets"),
    ("requeue: an entry of an old run is nobody's", LUA + "begin.lua",
     "if entry_run < (tonumber(r[12]) or 1) then return answer('remove') end", "",
     "a_dead_job_gets or model"),
    ("producer: an early end names what is not over", "src/cli/producer/feed.rs",
     "feed.tell_unfinished(&error, cx).await;", "", "an_interrupted_wait_names"),
    ("producer: a retry puts the dead letter back", "src/cli/producer/feed/retry.rs",
     "receipt.duplicate && state == State::Failed)", "false)", "retry_failed_puts_back"),
    ("ask: a job is taken back", "src/cli/ask.rs", "Err(take_back(broker, receipt.id, error).await)",
     "Err(error)", "ask_takes_its_job_back"),
    ("terminal: a line is one line", "src/cli/terminal.rs",
     'writeln!(self.out, "{}", clean::one_line(&line))', 'writeln!(self.out, "{line}")', "steers_a_terminal"),
    ("terminal: a text holds no control characters", "src/cli/terminal.rs",
     'writeln!(self.out, "{}", clean::many_lines(text))', 'writeln!(self.out, "{text}")', "steers_a_terminal"),
    ("idempotency: another request is refused", "src/broker/redis/enqueue.rs",
     "Ok((held, ..)) if held != fingerprint => {", "Ok((held, ..)) if held.is_empty() => {",
     "a_key_held_by_another"),
    ("idempotency: a refused key is withdrawn", "src/broker/redis/enqueue.rs",
     "                self.withdraw(&to_add, &answers).await;\n", "", "a_refused_key_leaves_nothing"),
    ("idempotency: a repeat adds nothing", LUA + "reserve.lua",
     "(r[2] or r[3]) and 1 or 0", "0", "a_key_gives_one_job or a_key_of_a_finished or idempot"),
    ("retention: a late record leaves the time of the end", "src/broker/redis/enqueue.rs",
     '.arg(self.ttl(job, now)).arg("NX")', ".arg(self.ttl(job, now))",
     "keeps_the_time_of_its_end or producer_that_stalls"),
    ("retention: a key outlives its answer", LUA + "conclude.lua",
     "r[5] and state ~= 'parked' and ARGV[4] or ttl", "ttl", "outlives_its_result or pays_for_nothing"),
    ("retention: a late key leaves the time of the end", LUA + "accept.lua",
     "if state ~= 'done' and state ~= 'failed' and state ~= 'cancelled' then", "if true then",
     "producer_that_stalls"),
    ("retention: an accepted key has its whole time", LUA + "accept.lua",
     "  redis.call('PEXPIRE', KEYS[1], ARGV[1])\n", "", "accepted_one_for_its_time"),
    ("retention: a worker keeps what is not over", LUA + "keep.lua",
     "if state == 'done' or state == 'failed' or state == 'cancelled' then return 0 end", "",
     "keeps_the_time_of_its_end"),
    ("expiry: not begun in time", LUA + "begin.lua",
     "> tonumber(ARGV[11]) then return answer('expired') end", "> tonumber(ARGV[11]) then end",
     "begun_in_time or expires_fails"),
    ("admission: a bound refuses", LUA + "admit.lua",
     "if most_jobs > 0 and jobs >= most_jobs then return 'jobs', jobs end", "", "full_queue_refuses"),
    ("admission: what is added is counted", LUA + "admit.lua",
     "if jobs > before then", "if false then", "limits or admission"),
    ("admission: a count is given back once", LUA + "remove.lua",
     "if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then",
     "if redis.call('XDEL', KEYS[1], ARGV[i]) >= 0 then", "given_back_once"),
    ("admission: a buried job gives back", LUA + "bury.lua",
     "if ARGV[3] ~= '' then give_back(KEYS[3], tonumber(ARGV[4]), {[ARGV[3]] = 1}) end", "",
     "buried_job_counts_no_more"),
    ("admission: a cancelled parked job gives back", LUA + "unpark.lua",
     "  if tenant then give_back(KEYS[3], #job, {[tenant] = 1}) end\n", "",
     "cancelled_parked_job_counts_no_more"),
    ("admission: a recount corrects", LUA + "reconcile.lua",
     "    redis.call('HSET', load, field, string.format('%.0f', right))\n", "", "recount or set_right"),
    ("admission: a recount sees what has moved", LUA + "reconcile.lua",
     "local moved = math.abs(seen - held())", "local moved = 0", "spoils_no_counter"),
    ("admission: a recount goes in steps", LUA + "reconcile.lua",
     "local function is_enough() return read >= most or weight >= most_bytes end",
     "local function is_enough() return false end", "go_in_steps"),
    ("admission: a recount finds something", LUA + "reconcile.lua",
     "counted <= held() then return answer('right')", "counted == held() then return answer('right')",
     "asks_for_no_recount or nowhere_else"),
    ("admission: the embedded broker's recount finds something", "src/broker/memory/admit.rs",
     "queue.ledger.jobs > queue.jobs() as u64;", "queue.ledger.jobs == u64::MAX;",
     "memory and recount"),
    ("admission: workers recount", "src/worker/janitor.rs",
     "match context.broker.mend(&partition).await {",
     "match Ok::<_, crate::broker::Error>(crate::broker::Correction::default()) {", "nowhere_else"),
    ("dead letters: workers drop what is too old", "src/worker/janitor.rs",
     "match context.broker.expire(&partition).await {", "match Ok::<_, crate::broker::Error>(0_u64) {",
     "beyond_its_time"),
    ("dead letters: what is too old is dropped and counted", LUA + "expire.lua",
     "if dropped > 0 then redis.call('HINCRBY', KEYS[2], 'dropped', dropped) end", "",
     "its_time_is_over"),
    ("dead letters: one that is being put back does not expire", "src/broker/redis/janitor.rs",
     "(!waits).then_some(", "(!waits || waits).then_some(", "being_put_back_does_not_expire"),
    ("bounds: an accepted job is not judged again", "src/broker/entry.rs",
     "if unread.is_none() && named => Job::read(bytes),",
     "if unread.is_none() && named => Job::parse(bytes),", "not_judged_by_newer_bounds"),
    ("dead letters: the embedded broker drops what is too old", "src/broker/memory/queue/shelf.rs",
     "letter.buried_at().after(ttl) < now", "letter.buried_at().after(ttl).0 == u64::MAX",
     "memory and its_time_is_over or too_old_goes"),
    ("dead letters: one that is being put back stays", "src/admin.rs",
     "                if unfinished {", "                if false && unfinished {", "is_not_purged"),
    ("faults: a worker whose own task ends stops", "src/worker/watch.rs",
     "        self.stop.cancel();\n", "", "faults"),
    ("faults: a subscriber connection whose task panicked comes back", "src/listener/hub.rs",
     "if AssertUnwindSafe(kept).catch_unwind().await.is_err() {", "if { kept.await; false } {",
     "task_panicked_comes_back"),
    ("faults: what a failed task had claimed is given back", "src/worker.rs",
     "let left = context.hands.leave();", "let left: Vec<(Place, JobId)> = Vec::new();",
     "hands_full"),
    ("janitor: a live worker stays", LUA + "retire.lua",
     " and not lives(name)", "", "however_long_it_is_idle or presence"),
    ("presence: a worker that listens lives", "src/broker/view.rs",
     "self.listens || self.idle < Self::GRACE", "self.idle < Self::GRACE", "presence"),
    ("janitor: a name that holds entries stays", LUA + "retire.lua",
     "if consumer['pending'] == 0 and (name", "if (name", "hold_nothing_are_forgotten or empty_hands"),
    ("lost entries: deleted under a worker", LUA + "renew.lua",
     "if deleted > 0 then redis.call('HINCRBY', KEYS[2], 'lost_entries', deleted) end", "",
     "deleted_under_a_worker"),
    ("lost entries: deleted under a reader", LUA + "let_go.lua",
     "if lost > 0 then redis.call('HINCRBY', KEYS[2], 'lost_entries', lost) end", "",
     "not_given_to_it_again"),
    ("rate: an empty bucket refuses", LUA + "rate.lua",
     "math.max(full + interval - empty, 0)", "0", "a_burst_is_admitted"),
    ("rate: the embedded broker refuses", "src/broker/memory/tenancy.rs",
     "        if wait.is_zero() {", "        if wait != Duration::MAX {", "a_burst_is_admitted"),
    ("rate: a slower one leaves nothing behind", LUA + "rate.lua",
     "math.min(math.max(stored or now, now), empty)", "math.max(stored or now, now)",
     "a_new_rate_holds or clock_that_was_ahead"),
    ("recent jobs: the oldest go", "src/broker/redis/tenancy.rs",
     'pipe.cmd("ZREMRANGEBYRANK").arg(&key).arg(0).arg(surplus);', "let _ = surplus;",
     "most_recent_jobs_of_a_tenant"),
    ("gateway: events of another tenant's job", "src/gateway/events.rs",
     ".owned_by(tenant).idle_timeout(None)", ".idle_timeout(None)", "jobs_of_others_are_not_there"),
    ("gateway: a page of another tenant's events", "src/gateway/events.rs",
     ".filter(|record| record.tenant == *tenant)", "", "jobs_of_others_are_not_there"),
    ("gateway: a cached answer is guarded", "src/gateway/cache.rs",
     "!self.stale.load(Ordering::Acquire)", "true",
     "a_requeue_elsewhere or not_kept_across_a_lost_connection"),
    ("worker: a job whose option says so leaves no letter", "src/worker/owed.rs",
     "if !leaves_letter(entry, error.code) =>", "if false && !leaves_letter(entry, error.code) =>",
     "leaves_no_letter"),
    ("upstream: redirects stay within the origin", "src/upstream/openai/redirect.rs",
     "    if !stays(from, &to) {", "    if false && !stays(from, &to) {", "within_the_origin or endpoints_origin"),
    ("upstream: words about the operator are the operator's", "src/upstream/openai/fault.rs",
     "Code::UpstreamAuth | Code::RateLimited => false,", "Code::UpstreamAuth | Code::RateLimited => true,",
     "concerns_the_operator or reach_the_operator_alone"),
    ("gateway: a failure is an answer to its repetition", "src/gateway/openai/repeat.rs",
     "(State::Cancelled, _) => false,", "(State::Cancelled | State::Failed, _) => false,",
     "repeats_another_within"),
    ("gateway: text that was sent is withheld", "src/gateway/openai/splice.rs",
     "self.texts.values_mut().for_each(|text| text.at = 0);", "self.texts.clear();",
     "says_the_same_goes_on"),
    ("gateway: text in a list is compared as text", "src/gateway/openai/splice.rs",
     "if let Some(text) = parts::text_in(part) {", "if let Some(text) = parts::text_in(part).filter(|_| false) {",
     "text_in_a_list_of_parts"),
    ("gateway: a stream has the name that the model gives itself", "src/gateway/openai/chunk.rs",
     'filter(|_| name == "model" && !self.named)', "filter(|_| false)", "the_name_that_the_model or name_the_same_model"),
    ("gateway: an endpoint that does not tell its models is left in peace", "src/gateway/models.rs",
     "let lifetime = if models.is_some() { LIFETIME } else { RESPITE };", "let lifetime = RESPITE;",
     "kept_whole_for_its_time"),
    ("gateway: text that differs ends the stream", "src/gateway/openai/splice.rs",
     "        if due.as_bytes()[..same] != text.as_bytes()[..same] {\n            return Err(Differs);\n        }\n",
     "", "says_something_else_ends_the_stream"),
    ("gateway: a target overrules Host", "src/gateway/host.rs",
     "    if let Some(Ok(host)) = named {", "    if let Some(Ok(host)) = named.filter(|_| false) {",
     "a_request_names_one_host"),
    ("gateway: a request has one Host", "src/gateway/host.rs",
     "    if second.is_some() {", "    if second.is_some() && first.is_none() {", "a_request_names_one_host"),
    ("gateway: bodies have a bound together", "src/gateway/body.rs",
     "        room.take(data.len())?;\n", "", "unfinished_bodies"),
    ("gateway: messages that are not whole have a bound together", "src/gateway/bodies.rs",
     "room.as_mut().map_or(Ok(()), |room| room.take(bytes))",
     "room.as_mut().map_or(Ok(()), |room| room.take(bytes.min(0)))", "unfinished_messages"),
    ("gateway: what the library refuses is refused in words", "src/gateway/serve/wire.rs",
     "        let Some(answer) = in_words(bytes) else { return false };",
     "        let Some(answer) = in_words(bytes).filter(|_| false) else { return false };",
     "what_is_no_request_is_refused or a_target_that_is_too_long"),
    ("gateway: a head has its own time", "src/gateway/serve/wire.rs",
     "sleep.as_mut().poll(cx).is_ready(),", "{ let _ = (sleep, cx); false }",
     "an_idle_connection_is_kept"),
    ("gateway: connections that wait at the end are taken", "src/gateway/serve.rs",
     "        served.take_waiting(listener);\n", "        drop(listener);\n", "connections_that_wait_when"),
    ("gateway: requests are refused at once while the broker is away", "src/gateway/breaker.rs",
     "if self.open.load(Ordering::Relaxed) { Err(Refusal::away()) } else { Ok(()) }", "Ok(())",
     "while_redis_is_silent"),
    ("gateway: a browser token is for one job", "src/gateway/auth/token.rs",
     'format!("token:{tenant}:{job}:{}", expires.0)',
     'format!("token:{tenant}:{}", expires.0).replace(&job.to_string(), "")', "a_browser_token_reads_one_job"),
    ("gateway: a client that goes away cancels its job", "src/gateway/openai.rs",
     "(!lasting).then_some(submission.id)", "None", "goes_away_cancels or left_before_it_arrived"),
]


def copy_sources():
    """The tracked and new files of the repository, as they are."""
    if COPY.exists():
        shutil.rmtree(COPY)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True,
        capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name)
    # What is compiled already need not be compiled again.
    if not TARGET.exists() and (ROOT / "target" / "debug").exists():
        TARGET.mkdir(parents=True)
        subprocess.run(["cp", "-a", str(ROOT / "target" / "debug"), str(TARGET)], check=True)


def run(words):
    """Runs the tests whose names contain all words of one group, groups separated by `or`."""
    groups = [group.split(" and ") for group in words.split(" or ")]
    expression = " | ".join(
        "(" + " & ".join(f"test({word.strip()})" for word in group) + ")" for group in groups)
    env = dict(os.environ, CARGO_TARGET_DIR=str(TARGET), CARGO_TERM_COLOR="never",
               PATH=f"{ROOT}/target/venv/bin:{os.environ['PATH']}")
    return subprocess.run(
        ["cargo", "nextest", "run", "--test", "it", "--no-fail-fast", "-E", expression],
        cwd=COPY, env=env, capture_output=True, text=True)


def mutate(name, path, old, new, tests):
    """Switches one mechanism off; the tests that notice, or what is wrong."""
    file = COPY / path
    text = file.read_text()
    if text.count(old) != 1:
        return None, f"does not fit {path}: found {text.count(old)} times"
    file.write_text(text.replace(old, new))
    try:
        ran = run(tests)
    finally:
        file.write_text(text)
        # A rebuild goes by the time of the file.
        os.utime(file)
    said = ran.stdout + ran.stderr
    if "could not compile" in said or "error: no tests to run" in said:
        lines = [line for line in said.splitlines() if line.startswith("error")]
        return None, "; ".join(lines[:2])
    red = sorted(set(re.findall(r"^ +(?:FAIL|TIMEOUT|SIG\w+) \[.*?\] (?:\(.*?\) )?(.+)$", said, re.M)))
    return red, ""


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    if set(sys.argv[1:]) - {*words, "--list"}:
        print(__doc__)
        return 0 if "--help" in sys.argv else 2
    chosen = [m for m in MUTATIONS if not words or any(word in m[0] for word in words)]
    if "--list" in sys.argv:
        print("\n".join(name for name, *_ in chosen))
        return 0
    copy_sources()
    unguarded = []
    for name, path, old, new, tests in chosen:
        began = time.monotonic()
        red, wrong = mutate(name, path, old, new, tests)
        took = time.monotonic() - began
        if not red:
            unguarded.append(name)
            print(f"NOT GUARDED  {name} ({wrong or 'every test stayed green'})", flush=True)
            continue
        more = f" and {len(red) - 2} more" if len(red) > 2 else ""
        print(f"guarded      {name}: {', '.join(red[:2])}{more} ({took:.0f} s)", flush=True)
    print(f"{len(chosen) - len(unguarded)} of {len(chosen)} mechanisms are guarded")
    return 1 if unguarded else 0


if __name__ == "__main__":
    sys.exit(main())
