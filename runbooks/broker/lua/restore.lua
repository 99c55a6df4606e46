-- Puts items back into a list next to their old neighbours, once, and records that.
-- KEYS: the list, the run's batches hash. ARGV: batch number, lowest and highest distance from the right end of the
-- region to search, a tombstone that no item equals, then for each item, oldest first: its bytes, the bytes of the
-- neighbour that it goes to the left of, and where that one is expected (distance from the right end, -1: it has none).
-- Records and returns "1,2,…", and returns behind a space how far the list was found to have moved; or "moved" with
-- nothing done where a neighbour is not in the region and may be elsewhere.

local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then
  return known
end

local low = tonumber(ARGV[2])
local range = redis.call('LRANGE', KEYS[1], -(ARGV[3] + 1), -(low + 1))
local region = {} -- region[i] is the item at distance low + i - 1 from the right end
for i = #range, 1, -1 do
  region[#region + 1] = range[i]
end

local function nearest(item, expected)
  for away = 0, #region + math.abs(expected) do
    if region[expected - away] == item then
      return expected - away
    elseif region[expected + away] == item then
      return expected + away
    end
  end
end

local inserts, ordinals = {}, {}
local shift, latest = 0, 0 -- how far the list has moved; where the item before this one went (0: none yet)
for i = 5, #ARGV, 3 do
  local item, neighbour, distance = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local at = nil
  if distance >= 0 then
    local expected = distance - low + 1 + shift
    at = nearest(neighbour, expected)
    if at then
      shift = shift + at - expected
    elseif low > 0 then
      return 'moved'
    end
  end
  at = at or latest -- the neighbour has been consumed, and with it all that was older, but what was just put back
  inserts[#inserts + 1] = {item = item, beside = region[at], index = -(low + at)}
  table.insert(region, at + 1, item)
  latest = at + 1
  ordinals[#ordinals + 1] = (i - 2) / 3
end

-- The first write of the script: where Redis refuses writes it does so here, with nothing put back.
local result = table.concat(ordinals, ',')
redis.call('HSET', KEYS[2], ARGV[1], result)
redis.call('PERSIST', KEYS[2])
for _, insert in ipairs(inserts) do
  if insert.beside then
    -- LINSERT finds its place by value: for this moment the neighbour's value is unique.
    redis.call('LSET', KEYS[1], insert.index, ARGV[4])
    redis.call('LINSERT', KEYS[1], 'BEFORE', ARGV[4], insert.item)
    redis.call('LSET', KEYS[1], insert.index, insert.beside)
  else
    redis.call('RPUSH', KEYS[1], insert.item)
  end
end
return result .. ' ' .. shift
