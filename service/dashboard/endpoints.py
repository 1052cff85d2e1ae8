"""The dashboard at ``/``: files of this installation that ask the API as any client does, and the browser's session."""

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError
from sqlalchemy.orm import Session
from starlette.types import Scope

from service.accounts import repository as accounts_repository
from service.accounts import service as accounts
from service.accounts.caller import recognized_by
from service.accounts.known import Asked, Principal
from service.accounts.scopes import ADMIN
from service.accounts.service import end_session, identify, presented_key
from service.administration.schemas import MakeAccountsKey, unix_or_none
from service.core import rate_limit
from service.core.db import transaction
from service.core.errors import DomainError
from service.core.reference import HEADERS
from service.core.threads import request_threads
from service.dashboard import oidc, people
from service.dashboard.oidc import SignInError
from service.dashboard.session import COOKIE, HEADER, key_of
from service.settings import settings

STATIC = Path(__file__).parent / "static"
ATTEMPT = "troll_signing_in"
"""The cookie of a browser that is at the provider."""

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str


class GoTo(BaseModel):
    model_config = ConfigDict(extra="forbid")

    project_id: str


class Files(StaticFiles):
    """Files that browsers ask for again each time and may load nothing from elsewhere."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update({**HEADERS, "cache-control": "no-cache"})
        return response


async def _from_the_dashboard(mark: Annotated[str | None, Header(alias=HEADER)] = None) -> None:
    """Raises a 403 for what another site's page had a browser send."""
    if mark is None:
        raise DomainError(403, "wrong_origin", f"Sessions are for the dashboard; it sends the header '{HEADER}'.")


MARKED = [Depends(_from_the_dashboard)]
router = APIRouter(include_in_schema=False)
static = Files(directory=STATIC)


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers={**HEADERS, "cache-control": "no-cache"})


@router.get("/dashboard/session")
async def signed_in(request: Request) -> dict[str, bool]:
    """Whether the browser has a session; whether its key is good still, each request of the API tells."""
    has_key = key_of(request.headers.get("cookie")) is not None
    return {"signed_in": has_key, "single_sign_on": oidc.is_offered()}


@router.post("/dashboard/session", dependencies=MARKED)
async def sign_in(request: Request, body: SignIn) -> Response:
    """Raises a 401 for what cannot be a key."""
    key = presented_key(f"Bearer {body.key.strip()}")
    return _with_key(Response(status_code=204), key, secure=request.url.scheme == "https")


@router.delete("/dashboard/session", dependencies=MARKED)
async def sign_out(request: Request) -> Response:
    """Forget the key; a session of single sign-on ends, in whatever browser it may be."""
    if key_of(request.headers.get("cookie")) is not None:
        try:
            await _as_signed_in(request, lambda session, caller: end_session(session, caller.key_hash))
        except DomainError as error:
            # One that has ended already is as good as signed out.
            if error.status != 401:
                raise
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _with_key(response: Response, key: str, *, secure: bool) -> Response:
    # Without an end of its own it ends with the browser.
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=secure)
    return response


# Single sign-on


@router.get("/dashboard/oidc/start")
async def start(request: Request, next: str = "jobs") -> Response:
    """Send the browser to the provider. ``next`` is a page of the dashboard, to be shown in the end."""
    if not oidc.is_offered():
        raise DomainError(404, "unknown_url", "This installation has no single sign-on. Sign in with an API key.")
    try:
        await _take_turn(request)
        name, address = await oidc.begin(next)
    except (SignInError, RedisError) as error:
        return _refused(error)
    response = RedirectResponse(address, 303, {"cache-control": "no-store"})
    # The browser comes back from another site, and brings no cookie then that is stricter.
    response.set_cookie(
        ATTEMPT, name, oidc.ATTEMPT_SECONDS, path=oidc.CALLBACK, httponly=True, samesite="lax", secure=_is_secure()
    )
    return response


@router.get(oidc.CALLBACK)
async def callback(
    request: Request, state: str | None = None, code: str | None = None, error: str | None = None
) -> Response:
    """Whoever comes back from the provider, and the page that they wanted, or the one to sign in with the reason."""
    if not oidc.is_offered():
        raise DomainError(404, "unknown_url", "This installation has no single sign-on. Sign in with an API key.")
    try:
        attempt, claims = await oidc.finish(request.cookies.get(ATTEMPT), state, code, error)
        who = people.claimed(claims)
        address = request.client.host if request.client else None
        key = await request_threads.run(f"address {rate_limit.address_of(request.scope)}", _let_in, who, address)
    except (SignInError, RedisError) as fault:
        response = _refused(fault)
    else:
        response = RedirectResponse(f"/#/{attempt.page}", 303, {"cache-control": "no-store"})
        _with_key(response, key, secure=_is_secure())
    response.delete_cookie(ATTEMPT, path=oidc.CALLBACK, httponly=True, samesite="lax")
    return response


