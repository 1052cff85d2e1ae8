"""Who calls, and how a route's function runs: on a thread of the caller's share, in one transaction of its own.

The transaction first asks whether the key is still good, and then does the work; its connection is taken when the
function begins and given back when it has committed. So no request holds a connection while it waits for a thread, a
body, a worker or its reader, and the answer goes out after the commit: a 200 is never given for a row that is lost.
A key that this process does not know, or whose request needs to know more than one transaction can tell, is looked up
before.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.datastructures import Headers
from starlette.types import Scope

from service.accounts import keys, known
from service.accounts.known import Asked, Principal
from service.accounts.scopes import needed_by
from service.accounts.service import acting, check_headers, identify, presented_key
from service.core.db import transaction
from service.core.gate import Tenant
from service.core.rate_limit import address_of
from service.core.threads import OverloadedError, request_threads

Result = TypeVar("Result")


@dataclass
class CallContext:
    principal: Principal
    _session: Session | None = field(default=None, repr=False)

    @property
    def session(self) -> Session:
        """The transaction of the route's function; it sees the principal's project only."""
        assert self._session is not None, "only a synchronous route's function has a transaction"
        return self._session


def tenant_of(scope: Scope) -> Tenant:
    """On whose turn a request is begun: its organisation's, or its key's or address's while that is unknown."""
    key = keys.presented(Headers(scope=scope).get("authorization"))
    principal = known.principal(key) if key else None
    if principal:
        return Tenant(principal.organization_id)
    address = _address(scope)
    return Tenant(f"key {keys.hashed(key)}" if key else address, address)


def _address(scope: Scope) -> str:
    return f"address {address_of(scope)}"


async def caller_of(scope: Scope) -> str:
    """The organisation whose request it is. Raises a 401 where nobody's; who asks much is looked up once."""
    return (await recognized_by(scope, presented_key(Headers(scope=scope).get("authorization")))).organization_id


async def recognized_by(scope: Scope, key: str) -> Principal:
    """Whose key it is, or was a moment ago. Raises a 401."""
    return known.principal(key) or await _look_up(scope, key)


async def _look_up(scope: Scope, key: str, asked: Asked = Asked()) -> Principal:
    return await request_threads.run(_address(scope), _looked_up, keys.hashed(key), asked)


def _looked_up(key_hash: str, asked: Asked) -> Principal:
    with transaction("troll_api") as session:
        return identify(session, key_hash, asked)


def _asked(request: Request) -> Asked:
    """What the request is, and what its route needs."""
    route = request.scope["route"]
    assert isinstance(route, Route), "a route with a caller says what it needs"
    return Asked(f"{request.method} {route.path}", route.needs, request.client.host if request.client else None)


class _ApiKey(HTTPBearer):
    """Whose key it was a moment ago."""

    async def __call__(self, request: Request) -> Principal:  # type: ignore[override]
        # Every request passes here: declared as parameters, its headers would cost a tenth of what a poll does.
        headers = request.headers
        key, asked = presented_key(headers.get("authorization")), _asked(request)
        remembered = known.principal(key)
        if remembered is not None and not remembered.scopes & asked.needs:
            # It may have been given more since then.
            remembered = None
        principal = replace(remembered, asked=asked) if remembered else await _look_up(request.scope, key, asked)
        check_headers(principal, headers.get("openai-organization"), headers.get("openai-project"))
        return principal


Recognized = Annotated[
    Principal, Depends(_ApiKey(scheme_name="API key", description="`sk-troll-…`, made by `troll keys`"))
]
"""Whose key it was a moment ago. A route that takes this begins with ``identified``, which looks it up."""


async def _known(recognized: Recognized) -> Principal:
    return await request_threads.run(recognized.organization_id, _looked_up, recognized.key_hash, recognized.asked)


Known = Annotated[Principal, Depends(_known)]
"""Whose key it is: it was looked up for this request."""


async def _caller(recognized: Recognized) -> CallContext:
    return CallContext(recognized)


Caller = Annotated[CallContext, Depends(_caller)]


async def identified(recognized: Principal, function: Callable[..., Result], *arguments: Any) -> Result:
    """What ``function(session, …)`` returns, in a transaction on a thread of the caller's share.

    Raises a 401 where the key is no longer good, and a 403 where it may no longer do this.
    """

    def work() -> Result:
        with transaction("troll_api") as session:
            identify(session, recognized.key_hash, recognized.asked)
            return function(session, *arguments)

    return await request_threads.run(recognized.organization_id, work)


async def in_transaction(
    caller: Principal,
    function: Callable[..., Result],
    *arguments: Any,
    undo: Callable[[], object] = lambda: None,
) -> Result:
    """What ``function(session, …)`` returns, in a transaction on a thread of the caller's share.

    ``undo`` is called when the transaction does not commit.
    """

    def work() -> Result:
        try:
            with acting(caller) as session:
                return function(session, *arguments)
        except BaseException:
            undo()
            raise

    try:
        return await request_threads.run(caller.organization_id, work, begun=True)
    except OverloadedError:
        undo()
        raise


class Route(APIRoute):
    """A route whose function, unless it is asynchronous, runs on a thread of the caller's share.

    The function says with ``needs`` of which scopes a key must have one.

    One that takes ``Caller`` runs in a transaction, which makes sure of the key first and has committed when the
    answer is sent; one that takes ``Known`` has none.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.needs = needed_by(endpoint)
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _threaded(endpoint), **options)


def _threaded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(endpoint)
    async def run(**arguments: Any) -> Any:
        caller = next((each for each in arguments.values() if isinstance(each, CallContext)), None)
        principal = caller.principal if caller else next(p for p in arguments.values() if isinstance(p, Principal))
        return await request_threads.run(principal.organization_id, _call, endpoint, caller, arguments)

    return run


def _call(endpoint: Callable[..., Any], caller: CallContext | None, arguments: dict[str, Any]) -> Any:
    if caller is None:
        return _written(endpoint(**arguments))
    with transaction("troll_api") as session:
        caller.principal = identify(session, caller.principal.key_hash, caller.principal.asked)
        caller._session = session
        answer = endpoint(**arguments)
    return _written(answer)


def _written(answer: Any) -> Any:
    """Long lists are turned into JSON on this thread too, and not where all requests are taken in."""
    return (
        Response(answer.model_dump_json(), media_type="application/json") if isinstance(answer, BaseModel) else answer
    )
