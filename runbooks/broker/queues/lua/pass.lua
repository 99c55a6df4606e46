-- One step of a pass over a queue's list, or the beginning of one: see list_pass.py for the whole.
-- KEYS: the queue, its work list, its journal, the set of detached queues, the run's batches hash, its late list, the
-- list held, the list of inserts and the fleet's lock.
-- ARGV: mode (open, begin, go, look or home), the token that the journal must hold, the token that it gets, batch number ("": none),
-- n: how many items from the work list's right end are dealt with, the number of drops, the number of inserts, what the lock must
-- hold ("": is not looked at), then the ordinals (1 is the oldest) of the items to drop, then for each insert the number of items it goes behind and its
-- bytes; in mode begin then the items as they were read, oldest first: n, or more where later steps deal with the rest.
-- In mode go the items are moved by the commands that follow in the same transaction, which takes a third of the time:
-- the work list is renamed to the list held, and the inserts are laid ready. Where nothing is to be done there are
-- neither, and those commands do nothing. The transaction ends with close.lua. Mode look tells why one did nothing.
-- Returns {what, record, items left in the work list}: what is "ok", "known" (the batch was recorded before: nothing
-- done), "fenced" (another has taken over: nothing done), "unlocked" (the lock is not the caller's: nothing
-- done), "gone" (mode home: nothing is aside), "moved" (the queue's end is not as read: nothing done), "many" (more
-- has arrived than one step can move: nothing done; in mode home the queue was renamed to the late list instead).

local MANY = 10000 -- arrivals that one step moves
local queue, work, journal, detached, batches, late, held, ready, lock = unpack(KEYS)
local mode, before, after, batch = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local n, drops, inserts = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local holder = ARGV[8]
local first_insert = 9 + drops
local first_item = first_insert + 2 * inserts

if holder ~= '' and redis.call('GET', lock) ~= holder then
  return {'unlocked', '', 0}
end
if batch ~= '' then
  local known = redis.call('HGET', batches, batch)
  if known then
    return {'known', known, 0}
  end
end
if (redis.call('HGET', journal, 'token') or '') ~= before then
  return {'fenced', '', 0}
end
local aside = redis.call('EXISTS', work, late) > 0
if mode == 'home' and before == '' and not aside then
  redis.call('SREM', detached, queue)
  return {'gone', '', 0}
end
if (mode == 'open' or mode == 'begin') and aside then -- what is aside is another's, or a dead run's
  return {'fenced', '', 0}
end
if mode == 'open' then
  redis.call('SADD', detached, queue)
  redis.call('HSET', journal, 'token', after)
  return {'ok', '', 0}
end

