"""Token buckets in Redis, asked before anything else is done for a request: one for each API key, and for strangers.

A key that asks too much costs one Redis call and no database connection. Who sends no key, or none that can be one, is
counted by address. A key that can be one is looked up, so that right keys work from an address that sends wrong ones
too; these look-ups are bounded by address as well, but for keys that were right before. When Redis is away nobody is
limited: a limit is a courtesy between users, not a lock.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from redis.exceptions import RedisError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import live
from service.core.answers import error_answer
from service.settings import settings

AWAY_SECONDS = 5.0
"""How long Redis is left alone after it did not answer."""
LOOKUPS_PER_REQUEST = 10
"""Keys that are looked up for one address, for each request that a stranger may send."""

# The bucket holds `capacity` tokens and fills with `rate` tokens a second; the clock is Redis' own.
_TAKE = """
local rate, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(capacity, (tonumber(bucket[1]) or capacity) + (now - (tonumber(bucket[2]) or now)) * rate)
local allowed = tokens >= 1
if allowed then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(capacity / rate * 1000) + 1000)
return {allowed and 1 or 0, math.floor(tokens), math.ceil(math.max(0, 1 - tokens) / rate * 1000)}
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    allowed: bool
    limit: int
    """Requests a minute."""
    remaining: int
    wait_ms: int
    """How long until the next token."""

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.wait_ms / 1000:.3f}s",
        }

    def refusal(self, who: str) -> ASGIApp:
        seconds = self.wait_ms / 1000
        message = f"{who} more than {self.limit} requests a minute. Wait {seconds:.1f} s."
        waiting = {"retry-after-ms": str(self.wait_ms), "Retry-After": str(math.ceil(seconds) or 1)}
        return error_answer(429, "rate_limit_exceeded", message, headers={**self.headers(), **waiting})


class RateLimit:
    """Answers 429, with the time to wait, to keys and strangers that have used up their tokens.

    ``presented`` gives the key in a header ``Authorization``, if it holds one that can be right, and ``known`` whether
    a key was right when it was last used. ``per_minute`` gives the requests that a key may send a minute.
    """

    def __init__(
        self,
        app: ASGIApp,
        presented: Callable[[str | None], str | None],
        known: Callable[[str], bool],
        per_minute: Callable[[str], int],
    ) -> None:
        self.app, self._presented, self.known, self._per_minute = app, presented, known, per_minute
        self._away_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        key, address = self._presented(Headers(scope=scope).get("authorization")), address_of(scope)
        verdict = await self._stranger(address) if key is None else await self._lookup(key, address)
        if verdict is not None and not verdict.allowed:
            who = "Requests without a valid API key, or with one not seen lately, come from your address"
            await verdict.refusal(who)(scope, receive, send)
            return
        if key is None:
            await self.app(scope, receive, send)
            return
        verdict = await self._take(f"rate:{_digest(key)}", self._per_minute(key))
        if verdict is not None and not verdict.allowed:
            await verdict.refusal("Your API key sent")(scope, receive, send)
            return
        headers = {} if verdict is None else verdict.headers()
        await self.app(scope, receive, _Answering(self, key, address, headers, scope, receive, send))

    async def _stranger(self, address: str) -> Verdict | None:
        return await self._take(f"strangers:{address}", settings().stranger_requests_per_minute)

    async def _lookup(self, key: str, address: str) -> Verdict | None:
        if self.known(key):
            return None
        per_minute = settings().stranger_requests_per_minute * LOOKUPS_PER_REQUEST
        return await self._take(f"lookups:{address}", per_minute)

    async def _take(self, name: str, per_minute: int) -> Verdict | None:
        """One of the tokens of the bucket ``name``; None where nobody counts them."""
        if per_minute == 0 or time.monotonic() < self._away_until:
            return None
        began = time.monotonic()
        try:
            return await take(name, per_minute)
        except RedisError as error:
            if time.monotonic() >= self._away_until:
                log.warning("Redis is away, requests are not limited: %s", error)
            self._away_until = time.monotonic() + AWAY_SECONDS
            # A server that is frozen lets us wait; one that is gone refuses at once, and may be back at once.
            if time.monotonic() - began >= live.ANSWER_SECONDS / 2:
                live.silence.note()
            return None


class _Answering:
    """Sends an answer to a request with a key; a key that turned out to be wrong makes its sender a stranger."""

    def __init__(
        self,
        limit: RateLimit,
        key: str,
        address: str,
        headers: dict[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._limit, self._key, self._address, self._headers = limit, key, address, headers
        self._scope, self._receive, self._send = scope, receive, send
        self._refused = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            verdict = None
            if message["status"] < 500 and not self._limit.known(self._key):
                verdict = await self._limit._stranger(self._address)
            if verdict is not None and not verdict.allowed:
                self._refused = True
                await verdict.refusal("Wrong API keys come from your address")(self._scope, self._receive, self._send)
                return
            MutableHeaders(scope=message).update(self._headers)
        if not self._refused:
            await self._send(message)


async def take(name: str, per_minute: int) -> Verdict:
    """Take one of the tokens of the bucket ``name``. Raises ``redis.RedisError``."""
    allowed, remaining, wait_ms = await live.shared().eval(_TAKE, 1, name, str(per_minute / 60), str(per_minute))
    return Verdict(bool(allowed), per_minute, remaining, wait_ms)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def address_of(scope: Scope) -> str:
    """Whose requests are counted together: an IPv4 address, or the /64 network that one owner of IPv6 has at least."""
    client = scope.get("client")
    try:
        address: IPv4Address | IPv6Address = ip_address(client[0].partition("%")[0] if client else "")
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return f"{IPv6Address(int(address) >> 64 << 64)}/64"
        address = address.ipv4_mapped
    return str(address)
