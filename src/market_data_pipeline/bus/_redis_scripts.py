"""What has to happen in one step on the Redis server, as scripts that it runs.

A partition is a stream. An entry of ours has two fields: ``data``, the payload, and ``m``, a text
``received|count|provider|min_ts|max_ts``; one written by anything else has no ``m`` and counts as
one event. The topic's hash holds its ``log_id``, its number of ``partitions``, of its inbox the id
up to which it was ``relayed``, how many entries that were (``inbox``) and how many others have
removed before (``strays``); and for partition p:

``<p>:n`` entries of ours, ``<p>:e`` events in them, ``<p>:s`` the greatest source position;
``<p>:x`` entries that we have trimmed, ``<p>:t`` the id below which we have;
``<p>:g`` entries that others have removed, ``<p>:h`` the first id when that was noticed last;
``<p>:a`` entries ever added, ``<p>:d`` those of streams that others have deleted;
``<p>:l`` the id of our last entry, behind which ids go on even in a stream that is made anew.

How many entries ever were added is the stream's own count (``entries-added``; before Redis 7 its
length, and what was removed). Scripts begin with all that can fail: what a script has written
stays written.
"""

SEQUENCES = 1 << 20
"""Ids of one millisecond that positions can tell apart."""
MS_LIMIT = 1 << 43
"""Milliseconds from which on positions do not fit 64 bits."""

_THEIRS_MAX = 1_000

_LOOK = """
local function before(a, b)
  local am, as = string.match(a, '(%d+)-(%d+)')
  local bm, bs = string.match(b, '(%d+)-(%d+)')
  am, bm = tonumber(am), tonumber(bm)
  return am < bm or am == bm and tonumber(as) < tonumber(bs)
end
local FIELDS = {'n', 'e', 's', 'x', 'g', 'a', 'd', 'h', 't', 'l'}
local function look(meta, p, stream)
  local names = {}
  for i, field in ipairs(FIELDS) do names[i] = p .. ':' .. field end
  local found, state = redis.call('HMGET', meta, unpack(names)), {p = p, stream = stream}
  for i, field in ipairs(FIELDS) do
    if i > 7 then state[field] = found[i] or '' else state[field] = tonumber(found[i] or 0) end
  end
  local at = {}
  if redis.call('EXISTS', stream) == 1 then
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do at[info[i]] = info[i + 1] end
  end
  local entry, length = at['first-entry'], at['length'] or 0
  state.last = at['last-generated-id'] or '0-0'
  state.behind = state.l ~= '' and before(state.last, state.l)
  if state.behind then state.last = state.l end
  state.first = entry and entry[1] or ''
  local ms, sequence = string.match(state.last, '(%d+)-(%d+)')
  state.ms, state.sequence = tonumber(ms), tonumber(sequence)
  local counted = at['entries-added'] or at['length'] and length + state.x + state.g or 0
  local gone = counted - length - state.x
  if counted < state.a and (at['entries-added'] or not at['length']) then
    state.d, state.x, state.g, gone = state.d + state.a, 0, 0, counted - length
    state.h = state.first
    local now = redis.call('TIME')
    local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
    if state.h == '' then state.h = string.format('%d-0', now_ms) end
  elseif counted < state.a then
    gone, counted = gone + state.a - counted, state.a
  end
  if gone > state.g then
    state.h, state.g = state.first, gone
    if state.h == '' then state.h = string.format('%s-%d', ms, state.sequence + 1) end
  end
  state.a, state.others = counted, state.d + counted - state.n
  return state
end
local function keep(meta, state)
  local values = {}
  for i, field in ipairs(FIELDS) do
    local value = state[field]
    if i <= 7 then value = string.format('%d', value) end
    values[#values + 1], values[#values + 2] = state.p .. ':' .. field, value
  end
  redis.call('HSET', meta, unpack(values))
end
"""

