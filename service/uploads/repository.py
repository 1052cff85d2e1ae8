"""Queries on uploads and their parts."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from service.uploads.models import Upload, UploadPart


def add(session: Session, row: Upload | UploadPart) -> None:
    session.add(row)
    session.flush()


def get(session: Session, id: str) -> Upload | None:
    return session.scalar(select(Upload).where(Upload.id == id))


def locked(session: Session, id: str) -> Upload | None:
    return session.scalar(select(Upload).where(Upload.id == id).with_for_update())


def pending(session: Session, organization_id: str) -> int:
    """How many uploads of an organisation wait for parts."""
    query = select(func.count()).where(
        Upload.organization_id == organization_id, Upload.status == "pending", Upload.expires_at > func.now()
    )
    return session.scalar(query) or 0


def bytes_received(session: Session, upload_id: str) -> int:
    query = select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(UploadPart.upload_id == upload_id)
    return int(session.scalar(query) or 0)


def parts(session: Session, upload_id: str) -> dict[str, UploadPart]:
    rows = session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id))
    return {part.id: part for part in rows}


def remove_stale(session: Session, older_than: timedelta, limit: int) -> int:
    """Forget up to ``limit`` uploads of any organisation, over since ``older_than``. Returns how many."""
    stale = (
        select(Upload.id)
        .where(or_(Upload.status != "pending", Upload.expires_at <= func.now()))
        .where(Upload.expires_at <= func.now() - older_than)
        .limit(limit)
    )
    return len(session.scalars(delete(Upload).where(Upload.id.in_(stale)).returning(Upload.id)).all())


def known(session: Session, ids: Sequence[str]) -> set[str]:
    """Those of ``ids`` that have a row, whatever it says."""
    return set(session.scalars(select(Upload.id).where(Upload.id.in_(ids))))


def existing(session: Session, ids: Sequence[str]) -> set[str]:
    """Those of ``ids`` whose parts may still be needed."""
    query = select(Upload.id).where(Upload.id.in_(ids), Upload.status == "pending", Upload.expires_at > func.now())
    return set(session.scalars(query))