local function push(key, items) -- from the left: the last item ends up nearest
  for i = #items, 1, -1000 do
    local some = {}
    for j = i, math.max(1, i - 999), -1 do
      some[#some + 1] = items[j]
    end
    redis.call('LPUSH', key, unpack(some))
  end
end

-- How many of the items that were read have been consumed since: those at the right end must be the others.
local gone = 0
local read = mode == 'begin' and #ARGV - first_item + 1 or 0
if read > 0 then
  local range = redis.call('LRANGE', queue, -read, -1)
  local length = #range
  local function stands(consumed)
    if length < read - consumed then
      return false
    end
    for i = 1, read - consumed do
      if range[length - i + 1] ~= ARGV[first_item + consumed + i - 1] then
        return false
      end
    end
    return true
  end
  while gone < read and not stands(gone) do
    gone = gone + 1
  end
  if gone == read or (gone > 0 and n < read) then
    return {'moved', '', 0}
  end
end

-- What producers have pushed since the last step stands to the left of the last clean item. Where that one is gone all
-- that is there has arrived since.
local left = redis.call('LLEN', work)
local length, arrivals = 0, 0
if mode == 'go' or mode == 'look' or (mode == 'home' and left > 0) then
  length = redis.call('LLEN', queue)
  local border = redis.call('HGET', journal, 'border')
  arrivals = length > 0 and border and redis.call('LPOS', queue, border) or length -- LPOS: false where there is none
  if arrivals > MANY and mode ~= 'home' then
    return {'many', '', left}
  end
end

local ordinals = {}
if inserts > 0 then
  for i = 1, inserts do
    ordinals[i] = i
  end
else
  for i = 1, drops do
    if tonumber(ARGV[8 + i]) > gone then
      ordinals[#ordinals + 1] = i
    end
  end
end
local record = table.concat(ordinals, ',')

-- The first write: where Redis refuses writes (memory, disk, rights) it does so here, with nothing moved. Bringing home
-- what is detached needs no memory, and starts with a write that a full Redis takes.
if mode == 'home' then
  redis.call('PERSIST', journal)
end
redis.call('HSET', journal, 'token', after)
if mode == 'look' then
  return {'ok', '', left}
end
if batch ~= '' then
  redis.call('HSET', batches, batch, record)
  redis.call('PERSIST', batches)
end

-- A run was killed long ago: the queue is put aside whole, and comes home in bounded steps, its clean end first, then the
-- work list, then what arrived, in the work list's place.
if mode == 'home' and arrivals > MANY and redis.call('EXISTS', late) == 0 then
  redis.call('RENAME', queue, late)
  redis.call('HSET', journal, 'clean', length - arrivals)
  length, arrivals = 0, 0
end
local clean = mode == 'home' and tonumber(redis.call('HGET', journal, 'clean') or 0) or 0
if clean == 0 and mode == 'home' and left == 0 and redis.call('EXISTS', late) == 1 then
  redis.call('RENAME', late, work)
  left = redis.call('LLEN', work)
end

local arrived = {}
if mode == 'begin' then
  if redis.call('EXISTS', queue) == 1 then
    redis.call('HSET', journal, 'ttl', redis.call('PTTL', queue))
    redis.call('RENAMENX', queue, work)
    redis.call('PERSIST', work)
  end
elseif arrivals > 0 then
  arrived = redis.call('LRANGE', queue, 0, arrivals - 1)
  if arrivals == length then
    -- What a worker gave back on the right runs next.
    while #arrived > 0 and string.find(arrived[#arrived], '"redelivered": true', 1, true) do
      table.remove(arrived)
    end
  end
  if #arrived > 0 then
    redis.call('LTRIM', queue, #arrived, -1)
  end
end
if mode == 'go' then
  push(work, arrived)
  if redis.call('EXISTS', work) == 1 then
    redis.call('RENAME', work, held)
  end
  for i = 1, inserts do
    redis.call('LPUSH', ready, ARGV[first_insert + 2 * i - 1])
  end
  return {'ok', record, left}
end

if clean > 0 then
  n = math.min(n, clean)
  for _ = 1, n do
    redis.call('RPOPLPUSH', late, queue)
  end
  redis.call('HSET', journal, 'clean', clean - n)
  n = 0
end
if mode == 'home' then
  n = math.min(n, left)
end
local newest = redis.call('EXISTS', late) == 1 and late or work
local last = mode == 'home' and n == left and newest == work
if not last then
  push(newest, arrived)
end

local drop, insert = 1, 1
for i = gone, n do
  if i > gone then
    if drop <= drops and tonumber(ARGV[8 + drop]) == i then
      redis.call('RPOP', work)
    else
      redis.call('RPOPLPUSH', work, queue)
    end
  end
  while drop <= drops and tonumber(ARGV[8 + drop]) <= i do
    drop = drop + 1
  end
  while insert <= inserts and tonumber(ARGV[first_insert + 2 * insert - 2]) <= i do
    redis.call('LPUSH', queue, ARGV[first_insert + 2 * insert - 1])
    insert = insert + 1
  end
end

if last then
  push(queue, arrived)
  local ttl = tonumber(redis.call('HGET', journal, 'ttl') or -1)
  if ttl > 0 then
    redis.call('PEXPIRE', queue, ttl)
  end
  redis.call('DEL', journal)
  redis.call('SREM', detached, queue)
else
  local border = redis.call('LINDEX', queue, 0)
  if border then
    redis.call('HSET', journal, 'border', border)
  else
    redis.call('HDEL', journal, 'border')
  end
end
return {'ok', record, redis.call('LLEN', work)}
