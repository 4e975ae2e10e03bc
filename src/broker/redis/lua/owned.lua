-- Reads a job for a tenant.
--
-- KEYS[1] record   KEYS[2] log   ARGV[1] tenant
-- ARGV[2] the first event to read, as for XRANGE, or '' for none   ARGV[3] most events
--
-- Returns the record and the events; nothing where the job is another tenant's, or where there is none: neither
-- the answer nor its time tells which. Replay: reads again.
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return false end
local events = {}
if ARGV[2] ~= '' then events = redis.call('XRANGE', KEYS[2], ARGV[2], '+', 'COUNT', ARGV[3]) end
return {redis.call('HGETALL', KEYS[1]), events}
