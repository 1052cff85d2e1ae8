"""Queries on kept answers."""

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.core.db import Owner
from service.idempotency.models import KeptAnswer


def hold(
    session: Session,
    owner: Owner,
    key: str,
    fingerprint: str,
    *,
    holder: str,
    held_for: timedelta,
    younger_than: timedelta | None,
) -> bool:
    """Take the request ``key`` on. False when it was carried out, or is, and that is ``younger_than``.

    Without ``younger_than`` it is always taken on.
    """
    taken = {
        "fingerprint": fingerprint,
        "answer": None,
        "holder": holder,
        "held_until": func.now() + held_for,
        "created_at": func.now(),
    }
    free: ColumnElement[bool] = true()
    if younger_than is not None:
        abandoned = and_(KeptAnswer.answer.is_(None), KeptAnswer.held_until <= func.now())
        free = or_(KeptAnswer.created_at <= func.now() - younger_than, abandoned)
    statement = insert(KeptAnswer).values(**_whose(owner), key=key, **taken)
    statement = statement.on_conflict_do_update(
        index_elements=[KeptAnswer.organization_id, KeptAnswer.key], set_=taken, where=free
    )
    return session.scalar(statement.returning(KeptAnswer.key)) is not None


def find(session: Session, owner: Owner, key: str) -> KeptAnswer | None:
    return session.scalar(select(KeptAnswer).where(KeptAnswer.owned(owner), KeptAnswer.key == key))


def keep(session: Session, owner: Owner, key: str, fingerprint: str, answer: dict[str, Any]) -> None:
    """Keep an answer; an older one of the same key is replaced."""
    values = {"fingerprint": fingerprint, "answer": answer, "holder": None, "held_until": None}
    statement = insert(KeptAnswer).values(**_whose(owner), key=key, **values)
    again = {**values, "created_at": func.now()}
    session.execute(
        statement.on_conflict_do_update(index_elements=[KeptAnswer.organization_id, KeptAnswer.key], set_=again)
    )


def keep_own(session: Session, owner: Owner, key: str, holder: str, answer: dict[str, Any]) -> bool:
    """Keep the answer of ``holder``. False when it holds the request no more."""
    mine = (KeptAnswer.owned(owner), KeptAnswer.key == key, KeptAnswer.holder == holder)
    values = {"answer": answer, "holder": None, "held_until": None, "created_at": func.now()}
    return session.scalar(update(KeptAnswer).where(*mine).values(values).returning(KeptAnswer.key)) is not None


def release(session: Session, owner: Owner, key: str, holder: str) -> None:
    """Let go of a request that ``holder`` did not carry out."""
    mine = (KeptAnswer.owned(owner), KeptAnswer.key == key, KeptAnswer.holder == holder)
    session.execute(delete(KeptAnswer).where(*mine))


def remove_old(session: Session, older_than: timedelta, limit: int) -> int:
    """Forget up to ``limit`` answers of any organisation. Returns how many."""
    old = (
        select(KeptAnswer.organization_id, KeptAnswer.key)
        .where(KeptAnswer.created_at <= func.now() - older_than)
        .limit(limit)
        .subquery()
    )
    query = delete(KeptAnswer).where(KeptAnswer.organization_id == old.c.organization_id, KeptAnswer.key == old.c.key)
    return len(session.execute(query.returning(KeptAnswer.key)).all())


def _whose(owner: Owner) -> dict[str, str]:
    return {"organization_id": owner.organization_id, "project_id": owner.project_id}
