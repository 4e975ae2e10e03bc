-- Reserves a job's ID for one request, before the entry is added.
--
-- KEYS[1] record   ARGV[1] fingerprint of the request   ARGV[2] time to live in ms
--
-- A reservation is a record of the fingerprint and nothing else, which readers take for none. Whoever
-- adds the job writes the rest.
-- Returns {the record's fingerprint, 1 when the job was added or has a state, the time for which it
-- is parked or ''}; no fingerprint where a job without a key has the ID. Replay: the fingerprint is written by the
-- first call only.
local r = redis.call('HMGET', KEYS[1], 'fp', 'added', 'state', 'not_before', 'due', 'sum')
-- Whoever adds a job under a key writes its fingerprint: this one was added under the ID alone. A record of an earlier
-- version has no sum, and may be of a key whose fingerprint was forgotten.
if not r[1] and r[3] and r[6] then return {'', 1, ''} end
if not r[1] then
  redis.call('HSET', KEYS[1], 'fp', ARGV[1])
  -- The record of a job that was added in another way has its own time.
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'NX')
elseif not r[2] and not r[3] and r[1] == ARGV[1] then
  -- Whoever reserved it before may have died long ago.
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local due = not r[3] and r[4] or r[3] == 'parked' and r[5]
return {r[1] or ARGV[1], (r[2] or r[3]) and 1 or 0, due or ''}