CREATE = """
redis.call('SCARD', KEYS[2])  -- fails if the key is something else
if redis.call('HEXISTS', KEYS[1], 'log_id') == 0 then
  redis.call('HSET', KEYS[1], 'log_id', ARGV[1], 'partitions', ARGV[2], 'format', ARGV[3])
end
if redis.call('SISMEMBER', KEYS[2], ARGV[4]) == 0 then redis.call('SADD', KEYS[2], ARGV[4]) end
return redis.call('HMGET', KEYS[1], 'log_id', 'partitions', 'format')
"""
"""KEYS: hash of the topic, set of topics. ARGV: new log id, partitions, format, name."""

_APPENDING = (
    _LOOK
    + f"local SEQUENCES, MS_LIMIT = {SEQUENCES}, {MS_LIMIT}\n"
    + """
local function heads_of(meta, seen, numbers, offset, entries)
  local clock, heads = redis.call('TIME'), {}
  local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
  redis.call('ZCARD', seen)
  for i, p in ipairs(numbers) do
    local head = look(meta, p, KEYS[offset + i])
    if head.ms >= MS_LIMIT - 1 then
      return nil, 'stream ' .. head.stream .. ' has an entry with id ' .. head.last
        .. ', which is no time in milliseconds: another program has written it with an id of its'
        .. ' own instead of *; such a stream takes no more entries and has to be removed'
    end
    head.id, head.held, head.second = '*', head.s, math.floor(math.max(now, head.ms) / 1000)
    if head.ms >= now and head.sequence + entries >= SEQUENCES then
      head.id = string.format('%d-0', head.ms + 1)
    elseif head.behind and head.ms >= now then
      head.id = string.format('%d-%d', head.ms, head.sequence + 1)
    end
    heads[i] = head
  end
  return heads, ''
end
local function write(heads, seen, from)
  for i = from, #ARGV, 6 do
    local head, count = heads[tonumber(ARGV[i])], tonumber(ARGV[i + 1])
    local source, key = tonumber(ARGV[i + 2]), ARGV[i + 3]
    local fresh = source == 0 or source > head.held
    if fresh and key ~= '' then fresh = redis.call('ZADD', seen, 'NX', head.second, key) == 1 end
    if fresh then
      head.l = redis.call('XADD', head.stream, head.id, 'data', ARGV[i + 5], 'm',
        string.format('%d', head.e + head.others) .. ARGV[i + 4])
      head.id, head.n, head.a, head.e = '*', head.n + 1, head.a + 1, head.e + count
      head.s = math.max(head.s, source)
    end
  end
end
"""
)

APPEND = (
    _APPENDING
    + """
local meta, seen, done = KEYS[1], KEYS[2], KEYS[3]
if redis.call('HGET', meta, 'log_id') ~= ARGV[1] then return -1 end
local token, low = tonumber(ARGV[2]), tonumber(redis.call('HGET', done, 'low') or 0)
if token <= low or redis.call('HEXISTS', done, ARGV[2]) == 1 then
  redis.call('EXPIRE', done, 86400)
  return 0
end
local heads, wrong = heads_of(meta, seen, cjson.decode(ARGV[4]), 3, (#ARGV - 4) / 6)
if not heads then return redis.error_reply(wrong) end
redis.call('HSET', done, ARGV[2], 1)
write(heads, seen, 5)
for _, head in ipairs(heads) do keep(meta, head) end
if tonumber(ARGV[3]) > low then
  for _, field in ipairs(redis.call('HKEYS', done)) do
    if field ~= 'low' and tonumber(field) <= tonumber(ARGV[3]) then
      redis.call('HDEL', done, field)
    end
  end
  redis.call('HSET', done, 'low', ARGV[3])
end
redis.call('EXPIRE', done, 86400)
return 1
"""
)
"""Append entries, once for each token.

KEYS: hash, known keys, this client's tokens, then one stream for each partition in use.
ARGV: log id, token, token up to which all outcomes are known, the partitions' numbers as JSON;
then for each entry which of the streams, count, source, key, rest of ``m``, data.
Returns 1, 0 if it was appended before, or -1 if the log is another one. (The known case writes
too, so that a WAIT behind it waits for what was appended then.)
"""

