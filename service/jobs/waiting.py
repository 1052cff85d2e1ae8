"""Waiting for a job to change, in place of asking for it again and again."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import anyio
import redis.asyncio
from redis.exceptions import RedisError

from service.accounts.known import Principal
from service.core import live, shutdown, stream_slots

LONGEST_SECONDS = 60
APART_SECONDS = 0.5
"""How often a job is read at most, however much happens to it."""
READ_SECONDS = 5.0
"""How often it is read at least, for what Redis did not tell."""
WATCH_SECONDS = 1.0
"""A stopping server is noticed within this time."""


async def until(
    changed: Callable[[], Awaitable[bool]], principal: Principal, job_id: str, slot: str, seconds: float
) -> None:
    """Return once ``changed``, after ``seconds``, or when the server stops; it was asked last a moment before that.

    The wait is one of the streams of the principal's key; its ``slot`` is released.
    """
    deadline, client, name = time.monotonic() + seconds, live.asynchronous(), live.stream(principal, job_id)
    try:
        position = await live.tail(client, name)
        while not await changed() and time.monotonic() < deadline and not shutdown.stopping.is_set():
            asked_at = time.monotonic()
            position = await _next(client, name, position, min(deadline, asked_at + READ_SECONDS))
            await asyncio.sleep(min(deadline, asked_at + APART_SECONDS) - time.monotonic())
    finally:
        with anyio.CancelScope(shield=True):
            await stream_slots.release(client, principal.key_id, slot)
            await client.aclose()


async def _next(client: redis.asyncio.Redis, name: str, position: str, deadline: float) -> str:
    """The newest position once something came into the stream behind ``position``, or at ``deadline``."""
    while (left := deadline - time.monotonic()) > 0 and not shutdown.stopping.is_set():
        watch = min(left, WATCH_SECONDS)
        try:
            live.silence.check()
            frames = await client.xread({name: position}, block=max(1, int(watch * 1000)), count=1)
        except RedisError:
            await asyncio.sleep(watch)
            continue
        if frames:
            return await live.tail(client, name)
    return position
