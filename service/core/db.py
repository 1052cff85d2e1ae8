"""PostgreSQL: the login of this process, transactions, and the base of every table.

There are four logins, none of which owns a table, bypasses row-level security or can become another: ``troll_api`` sees
the rows of one organisation at a time, ``troll_worker`` (training workers) and ``troll_control`` (the control worker)
what their work needs of all, ``troll_operator`` (``troll keys``) the accounts. A process has one of them, in its
``DATABASE_URL``, and says in each transaction which one it means to be.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from typing import Any, ClassVar, Literal, get_args

import psycopg
from sqlalchemy import BigInteger, DateTime, Dialect, Engine, Identity, Text, create_engine, event, func, make_url, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry

from service.settings import required, settings

log = logging.getLogger(__name__)

Role = Literal["troll_api", "troll_worker", "troll_control", "troll_operator"]
ROLES: tuple[Role, ...] = get_args(Role)

CONNECTIONS = 16
"""Connections of one process and role at most."""
TRUSTED_SECONDS = 1.0
"""A connection that was used so lately is not asked whether it still works: that takes as long as a query."""

TIMEOUTS = {"statement_timeout": "30s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "120s"}
"""Of every session. Behind a pooler they have to be the logins' own: what a session sets is whoever's comes next."""

# Without these a connection whose packets are dropped blocks its thread for as long as TCP waits: for hours.
_NOTICE_SILENCE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}


class Base(DeclarativeBase):
    """Base of every table."""

    type_annotation_map: ClassVar = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: JSONB(none_as_null=True),
        int: BigInteger,
        str: Text,
    }


class Sequenced:
    """Columns of rows that are listed: ``sequence`` orders rows created in the same microsecond."""

    sequence: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


def driver_url(url: str) -> str:
    """Name psycopg 3 as the driver of a plain ``postgresql://`` or ``postgres://`` URL."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


class WrongLoginError(Exception):
    """A process was given another login than that of its role."""


def login_url(role: Role) -> str:
    """The URL of PostgreSQL for ``role``.

    Raises ``WrongLoginError`` or ``MissingSettingError`` where this process was not given it.
    """
    url = required("database_url")
    login = make_url(url).username
    if login != role:
        raise WrongLoginError(
            f"DATABASE_URL is for the login '{login}', and this process works as '{role}', which it can only be by "
            "logging in as it: see docs/operations.md, 'Databases'."
        )
    return url


@cache
def engine(role: Role) -> Engine:
    """The engine of this process, which has to be ``role``. Raises as ``login_url`` does."""
    made = create_engine(
        driver_url(login_url(role)),
        connect_args={"connect_timeout": 5, **_NOTICE_SILENCE, **_session_options()},
        # More than there are threads for requests, so that none of them waits for a connection.
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=5,
    )
    event.listen(made, "checkin", _note_use)
    event.listen(made, "checkout", partial(_check_unless_used_lately, made.dialect))
    return made


def _session_options() -> dict[str, Any]:
    if settings().transaction_pooling:
        # A statement that one session has prepared is unknown to the next one of the same connection.
        return {"prepare_threshold": None}
    return {"options": " ".join(f"-c {name}={value}" for name, value in TIMEOUTS.items())}


def warn_if_unbounded(session: Session) -> None:
    """Warn in the log where a statement may take for ever: a pooler's sessions have the timeouts of their login."""
    for name, value in TIMEOUTS.items():
        if session.scalar(text(f"SELECT current_setting('{name}')")) == "0":
            login = session.connection().engine.url.username
            log.warning(
                "%s is not limited: let the database's owner run ALTER ROLE %s SET %s = '%s'", name, login, name, value
            )


def _note_use(connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _check_unless_used_lately(dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
    """Where the connection is broken, the pool opens another, and trusts none of the others either."""
    if time.monotonic() - record.info.get("used_at", math.inf) < TRUSTED_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise InvalidatePoolError from error


@contextmanager
def transaction(role: Role) -> Iterator[Session]:
    """A session in one transaction that commits when the block ends and rolls back when it raises."""
    with Session(engine(role), expire_on_commit=False) as session, session.begin():
        yield session


def act_for(session: Session, organization_id: str) -> None:
    """Let the rest of this transaction see the rows of one organisation, and no others."""
    session.execute(text("SELECT set_config('app.organization_id', :id, true)"), {"id": organization_id})


@contextmanager
def tenant(organization_id: str) -> Iterator[Session]:
    """A transaction of the API on behalf of one organisation."""
    with transaction("troll_api") as session:
        act_for(session, organization_id)
        yield session


def after_commit(session: Session, action: Callable[[], object]) -> None:
    """Run ``action`` once this transaction has committed; a rollback forgets it. It must not use ``session``."""
    event.listen(session, "after_commit", lambda _: action(), once=True)
