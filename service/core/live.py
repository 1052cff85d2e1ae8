"""The way to Redis, and the live side of events: a short stream per job, a cache of what PostgreSQL already holds.

Frames are published after their transaction committed. Who follows a job replays PostgreSQL first and uses the stream
only to learn of newer events at once, so a lost frame costs a moment and never an event.

A Redis that does not answer may cost a request seconds, once: after a time-out it is left alone for a while.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.core.db import Owner
from service.settings import required

MAX_FRAMES = 2000
TTL_SECONDS = 24 * 3600
ANSWER_SECONDS = 2.0
"""How long Redis may take to answer."""
BLOCKING_SECONDS = 4.0
"""The same for clients that also wait for something to come, for about a second at a time."""
ALONE_SECONDS = 3.0
"""How long a Redis that did not answer is not asked again."""
SHARED_CONNECTIONS = 20

log = logging.getLogger(__name__)
T = TypeVar("T")


class _Silence:
    """Until when Redis is left alone."""

    until = 0.0

    def note(self) -> None:
        self.until = time.monotonic() + ALONE_SECONDS

    def check(self) -> None:
        if time.monotonic() < self.until:
            raise redis.TimeoutError("Redis did not answer a moment ago")


silence = _Silence()


class _Once(Retry):
    """A connection that was found closed is opened again, as after a restart; an answer that does not come is noted."""

    def call_with_retry(self, do: Callable[[], T], fail: Any, *args: Any, **kwargs: Any) -> T:
        silence.check()
        try:
            return super().call_with_retry(do, fail, *args, **kwargs)
        except (redis.TimeoutError, TimeoutError):
            silence.note()
            raise


@cache
def client() -> redis.Redis:
    """Raises ``redis.RedisError`` at once for a while after Redis did not answer."""
    return redis.Redis.from_url(
        required("redis_url"),
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=_Once(NoBackoff(), 1, (redis.ConnectionError,)),
    )


def _retry(times: int) -> AsyncRetry:
    # Left to itself the library repeats what timed out, which makes a time-out of seconds one of half a minute.
    return AsyncRetry(NoBackoff(), times, (redis.ConnectionError,))


def asynchronous() -> redis.asyncio.Redis:
    """A client for the event loop that asks. The caller closes it."""
    return redis.asyncio.Redis.from_url(
        required("redis_url"),
        socket_timeout=BLOCKING_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=_retry(0),
    )


class ForEachLoop:
    """A client for each event loop, which ``make`` makes when that loop first asks for one."""

    def __init__(self, make: Callable[[], redis.asyncio.Redis]) -> None:
        self._make = make
        self._clients: dict[asyncio.AbstractEventLoop, redis.asyncio.Redis] = {}

    def get(self) -> redis.asyncio.Redis:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            # A client refers to its loop, so that neither would be freed where the loop ended without ``close``.
            self._clients = {each: client for each, client in self._clients.items() if not each.is_closed()}
            self._clients[loop] = self._make()
        return self._clients[loop]

    async def close(self) -> None:
        """That of the running loop."""
        if (mine := self._clients.pop(asyncio.get_running_loop(), None)) is not None:
            await mine.aclose()


def _pooled() -> redis.asyncio.Redis:
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        required("redis_url"),
        max_connections=SHARED_CONNECTIONS,
        timeout=ANSWER_SECONDS / 2,
        socket_timeout=ANSWER_SECONDS / 2,
        socket_connect_timeout=ANSWER_SECONDS / 2,
        retry=_retry(1),
    )
    return redis.asyncio.Redis.from_pool(pool)


_shared = ForEachLoop(_pooled)


def shared() -> redis.asyncio.Redis:
    """The client that everybody in this event loop shares, for questions that are answered at once."""
    return _shared.get()


async def close_shared() -> None:
    await _shared.close()


def stream(owner: Owner, job_id: str) -> str:
    """The name of a job's stream, which whoever asks for another project's job does not come upon."""
    return f"job:{owner.organization_id}:{owner.project_id}:{job_id}"


def publish(name: str, frames: Iterable[dict[str, Any]]) -> None:
    """Append ``frames``, each with its event's ``seq``, to a job's stream. An unreachable Redis is only logged."""
    try:
        with client().pipeline(transaction=False) as pipe:
            for frame in frames:
                pipe.xadd(name, {"frame": json.dumps(frame)}, maxlen=MAX_FRAMES, approximate=True)
            pipe.expire(name, TTL_SECONDS)
            pipe.execute()
    except redis.RedisError as error:
        log.warning("could not publish %s, followers will read PostgreSQL: %s", name, error)


async def tail(client: redis.asyncio.Redis, name: str) -> str:
    """Where the stream of this name ends; its beginning while Redis does not answer."""
    try:
        silence.check()
        newest: Any = await client.xrevrange(name, count=1)
    except redis.RedisError:
        return "0-0"
    return str(newest[0][0].decode()) if newest else "0-0"


def warn_if_written_down() -> None:
    """Warn in the log where Redis, an operator's own, writes what passes through it to disk, as far as it tells."""
    try:
        told = {name: client().config_get(name).get(name) for name in ("appendonly", "save")}
    except redis.RedisError as error:
        log.debug("Redis does not say whether it writes to disk: %s", error)
        return
    if told["appendonly"] == "yes" or told["save"]:
        log.warning(
            "Redis writes to disk (appendonly '%(appendonly)s', save '%(save)s'), prompts, answers and graders too. "
            "Nothing needs that: set 'appendonly no' and 'save \"\"', and remove what it wrote.",
            told,
        )


def ping() -> None:
    """Raises ``redis.RedisError`` when Redis cannot be reached."""
    client().ping()
