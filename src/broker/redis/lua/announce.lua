-- Announces the lease of a worker, before it reads. A full server takes it: a worker that may not say so would
-- not run the jobs whose ends make room.
--
-- KEYS[1] leases   ARGV[1] worker   ARGV[2] its lease in ms
--
-- Returns nothing of use.
-- Replay: announces it once more.
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
