"""What every request passes through: an id, a size limit, and error handlers that speak OpenAI's envelope."""

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import disk
from service.core import out_of_scope
from service.core.answers import error_answer
from service.core.errors import DomainError
from service.core.gate import Gate
from service.core.ids import new_id
from service.core.logs import request_id
from service.core.rate_limit import RateLimit
from service.settings import settings

MULTIPART_ALLOWANCE = 64 * 1024

log = logging.getLogger(__name__)


class RequestId:
    """Puts an ``x-request-id`` on every answer, where the official client shows it with errors, and in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        id = scope.setdefault("state", {})["request_id"] = new_id("req_")
        request_id.set(id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """Refuses bodies that are too large, by their announced length and, if that lied or is missing, as they arrive."""

    def __init__(self, app: ASGIApp, upload_limit: Callable[[str], int | None]) -> None:
        self.app, self.upload_limit = app, upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = self.upload_limit(scope["path"])
        limit = settings().max_body_bytes if upload is None else upload + MULTIPART_ALLOWANCE
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            await error_answer(413, "request_too_large", _too_large(limit))(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, _too_large(limit))
            return message

        await self.app(scope, receive_within_limit, send)


def install(app: FastAPI, upload_limit: Callable[[str], int | None], tenant: Callable[[Scope], str]) -> None:
    """``upload_limit`` tells how large a file may be sent to a path; None where bodies are JSON. ``tenant`` tells on
    whose turn a request is begun.
    """
    app.add_middleware(BodyLimit, upload_limit=upload_limit)
    app.add_middleware(RateLimit)
    app.add_middleware(Gate, tenant=tenant)
    app.add_middleware(RequestId)
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DataError, _impossible_value)
    app.add_exception_handler(OSError, _disk_full)
    app.add_exception_handler(OperationalError, _database_unavailable)
    app.add_exception_handler(InterfaceError, _database_unavailable)
    app.add_exception_handler(Exception, _unexpected)


def describe(errors: Any, prefix: str = "") -> tuple[str, str | None]:
    """A sentence and a ``param`` for pydantic's ``errors``. Alternatives of one field are joined by "or"."""
    first = errors[0]
    path = [part for part in first["loc"] if part != "body"]
    field = ".".join([prefix, *(str(part) for part in path)] if prefix else [str(part) for part in path])
    if first["type"] == "extra_forbidden":
        return f"Unknown parameter: '{field}'.", field
    if first["type"] == "missing":
        return f"Missing required parameter: '{field}'.", field
    reason = first["msg"].removeprefix("Value error, ")
    return (f"Invalid value for '{field}': {reason}." if field else f"{reason}."), field or None


def _too_large(limit: int) -> str:
    return f"The request body is larger than the {limit} bytes allowed here."


async def _domain_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DomainError)
    return error_answer(error.status, error.code, error.message, error.param, error.headers)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it does not parse")
        return error_answer(400, "invalid_json", f"The request body is not valid JSON: {reason}.")
    path = [str(part) for part in first["loc"][1:]]
    message, param = describe([{**first, "loc": path}])
    return error_answer(400, "invalid_value", message, param)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    alternative = out_of_scope.alternative(request.url.path) if error.status_code == 404 else None
    if alternative is not None:
        return error_answer(404, "not_served", f"{request.method} {request.url.path} is not served here. {alternative}")
    codes = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}
    messages = {
        404: f"Unknown request URL: {request.method} {request.url.path}. See /docs for what is served.",
        405: f"{request.method} is not allowed on {request.url.path}.",
    }
    message = messages.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return error_answer(error.status_code, codes.get(error.status_code), message, headers=headers)


async def _impossible_value(request: Request, error: Exception) -> JSONResponse:
    """A value that is valid JSON and no value of PostgreSQL, such as a text with a NUL."""
    assert isinstance(error, DataError)
    reason = str(error.orig).splitlines()[0]
    log.info("%s %s holds a value that cannot be stored: %s", request.method, request.url.path, reason)
    return error_answer(400, "invalid_value", f"The request holds a value that cannot be stored: {reason}.")


async def _disk_full(request: Request, error: Exception) -> JSONResponse:
    """A full disk, of the data folder, of temporary files or PostgreSQL's; any other error stays what it is."""
    if not disk.is_full(error):
        raise error
    log.error("%s %s found a full disk: %s", request.method, request.url.path, error)
    message = "The server has no room left for this, and nothing of it was kept. Your operator has to make some."
    return error_answer(507, "disk_full", message, headers={"x-should-retry": "false"})


async def _database_unavailable(request: Request, error: Exception) -> JSONResponse:
    if disk.is_full(error):
        return await _disk_full(request, error)
    log.error("the database did not answer %s %s: %s", request.method, request.url.path, error)
    return error_answer(
        503, "database_unavailable", "The database cannot be reached. Try again shortly.", headers={"Retry-After": "5"}
    )


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    id = request.scope["state"]["request_id"]
    log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    message = f"The server had an error while processing your request. Tell your operator the request id {id}."
    return error_answer(500, "internal_error", message, headers={"x-request-id": id})
