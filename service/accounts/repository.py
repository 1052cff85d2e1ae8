"""Queries on organisations and API keys."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from service.accounts.models import APIKey, Organization
from service.core.db import set_local


def live_key(session: Session, hash: str) -> APIKey | None:
    """The key with this hash unless it is revoked or expired. Row-level security shows a nameless caller no other."""
    set_local(session, "app.key_hash", hash)
    return session.scalar(
        select(APIKey).where(
            APIKey.hash == hash,
            APIKey.revoked_at.is_(None),
            or_(APIKey.expires_at.is_(None), APIKey.expires_at > func.now()),
        )
    )


def is_live(session: Session, id: str) -> bool:
    """Whether the key of this id is still good."""
    query = select(APIKey.id).where(
        APIKey.id == id,
        APIKey.revoked_at.is_(None),
        or_(APIKey.expires_at.is_(None), APIKey.expires_at > func.now()),
    )
    return session.scalar(query) is not None


def touch(session: Session, key: APIKey, every: timedelta) -> None:
    """Note that ``key`` was used, at most once in ``every`` so that reading does not become writing."""
    stale = or_(APIKey.last_used_at.is_(None), APIKey.last_used_at < func.now() - every)
    session.execute(update(APIKey).where(APIKey.id == key.id, stale).values(last_used_at=func.now()))


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
