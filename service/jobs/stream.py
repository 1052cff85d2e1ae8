"""Following a job: every event once and in order, from PostgreSQL first and then as it happens.

Redis only says what is new at once. An event is sent from a Redis frame when it is the very next one; whenever that is
in doubt (a gap, silence, an unreachable Redis) PostgreSQL is read again.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from service.accounts import repository as accounts
from service.accounts.known import Principal
from service.accounts.service import acting
from service.core import live, shutdown, sse, stream_slots
from service.core.errors import DomainError, envelope
from service.core.threads import request_threads
from service.jobs import repository
from service.jobs.schemas import EventObject
from service.jobs.states import TERMINAL

BATCH = 200
POLL_SECONDS = 1.0
LOOK_UP_SECONDS = 20.0
LEAVE_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""A stopping server is noticed within this time."""
DATABASE_SECONDS = 8.0
"""How long PostgreSQL may take to answer before a stream ends."""
FAREWELL = sse.comment("the server is stopping; come back with ?after= the last seq")
AWAY = sse.comment("the database does not answer; come back with ?after= the last seq")
REVOKED = sse.data(
    envelope(
        401,
        "invalid_api_key",
        "Your API key is no longer valid here: it expired, or was revoked, or its project ended, or its owner's role.",
    )
)

log = logging.getLogger(__name__)


async def follow(principal: Principal, slot: str, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Server-sent events of a job with ``seq > after``; ends with ``[DONE]`` when the job has ended.

    It ends without that, behind a comment that says why, when the server stops or PostgreSQL does not answer: who comes
    back with ``?after=`` the last ``seq`` seen goes on. When the principal's key ends, an error ends it. ``slot`` is
    released.
    """
    last, client = after, live.asynchronous()
    try:
        name = live.stream(principal, job_id)
        position = await live.tail(client, name)
        while True:
            await stream_slots.renew(client, principal.key_id, slot)
            try:
                stored = _stored, principal, job_id, last
                events, ended, welcome = await request_threads.run(
                    principal.organization_id, *stored, seconds=DATABASE_SECONDS, begun=True
                )
            except (OperationalError, InterfaceError, NoConnection, DomainError) as error:
                log.warning("a stream of %s ends, PostgreSQL does not answer: %s", job_id, error)
                yield AWAY
                return
            if not welcome:
                yield REVOKED
                return
            for event in events:
                last = event["seq"]
                yield sse.data(event)
            if len(events) == BATCH:
                continue
            if ended:
                yield sse.DONE
                return
            async for seen, event in _live(client, name, position):
                position = seen
                if event["seq"] <= last:
                    continue
                if event["seq"] > last + 1:
                    break
                last = event["seq"]
                yield sse.data(event)
                if event["type"] == "message":
                    break  # It may have been the last one: only PostgreSQL knows.
            else:
                yield sse.PING
            if shutdown.stopping.is_set():
                yield FAREWELL
                return
    finally:
        # A follower that hangs up cancels this generator, and a cancelled task may not wait for anything unshielded.
        with anyio.move_on_after(LEAVE_SECONDS, shield=True):
            await stream_slots.release(client, principal.key_id, slot)
            await client.aclose()


def _stored(principal: Principal, job_id: str, after: int) -> tuple[list[dict[str, Any]], bool, bool]:
    """Up to ``BATCH`` events after ``after``, whether the job had ended before, and if the key may still read them."""
    try:
        with acting(principal) as session:
            job = repository.get(session, job_id)
            ended = job is None or job.status in TERMINAL
            rows = repository.events_after(session, job_id, after, BATCH)
            events = [EventObject.of(row).model_dump(mode="json") for row in rows]
            # Asked last: what ended the job may have ended the key, and then that is what is told.
            return events, ended, accounts.is_live_hash(session, principal.key_hash)
    except DomainError as error:
        if error.status not in (401, 403):
            raise
        return [], False, False


async def _live(client: redis.asyncio.Redis, name: str, position: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Frames behind ``position`` as they come; ends after silence, after a while, or when the server stops."""
    began = quiet_since = time.monotonic()
    # However much happens, the key and the slot are looked after now and then.
    while not shutdown.stopping.is_set() and time.monotonic() - began < LOOK_UP_SECONDS:
        try:
            live.silence.check()
            answer: Any = await client.xread({name: position}, block=int(min(sse.PING_SECONDS, WATCH_SECONDS) * 1000))
        except RedisError:
            await asyncio.sleep(POLL_SECONDS)
            return
        if not answer:
            if time.monotonic() - quiet_since >= sse.PING_SECONDS:
                return
            continue
        quiet_since = time.monotonic()
        frames = answer[name.encode()][0] if isinstance(answer, dict) else answer[0][1]
        for id, fields in frames:
            position = id.decode()
            yield position, json.loads(fields[b"frame"])
