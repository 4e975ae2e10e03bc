-- Whether the counters of a partition may be wrong: they tell of another number of jobs than there
-- are entries and parked jobs.
--
-- KEYS[1] high   KEYS[2] normal   KEYS[3] low   KEYS[4] parked   KEYS[5] load
--
-- Returns 1 or 0; 0 also where nothing is counted, since that refuses nobody. Replay: looks again.
local counted = tonumber(redis.call('HGET', KEYS[5], 'jobs')) or 0
if counted == 0 then return 0 end
local held = redis.call('ZCARD', KEYS[4])
for lane = 1, 3 do held = held + redis.call('XLEN', KEYS[lane]) end
return counted == held and 0 or 1
