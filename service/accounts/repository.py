"""Queries on organisations and API keys."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import psycopg
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from service.accounts.models import APIKey, Organization

_LIVE = (APIKey.revoked_at.is_(None), or_(APIKey.expires_at.is_(None), APIKey.expires_at > func.now()))


def is_live(session: Session, id: str) -> bool:
    """Whether the key of this id is still good."""
    return session.scalar(select(APIKey.id).where(APIKey.id == id, *_LIVE)) is not None


def is_live_hash(session: Session, hash: str) -> bool:
    """Whether a key with this hash is good, for who sees all keys: the API asks ``identify``."""
    return session.scalar(select(APIKey.id).where(APIKey.hash == hash, *_LIVE)) is not None


def identify(session: Session, hash: str, touch_every: timedelta) -> tuple[str, str, str] | None:
    """The key with this hash unless it is revoked or expired, its organisation and that one's name.

    From here on the transaction sees the rows of that organisation only. Its use is noted, at most once in
    ``touch_every`` so that reading does not become writing. It is asked in the same round trip that begins the
    transaction, for every request does this first.
    """
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    with driver.pipeline():
        return driver.execute("SELECT * FROM identify_caller(%s, %s)", [hash, touch_every]).fetchone()


def organization(session: Session, id: str) -> Organization | None:
    return session.scalar(select(Organization).where(Organization.id == id))


def organization_named(session: Session, name: str) -> Organization | None:
    return session.scalar(select(Organization).where(Organization.name == name))


def add(session: Session, row: Organization | APIKey) -> None:
    session.add(row)
    session.flush()


def keys(session: Session) -> Sequence[tuple[APIKey, Organization]]:
    query = select(APIKey, Organization).join(Organization, Organization.id == APIKey.organization_id)
    return [(key, organization) for key, organization in session.execute(query.order_by(APIKey.sequence))]


def revoke(session: Session, id: str) -> datetime | None:
    """Revoke a key. Returns when, or None when no key that is still valid has this id."""
    query = update(APIKey).where(APIKey.id == id, APIKey.revoked_at.is_(None)).values(revoked_at=func.now())
    return session.scalar(query.returning(APIKey.revoked_at))
