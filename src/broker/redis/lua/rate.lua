-- Takes tokens from a tenant's bucket, if they are there: all or none. A bucket is nothing but the time at which it
-- is full again: the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371, annex A).
--
-- KEYS[1] when the bucket is full, in µs since the epoch by this server's clock; gone when it is
-- ARGV[1] µs in which the tokens come, no more than ARGV[2]   ARGV[2] µs in which an empty bucket fills up
--
-- Returns 0 where they were taken, else in how many µs they are there. Replay: takes others.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, empty = tonumber(ARGV[1]), now + tonumber(ARGV[2])
local stored = tonumber(redis.call('GET', KEYS[1]))
-- Emptier than empty is what a slower rate, or a clock that was ahead, has left.
local full = math.min(math.max(stored or now, now), empty)
local wait = math.max(full + cost - empty, 0)
if wait == 0 then full = full + cost end
if full ~= stored then
  redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
end
return wait