RELAY = (
    _APPENDING
    + """
local meta, seen, inbox = KEYS[1], KEYS[2], KEYS[3]
if redis.call('HGET', meta, 'log_id') ~= ARGV[1] then return -1 end
if (redis.call('HGET', meta, 'relayed') or '0-0') ~= ARGV[2] then return 0 end
local heads, wrong = heads_of(meta, seen, cjson.decode(ARGV[6]), 3, (#ARGV - 6) / 6)
if not heads then return redis.error_reply(wrong) end
redis.call('XLEN', inbox)
redis.call('HSET', meta, 'relayed', ARGV[3])
write(heads, seen, 7)
for _, head in ipairs(heads) do keep(meta, head) end
redis.call('XTRIM', inbox, 'MINID', '=', ARGV[4])
local info, at = redis.call('XINFO', 'STREAM', inbox), {}
for i = 1, #info, 2 do at[info[i]] = info[i + 1] end
if not at['entries-added'] then return 1 end
local all = tonumber(redis.call('HGET', meta, 'inbox') or 0) + tonumber(ARGV[5])
local strays = tonumber(redis.call('HGET', meta, 'strays') or 0)
local missing = at['entries-added'] - at['length'] - all
if missing < strays then all, strays = at['entries-added'] - at['length'], 0 end
redis.call('HSET', meta, 'inbox', string.format('%d', all),
  'strays', string.format('%d', math.max(missing, 0)))
return 1 + math.max(missing - strays, 0)
"""
)
"""Append what was in the inbox, and take it out there, once.

KEYS: hash, known keys, inbox, then one stream for each partition in use. ARGV: log id, id up to
which the inbox was relayed, id up to which it is then, the id behind that, number of its entries
between, the partitions' numbers as JSON; then entries as for APPEND. Returns 0 if somebody else
was faster, -1 if the log is another one, else 1 more than the entries that others have removed
from the inbox before they were relayed.
"""

BOUNDS = (
    _LOOK
    + """
local s = look(KEYS[1], ARGV[1], KEYS[2])
return {redis.call('HGET', KEYS[1], 'log_id') or '', s.last, s.t, s.h,
  string.format('%d', s.e + s.others), string.format('%d', s.s)}
"""
)
"""KEYS: hash, stream. ARGV: partition. Returns log id, last id given, id below which we have
trimmed and first id after others have removed something, both '' for never, events received,
greatest source position."""

BEHIND = (
    f"local THEIRS_MAX = {_THEIRS_MAX}\n"
    + """
local first = redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', 1)[1]
if not first or first[1] ~= ARGV[1] then return '' end
local function behind(entry, others)
  local fields = entry[2]
  if #fields ~= 4 or fields[1] ~= 'data' or fields[3] ~= 'm' then return nil end
  local before, count = string.match(fields[4], '^(%d+)|(%d+)|[^|]*|%-?%d+|%-?%d+$')
  return before and string.format('%d', before + count + others)
end
local found = behind(first, 0)
if found then return found end
local entries = redis.call('XREVRANGE', KEYS[1], ARGV[1], '-', 'COUNT', THEIRS_MAX + 1)
for i, entry in ipairs(entries) do
  found = behind(entry, i - 1)
  if found then return found end
end
return ''
"""
)
"""KEYS: stream. ARGV: id of an entry. Returns how many events were received up to it and with it:
what it tells itself, or if others wrote it the last entry of ours before it; '' if it is gone, or
there are too many of theirs."""

