"""A browser's session: the API key that somebody signed in with, in a cookie that no script can read.

Nothing is kept here. Each request is checked as one with an ``Authorization`` header is, so that a key that ends ends
its sessions too. Another site's page cannot use the cookie: browsers do not send it along (``SameSite=Strict``), and
what changes something needs a header that such a page could not set.
"""

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.accounts import keys

COOKIE = "troll_session"
HEADER = "x-troll-dashboard"
SAFE = ("GET", "HEAD")


class CookieKey:
    """Gives requests of a signed-in browser the ``Authorization`` header that they lack."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            headers = Headers(scope=scope)
            key = None if "authorization" in headers else key_of(headers.get("cookie"))
            if key is not None and (scope["method"] in SAFE or HEADER in headers):
                scope = {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer " + key.encode())]}
        await self.app(scope, receive, send)


def key_of(cookies: str | None) -> str | None:
    """The key in a ``Cookie`` header, if it holds one that can be right."""
    try:
        morsel = SimpleCookie(cookies or "").get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel is not None and keys.is_well_formed(morsel.value) else None
