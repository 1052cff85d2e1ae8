"""The HTTP API."""

from fastapi import FastAPI
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from service.core import http, live
from service.core.db import transaction
from service.core.errors import DomainError
from service.files import endpoints as files
from service.jobs import endpoints as jobs
from service.models import endpoints as models


def create_app() -> FastAPI:
    app = FastAPI(
        title="TROLL reinforcement fine-tuning",
        summary="Self-hosted reinforcement fine-tuning behind OpenAI's fine-tuning API.",
        version="1",
        redirect_slashes=False,
    )
    http.install(app, upload_paths=frozenset({"/v1/files"}))
    for router in (files.router, jobs.router, models.router):
        app.include_router(router)
    app.add_api_route("/healthz", healthz, methods=["GET"], tags=["health"])
    app.add_api_route("/readyz", readyz, methods=["GET"], tags=["health"])
    return app


def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


def readyz() -> dict[str, str]:
    """The process and what it depends on answer."""
    try:
        with transaction("troll_api") as session:
            session.execute(text("SELECT 1 FROM fine_tuning_jobs LIMIT 1"))
    except SQLAlchemyError as error:
        raise DomainError(503, "database_unavailable", "PostgreSQL does not answer, or is not migrated.") from error
    try:
        live.ping()
    except RedisError as error:
        raise DomainError(503, "redis_unavailable", "Redis does not answer.") from error
    return {"status": "ready"}