ENDS = (
    f"local CROWDED = {SEQUENCES // 2}\n"
    + """
local found = {redis.call('HGET', KEYS[1], 'log_id') or ''}
for i = 2, #KEYS do
  found[i] = '0-0'
  if redis.call('EXISTS', KEYS[i]) == 1 then
    local info = redis.call('XINFO', 'STREAM', KEYS[i])
    for j = 1, #info, 2 do
      if info[j] == 'last-generated-id' then found[i] = info[j + 1] end
    end
    local ms, sequence = string.match(found[i], '(%d+)-(%d+)')
    if tonumber(sequence) > CROWDED then
      found[i] = string.format('%d-0', tonumber(ms) + 1)
      redis.call('XSETID', KEYS[i], found[i])
    end
  end
end
return found
"""
)
"""KEYS: hash, streams. Returns log id, and of each stream the last id ever given. Where a clock
has gone back, so that ids go on in one millisecond, they go on in the next before it is full."""

SKIP = """
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' and info[i + 1] == ARGV[1] then
    redis.call('XSETID', KEYS[1], ARGV[2])
    return 1
  end
end
return 0
"""
"""Let the ids of a stream go on behind another one. KEYS: stream. ARGV: last id, id to go on from.
Returns 0 if the last id is not that one."""

TRIM = (
    _LOOK
    + """
local meta, stream, seen, id = KEYS[1], KEYS[2], KEYS[3], ARGV[3]
if redis.call('HGET', meta, 'log_id') ~= ARGV[1] then return 0 end
redis.call('ZCARD', seen)
local state = look(meta, ARGV[2], stream)
local gone = redis.call('XTRIM', stream, 'MINID', '=', id)
if gone > 0 and (state.t == '' or before(state.t, id)) then state.t = id end
state.x = state.x + gone
keep(meta, state)
redis.call('ZREMRANGEBYSCORE', seen, '-inf', '(' .. ARGV[4])
return gone
"""
)
"""KEYS: hash, stream, known keys. ARGV: log id, partition, id below which entries go, second
before which known keys are forgotten."""

DROP = """
redis.call('SREM', KEYS[1], ARGV[1])
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
"""
"""KEYS: set of topics, then all keys of the topic. ARGV: name."""

DIGEST = """
local found = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(found) do
  if entry[2][3] == 'm' and string.find(entry[2][4], '^%d+|%d+|') then entry[2][2] = '' end
end
return found
"""
"""Entries, ours without their payloads. KEYS: stream. ARGV: first id, most entries."""

FIRSTS = """
local found = {}
for i, stream in ipairs(KEYS) do
  local entry = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  found[i] = entry and entry[1] or ''
end
return found
"""
"""KEYS: streams. Returns the first id of each, '' if it is empty."""

SHOW = """
local stream, group, member = KEYS[2], ARGV[2], ARGV[3]
if redis.call('HGET', KEYS[1], 'log_id') ~= ARGV[1] then return 0 end
local made = redis.pcall('XGROUP', 'CREATE', stream, group, ARGV[5], 'MKSTREAM')
if type(made) == 'table' and made.err and not string.find(made.err, 'BUSYGROUP') then
  return made
end
redis.call('XGROUP', 'SETID', stream, group, ARGV[5])
while ARGV[4] ~= '' do
  local old = redis.call('XPENDING', stream, group, '-', ARGV[4], 500)
  if #old == 0 then break end
  local ids = {}
  for i, entry in ipairs(old) do ids[i] = entry[1] end
  redis.call('XACK', stream, group, unpack(ids))
end
local claims = {}
for i = 6, #ARGV do claims[#claims + 1] = ARGV[i] end
if #claims > 0 then redis.call('XCLAIM', stream, group, member, unpack(claims)) end
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local at = {}
  for i = 1, #info, 2 do at[info[i]] = info[i + 1] end
  if at.pending == 0 and at.idle > 3600000 and at.name ~= member then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, at.name)
  end
end
return 1
"""
"""Make a consumer group look like the store's checkpoint.

KEYS: hash, stream. ARGV: log id, group, consumer, id up to which entries are done ("" for none),
id up to which they were read, then ``0``, ids that are read but not done, at most 1,000, and
``FORCE JUSTID``.
"""
