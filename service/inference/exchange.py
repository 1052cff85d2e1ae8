"""How questions reach the serving workers and events come back: Redis lists that live as long as somebody reads them.

Questions wait in ``service.inference.queue``. Events of a question go to a list of its own, which the API empties as
they come. A worker is told to forget a question on a list of its own. It is alive while its key is;
a reader that stops reading is noticed by the length of its list. Nothing is kept: a request lives no longer than its
connection.
"""

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import redis.asyncio
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from starlette.concurrency import run_in_threadpool

from service.accounts.service import default_project
from service.core import live, shutdown, stream_slots
from service.core.errors import DomainError
from service.inference import queue, wire
from service.inference.tally import Tally
from service.inference.wire import Accepted, End, Failed, Question
from service.settings import required
from service.usage import meter
from service.usage import service as usage

ANY_WORKER = "serving:worker"
"""Exists while any worker is alive."""
ALIVE_SECONDS = 5.0
"""How long a worker counts as alive after it last said so."""
EVENTS_TTL_SECONDS = 120
CONTROL_TTL_SECONDS = 60
SILENCE_SECONDS = 2.0
LOOK_SECONDS = 1.0
"""How long what was found of a worker holds for all of its readers in this process."""
NO_WORKER_SECONDS = 5.0
"""How long a question waits for a worker when none is alive: one may be starting."""
SLOT_SECONDS = 20.0
LEAVE_SECONDS = 5.0
ANSWER_SECONDS = 3.0
"""How long Redis may take to answer; then it is away. Longer than what is waited for in it."""
BATCH = 1000
MAX_CONNECTIONS = 10_000
"""More than chats that one process of the API has open: each waits on one of its own."""


log = logging.getLogger(__name__)


def alive_key(worker: str) -> str:
    return f"serving:worker:{worker}"


def control_key(worker: str) -> str:
    """The list of ids of questions that the worker is to forget."""
    return f"serving:control:{worker}"


def events_key(id: str) -> str:
    return f"serving:events:{id}"


def connect() -> redis.asyncio.Redis:
    """A client for the event loop that asks. The caller closes it."""
    # One that tries again on its own would take a frozen Redis for a slow one for half a minute.
    return redis.asyncio.Redis.from_url(
        required("redis_url"),
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        max_connections=MAX_CONNECTIONS,
    )


_shared = live.ForEachLoop(connect)
"""The client of all questions of an event loop: to connect takes twenty times as long as to ask."""


async def ask(
    question: Question, key_id: str, still_allowed: Callable[[], Awaitable[object]]
) -> AsyncGenerator[wire.Event | None]:
    """Events of ``question`` as they come, and None after ``SILENCE_SECONDS`` without any.

    It ends behind the last choice's end. Closing the iterator makes the worker forget the question. Raises
    ``DomainError``: a 429 when the API key or its organisation has too much at work, a 503 when no worker has room or
    is there, or the one at work is lost, what the worker answers, and what ``still_allowed`` raises now and then.
    """
    asked, tally = _Asked(question, _shared.get()), Tally()
    slot = None
    try:
        live.silence.check()
        # Where Redis is away, slots are not counted, and not asking them saves the time to find out twice.
        await asked.client.ping()
        slot = await run_in_threadpool(_acquire, key_id, question.organization)
        await asked.send()
        renewed = time.monotonic()
        while not asked.done:
            if shutdown.stopping.is_set():
                raise DomainError(503, "server_stopping", "The server is stopping.", headers={"Retry-After": "2"})
            for event in await asked.next():
                tally.take(event)
                yield event
            if time.monotonic() - renewed > SLOT_SECONDS:
                renewed = time.monotonic()
                await stream_slots.renew(asked.client, key_id, slot)
                await still_allowed()
    except RedisError as error:
        # What is left there runs out by itself, and whoever works on it notices that nobody reads.
        asked.done, slot = True, None
        message = "Redis does not answer. Try again shortly."
        raise DomainError(503, "redis_unavailable", message, headers={"Retry-After": "5"}) from error
    finally:
        # A client that hangs up cancels this generator, and a cancelled task may not wait for anything unshielded.
        if tally.input:
            project_id = question.project or default_project(question.organization)
            meter.count(question.organization, project_id, question.model, input=tally.input, output=tally.output)
        with anyio.move_on_after(LEAVE_SECONDS, shield=True):
            await asked.close()
            if slot is not None:
                await stream_slots.release(asked.client, key_id, slot)


