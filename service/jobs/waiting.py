"""Waiting for a job to change, in place of asking for it again and again."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import anyio
import redis.asyncio
from redis.exceptions import RedisError

from service.core import live, shutdown, stream_slots

LONGEST_SECONDS = 60
APART_SECONDS = 0.5
"""How often a job is read at most, however much happens to it."""
READ_SECONDS = 5.0
"""How often it is read at least, for what Redis did not tell."""
WATCH_SECONDS = 1.0
"""A stopping server is noticed within this time."""


async def until(changed: Callable[[], Awaitable[bool]], job_id: str, key_id: str, slot: str, seconds: float) -> None:
    """Return once ``changed``, after ``seconds``, or when the server stops; it was asked last a moment before that.

    The wait is one of the streams of the key ``key_id``; its ``slot`` is released.
    """
    deadline, client = time.monotonic() + seconds, live.asynchronous()
    try:
        position = await live.tail(client, job_id)
        while not await changed() and time.monotonic() < deadline and not shutdown.stopping.is_set():
            asked_at = time.monotonic()
            position = await _next(client, job_id, position, min(deadline, asked_at + READ_SECONDS))
            await asyncio.sleep(min(deadline, asked_at + APART_SECONDS) - time.monotonic())
    finally:
        with anyio.CancelScope(shield=True):
            await stream_slots.release(client, key_id, slot)
            await client.aclose()


async def _next(client: redis.asyncio.Redis, job_id: str, position: str, deadline: float) -> str:
    """The newest position once something happened to the job behind ``position``, or at ``deadline``."""
    while (left := deadline - time.monotonic()) > 0 and not shutdown.stopping.is_set():
        watch = min(left, WATCH_SECONDS)
        try:
            live.silence.check()
            frames = await client.xread({live.stream(job_id): position}, block=max(1, int(watch * 1000)), count=1)
        except RedisError:
            await asyncio.sleep(watch)
            continue
        if frames:
            return await live.tail(client, job_id)
    return position
