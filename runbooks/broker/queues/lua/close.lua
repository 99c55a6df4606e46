-- The end of a step's transaction: see pass.lua, mode go.
-- KEYS: the queue, its work list, its journal, the list held. ARGV: the token that the step gave the journal.
local queue, work, journal, held = unpack(KEYS)
if redis.call('HGET', journal, 'token') ~= ARGV[1] then
  return
end
if redis.call('EXISTS', held) == 1 then
  redis.call('RENAME', held, work)
end
local border = redis.call('LINDEX', queue, 0)
if border then
  redis.call('HSET', journal, 'border', border)
else
  redis.call('HDEL', journal, 'border')
end
