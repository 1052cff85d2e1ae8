"""PostgreSQL: the login of this process, transactions, and the base of every table.

There are four logins, none of which owns a table, bypasses row-level security or can become another: ``troll_api`` sees
the rows of one project at a time, ``troll_worker`` (training workers) and ``troll_control`` (the control worker)
what their work needs of all, ``troll_operator`` (``troll keys``) the accounts. A process has one of them, in its
``DATABASE_URL``, and says in each transaction which one it means to be.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from typing import Any, ClassVar, Literal, Protocol, get_args

import psycopg
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    Engine,
    ForeignKey,
    Identity,
    Text,
    create_engine,
    event,
    func,
    make_url,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Mapped, ORMExecuteState, Session, mapped_column, with_loader_criteria
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql import visitors

from service.settings import required, settings

log = logging.getLogger(__name__)

Login = Literal["troll_api", "troll_worker", "troll_control", "troll_operator"]
LOGINS: tuple[Login, ...] = get_args(Login)

CONNECTIONS = 16
"""Connections of one process and login at most."""
TRUSTED_SECONDS = 1.0
"""A connection that was used so lately is not asked whether it still works: that takes as long as a query."""

TIMEOUTS = {"statement_timeout": "30s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "120s"}
"""Of every session. Behind a pooler they have to be the logins' own: what a session sets is whoever's comes next."""

# Without these a connection whose packets are dropped blocks its thread for as long as TCP waits: for hours.
_NOTICE_SILENCE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}


EVERY_PROJECT = "*"
"""Stands for all projects of an organisation, where a transaction acts for the whole of it."""


class Owner(Protocol):
    """Whose rows a transaction of the API sees: a project's, or with ``EVERY_PROJECT`` all of an organisation's."""

    @property
    def organization_id(self) -> str: ...
    @property
    def project_id(self) -> str: ...


@dataclass(frozen=True)
class WholeOrganization:
    """All of an organisation."""

    organization_id: str
    project_id: str = EVERY_PROJECT


class Base(DeclarativeBase):
    """Base of every table."""

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool] | None:
        """Which rows of this table are the owner's; None where they belong to nobody in particular."""
        return None

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


class Owned:
    """Columns of rows that belong to a project."""

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        own = cls.organization_id == owner.organization_id
        return own if owner.project_id == EVERY_PROJECT else own & (cls.project_id == owner.project_id)


def driver_url(url: str) -> str:
    """Name psycopg 3 as the driver of a plain ``postgresql://`` or ``postgres://`` URL."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


class WrongLoginError(Exception):
    """A process was given another login than its own."""


def login_url(login: Login) -> str:
    """The URL of PostgreSQL for ``login``.

    Raises ``WrongLoginError`` or ``MissingSettingError`` where this process was not given it.
    """
    url = required("database_url")
    given = make_url(url).username
    if given != login:
        raise WrongLoginError(
            f"DATABASE_URL is for the login '{given}', and this process works as '{login}', which it can only be by "
            "logging in as it: see docs/operations.md, 'Databases'."
        )
    return url


@cache
def engine(login: Login) -> Engine:
    """The engine of this process, which has to be ``login``. Raises as ``login_url`` does."""
    made = create_engine(
        driver_url(login_url(login)),
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
def transaction(login: Login) -> Iterator[Session]:
    """A session in one transaction that commits when the block ends and rolls back when it raises."""
    with Session(engine(login), expire_on_commit=False) as session, session.begin():
        yield session


def act_for(session: Session, owner: Owner) -> None:
    """Let the rest of this transaction see the owner's rows, and no others."""
    settings = {"organization_id": owner.organization_id, "project_id": owner.project_id}
    calls = ", ".join(f"set_config('app.{name}', :{name}, true)" for name in settings)
    session.execute(text(f"SELECT {calls}"), settings)
    bind(session, owner)


def bind(session: Session, owner: Owner) -> None:
    """Restrict the queries of a session to the owner's rows, which PostgreSQL was told already."""
    session.info["owner"] = owner


def owner_of(session: Session) -> Owner | None:
    """On whose behalf a session acts; None for the processes that see the rows of all."""
    owner: Owner | None = session.info.get("owner")
    return owner


@contextmanager
def tenant(owner: Owner) -> Iterator[Session]:
    """A transaction of the API on behalf of one project, or of a whole organisation."""
    with transaction("troll_api") as session:
        act_for(session, owner)
        yield session


@contextmanager
def across_projects(session: Session) -> Iterator[None]:
    """Within the block the session sees all projects of its organisation: what is shared by them is counted there."""
    owner = owner_of(session)
    if owner is None or owner.project_id == EVERY_PROJECT:
        yield
        return
    _see(session, WholeOrganization(owner.organization_id))
    yield
    # Where the block raises, the transaction is over.
    _see(session, owner)


@contextmanager
def within_project(session: Session, project_id: str) -> Iterator[None]:
    """Within the block a session of an organisation sees one of its projects, as that one's own would."""
    owner = owner_of(session)
    assert owner is not None
    assert owner.project_id == EVERY_PROJECT, "a project's session stays where it is"
    _see(session, WholeOrganization(owner.organization_id, project_id))
    yield
    # Where the block raises, the transaction is over.
    _see(session, owner)


@contextmanager
def across_organizations(session: Session) -> Iterator[None]:
    """Within the block an administrator of an organisation that operates the installation sees the jobs that have not
    ended, and the names, of all organisations. Others see no more than before.
    """
    owner = owner_of(session)
    assert owner is not None
    assert owner.project_id == EVERY_PROJECT, "administrators act for all of their organisation"
    _look(session, None, "on")
    yield
    # Where the block raises, the transaction is over.
    _look(session, owner, "off")


def _look(session: Session, owner: Owner | None, beyond: str) -> None:
    session.flush()
    session.execute(text("SELECT set_config('app.operating', :beyond, true)"), {"beyond": beyond})
    session.info["owner"] = owner


def _see(session: Session, owner: Owner) -> None:
    session.flush()
    session.execute(text("SELECT set_config('app.project_id', :project_id, true)"), {"project_id": owner.project_id})
    bind(session, owner)


@event.listens_for(Session, "do_orm_execute")
def _restrict(state: ORMExecuteState) -> None:
    """The first wall between projects: whatever a query asks for, it is asked of the owner's rows.

    The second, beneath it, is row-level security.
    """
    owner = owner_of(state.session)
    if owner is None or state.is_insert or state.is_column_load or state.is_relationship_load:
        return
    statement: Any = state.statement
    # One that counts asks for no entity, but names those that it counts.
    for kind in {mapper.class_ for mapper in state.all_mappers} or _named_in(statement):
        own = kind.owned(owner)
        if own is not None:
            statement = statement.options(with_loader_criteria(kind, own))
    state.statement = statement


def _named_in(statement: Any) -> set[type[Base]]:
    entities = (element._annotations.get("parententity") for element in visitors.iterate(statement))
    return {entity.mapper.class_ for entity in entities if entity is not None}


def lock(session: Session, name: str) -> None:
    """Let nobody else go on who asks for the same name, until the transaction ends."""
    session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


def after_commit(session: Session, action: Callable[[], object]) -> None:
    """Run ``action`` once this transaction has committed; a rollback forgets it. It must not use ``session``."""
    event.listen(session, "after_commit", lambda _: action(), once=True)
