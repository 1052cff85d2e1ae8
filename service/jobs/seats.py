"""How many streams and chats an API key has open at a time, over all API processes.

A seat is a member of a sorted set in Redis, scored with the time, on Redis' clock, until which it holds; a stream that
lives renews its seat, one whose process died loses it. When Redis is away nobody is counted.
"""

import logging

import redis.asyncio
from redis.exceptions import RedisError

from service.core import live
from service.core.errors import DomainError
from service.core.ids import new_id
from service.settings import settings

SEAT_SECONDS = 60.0

# The seat, how long it holds, and how many there are; without a number a seat is only renewed.
_SIT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[3] and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
redis.call('EXPIRE', KEYS[1], 3600)
return 1
"""

log = logging.getLogger(__name__)


def enter(key_id: str) -> str:
    """Take a seat. Raises a 429 when the key has no more."""
    seat, limit = new_id("seat_"), settings().max_streams_per_key
    try:
        free = live.client().eval(_SIT, 1, _name(key_id), seat, str(SEAT_SECONDS), str(limit))
    except RedisError as error:
        log.warning("Redis is away, streams are not counted: %s", error)
        return seat
    if not free:
        message = f"Your API key already has {limit} streams and chats open. End some first."
        raise DomainError(429, "too_many_streams", message, headers={"Retry-After": "5"})
    return seat


async def stay(client: redis.asyncio.Redis, key_id: str, seat: str) -> None:
    """Renew a seat."""
    try:
        live.silence.check()
        await client.eval(_SIT, 1, _name(key_id), seat, str(SEAT_SECONDS))
    except RedisError as error:
        log.debug("a seat could not be renewed: %s", error)


async def leave(client: redis.asyncio.Redis, key_id: str, seat: str) -> None:
    """Give a seat back; one that cannot be given back runs out."""
    try:
        await client.zrem(_name(key_id), seat)
    except RedisError as error:
        log.debug("a seat could not be given back: %s", error)


def _name(key_id: str) -> str:
    return f"seats:{key_id}"