def _acquire(key_id: str, organization_id: str) -> str:
    return stream_slots.acquire(key_id, usage.remembered(organization_id).streams)


_looked: dict[str, tuple[bool, float]] = {}


async def _exists(client: redis.asyncio.Redis, key: str) -> bool:
    """Whether ``key`` is in Redis, or was a moment ago: hundreds may want to know it of the same worker."""
    found, until = _looked.get(key, (False, 0.0))
    if not found or time.monotonic() > until:
        found = bool(await client.exists(key))
        now = time.monotonic()
        for old in [each for each, (_, end) in _looked.items() if end < now]:
            del _looked[old]
        _looked[key] = found, now + LOOK_SECONDS
    return found


class _Asked:
    """A question that was sent, as its reader sees it."""

    def __init__(self, question: Question, client: redis.asyncio.Redis) -> None:
        self.client: Any = client
        self.done = False
        self._question, self._id = question, question.id
        self._open = question.choices
        self._worker: str | None = None
        self._sent_at = time.monotonic()

    async def send(self) -> None:
        await queue.put(self.client, self._question, self._question.to_send())

    async def next(self) -> list[wire.Event | None]:
        """The next events, or ``[None]`` after ``SILENCE_SECONDS`` without any."""
        key = events_key(self._id)
        found = await self.client.blpop([key], timeout=SILENCE_SECONDS)
        if found is None:
            await self._look_after()
            return [None]
        messages = [found[1], *(await self.client.lpop(key, BATCH) or [])]
        events = wire.merged([event for message in messages for event in self._read(message)])
        return [event for event in events if self._concerns(event)]

    def _read(self, message: bytes) -> list[wire.Event]:
        """Raises a 503 for what a worker of another version says and nobody here understands."""
        try:
            return wire.events.validate_json(message)
        except ValidationError as error:
            unknown = [each["loc"] for each in error.errors(include_input=False)[:3]]
            log.error("a serving worker of another version says what is not known here: %s", unknown)
            text = "The serving worker is of another version than this server, and is not understood. Try again later."
            raise DomainError(503, "no_serving_worker", text, headers={"Retry-After": "5"}) from error

    def _concerns(self, event: wire.Event) -> bool:
        """Take note of ``event``; whether it is for the reader. Raises what a failure amounts to."""
        if isinstance(event, Failed):
            self.done = True
            headers = {"Retry-After": "5"} if event.status in (429, 503) else None
            raise DomainError(event.status, event.code, event.message, event.param, headers)
        if isinstance(event, Accepted):
            self._worker = event.worker
            return False
        if isinstance(event, End):
            self._open -= 1
            self.done = self._open == 0
        return True

    async def _look_after(self) -> None:
        """Raises a 503 when nobody is at work on the question or will soon be."""
        if self._worker is not None:
            if not await _exists(self.client, alive_key(self._worker)):
                self.done = True
                message = "The serving worker stopped while it was at work on this. Try again shortly."
                raise DomainError(503, "worker_lost", message, headers={"Retry-After": "5"})
            return
        waited = time.monotonic() - self._sent_at
        if waited > queue.QUEUE_SECONDS:
            message = f"No serving worker had room within {queue.QUEUE_SECONDS:.0f} seconds. Try again shortly."
            raise DomainError(503, "overloaded", message, headers={"Retry-After": "5"})
        if waited > NO_WORKER_SECONDS and not await _exists(self.client, ANY_WORKER):
            message = "No serving worker answered. Is one running?"
            raise DomainError(503, "no_serving_worker", message, headers={"Retry-After": "5"})

    async def close(self) -> None:
        """Make whoever has the question forget it, unless it is done."""
        if self.done:
            return
        try:
            if self._worker is None and not await queue.drop(self.client, self._question):
                # It was taken a moment ago. Failing this, the worker will notice that nobody reads.
                for message in await self.client.lrange(events_key(self._id), 0, 0):
                    self._worker = next((e.worker for e in self._read(message) if isinstance(e, Accepted)), None)
            if self._worker is not None:
                await self.client.rpush(control_key(self._worker), self._id)
                await self.client.expire(control_key(self._worker), CONTROL_TTL_SECONDS)
            await self.client.delete(events_key(self._id))
        except (RedisError, DomainError):
            return
