"""Server-sent events: how streams of jobs and of chats are written.

``data:`` and ``event:`` lines and comments only, for the official client fails on ``id:`` and ``retry:``.
"""

import json
from collections.abc import AsyncIterable
from typing import Any

from fastapi.responses import StreamingResponse

PING_SECONDS = 10.0
"""How long a stream may be silent before a comment shows that it lives."""
DONE = b"data: [DONE]\n\n"


def data(value: dict[str, Any]) -> bytes:
    """One line of ASCII: some readers end lines at U+2028 and U+0085 too, and a lone surrogate has no UTF-8."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def named(event: dict[str, Any]) -> bytes:
    """With the event's ``type`` as its name."""
    return f"event: {event['type']}\n".encode() + data(event)


def comment(text: str) -> bytes:
    """``text`` is one line, which clients pass over."""
    return f": {text}\n\n".encode()


PING = comment("ping")


def response(frames: AsyncIterable[bytes]) -> StreamingResponse:
    """An answer that no proxy keeps or gathers."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)
