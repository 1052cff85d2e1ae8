"""How uvicorn treats a connection of ours: who sends no request, or a part of one, does not hold it for ever.

``uvicorn --http service.core.connections:Connection``. uvicorn itself closes a connection that is silent between two
requests; it waits without end for a first one, for the rest of one's headers, and for the rest of a body that nobody
reads any more. Bodies that are read have their pace from ``service.core.bodies``.
"""

import asyncio
import json
import resource
import time
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.core.errors import envelope

HEADERS_SECONDS = 20.0
"""How long a request's headers may take, from the first byte or, for the first request, from the connection's start."""
HEADERS_BYTES = 256 * 1024
"""How large they may be; one of uvicorn's parsers has no limit of its own."""
FILES_RESERVED = 256
"""Files and connections to PostgreSQL and Redis that a process needs beside its clients' connections."""
LEAST_CONNECTIONS = 64


def most_connections() -> int:
    """How many connections of clients a process takes, by the files that it may have open."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**31 if allowed == resource.RLIM_INFINITY else max(LEAST_CONNECTIONS, allowed - FILES_RESERVED)


class Connection(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """A connection of a client, closed when no whole request comes.

    When there are as many as there may be, the one that waits longest for its client, or else for a body, makes
    room for a new one, so that whoever opens many loses their own; where all are at work, the new one gets a 503.
    """

    _timer: asyncio.TimerHandle | None = None
    _bytes = 0
    """Of what has come of a request's headers."""
    _since = 0.0
    """When the client was last waited for."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = time.monotonic()
        self._arm()
        if len(self.connections) > most_connections():
            self._make_room()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._disarm()
        elif self._waits_for_client():
            if self._timer is None:
                self._arm()
            self._bytes += len(data)
            if self._bytes > HEADERS_BYTES and not self.transport.is_closing():
                self._give_up(431, "headers_too_large", f"The headers have more than {HEADERS_BYTES} bytes.")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        # One that was closed a moment ago is still listed.
        there = [each for each in self.connections if not each.transport.is_closing()]
        if len(there) > most_connections():
            others = [each for each in there if each is not self]
            waiting = [each for each in others if each._waits_for_client()]
            if waiting := waiting or [each for each in others if each._is_sent_a_body()]:
                min(waiting, key=lambda each: each._since).transport.abort()
            else:
                self._end(503, "overloaded", "The server has as many connections as it can take. Try again shortly.")

    def _waits_for_client(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _is_sent_a_body(self) -> bool:
        return bool(self.cycle.more_body and not self.cycle.response_started)

    def _arm(self) -> None:
        late = f"The request's headers did not come within {HEADERS_SECONDS:.0f} seconds."
        self._timer = self.loop.call_later(HEADERS_SECONDS, self._give_up, 408, "request_timeout", late)
        self._bytes = 0

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, status: int, code: str, message: str) -> None:
        self._disarm()
        if self.transport.is_closing():
            return
        if self.cycle is None:
            self._end(status, code, message)
        else:
            # An answer now could be taken for that to another request.
            self.transport.close()

    def _end(self, status: int, code: str, message: str) -> None:
        body = json.dumps(envelope(status, code, message)).encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "retry-after: 5",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
