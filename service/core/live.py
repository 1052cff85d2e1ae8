"""The live side of events: a short Redis stream per job, a cache of what PostgreSQL already holds.

Frames are published after their transaction committed. Who follows a job replays PostgreSQL first and uses the stream
only to learn of newer events at once, so a lost frame costs a moment and never an event.
"""

import json
import logging
from collections.abc import Iterable
from functools import cache
from typing import Any

import redis
import redis.asyncio

from service.settings import required

MAX_FRAMES = 2000
TTL_SECONDS = 24 * 3600

log = logging.getLogger(__name__)


@cache
def client() -> redis.Redis:
    return redis.Redis.from_url(required("redis_url"), socket_timeout=3, socket_connect_timeout=3)


def asynchronous() -> redis.asyncio.Redis:
    """A client for the event loop that asks. The caller closes it."""
    return redis.asyncio.Redis.from_url(required("redis_url"), socket_timeout=30, socket_connect_timeout=3)


def stream(job_id: str) -> str:
    return f"job:{job_id}"


def publish(job_id: str, frames: Iterable[dict[str, Any]]) -> None:
    """Append ``frames``, each with its event's ``seq``, to the job's stream. An unreachable Redis is only logged."""
    name = stream(job_id)
    try:
        with client().pipeline(transaction=False) as pipe:
            for frame in frames:
                pipe.xadd(name, {"frame": json.dumps(frame)}, maxlen=MAX_FRAMES, approximate=True)
            pipe.expire(name, TTL_SECONDS)
            pipe.execute()
    except redis.RedisError as error:
        log.warning("could not publish %s, followers will read PostgreSQL: %s", name, error)


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
