"""Alembic's environment: one connection as the owner, one migration at a time, no waiting behind long queries."""

from alembic import context
from sqlalchemy import create_engine, make_url, text

from service.core.db import driver_url
from service.settings import settings
from service.tables import Base

ROLES = ("troll_api", "troll_worker", "troll_operator")


def run() -> None:
    engine = create_engine(driver_url(settings().owner_url))
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('alembic'))"))
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
        context.run_migrations()
        login = make_url(settings().database_url).username
        if login and connection.scalar(text("SELECT to_regrole('troll_api') IS NOT NULL")):
            connection.execute(text(f'GRANT {", ".join(ROLES)} TO "{login}"'))
    engine.dispose()


run()
