"""Alembic's environment: one connection as the owner, one migration at a time, no waiting behind long queries."""

import logging

from alembic import context
from pydantic import SecretStr
from pydantic_settings import BaseSettings
from sqlalchemy import create_engine, text

from migrations.tables import Base
from service.core.db import driver_url
from service.settings import MissingSettingError, secrets_dir

log = logging.getLogger(__name__)


class _Environment(BaseSettings):
    """A migration needs this one setting, the login that owns the tables."""

    database_owner_url: SecretStr | None = None


def run() -> None:
    engine = create_engine(driver_url(owner_url()))
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('alembic'))"))
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
        unknown = set(context.get_context().get_current_heads()) - {
            each.revision for each in context.script.walk_revisions()
        }
        if unknown:
            # A release that was rolled back to: migrations only add to what it works with.
            log.warning("the database is of a newer revision, %s, and left as it is", ", ".join(sorted(unknown)))
        else:
            context.run_migrations()
    engine.dispose()


def owner_url() -> str:
    url = _Environment(_secrets_dir=secrets_dir()).database_owner_url
    if not url:
        raise MissingSettingError(
            "DATABASE_OWNER_URL is not set, nor a file of TROLL_SECRETS_DIR: see docs/operations.md, 'Databases'."
        )
    return url.get_secret_value()


run()
