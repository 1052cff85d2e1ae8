"""What the body of a request has to be before a route sees it: not too large, not too slow, and JSON that can be kept.

Bodies are JSON, and read whole here, but for files and parts of uploads, which the routes themselves read as they come.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contracts import strict_json
from service.core import paths
from service.core.answers import error_answer
from service.core.errors import DomainError
from service.core.threads import parsing_threads
from service.settings import settings

MULTIPART_ALLOWANCE = 64 * 1024
LARGE_BYTES = 32 * 1024
"""What a JSON body may have to be read where all requests are taken in; a larger one is read on a thread."""
MAX_CONTAINERS = 50_000
"""Lists and objects of a body: they cost most to read and to look at."""
MAX_FIELDS = 1000
"""Of one object: each that is wrong costs more to tell of than to send."""
BODY_SECONDS = 30.0
"""How long a JSON body may take to arrive."""
STALL_SECONDS = 60.0
"""How long a file that is uploaded may pause."""
LEAST_BYTES_PER_SECOND = 1024
"""What an upload has to make on average, beside one such pause."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_JSON = re.compile(r"application/(json|[^/;]+\+json)", re.IGNORECASE)


class Bodies:
    """Refuses a body by its announced length and as it arrives, and answers what is no JSON before a route is asked.

    ``upload_limit`` tells how large a file may be sent to a path; None where bodies are JSON. ``caller`` tells whose
    request it is and raises a 401 where nobody's.
    """

    def __init__(
        self, app: ASGIApp, upload_limit: Callable[[str], int | None], caller: Callable[[Scope], Awaitable[str]]
    ) -> None:
        self.app, self._upload_limit, self._caller = app, upload_limit, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, upload = Headers(scope=scope), self._upload_limit(scope["path"])
        limit = settings().max_body_bytes if upload is None else upload + MULTIPART_ALLOWANCE
        announced = headers.get("content-length", "")
        arriving = _Arriving(receive, limit, is_upload=upload is not None)
        try:
            if re.fullmatch("[0-9]+", announced) and (len(announced) > 18 or int(announced) > limit):
                raise _too_large(limit)
            if upload is not None:
                await self.app(scope, arriving, send)
                return
            body = await arriving.whole()
            if body and _JSON.fullmatch(headers.get("content-type", "").partition(";")[0].strip()):
                scope.setdefault("state", {})["body"] = await self._read(scope, body)
        except HTTPException as error:
            code = "request_too_large" if error.status_code == 413 else "request_timeout"
            answer = error_answer(error.status_code, code, error.detail, headers=dict(error.headers or {}))
        except DomainError as error:
            answer = error_answer(error.status, error.code, error.message, error.param, error.headers)
        else:
            if body is not None:
                await self.app(scope, _Again(body, receive), send)
            return
        await answer(scope, receive, send)

    async def _read(self, scope: Scope, body: bytes) -> Any:
        if len(body) <= LARGE_BYTES:
            return read_json(body)
        # What may take long is done for those whose key is right, and on a thread of their share.
        return await parsing_threads.run_to_end(await self._caller(scope), read_json, body)


class _Arriving:
    """``receive`` of a body with a limit and a pace. Raises ``HTTPException``, which routes' readers let through."""

    def __init__(self, receive: Receive, limit: int, *, is_upload: bool) -> None:
        self._receive, self._limit, self._is_upload = receive, limit, is_upload
        self._received, self._waited = 0, 0.0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._patience()):
                message = await self._receive()
        except TimeoutError:
            text = "The request's body did not arrive in time. Send it again, faster."
            raise HTTPException(408, text, {"connection": "close"}) from None
        # Only what is waited for the client counts, not what is done with the bytes meanwhile.
        self._waited += clock() - began
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._received > self._limit:
            raise _too_large(self._limit)
        return message

    def _patience(self) -> float:
        if not self._is_upload:
            return BODY_SECONDS - self._waited
        return min(STALL_SECONDS, STALL_SECONDS + self._received / LEAST_BYTES_PER_SECOND - self._waited)

    async def whole(self) -> bytes | None:
        """All of it; None when the client has gone."""
        body = bytearray()
        while not self._complete:
            message = await self()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
        return bytes(body)


class _Again:
    """``receive`` of a body that was read before, and of what follows it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def read_json(body: bytes) -> Any:
    """The value of a JSON body. Raises a 400 for what is not JSON, too deep or too wide, or holds half a character."""
    if _containers(body) > MAX_CONTAINERS and _containers(_STRING.sub(b"", body)) > MAX_CONTAINERS:
        raise _not_json(f"it holds more than {MAX_CONTAINERS:,} lists and objects")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8: byte 0x{body[error.start]:02x} at position {error.start + 1}") from None
    try:
        value = strict_json.loads(text, max_fields=MAX_FIELDS)
    except strict_json.InvalidJSONError as error:
        raise _not_json(str(error)) from None
    if "\\u" in text:
        try:
            strict_json.dumps(value).encode()
        except UnicodeEncodeError:
            path = paths.first(value, "[\ud800-\udfff]") or None
            reason = "holds a \\u escape that is half of a surrogate pair, which is no character"
            raise DomainError(400, "invalid_json", f"'{path or 'The body'}' {reason}.", path) from None
    return value


def _containers(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The request body is larger than the {limit} bytes allowed here.")


def _not_json(reason: str) -> DomainError:
    return DomainError(400, "invalid_json", f"The request body cannot be read as JSON: {reason}.")