def _let_in(who: people.Claimed, address: str | None) -> str:
    with transaction("troll_api") as session:
        return people.sign_in(session, who, address)


async def _take_turn(request: Request) -> None:
    """Raises ``SignInError`` for an address that begins too often."""
    most = settings().stranger_requests_per_minute
    if most and not (await rate_limit.take(f"signing-in:{rate_limit.address_of(request.scope)}", most)).allowed:
        raise SignInError("busy", "an address begins to sign in too often")


def _refused(error: SignInError | RedisError) -> Response:
    log.warning("somebody could not sign in: %s", error)
    reason = error.code if isinstance(error, SignInError) else "unavailable"
    return RedirectResponse(f"/#/sign-in/{reason}", 303, {"cache-control": "no-store"})


def _is_secure() -> bool:
    """Whether browsers find the page by TLS, which a proxy may speak in our place without saying so."""
    return (settings().public_url or "").startswith("https:")


# Whoever is signed in


@router.get("/dashboard/person")
async def person(request: Request) -> dict[str, Any]:
    """Who is signed in, and where they may go. A 404 where it is a key that was typed in."""
    return await _as_signed_in(request, _person)


def _person(session: Session, caller: Principal) -> dict[str, Any]:
    user, projects = people.person(session, caller)
    return {
        "email": user.email,
        "name": user.name,
        "organization": caller.organization_name,
        "project_id": caller.project_id,
        "role": caller.role,
        "projects": [{"id": project.id, "name": project.name, "role": role} for project, role in projects],
    }


@router.get("/dashboard/access")
async def access(request: Request) -> dict[str, Any]:
    """What whoever is signed in may do, so that pages are shown to those who can use them."""
    return await _as_signed_in(request, _access)


def _access(session: Session, caller: Principal) -> dict[str, Any]:
    administers = accounts.administers(session, caller)
    return {
        "organization": caller.organization_name,
        "scopes": sorted(caller.scopes - ADMIN),
        "administers": administers,
        "operates": administers and accounts_repository.operates(session, caller.organization_id),
    }


@router.post("/dashboard/session/project", dependencies=MARKED)
async def go_to(request: Request, body: GoTo) -> Response:
    """Go on in another project."""
    key: str = await _as_signed_in(request, people.go_to, body.project_id)
    return _with_key(Response(status_code=204), key, secure=_is_secure())


@router.get("/dashboard/keys")
async def own_keys(request: Request) -> dict[str, Any]:
    """The person's own keys in the project at hand."""
    return {"data": [_shown(key) for key in await _as_signed_in(request, people.own_keys)]}


@router.post("/dashboard/keys", dependencies=MARKED)
async def make_own_key(request: Request, body: MakeAccountsKey) -> dict[str, Any]:
    """A key, whose value is in this answer only."""

    def make(session: Session, caller: Principal) -> dict[str, Any]:
        lifetime = None if body.expires_in_seconds is None else timedelta(seconds=body.expires_in_seconds)
        plain, key = people.make_own_key(session, caller, name=body.name, scopes=body.scopes, expires_in=lifetime)
        return {**_shown(key), "value": plain}

    return await _as_signed_in(request, make)


@router.delete("/dashboard/keys/{key_id}", dependencies=MARKED)
async def end_own_key(request: Request, key_id: str) -> Response:
    await _as_signed_in(request, people.end_own_key, key_id)
    return Response(status_code=204)


def _shown(key: Any) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "redacted_value": key.hint,
        "scopes": key.scopes,
        "created_at": unix_or_none(key.created_at),
        "last_used_at": unix_or_none(key.last_used_at),
        "expires_at": unix_or_none(key.expires_at),
    }


async def _as_signed_in(request: Request, function: Callable[..., Result], *arguments: Any) -> Result:
    """What ``function(session, caller, …)`` returns, for whoever the browser's cookie is of. Raises a 401."""
    key = key_of(request.headers.get("cookie"))
    recognized = await recognized_by(request.scope, presented_key(f"Bearer {key}" if key else None))
    address = request.client.host if request.client else None
    asked = Asked(f"{request.method} {request.url.path}", address=address)

    def work() -> Result:
        with transaction("troll_api") as session:
            return function(session, identify(session, recognized.key_hash, asked), *arguments)

    return await request_threads.run(recognized.organization_id, work)
