"""Asking the control worker something and waiting, for a bounded time, for its answer.

For the few things that the API may not do itself (running a grader, calling a user's server). The question travels as a
Celery message, the answers come back on a Redis list of this question's own, so nothing is kept when nobody waits any
more. A lost question or answer is an error for the caller, who asks again.

Whether somebody still waits is told by a key of the question's own, which lives on Redis' clock and no other.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from kombu.exceptions import OperationalError
from pydantic import BaseModel, ValidationError
from redis.exceptions import RedisError

from service.core import broker, live
from service.core.errors import DomainError
from service.core.ids import new_id
from service.core.threads import FairThreads, OverloadedError
from service.settings import settings

ACCEPT_SECONDS = 15.0
"""How long a worker may take to say that it has the question."""
ANSWER_TTL_SECONDS = 60
ALIVE = "control:attended"
"""The key as earlier releases call it, so that workers and API processes of both understand each other."""
PREFIX = "ask_"
"""Of questions' ids."""
ACCEPTED, ANSWER, BUSY, FAILED, UNKNOWN = "accepted", "answer", "busy", "failed", "unknown"

log = logging.getLogger(__name__)

# Apart from the threads that handle requests: some of those wait for an answer, and if all did, a question that needed
# one of them would never be sent.
_senders = anyio.CapacityLimiter(8)


async def ask(task: str, question: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the control worker's ``task`` answers within ``seconds``.

    Raises a 503 when no worker or no Redis is there, a 429 when it is busy, a 504 when it takes too long and a 500 when
    it fails.
    """
    id = new_id(PREFIX)
    try:
        await anyio.to_thread.run_sync(_send, task, id, question, limiter=_senders)
        async with aclosing(live.asynchronous()) as client:
            kind, answer = await _next(client, id, ACCEPT_SECONDS)
            if kind == ACCEPTED:
                kind, answer = await _next(client, id, seconds)
                if kind is None:
                    raise DomainError(504, "worker_timeout", f"This took longer than {seconds:.0f} seconds.")
    except (OperationalError, RedisError) as error:
        raise DomainError(503, "redis_unavailable", "Redis does not answer. Try again shortly.") from error
    if kind is None:
        raise DomainError(503, "no_worker", "No control worker answered. Is one running?", headers={"Retry-After": "5"})
    if kind == BUSY:
        raise DomainError(429, "worker_busy", "The worker is busy. Try again shortly.", headers={"Retry-After": "2"})
    if kind == FAILED:
        raise DomainError(500, "worker_failed", "The worker failed on this request; its log says why.")
    if kind != ANSWER:
        raise other_version()
    return answer


def other_version() -> DomainError:
    """For a worker and a server that do not know each other's messages, as while one of them is being upgraded."""
    message = "The control worker is of another version than this server, and does not understand it. Try again later."
    return DomainError(503, "no_worker", message, headers={"Retry-After": "5"})


T = TypeVar("T", bound=BaseModel)


def read(model: type[T], answer: dict[str, Any]) -> T:
    """What the control worker has answered. Raises a 503 where it is of a version whose answers are others."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise other_version() from error


async def _next(client: Any, id: str, seconds: float) -> tuple[str | None, dict[str, Any]]:
    """The next word on the question, or None after ``seconds`` of silence."""
    deadline = asyncio.get_running_loop().time() + seconds
    while (left := deadline - asyncio.get_running_loop().time()) > 0:
        # The connection gives up after its own time-out, which must be the longer one.
        found = await client.blpop([_name(id)], timeout=min(left, 1.0))
        if found is not None:
            message = json.loads(found[1])
            return message["kind"], message["answer"]
    return None, {}


def _send(task: str, id: str, question: dict[str, Any]) -> None:
    live.client().set(_waiting(id), "1", px=int(ACCEPT_SECONDS * 1000))
    broker.ask(task, id, question)


def is_wanted(id: str) -> bool:
    """Whether whoever asked question ``id`` still waits for a worker to take it. Raises ``redis.RedisError``."""
    return bool(live.client().exists(_waiting(id)))


def reply(id: str, kind: str, answer: dict[str, Any] | None = None) -> None:
    """Tell whoever waits for question ``id``. Raises ``redis.RedisError``."""
    with live.client().pipeline(transaction=True) as pipe:
        pipe.rpush(_name(id), json.dumps({"kind": kind, "answer": answer or {}}))
        pipe.expire(_name(id), ANSWER_TTL_SECONDS)
        pipe.execute()


def answer_on(threads: FairThreads, tenant: str, id: str, find: Callable[[], BaseModel]) -> None:
    """Have question ``id`` answered with what ``find`` returns, on a thread of ``tenant``'s share. Returns at once."""
    try:
        threads.submit(tenant, _answer, id, find)
    except OverloadedError:
        reply(id, BUSY)
    else:
        reply(id, ACCEPTED)


def _answer(id: str, find: Callable[[], BaseModel]) -> None:
    try:
        found = find()
    except Exception:
        log.exception("a question could not be answered")
        reply(id, FAILED)
    else:
        reply(id, ANSWER, found.model_dump(mode="json"))


def report_alive() -> None:
    """Report that a control worker is alive, as every sweep does. Optional questions are not asked where none is."""
    with suppress(RedisError):
        live.client().set(ALIVE, "1", ex=int(max(60, 4 * settings().sweep_seconds)))


def alive() -> bool:
    """Whether a control worker has been there lately. Raises ``redis.RedisError`` where that cannot be known."""
    return bool(live.client().exists(ALIVE))


def _name(id: str) -> str:
    return f"ask:{id}"


def _waiting(id: str) -> str:
    return f"ask:{id}:waiting"
