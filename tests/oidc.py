"""A small OIDC provider on the loopback address: a code for whoever comes, and a token for a code, once.

``person`` is who is signed in there. What a hostile or broken provider would do is set on it.
"""

import hashlib
import json
import secrets
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

CLIENT, SECRET = "troll", "the client's secret"


@cache
def keys() -> list[RSAKey]:
    """Two of the provider's, and one that is not; making one takes a while."""
    return [RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True) for _ in range(3)]


@dataclass
class Provider:
    origin: str = ""
    person: dict[str, Any] = field(
        default_factory=lambda: {"sub": "1", "email": "ada@acme.example", "email_verified": True}
    )
    change: Callable[[dict[str, Any]], Any] = lambda claims: None
    """Changes the claims of a token before it is signed."""
    sign: Callable[["Provider", dict[str, Any]], str] = lambda provider, claims: provider.signed(claims)
    metadata: dict[str, Any] = field(default_factory=dict)
    delay: float = 0.0
    down: bool = False
    keys: list[RSAKey] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def rotate(self) -> None:
        """Sign with another key from now on, and show that one alone."""
        self.keys = [next(key for key in keys() if key not in self.keys)]

    def signed(self, claims: dict[str, Any], **header: Any) -> str:
        return jwt.encode({"alg": "RS256", "kid": self.keys[0].kid, **header}, claims, self.keys[0])

    def claims(self, nonce: str) -> dict[str, Any]:
        now = int(time.time())
        made = {"iss": self.origin, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce, **self.person}
        self.change(made)
        return made

    def answer(self, path: str, body: str, authorization: str) -> tuple[int, dict[str, str], Any]:
        parts = urlsplit(path)
        self.asked.append(parts.path)
        time.sleep(self.delay)
        if self.down:
            return 503, {}, {"error": "temporarily_unavailable"}
        query = {name: values[0] for name, values in parse_qs(body or parts.query).items()}
        if parts.path == "/.well-known/openid-configuration":
            return (
                200,
                {},
                {
                    "issuer": self.origin,
                    "authorization_endpoint": f"{self.origin}/authorize",
                    "token_endpoint": f"{self.origin}/token",
                    "jwks_uri": f"{self.origin}/keys",
                    **self.metadata,
                },
            )
        if parts.path == "/keys":
            return 200, {}, KeySet(list(self.keys)).as_dict(private=False)
        if parts.path == "/authorize":
            code = secrets.token_urlsafe(16)
            self.codes[code] = query
            back = urlencode({"code": code, "state": query["state"]})
            return 302, {"location": f"{query['redirect_uri']}?{back}"}, {}
        begun = self.codes.pop(query.get("code", ""), None)
        digest = hashlib.sha256(query.get("code_verifier", "").encode()).digest()
        challenge = urlsafe_b64encode(digest).rstrip(b"=").decode()
        if begun is None or begun["code_challenge"] != challenge or not authorization.startswith("Basic "):
            return 400, {}, {"error": "invalid_grant"}
        token = self.sign(self, self.claims(begun["nonce"]))
        return 200, {}, {"access_token": "opaque", "token_type": "Bearer", "id_token": token}


@contextmanager
def serve() -> Iterator[Provider]:
    provider = Provider()
    provider.rotate()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            status, headers, answer = provider.answer(self.path, body, self.headers.get("authorization", ""))
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider.origin = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield provider
        server.shutdown()
