"""The HTTP API."""

import asyncio
import logging
import math
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute

from service.accounts import keys, known
from service.accounts.caller import caller_of, tenant_of
from service.administration import endpoints as administration
from service.core import clock, http, live, logs, openapi, reference, shutdown, storage
from service.core.bodies import Bodies
from service.core.conditional import Conditional
from service.core.db import engine, transaction, warn_if_unbounded
from service.core.errors import DomainError
from service.core.gate import Gate
from service.core.rate_limit import RateLimit
from service.dashboard import endpoints as dashboard
from service.dashboard import oidc
from service.dashboard.session import CookieKey
from service.exports import endpoints as exports
from service.files import endpoints as files
from service.graders import endpoints as graders
from service.inference import endpoints as inference
from service.installation import service as installation
from service.jobs import endpoints as jobs
from service.models import endpoints as models
from service.operating import endpoints as operating
from service.settings import Secret, required, settings
from service.sharing import endpoints as sharing
from service.submission import endpoints as submission
from service.uploads import endpoints as uploads
from service.usage import endpoints as usage_endpoints
from service.usage import meter
from service.usage import service as usage
from service.webhooks import endpoints as webhooks

PART_PATH = re.compile(r"/v1/uploads/[^/]+/parts")
DATABASE_SECONDS = 4.0
"""How long PostgreSQL may take to show that it is there."""

log = logging.getLogger(__name__)

# A server that is frozen holds whoever asks it for as long as it is: few threads, and those of no request.
_askers = anyio.CapacityLimiter(2)
# When the database was asked last, of the times that all was well.
_answered = -math.inf


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # A thread that computes lets the event loop go on after this long; of the usual 5 ms a request would wait for many.
    sys.setswitchinterval(0.001)
    # Only now has uvicorn set up its logging and its signal handlers.
    logs.configure()
    shutdown.overhear()
    check_settings()
    storage.restrict_umask()
    storage.close_to_others()
    await run_in_threadpool(live.warn_if_written_down)
    await run_in_threadpool(_belong)
    yield
    await run_in_threadpool(meter.write)
    await live.close_shared()


def check_settings() -> None:
    """Raises, before the first request does, where a setting is missing that the API needs."""
    needed: tuple[Secret, ...] = ("redis_url", "key_pepper", "webhook_key")
    engine("troll_api")
    for name in needed:
        required(name)
    oidc.check_settings()


def _belong() -> None:
    """Raises ``installation.MismatchError`` where the data folder is not the database's, and does not start."""
    try:
        with transaction("troll_api") as session:
            clock.warn_if_off(session)
            warn_if_unbounded(session)
            installation.verify(session)
    except SQLAlchemyError as error:
        log.warning("the database does not answer yet, or is not migrated: %s", error)


def create_app() -> FastAPI:
    app = FastAPI(
        title="TROLL reinforcement fine-tuning",
        summary="Self-hosted reinforcement fine-tuning behind OpenAI's fine-tuning API.",
        version="1",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    http.install(app)
    # The last one is asked first.
    app.add_middleware(Conditional)
    app.add_middleware(Bodies, upload_limit=upload_limit, caller=caller_of)
    app.add_middleware(RateLimit, presented=keys.presented, known=known.is_known, per_minute=requests_a_minute)
    app.add_middleware(Gate, tenant=tenant_of)
    app.add_middleware(CookieKey)
    app.add_middleware(http.RequestId)
    app.router.routes.extend(_rooms())
    app.add_api_route("/healthz", healthz, methods=["GET"], tags=["health"])
    app.add_api_route("/readyz", readyz, methods=["GET"], tags=["health"])
    app.include_router(dashboard.router)
    app.mount("/dashboard", dashboard.static)
    openapi.install(app)
    reference.install(app)
    return app


@cache
def _rooms() -> list[BaseRoute]:
    """The domains' routes. They hold nothing of an app, and are most of the time that it takes to make one."""
    together = APIRouter()
    for room in (
        files,
        uploads,
        submission,
        jobs,
        graders,
        # A model's id may hold slashes: what is beneath one comes before the models themselves.
        exports,
        models,
        sharing,
        inference,
        webhooks,
        administration,
        operating,
        usage_endpoints,
    ):
        together.include_router(room.router)
    return together.routes


def requests_a_minute(key: str) -> int:
    """How many requests ``key`` may send a minute, as far as that is at hand: nobody waits here for the database."""
    principal = known.principal(key)
    if principal is None:
        return settings().requests_per_minute
    limits, old = usage.at_hand(principal.organization_id)
    if old:
        asyncio.get_running_loop().run_in_executor(None, usage.remembered, principal.organization_id)
    return limits.requests_a_minute


def upload_limit(path: str) -> int | None:
    if path == "/v1/files":
        return settings().max_file_bytes
    return settings().max_part_bytes if PART_PATH.fullmatch(path) else None


async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


async def readyz() -> dict[str, str]:
    """The process and what it depends on answer."""
    with anyio.move_on_after(DATABASE_SECONDS) as patience:
        await anyio.to_thread.run_sync(_ask_database, time.monotonic(), limiter=_askers, abandon_on_cancel=True)
    if patience.cancelled_caught:
        log.warning("not ready, PostgreSQL did not answer within %.0f s", DATABASE_SECONDS)
        raise DomainError(503, "database_unavailable", "PostgreSQL does not answer.")
    try:
        await live.shared().ping()
    except RedisError as error:
        log.warning("not ready, Redis does not answer: %s", error)
        raise DomainError(503, "redis_unavailable", "Redis does not answer.") from error
    return {"status": "ready"}


def _ask_database(wanted_since: float) -> None:
    """Raises a 503. What was answered since then is as good: anybody may ask, and many at once."""
    global _answered
    began = time.monotonic()
    if _answered >= wanted_since:
        return
    try:
        with transaction("troll_api") as session:
            session.execute(text("SELECT 1 FROM fine_tuning_jobs LIMIT 1"))
            tied = installation.verify(session)
    except SQLAlchemyError as error:
        log.warning("not ready, PostgreSQL does not answer: %s", error)
        raise DomainError(503, "database_unavailable", "PostgreSQL does not answer, or is not migrated.") from error
    except installation.MismatchError as error:
        raise DomainError(503, "data_folder_mismatch", str(error)) from error
    if not tied:
        raise DomainError(503, "data_folder_untied", "No worker has been there yet to tie data folder and database.")
    _answered = began
