"""Signing in with an OIDC provider: the authorization-code flow with PKCE, state and nonce, and which tokens are good.

Nothing here knows people or the database. What a browser has begun lies in Redis for some minutes, under a name that
only the browser's cookie holds, and is taken out by the first who comes back with it.
"""

import asyncio
import json
import logging
import re
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from service.core import live
from service.settings import MissingSettingError, Settings, is_safe_address, settings

CALLBACK = "/dashboard/oidc/callback"
ATTEMPT_SECONDS = 600
"""How long somebody may take at the provider."""
PROVIDER_SECONDS = 10.0
"""How long the provider may take, all of what it is asked for one sign-in together."""
REMEMBERED_SECONDS = 600.0
"""How long what the provider says of itself, and its keys, are taken for what they were."""
SKEW_SECONDS = 60
"""By how much the provider's clock may be off."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Signatures that only the provider can make; what the client's secret signs, or nothing, is none of them."""
ANSWER_BYTES = 1024**2
FRAGMENT = re.compile(r"[A-Za-z0-9_./:%-]{1,200}")

log = logging.getLogger(__name__)


class SignInError(Exception):
    """Somebody cannot be let in; ``code`` is shown as words by the page, and the rest is for the log."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True)
class Attempt:
    """What a browser has begun."""

    state: str
    nonce: str
    verifier: str
    page: str
    """Of the dashboard, to be shown in the end."""


@dataclass(frozen=True)
class _Provider:
    """What the provider says of itself, and its keys."""

    metadata: dict[str, Any]
    keys: KeySet
    asked_at: float


def is_offered() -> bool:
    return settings().oidc_issuer is not None


def check_settings() -> None:
    """Raises ``MissingSettingError`` where an issuer is set and something that goes with it is not."""
    ours = settings()
    if ours.oidc_issuer is None:
        return
    for name in ("public_url", "oidc_client_id"):
        if getattr(ours, name) is None:
            raise _missing(f"TROLL_{name.upper()}")
    if not _secret(ours):
        raise _missing("TROLL_OIDC_CLIENT_SECRET, or TROLL_OIDC_CLIENT_SECRET_FILE,")
    if ours.oidc_organization is None and ours.oidc_organization_claim is None:
        raise _missing("TROLL_OIDC_ORGANIZATION, or TROLL_OIDC_ORGANIZATION_CLAIM,")


def _missing(what: str) -> MissingSettingError:
    return MissingSettingError(
        f"{what} is not set, and signing in with TROLL_OIDC_ISSUER needs it: see docs/operations.md, 'Single sign-on'."
    )


def _secret(ours: Settings) -> str:
    if ours.oidc_client_secret_file is not None:
        return ours.oidc_client_secret_file.read_text().strip()
    return ours.oidc_client_secret.get_secret_value() if ours.oidc_client_secret else ""


async def begin(page: str) -> tuple[str, str]:
    """The name of an attempt, for the browser's cookie, and where at the provider the browser goes on.

    Raises ``SignInError`` when the provider is away, and ``redis.RedisError``.
    """
    ours, provider = settings(), await _within(_provider())
    name, state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(4))
    attempt = Attempt(state, nonce, verifier, page if FRAGMENT.fullmatch(page) else "jobs")
    await live.shared().set(_place(name), json.dumps(asdict(attempt)), ex=ATTEMPT_SECONDS)
    query = {
        "response_type": "code",
        "client_id": ours.oidc_client_id,
        "redirect_uri": _redirect_uri(ours),
        "scope": ours.oidc_scopes,
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": create_s256_code_challenge(attempt.verifier),
        "code_challenge_method": "S256",
    }
    address = provider.metadata["authorization_endpoint"]
    return name, f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"


async def finish(
    name: str | None, state: str | None, code: str | None, error: str | None
) -> tuple[Attempt, dict[str, Any]]:
    """What was begun under ``name``, and the claims of whoever came back from the provider.

    Raises ``SignInError``, and ``redis.RedisError``.
    """
    kept = await live.shared().getdel(_place(name)) if name else None
    if kept is None:
        raise SignInError("expired", "the browser came back without what it had begun, too late, or twice")
    attempt = Attempt(**json.loads(kept))
    if not secrets.compare_digest((state or "").encode(), attempt.state.encode()):
        raise SignInError("expired", "the state is not the one that was sent")
    if error is not None or not code:
        raise SignInError("refused", f"the provider answered {error or 'without a code'}")
    return attempt, await _within(_claims(attempt, code))


async def _within(asking: Any) -> Any:
    """What ``asking`` returns, in the time that the provider may take."""
    try:
        async with asyncio.timeout(PROVIDER_SECONDS):
            return await asking
    except (TimeoutError, httpx2.HTTPError, ValueError, KeyError, TypeError) as fault:
        raise SignInError("unavailable", f"the provider does not answer as one does: {fault!r}") from fault


async def _claims(attempt: Attempt, code: str) -> dict[str, Any]:
    """The claims of the token that the provider gives for ``code``."""
    ours, provider = settings(), await _provider()
    ways = provider.metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    async with AsyncOAuth2Client(
        ours.oidc_client_id,
        _secret(ours),
        redirect_uri=_redirect_uri(ours),
        token_endpoint_auth_method="client_secret_basic" if "client_secret_basic" in ways else "client_secret_post",
    ) as client:
        try:
            given = await client.fetch_token(
                provider.metadata["token_endpoint"],
                grant_type="authorization_code",
                code=code,
                code_verifier=attempt.verifier,
            )
        except OAuthError as error:
            raise SignInError("refused", f"the provider does not take the code: {error}") from error
    if not isinstance(given.get("id_token"), str):
        raise SignInError("refused", "the provider gave no ID token")
    try:
        token = _read(given["id_token"], provider)
    except (InvalidKeyIdError, BadSignatureError):
        # Keys change; those that were asked for after the token was made know it.
        token = _read_last(given["id_token"], await _provider(anew=True))
    except (JoseError, ValueError) as error:
        raise _bad(error) from error
    claims = CodeIDToken(
        token.claims,
        token.header,
        {
            "iss": {"essential": True, "value": ours.oidc_issuer},
            "aud": {"essential": True, "value": ours.oidc_client_id},
        },
        {"nonce": attempt.nonce, "client_id": ours.oidc_client_id, "access_token": given.get("access_token")},
    )
    try:
        claims.validate(leeway=SKEW_SECONDS)
    except (JoseError, ValueError, TypeError) as error:
        raise _bad(error) from error
    return dict(claims)


def _read(token: str, provider: _Provider) -> jwt.Token:
    """Raises ``joserfc.errors.JoseError`` where it was not signed with a key of the provider's."""
    return jwt.decode(token, provider.keys, registry=JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False))


