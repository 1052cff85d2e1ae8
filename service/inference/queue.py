"""Where questions wait for a serving worker: a list for each organisation, which workers take from in turn.

Scripts keep this whole in Redis. ``serving:turns`` lists the organisations that wait, the next one first, and
``serving:waiting:ORGANIZATION`` their questions, oldest first, as ``ID CHOICES``. A question itself is a key that runs
out by Redis' own clock when nobody waits for it any more; what is left of it is passed over.

A worker has so many places, and a question takes one for each of its choices. An organisation may fill half of the
places that the others leave, so that there is always a place for one that comes new, and those that want all they can
get end up with equal shares.
"""

from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from service.core.errors import DomainError
from service.inference.wire import Question
from service.settings import settings

BELL = "serving:bell"
"""The channel on which waiting workers hear that there is a question."""
QUEUE_SECONDS = 60.0
"""How long a question waits for a worker to have room."""
ORGANIZATIONS = 4
"""So many times what one organisation may have waiting is the most of all together. Beyond that each may have one
question waiting, and as many as its part of what one may have, so that those that were there first keep nobody out.
"""

_TURNS, _WAITING, _QUESTION = "serving:turns", "serving:waiting:", "serving:question:"

_NAMES = f"""
local turns, waiting, question, bell = '{_TURNS}', '{_WAITING}', '{_QUESTION}', '{BELL}'
"""

_PUT = (
    _NAMES
    + """
local organization, id, choices, payload = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local milliseconds, most, most_of_all = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local function count(whose)
  local sum = 0
  for _, entry in ipairs(redis.call('LRANGE', waiting .. whose, 0, -1)) do
    local name, number = string.match(entry, '^(%S+) (%d+)$')
    if redis.call('EXISTS', question .. name) == 1 then sum = sum + number
    else redis.call('LREM', waiting .. whose, 1, entry) end
  end
  return sum
end
local mine, all = count(organization), 0
if mine + choices > most and mine > 0 then return 'yours' end
for _, each in ipairs(redis.call('LRANGE', turns, 0, -1)) do
  if each ~= organization then all = all + count(each) end
end
local organizations = redis.call('LLEN', turns) + (mine > 0 and 0 or 1)
local share = math.floor(most / organizations)
if all + mine + choices > most_of_all and all > 0 and mine > 0 and mine + choices > share then return 'all' end
redis.call('SET', question .. id, payload, 'PX', milliseconds)
redis.call('RPUSH', waiting .. organization, id .. ' ' .. choices)
if not redis.call('LPOS', turns, organization) then redis.call('RPUSH', turns, organization) end
redis.call('PUBLISH', bell, '')
return 'taken'
"""
)

_TAKE = (
    _NAMES
    + """
local places, all, held = tonumber(ARGV[1]), 0, {}
for i = 2, #ARGV, 2 do
  held[ARGV[i]] = tonumber(ARGV[i + 1])
  all = all + tonumber(ARGV[i + 1])
end
if all >= places then return false end
for _, organization in ipairs(redis.call('LRANGE', turns, 0, -1)) do
  local list, mine = waiting .. organization, held[organization] or 0
  local share = math.max(1, math.floor((places - (all - mine)) / 2))
  while true do
    local entry = redis.call('LINDEX', list, 0)
    if not entry then
      redis.call('LREM', turns, 0, organization)
      break
    end
    local id, choices = string.match(entry, '^(%S+) (%d+)$')
    local payload = redis.call('GET', question .. id)
    if payload and mine > 0 and mine + choices > share then break end
    redis.call('LPOP', list)
    if payload then
      redis.call('DEL', question .. id)
      redis.call('LREM', turns, 0, organization)
      if redis.call('EXISTS', list) == 1 then redis.call('RPUSH', turns, organization) end
      return {payload, math.min(choices, share)}
    end
  end
end
return false
"""
)

_DROP = (
    _NAMES
    + """
local organization, id, choices = ARGV[1], ARGV[2], ARGV[3]
redis.call('LREM', waiting .. organization, 1, id .. ' ' .. choices)
return redis.call('DEL', question .. id)
"""
)


async def put(client: Redis, question: Question, payload: bytes) -> None:
    """Let ``question`` wait. Raises ``DomainError`` when too many wait already."""
    most, wait = settings().serving_queue, str(int(QUEUE_SECONDS * 1000))
    found = await _run(
        client,
        _PUT,
        question.organization,
        question.id,
        question.choices,
        payload,
        wait,
        most,
        ORGANIZATIONS * most,
    )
    if found == b"yours":
        message = f"{most} answers of your organization already wait for the serving workers. Let some come first."
        raise DomainError(429, "too_many_waiting", message, headers={"Retry-After": "5"})
    if found == b"all":
        message = f"{ORGANIZATIONS * most} answers already wait for the serving workers. Try again shortly."
        raise DomainError(503, "overloaded", message, headers={"Retry-After": "5"})


async def take(client: Redis, places: int, held: Mapping[str, int]) -> tuple[bytes, int] | None:
    """The next question for a worker with so many places, and how many of them it takes.

    ``held`` are the places that each organisation has already.
    """
    found = await _run(client, _TAKE, places, *(each for pair in held.items() for each in pair))
    return None if found is None else (found[0], int(found[1]))


async def drop(client: Redis, question: Question) -> bool:
    """Let ``question`` wait no longer; whether it still did."""
    return bool(await _run(client, _DROP, question.organization, question.id, question.choices))


async def _run(client: Redis, script: str, *arguments: Any) -> Any:
    return await client.eval(script, 0, *arguments)
