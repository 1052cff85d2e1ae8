"""Conditional requests: what a client has already is not sent again.

Every JSON answer to a GET has a weak ``ETag`` that follows from its bytes; with the same in ``If-None-Match`` the
answer is an empty 304 (RFC 9110, 13.1.2). What has an ``ETag`` of its own, such as a model's files, keeps that one.
"""

import hashlib
from typing import Annotated

from fastapi import Header
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON = "application/json"
IfNoneMatch = Annotated[str | None, Header(description="An `ETag`: a 304 where it still is that.")]


def etag(body: bytes) -> str:
    return f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def is_known(tag: str, if_none_match: str | None) -> bool:
    """Whether ``If-None-Match`` names this tag, compared weakly, or any."""
    given = [each.strip() for each in (if_none_match or "").split(",")]
    return "*" in given or tag.removeprefix("W/") in {each.removeprefix("W/") for each in given}


class Conditional:
    """Tags answers, and leaves out the body of those that the client has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        if_none_match = Headers(scope=scope).get("if-none-match")
        held: Message | None = None

        async def send_tagged(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                if _is_to_be_tagged(message):
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                # A body in parts has no tag that could be known before the first of them is sent.
                if not message.get("more_body"):
                    message = _tagged(start, message, if_none_match)
                await send(start)
            await send(message)

        await self.app(scope, receive, send_tagged)


def _is_to_be_tagged(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    return start["status"] == 200 and headers.get("content-type") == JSON and "etag" not in headers


def _tagged(start: Message, body: Message, if_none_match: str | None) -> Message:
    """The body to send behind ``start``, which gets the tag and, for what is known, the status 304."""
    headers, tag = MutableHeaders(raw=start["headers"]), etag(body["body"])
    headers["etag"] = tag
    if is_known(tag, if_none_match):
        start["status"] = 304
        for name in ("content-length", "content-type"):
            del headers[name]
        body = {**body, "body": b""}
    start["headers"] = headers.raw
    return body
