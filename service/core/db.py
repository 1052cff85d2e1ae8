"""PostgreSQL: one engine per role, transactions, and the base of every table.

Three roles are created by the first migration, none of which owns a table or bypasses row-level security:
``troll_api`` sees the rows of one organisation at a time, ``troll_worker`` the jobs of all, ``troll_operator`` the
accounts. Every connection takes its role when it is opened.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Literal

from sqlalchemy import BigInteger, DateTime, Engine, Identity, Text, create_engine, event, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from service.settings import settings

Role = Literal["troll_api", "troll_worker", "troll_operator"]

_SESSION_OPTIONS = "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=120s"

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


@cache
def engine(role: Role) -> Engine:
    """The engine whose connections act as ``role``."""
    return create_engine(
        driver_url(settings().database_url),
        connect_args={"options": f"-c role={role} {_SESSION_OPTIONS}", "connect_timeout": 5, **_NOTICE_SILENCE},
        pool_size=10,
        max_overflow=40,
        pool_timeout=5,
        pool_pre_ping=True,
    )


@contextmanager
def transaction(role: Role) -> Iterator[Session]:
    """A session in one transaction that commits when the block ends and rolls back when it raises."""
    with Session(engine(role), expire_on_commit=False) as session, session.begin():
        yield session


def act_for(session: Session, organization_id: str) -> None:
    """Let the rest of this transaction see the rows of one organisation, and no others."""
    set_local(session, "app.organization_id", organization_id)


def set_local(session: Session, name: str, value: str) -> None:
    session.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})


@contextmanager
def tenant(organization_id: str) -> Iterator[Session]:
    """A transaction of the API on behalf of one organisation."""
    with transaction("troll_api") as session:
        act_for(session, organization_id)
        yield session


def after_commit(session: Session, action: Callable[[], object]) -> None:
    """Run ``action`` once this transaction has committed; a rollback forgets it. It must not use ``session``."""
    event.listen(session, "after_commit", lambda _: action(), once=True)
