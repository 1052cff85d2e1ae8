"""The dashboard at ``/``: files of this installation that ask the API as any client does, and the browser's session."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.types import Scope

from service.accounts.service import presented_key
from service.core.errors import DomainError
from service.core.reference import HEADERS
from service.dashboard.session import COOKIE, HEADER, key_of

STATIC = Path(__file__).parent / "static"


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str


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


router = APIRouter(include_in_schema=False)
static = Files(directory=STATIC)


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers={**HEADERS, "cache-control": "no-cache"})


@router.get("/dashboard/session")
async def signed_in(request: Request) -> dict[str, bool]:
    """Whether the browser has a session; whether its key is good still, each request of the API tells."""
    return {"signed_in": key_of(request.headers.get("cookie")) is not None}


@router.post("/dashboard/session", dependencies=[Depends(_from_the_dashboard)])
async def sign_in(request: Request, body: SignIn) -> Response:
    """Raises a 401 for what cannot be a key."""
    key = presented_key(f"Bearer {body.key.strip()}")
    response = Response(status_code=204)
    # Without an end of its own it ends with the browser.
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


@router.delete("/dashboard/session", dependencies=[Depends(_from_the_dashboard)])
async def sign_out() -> Response:
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
