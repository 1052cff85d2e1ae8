"""A token bucket for each API key, in Redis, asked before anything else is done for a request.

A key that asks too much costs one Redis call and no database connection. When Redis is away nobody is limited: a
limit is a courtesy between users, not a lock.
"""

import hashlib
import logging
import math
import time
from dataclasses import dataclass

from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core import live
from service.core.answers import error_answer
from service.settings import settings

AWAY_SECONDS = 5.0
"""How long Redis is left alone after it did not answer."""

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
    remaining: int
    wait_ms: int
    """How long until the next token."""

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(settings().requests_per_minute),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.wait_ms / 1000:.3f}s",
        }


class RateLimit:
    """Answers 429, with the time to wait, to keys that have used up their tokens."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._away_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = Headers(scope=scope).get("authorization") if scope["type"] == "http" else None
        if token is None or not scope["path"].startswith("/v1/") or settings().requests_per_minute == 0:
            await self.app(scope, receive, send)
            return
        verdict = await self._take(token)
        if verdict is None:
            await self.app(scope, receive, send)
            return
        if not verdict.allowed:
            await _refusal(verdict)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(verdict.headers())
            await send(message)

        await self.app(scope, receive, send_with_headers)

    async def _take(self, token: str) -> Verdict | None:
        if time.monotonic() < self._away_until:
            return None
        try:
            return await run_in_threadpool(take, token)
        except RedisError as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            log.warning("Redis is away, requests are not limited: %s", error)
            return None


def take(token: str) -> Verdict:
    """Take one of the tokens of whoever sends ``token``. Raises ``redis.RedisError``."""
    per_minute = settings().requests_per_minute
    name = f"rate:{hashlib.sha256(token.encode()).hexdigest()[:32]}"
    allowed, remaining, wait_ms = live.client().eval(_TAKE, 1, name, str(per_minute / 60), str(per_minute))
    return Verdict(bool(allowed), remaining, wait_ms)


def _refusal(verdict: Verdict) -> ASGIApp:
    seconds = verdict.wait_ms / 1000
    message = f"Your API key sent more than {settings().requests_per_minute} requests a minute. Wait {seconds:.1f} s."
    waiting = {"retry-after-ms": str(verdict.wait_ms), "Retry-After": str(math.ceil(seconds) or 1)}
    return error_answer(429, "rate_limit_exceeded", message, headers={**verdict.headers(), **waiting})
