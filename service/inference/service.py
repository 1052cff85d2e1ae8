"""Answering and streaming what the serving workers say."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from service.core.errors import DomainError, envelope
from service.inference import exchange
from service.inference.shapes import Answer
from service.inference.wire import Event, Question, Started

PING_SECONDS = 10.0
HEADERS_SECONDS = 15.0
"""A stream whose model takes longer to load begins with comments, so that no proxy gives up on it."""
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

T = TypeVar("T")
Chunks = Callable[[Event], Iterator[dict[str, Any]]]


class HungUp(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(work: Coroutine[Any, Any, T], gone: Callable[[], Awaitable[Any]]) -> T:
    """What ``work`` gives. When ``gone`` returns before, it is cancelled, and ``HungUp`` raised."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUp
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await asyncio.shield(working)


async def whole(question: Question, key_id: str, answer: Answer) -> None:
    """Gather everything that is said on ``question`` in ``answer``. Raises ``DomainError`` where it fails."""
    async with aclosing(exchange.ask(question, key_id)) as events:
        async for event in events:
            if event is not None:
                answer.take(event)


async def begin(question: Question, key_id: str) -> tuple[AsyncGenerator[Event | None], list[Event]]:
    """Ask, and wait until the model has taken the prompts, or for a while; what came, and what will.

    Raises ``DomainError`` for what fails until then: later only an error inside the stream can tell.
    """
    began, heard = time.monotonic(), []
    events = exchange.ask(question, key_id)
    try:
        async for event in events:
            if event is not None:
                heard.append(event)
            if isinstance(event, Started) or time.monotonic() - began > HEADERS_SECONDS:
                return events, heard
    except BaseException:
        await events.aclose()
        raise
    return events, heard


async def frames(
    events: AsyncGenerator[Event | None],
    heard: list[Event],
    answer: Answer,
    chunks: Chunks,
    usage: Callable[[], dict[str, Any]] | None,
) -> AsyncIterator[bytes]:
    """Server-sent events of ``data:`` and comments only: the official client fails on ``id:`` and ``retry:``."""
    spoke = time.monotonic()
    try:
        for event in heard:
            answer.take(event)
            for chunk in chunks(event):
                yield _frame(chunk, usage is not None)
        async for next_event in events:
            if next_event is None:
                if time.monotonic() - spoke >= PING_SECONDS:
                    spoke = time.monotonic()
                    yield PING
                continue
            spoke = time.monotonic()
            answer.take(next_event)
            for chunk in chunks(next_event):
                yield _frame(chunk, usage is not None)
        if usage is not None:
            yield _frame(usage(), False)
        yield DONE
    except DomainError as error:
        yield _frame(envelope(error.status, error.code, error.message, error.param), False)
    finally:
        await events.aclose()


def _frame(chunk: dict[str, Any], with_null_usage: bool) -> bytes:
    if with_null_usage:
        chunk = chunk | {"usage": None}
    return b"data: " + json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
