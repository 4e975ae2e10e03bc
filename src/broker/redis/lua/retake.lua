-- Numbers the taking of entries that their worker reads again.
--
-- KEYS[1] load
--
-- Returns the number. Replay: gives a higher one.
return next_taking(KEYS[1])