def _read_last(token: str, provider: _Provider) -> jwt.Token:
    try:
        return _read(token, provider)
    except (JoseError, ValueError) as error:
        raise _bad(error) from error


def _bad(error: Exception) -> SignInError:
    return SignInError("refused", f"the provider's token is not good: {error!r}")


_known: dict[str, _Provider] = {}


async def _provider(*, anew: bool = False) -> _Provider:
    issuer = settings().oidc_issuer
    assert issuer is not None, "whoever comes here was offered it"
    known = _known.get(issuer)
    if known is not None and not anew and time.monotonic() - known.asked_at < REMEMBERED_SECONDS:
        return known
    metadata = await _get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if metadata["issuer"] != issuer:
        raise SignInError(
            "unavailable", f"TROLL_OIDC_ISSUER is not what the provider calls itself: {metadata['issuer']}"
        )
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
        address = metadata[name]
        if not isinstance(address, str) or not is_safe_address(address):
            raise SignInError("unavailable", f"the provider's {name} is no address behind https: {address}")
    try:
        keys = KeySet.import_key_set(await _get(metadata["jwks_uri"]))  # type: ignore[arg-type]
    except JoseError as error:
        raise SignInError("unavailable", f"the provider's keys cannot be read: {error!r}") from error
    _known[issuer] = _Provider(metadata, keys, time.monotonic())
    return _known[issuer]


async def _get(address: str) -> dict[str, Any]:
    async with httpx2.AsyncClient() as client, client.stream("GET", address) as answer:
        answer.raise_for_status()
        body = bytearray()
        async for chunk in answer.aiter_bytes():
            body += chunk
            if len(body) > ANSWER_BYTES:
                raise ValueError(f"{address} answers more than {ANSWER_BYTES} bytes")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError(f"{address} answers no JSON object")
    return found


def _redirect_uri(ours: Settings) -> str:
    assert ours.public_url is not None, "check_settings has seen to it"
    return ours.public_url.rstrip("/") + CALLBACK


def _place(name: str) -> str:
    return f"oidc:{name}"
