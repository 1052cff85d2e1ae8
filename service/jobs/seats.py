"""How many streams and chats an API key has open at a time, over all API processes.

A seat is a member of a sorted set in Redis, scored with the time until which it holds; a stream that lives renews its
seat, one whose process died loses it. When Redis is away nobody is counted.
"""

import logging
import time

import redis.asyncio
from redis.exceptions import RedisError

from service.core import live
from service.core.errors import DomainError
from service.core.ids import new_id
from service.settings import settings

SEAT_SECONDS = 60.0

_ENTER = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
redis.call('EXPIRE', KEYS[1], 3600)
return 1
"""

log = logging.getLogger(__name__)


def enter(key_id: str) -> str:
    """Take a seat. Raises a 429 when the key has no more."""
    seat, now, limit = new_id("seat_"), time.time(), settings().max_streams_per_key
    try:
        free = live.client().eval(_ENTER, 1, _name(key_id), str(now), str(limit), str(now + SEAT_SECONDS), seat)
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
        await client.zadd(_name(key_id), {seat: time.time() + SEAT_SECONDS})
        await client.expire(_name(key_id), 3600)
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
