"""Queries on files."""

from collections.abc import Sequence

from sqlalchemy import Select, delete, func, or_, select
from sqlalchemy.orm import Session

from service.accounts.models import Organization
from service.core import pagination
from service.core.clock import now
from service.files.models import File

__all__ = ["add", "existing", "get", "now", "page", "remove", "remove_expired"]


def _live() -> Select[File]:
    return select(File).where(or_(File.expires_at.is_(None), File.expires_at > func.now()))


def add(session: Session, file: File) -> File:
    session.add(file)
    session.flush()
    return file


def get(session: Session, id: str) -> File | None:
    return session.scalar(_live().where(File.id == id))


def page(
    session: Session, *, purpose: str | None, after: str | None, limit: int, ascending: bool
) -> tuple[Sequence[File], bool]:
    query = _live() if purpose is None else _live().where(File.purpose == purpose)
    return pagination.fetch(session, query, File, after=after, limit=limit, ascending=ascending)


def remove(session: Session, id: str) -> bool:
    return session.execute(delete(File).where(File.id == id).returning(File.id)).first() is not None


def remove_expired(session: Session, limit: int) -> Sequence[str]:
    """Delete up to ``limit`` rows that are expired, or whose organisation is deleted. Returns their ids."""
    gone = select(Organization.id).where(Organization.deleted_at.is_not(None))
    over = or_(File.expires_at <= func.now(), File.organization_id.in_(gone))
    expired = select(File.id).where(over).limit(limit)
    return session.scalars(delete(File).where(File.id.in_(expired)).returning(File.id)).all()


def existing(session: Session, ids: Sequence[str]) -> set[str]:
    return set(session.scalars(select(File.id).where(File.id.in_(ids))))
