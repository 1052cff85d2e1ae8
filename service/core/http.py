"""What every request passes through: an id, and error handlers that speak OpenAI's envelope."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contracts import disk
from service.contracts.wording import reason_of
from service.core import out_of_scope, paths
from service.core.answers import error_answer
from service.core.errors import DomainError
from service.core.ids import new_id
from service.core.logs import request_id

TOO_MUCH = ("54000", "54001", "54023")
"""PostgreSQL's codes for values larger or deeper than it takes."""

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


def install(app: FastAPI) -> None:
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DataError, _impossible_value)
    app.add_exception_handler(OSError, _disk_full)
    app.add_exception_handler(OperationalError, _database_unavailable)
    app.add_exception_handler(InterfaceError, _database_unavailable)
    app.add_exception_handler(NoConnection, _database_unavailable)
    app.add_exception_handler(RedisError, _redis_unavailable)
    app.add_exception_handler(ClientDisconnect, _hung_up)
    app.add_exception_handler(Exception, _unexpected)


def describe(errors: Any, prefix: str = "", body: Any = None) -> tuple[str, str | None]:
    """A sentence and a ``param`` for pydantic's ``errors``. Alternatives of one field are joined by "or".

    ``body`` is what was checked, if it is at hand: names of alternatives among the steps of a path are no part of it.
    """
    paths = [_path(error, body) for error in errors]
    # Of several alternatives the one that was followed furthest is the one that was meant.
    path = max((each for each in paths if each[: len(paths[0])] == paths[0]), key=len)
    alike = [error for error, each in zip(errors, paths, strict=True) if each == path]
    first = alike[0]
    field = ".".join([prefix, *path] if prefix else path)
    if first["type"] == "extra_forbidden":
        return f"Unknown parameter: '{field}'.", field
    if first["type"] == "missing":
        return f"Missing required parameter: '{field}'.", field
    reasons = dict.fromkeys(map(reason_of, alike))
    reason = " or ".join(text if n == 0 else text.removeprefix("Input should be ") for n, text in enumerate(reasons))
    return (f"Invalid value for '{field}': {reason}." if field else f"{reason}."), field or None


def _path(error: Any, body: Any) -> list[str]:
    steps = [step for step in error["loc"] if step != "body"]
    if body is None:
        return [str(step) for step in steps]
    path: list[str] = []
    for n, step in enumerate(steps):
        if (isinstance(body, dict) and step in body) or (isinstance(body, list) and isinstance(step, int)):
            path.append(str(step))
            body = body[step] if isinstance(body, dict) or step < len(body) else None
        elif isinstance(body, dict) and n == len(steps) - 1 and error["type"] == "missing":
            path.append(str(step))
    return path


async def _domain_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DomainError)
    return error_answer(error.status, error.code, error.message, error.param, error.headers)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors, body = error.errors(), error.body
    if errors[0]["loc"][0] != "body":
        return error_answer(400, "invalid_value", *describe([{**errors[0], "loc": errors[0]["loc"][1:]}]))
    if isinstance(body, bytes):
        sent = request.headers.get("content-type")
        as_what = f"as '{sent[:100]}'" if sent else "without saying what it is"
        message = f"The body was sent {as_what}. It must be JSON: send the header Content-Type: application/json."
        return error_answer(400, "unsupported_content_type", message)
    if body is None:
        return error_answer(400, "missing_body", "The request needs a JSON body.")
    if not isinstance(body, dict):
        return error_answer(400, "invalid_value", "The request body must be a JSON object.")
    about_it = [each for each in errors if each["loc"][0] == "body"]
    return error_answer(400, "invalid_value", *describe(about_it, body=body))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    alternative = out_of_scope.alternative(path) if error.status_code == 404 else None
    if alternative is not None:
        return error_answer(404, "not_served", f"{request.method} {path} is not served here. {alternative}")
    codes = {
        400: "invalid_body",
        404: "unknown_url",
        405: "method_not_allowed",
        408: "request_timeout",
        413: "request_too_large",
    }
    messages = {
        404: f"Unknown request URL: {request.method} {path}. See /docs for what is served.",
        405: f"{request.method} is not allowed on {path}.",
    }
    message = messages.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return error_answer(error.status_code, codes.get(error.status_code), message, headers=headers)


async def _impossible_value(request: Request, error: Exception) -> JSONResponse:
    """A value that is valid JSON and no value of PostgreSQL, such as a text with a NUL."""
    assert isinstance(error, DBAPIError)
    reason = str(error.orig).splitlines()[0]
    param = _with_nul(request)
    log.info("%s %s holds a value that cannot be stored: %s", request.method, request.scope["path"], reason)
    holder = f"'{param}'" if param else "The request"
    return error_answer(400, "invalid_value", f"{holder} holds a value that cannot be stored: {reason}.", param)


def _with_nul(request: Request) -> str | None:
    """The field of the body, the path or the query that holds a NUL."""
    sent = (request.scope["state"].get("body"), request.path_params, dict(request.query_params))
    return next((path for each in sent if (path := paths.first(each, "\0")) is not None), None)


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
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in TOO_MUCH:
        return await _impossible_value(request, error)
    log.error("the database did not answer %s %s: %s", request.method, request.scope["path"], error)
    return error_answer(
        503, "database_unavailable", "The database cannot be reached. Try again shortly.", headers={"Retry-After": "5"}
    )


async def _redis_unavailable(request: Request, error: Exception) -> JSONResponse:
    log.error("Redis did not answer %s %s: %s", request.method, request.scope["path"], error)
    return error_answer(
        503, "redis_unavailable", "Redis cannot be reached. Try again shortly.", headers={"Retry-After": "5"}
    )


async def _hung_up(request: Request, error: Exception) -> JSONResponse:
    # Nobody reads this; the log says what became of the request.
    return error_answer(499, "client_closed_request", "The client hung up.")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    id = request.scope["state"]["request_id"]
    log.exception("%s %s failed", request.method, request.scope["path"], exc_info=error)
    message = f"The server had an error while processing your request. Tell your operator the request id {id}."
    return error_answer(500, "internal_error", message, headers={"x-request-id": id})
