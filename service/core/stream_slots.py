"""How many streams and chats an API key has open at a time, over all API processes.

A slot is a member of a sorted set in Redis, scored with the time, on Redis' clock, until which it holds; a stream that
lives renews its slot, one whose process died loses it. When Redis is away nobody is counted.
"""

import logging

import redis.asyncio
from redis.exceptions import RedisError

from service.core import live
from service.core.errors import DomainError
from service.core.ids import new_id

SLOT_SECONDS = 60.0

# The slot, how long it holds, and how many there are; without a number a slot is only renewed.
_HOLD = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[3] and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
redis.call('EXPIRE', KEYS[1], 3600)
return 1
"""

log = logging.getLogger(__name__)


def acquire(key_id: str, limit: int) -> str:
    """Acquire one of ``limit`` slots of a key. Raises a 429 when all are taken."""
    slot = new_id("seat_")
    try:
        free = live.client().eval(_HOLD, 1, _name(key_id), slot, str(SLOT_SECONDS), str(limit))
    except RedisError as error:
        log.warning("Redis is away, streams are not counted: %s", error)
        return slot
    if not free:
        message = f"Your API key already has {limit} streams and chats open. End some first."
        raise DomainError(429, "too_many_streams", message, headers={"Retry-After": "5"})
    return slot


async def renew(client: redis.asyncio.Redis, key_id: str, slot: str) -> None:
    """Renew a slot."""
    try:
        live.silence.check()
        await client.eval(_HOLD, 1, _name(key_id), slot, str(SLOT_SECONDS))
    except RedisError as error:
        log.debug("a slot could not be renewed: %s", error)


async def release(client: redis.asyncio.Redis, key_id: str, slot: str) -> None:
    """Release a slot; one that cannot be released expires."""
    try:
        await client.zrem(_name(key_id), slot)
    except RedisError as error:
        log.debug("a slot could not be released: %s", error)


def _name(key_id: str) -> str:
    # As earlier releases call it, so that theirs are counted too while both run.
    return f"seats:{key_id}"
