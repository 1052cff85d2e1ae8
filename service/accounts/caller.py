"""Who calls, and how a route's function runs: on a thread of the caller's share, in one transaction of its own.

A request first learns who calls, in a short transaction; then its function runs with another, whose connection is taken
when the function begins and given back when it has committed. So no request holds a connection while it waits for a
thread, a body, a worker or its reader, and the answer goes out after the commit: a 200 is never given for a row that is
lost.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.datastructures import Headers
from starlette.types import Scope

from service.accounts import keys
from service.accounts.service import Principal, authenticate, presented_key
from service.core.db import tenant, transaction
from service.core.rate_limit import address_of, known_keys
from service.core.threads import Overloaded, request_threads

Result = TypeVar("Result")

Token = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, scheme_name="API key", description="`sk-troll-…`, made by `troll keys`")),
]
TenantHeader = Annotated[str | None, Header(include_in_schema=False)]


@dataclass
class CallContext:
    principal: Principal
    _session: Session | None = field(default=None, repr=False)

    @property
    def session(self) -> Session:
        """The transaction of the route's function; it sees the principal's organisation only."""
        assert self._session is not None, "only a synchronous route's function has a transaction"
        return self._session


def tenant_of(scope: Scope) -> str:
    """On whose turn a request is begun and its key looked up: its organisation's, or its address's while unknown."""
    key = keys.presented(Headers(scope=scope).get("authorization"))
    return (known_keys.organization(key) if key else None) or f"address {address_of(scope)}"


async def caller_of(scope: Scope) -> str:
    """The organisation whose request it is. Raises a 401 where nobody's; who asks much is looked up once."""
    key = presented_key(Headers(scope=scope).get("authorization"))
    organization_id = known_keys.organization(key)
    if organization_id is None:
        organization_id = (await request_threads.run(tenant_of(scope), _authenticated, key, None, None)).organization_id
    return organization_id


async def _known(
    request: Request, token: Token, openai_organization: TenantHeader = None, openai_project: TenantHeader = None
) -> Principal:
    key = presented_key(f"{token.scheme} {token.credentials}" if token else None)
    headers = (openai_organization, openai_project)
    return await request_threads.run(tenant_of(request.scope), _authenticated, key, *headers)


def _authenticated(key: str, organization_header: str | None, project_header: str | None) -> Principal:
    with transaction("troll_api") as session:
        return authenticate(session, key, organization_header, project_header)


Known = Annotated[Principal, Depends(_known)]


async def _caller(known: Known) -> CallContext:
    return CallContext(known)


Caller = Annotated[CallContext, Depends(_caller)]


async def in_transaction(
    known: Principal,
    function: Callable[..., Result],
    *arguments: Any,
    undo: Callable[[], object] = lambda: None,
) -> Result:
    """What ``function(session, …)`` returns, in a transaction on a thread of the caller's share.

    ``undo`` is called when the transaction does not commit.
    """

    def work() -> Result:
        try:
            with tenant(known.organization_id) as session:
                return function(session, *arguments)
        except BaseException:
            undo()
            raise

    try:
        return await request_threads.run(known.organization_id, work, begun=True)
    except Overloaded:
        undo()
        raise


class Route(APIRoute):
    """A route whose function, unless it is asynchronous, runs on a thread of the caller's share.

    One that takes ``Caller`` runs in a transaction, which has committed when the answer is sent; one that takes
    ``Known`` has none.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _threaded(endpoint), **options)


def _threaded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(endpoint)
    async def run(**arguments: Any) -> Any:
        caller = next((each for each in arguments.values() if isinstance(each, CallContext)), None)
        known = caller.principal if caller else next(p for p in arguments.values() if isinstance(p, Principal))
        return await request_threads.run(known.organization_id, _call, endpoint, caller, arguments, begun=True)

    return run


def _call(endpoint: Callable[..., Any], caller: CallContext | None, arguments: dict[str, Any]) -> Any:
    if caller is None:
        return _written(endpoint(**arguments))
    with tenant(caller.principal.organization_id) as session:
        caller._session = session
        answer = endpoint(**arguments)
    return _written(answer)


def _written(answer: Any) -> Any:
    """Long lists are turned into JSON on this thread too, and not where all requests are taken in."""
    return (
        Response(answer.model_dump_json(), media_type="application/json") if isinstance(answer, BaseModel) else answer
    )
