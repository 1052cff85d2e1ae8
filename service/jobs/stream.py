"""Following a job: every event once and in order, from PostgreSQL first and then as it happens.

Redis only says what is new at once. An event is sent from a Redis frame when it is the very next one; whenever that is
in doubt (a gap, silence, an unreachable Redis) PostgreSQL is read again. Frames are ``data:`` lines and comment pings
only: the official client fails on ``id:`` and ``retry:``.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.core import live
from service.core.db import tenant
from service.jobs import repository
from service.jobs.schemas import EventObject
from service.jobs.states import TERMINAL

BATCH = 200
PING_SECONDS = 10.0
POLL_SECONDS = 1.0
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


async def follow(organization_id: str, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Server-sent events of a job with ``seq > after``; ends with ``[DONE]`` when the job has ended."""
    last, client = after, live.asynchronous()
    try:
        position = await _tail(client, job_id)
        while True:
            events, ended = await run_in_threadpool(_stored, organization_id, job_id, last)
            for event in events:
                last = event["seq"]
                yield _frame(event)
            if len(events) == BATCH:
                continue
            if ended:
                yield DONE
                return
            async for seen, event in _live(client, job_id, position):
                position = seen
                if event["seq"] <= last:
                    continue
                if event["seq"] > last + 1:
                    break
                last = event["seq"]
                yield _frame(event)
                if event["type"] == "message":
                    break  # It may have been the last one: only PostgreSQL knows.
            else:
                yield PING
    finally:
        await client.aclose()


def _stored(organization_id: str, job_id: str, after: int) -> tuple[list[dict[str, Any]], bool]:
    """Up to ``BATCH`` events after ``after``, and whether the job had ended before they were read."""
    with tenant(organization_id) as session:
        job = repository.get(session, job_id)
        ended = job is None or job.status in TERMINAL
        rows = repository.events_after(session, job_id, after, BATCH)
        return [EventObject.of(row).model_dump(mode="json") for row in rows], ended


async def _tail(client: redis.asyncio.Redis, job_id: str) -> str:
    try:
        newest: Any = await client.xrevrange(live.stream(job_id), count=1)
    except RedisError:
        return "0-0"
    return str(newest[0][0].decode()) if newest else "0-0"


async def _live(client: redis.asyncio.Redis, job_id: str, position: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Frames behind ``position`` as they come; ends after some seconds of silence."""
    name = live.stream(job_id)
    while True:
        try:
            answer: Any = await client.xread({name: position}, block=int(PING_SECONDS * 1000))
        except RedisError:
            await asyncio.sleep(POLL_SECONDS)
            return
        if not answer:
            return
        frames = answer[name.encode()][0] if isinstance(answer, dict) else answer[0][1]
        for id, fields in frames:
            position = id.decode()
            yield position, json.loads(fields[b"frame"])


def _frame(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
