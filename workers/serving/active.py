"""A question that is being answered."""

import asyncio
from dataclasses import dataclass, field

from service.inference.wire import Question
from workers.serving.hosted import Host


@dataclass
class ActiveQuestion:
    question: Question
    places: int
    """What it takes of the worker's."""
    open: int
    """Choices that are not complete."""
    preparing: "asyncio.Future[str | None] | None" = None
    host: Host | None = None
    """Which was asked."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """The host has taken it in, or will not."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Something is said, if not told yet, or nothing will be."""
    started: bool = False
    spoke: bool = False
    """Whether its reader has a part of the answer."""
    deaths: int = 0
    """Processes that ended while they were at work on it."""
    unread_since: float | None = None
