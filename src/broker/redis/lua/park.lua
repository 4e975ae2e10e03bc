-- Parks a job until its time: a new one, or the entry of one that is to be retried.
--
-- KEYS[1] parked   KEYS[2] parked jobs   KEYS[3] lane   KEYS[4] load
-- ARGV[1] the entry's ID, or '' for a new job   ARGV[2] wake channel   ARGV[3] job ID
-- ARGV[4] due, ms since the epoch   ARGV[5] `LANE AT ATTEMPT[,FIELD=VALUE…] JOB`
-- ARGV[6] `1` where the server may have forgotten the entry: then the job is parked without it, unless it
-- is parked already for as many attempts of its run, or more
--
-- Returns 1 when the job is parked, 0 when the entry was gone. What counts goes on counting; a copy that is
-- parked without its entry counts anew, for the entry was forgotten with its count, or what came of it counts.
-- Replay: an entry that is gone changes nothing, or, with ARGV[6], parks a second copy of a job that was
-- promoted since: `begin` drops the entry that comes of it. A new job that is parked already stays as it is.
-- The job is parked before the entry is deleted: a server that does not take it (it is full) keeps the
-- entry. Should it stop in between, both are there: the entry is parked again in the same place, and once
-- the parked job is promoted, begin goes by the attempts and drops the older one.
local function step(stored)
  local attempt, more = string.match(stored, '^%S+ %S+ (%d+)(%S*) ')
  -- What cannot be read has come no further than this.
  return tonumber(string.match(more or '', ',run=(%d+)')) or 1, tonumber(attempt) or 0
end
local function parked_as_far()
  local stored = redis.call('HGET', KEYS[2], ARGV[3])
  if not stored then return false end
  local run, attempt = step(stored)
  local own_run, own_attempt = step(ARGV[5])
  return run > own_run or (run == own_run and attempt >= own_attempt)
end
local stale, there
if ARGV[1] ~= '' then
  there = #redis.call('XRANGE', KEYS[3], ARGV[1], ARGV[1]) > 0
  if not there and (ARGV[6] ~= '1' or parked_as_far()) then
    redis.call('XACK', KEYS[3], 'workers', ARGV[1])
    return 0
  end
  -- It replaces what a repeated enqueue may have parked: this one has the attempts.
  stale = redis.call('HGET', KEYS[2], ARGV[3])
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[5])
  redis.call('ZADD', KEYS[1], ARGV[4], ARGV[3])
  redis.call('XDEL', KEYS[3], ARGV[1])
  redis.call('XACK', KEYS[3], 'workers', ARGV[1])
elseif redis.call('HSETNX', KEYS[2], ARGV[3], ARGV[5]) == 1 then
  redis.call('ZADD', KEYS[1], ARGV[4], ARGV[3])
end
-- Whoever promotes the first hears of the others then.
if redis.call('ZRANK', KEYS[1], ARGV[3]) == 0 then
  -- Workers of an earlier version know no other word; the others hear in a moment when it is due.
  redis.pcall('PUBLISH', ARGV[2], 'parked')
  tell_next(KEYS[1], ARGV[2])
end
local tenant, bytes = load_of_parked(ARGV[5])
if there == false and tenant then count_in(KEYS[4], bytes, tenant) end
if stale then
  tenant, bytes = load_of_parked(stale)
  if tenant then give_back(KEYS[4], bytes, {[tenant] = 1}) end
end
return 1
