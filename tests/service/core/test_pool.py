"""Connections that the server closed: those that rested are asked first, and one that fails takes the others along."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service.core import db


def use() -> int:
    """The process of PostgreSQL that served a transaction."""
    with db.transaction("troll_api") as session:
        return int(session.scalar(text("SELECT pg_backend_pid()")) or 0)


def close_all() -> None:
    """End every connection of this login; the one that says so is told as well."""
    with pytest.raises(OperationalError), db.transaction("troll_api") as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'troll_api' "
                "ORDER BY pid = pg_backend_pid()"
            )
        )


@pytest.fixture
def empty_pool(database: object) -> Iterator[None]:
    db.engine("troll_api").dispose()
    yield
    db.engine("troll_api").dispose()


@pytest.mark.usefixtures("empty_pool")
def test_a_connection_that_rested_is_asked_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "TRUSTED_SECONDS", 0.0)
    with db.transaction("troll_api") as other:
        other.connection()
        rested = use()
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": rested})
    assert rested not in {use(), use()}


@pytest.mark.usefixtures("empty_pool")
def test_after_one_has_failed_none_of_the_others_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    with db.transaction("troll_api") as one, db.transaction("troll_api") as two:
        before = {session.scalar(text("SELECT pg_backend_pid()")) for session in (one, two)}
    close_all()
    monkeypatch.setattr(db, "TRUSTED_SECONDS", 3600.0)
    assert use() not in before
