"""Answering and streaming what the serving workers say."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from service.core import sse
from service.core.errors import DomainError, envelope
from service.inference import exchange
from service.inference.responses.shapes import Response
from service.inference.shapes import AnswerBuilder
from service.inference.wire import Event, Question, Started

HEADERS_SECONDS = 15.0
"""A stream whose model takes longer to load begins with comments, so that no proxy gives up on it."""

T = TypeVar("T")
StillAllowed = Callable[[], Awaitable[object]]
Chunks = Callable[[Event], Iterator[dict[str, Any]]]


class ClientDisconnectedError(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(work: Coroutine[Any, Any, T], gone: Callable[[], Awaitable[Any]]) -> T:
    """What ``work`` gives. When ``gone`` returns before, it is cancelled, and ``ClientDisconnectedError`` raised."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnectedError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await asyncio.shield(working)


async def whole(question: Question, key_id: str, still_allowed: StillAllowed, answer: AnswerBuilder | Response) -> None:
    """Gather everything that is said on ``question`` in ``answer``. Raises ``DomainError`` where it fails."""
    async with aclosing(exchange.ask(question, key_id, still_allowed)) as events:
        async for event in events:
            if event is not None:
                answer.take(event)


async def begin(
    question: Question, key_id: str, still_allowed: StillAllowed
) -> tuple[AsyncGenerator[Event | None], list[Event]]:
    """Ask, and wait until the model has taken the prompts, or for a while; what came, and what will.

    Raises ``DomainError`` for what fails until then: later only an error inside the stream can tell.
    """
    began, heard = time.monotonic(), []
    events = exchange.ask(question, key_id, still_allowed)
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


class Written(Protocol):
    """An answer as the frames of a stream, bytes of server-sent events."""

    def frames(self, event: Event) -> Iterable[bytes]:
        """Those that ``event`` amounts to."""

    def end(self) -> Iterable[bytes]:
        """Those behind the last event."""

    def failure(self, error: DomainError) -> Iterable[bytes]:
        """Those of an answer that cannot go on."""


async def frames(events: AsyncGenerator[Event | None], heard: list[Event], written: Written) -> AsyncIterator[bytes]:
    """The frames of ``heard``, of ``events``, and comments while nothing is said."""
    spoke = time.monotonic()
    try:
        for event in heard:
            for frame in written.frames(event):
                yield frame
        async for next_event in events:
            if next_event is None:
                if time.monotonic() - spoke >= sse.PING_SECONDS:
                    spoke = time.monotonic()
                    yield sse.PING
                continue
            spoke = time.monotonic()
            for frame in written.frames(next_event):
                yield frame
        for frame in written.end():
            yield frame
    except DomainError as error:
        for frame in written.failure(error):
            yield frame
    finally:
        await events.aclose()


@dataclass(frozen=True)
class AsChunks:
    """``data:`` alone; ``[DONE]`` ends it.

    ``usage`` makes a last chunk; the others then say that they have none.
    """

    answer: AnswerBuilder
    chunks: Chunks
    usage: Callable[[], dict[str, Any]] | None

    def frames(self, event: Event) -> Iterator[bytes]:
        self.answer.take(event)
        for chunk in self.chunks(event):
            yield sse.data(chunk if self.usage is None else chunk | {"usage": None})

    def end(self) -> Iterator[bytes]:
        if self.usage is not None:
            yield sse.data(self.usage())
        yield sse.DONE

    def failure(self, error: DomainError) -> Iterator[bytes]:
        yield sse.data(envelope(error.status, error.code, error.message, error.param))


@dataclass(frozen=True)
class AsEvents:
    """Events that say their type twice, as the hosted service's do; the last one tells how it ended."""

    response: Response

    def frames(self, event: Event) -> Iterator[bytes]:
        return map(sse.named, self.response.take(event))

    def end(self) -> Iterator[bytes]:
        return iter(())

    def failure(self, error: DomainError) -> Iterator[bytes]:
        return map(sse.named, self.response.fail(error))
