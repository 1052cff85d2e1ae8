"""Queries on exports. What a worker writes is fenced by the number of its attempt."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from service.accounts.models import Organization
from service.core import pagination
from service.exports.models import Export

OPEN = ("queued", "running")
CLAIMS_LOCK = "exports.claim"


def add(session: Session, export: Export) -> None:
    session.add(export)
    session.flush()


def get(session: Session, model: str, id: str) -> Export | None:
    return session.scalar(_live(model).where(Export.id == id))


def page(session: Session, model: str, *, after: str | None, limit: int) -> tuple[Sequence[Export], bool]:
    return pagination.fetch(session, _live(model), Export, after=after, limit=limit)


def count_open(session: Session, organization_id: str) -> int:
    query = select(func.count()).where(Export.organization_id == organization_id, Export.status.in_(OPEN))
    return session.scalar(query) or 0


def remove(session: Session, model: str, id: str) -> bool:
    query = delete(Export).where(Export.id == id, Export.model == model).returning(Export.id)
    return session.execute(query).first() is not None


def existing(session: Session, ids: Sequence[str]) -> set[str]:
    return set(session.scalars(select(Export.id).where(Export.id.in_(ids))))


def remove_expired(session: Session, limit: int) -> Sequence[str]:
    """Delete up to ``limit`` rows that are expired and that nobody is at work on, or whose organisation is deleted.

    Returns their ids.
    """
    gone = select(Organization.id).where(Organization.deleted_at.is_not(None))
    over = (Export.expires_at <= func.now()) & _idle()
    expired = select(Export.id).where(or_(over, Export.organization_id.in_(gone))).limit(limit)
    return session.scalars(delete(Export).where(Export.id.in_(expired)).returning(Export.id)).all()


def _live(model: str) -> Select[Export]:
    return select(Export).where(Export.model == model, Export.expires_at > func.now())


# At work


def waits(session: Session) -> bool:
    """Whether there is an export that nobody is at work on."""
    return session.scalar(select(Export.id).where(*_undone()).limit(1)) is not None


def claim(session: Session, *, lease: timedelta, kept_for: timedelta, each: int) -> Export | None:
    """Take the oldest export of the organisation that has the fewest at work, and at most ``each``.

    Of several organisations it is the one whose last export ended longest ago.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": CLAIMS_LOCK})
    other = aliased(Export)
    own = other.organization_id == Export.organization_id
    at_work = select(func.count()).where(own, other.status == "running", other.lease_expires_at > func.now())
    number = at_work.scalar_subquery()
    query = select(Export.id).where(*_undone(), number < each)
    served = select(func.max(other.finished_at)).where(own).scalar_subquery()
    id = session.scalar(query.order_by(number, served.nulls_first(), Export.sequence).limit(1))
    taken = (
        update(Export)
        .where(Export.id == id)
        .values(
            status="running",
            attempt=Export.attempt + 1,
            progress=0,
            lease_expires_at=func.now() + lease,
            expires_at=func.greatest(Export.expires_at, func.now() + kept_for),
        )
        .returning(Export)
    )
    return session.scalar(taken, execution_options={"populate_existing": True})


def renew(session: Session, export: Export, progress: float, lease: timedelta) -> bool:
    """Whether the attempt still has the export, which it then keeps."""
    values = {"progress": progress, "lease_expires_at": func.now() + lease}
    return _update(session, export, values)


def release(session: Session, export: Export) -> bool:
    """Put the export back as if the attempt, which has ended, had not begun. Returns whether it still had it."""
    return _update(session, export, {"status": "queued", "attempt": Export.attempt - 1, "lease_expires_at": None})


def finish(session: Session, export: Export, status: str, kept_for: timedelta, **values: Any) -> bool:
    """End the export, unless another attempt has it, or it was removed. Returns whether it did."""
    over = {"status": status, "finished_at": func.now(), "expires_at": func.now() + kept_for, "sealed_token": None}
    return _update(session, export, over | {"lease_expires_at": None} | values)


def _update(session: Session, export: Export, values: dict[str, Any]) -> bool:
    mine = (Export.id == export.id, Export.attempt == export.attempt, Export.status == "running")
    return session.execute(update(Export).where(*mine).values(values).returning(Export.id)).first() is not None


def _undone() -> tuple[ColumnElement[bool], ...]:
    return Export.status.in_(OPEN), Export.expires_at > func.now(), _idle()


def _idle() -> ColumnElement[bool]:
    return or_(Export.lease_expires_at.is_(None), Export.lease_expires_at <= func.now())
