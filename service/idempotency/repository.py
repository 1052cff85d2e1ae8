"""Queries on kept answers."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.idempotency.models import KeptAnswer


def lock(session: Session, organization_id: str, key: str) -> None:
    """Let no other transaction handle the same request until this one ends."""
    query = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
    session.execute(query, {"name": f"kept_answers/{organization_id}/{key}"})


def find(session: Session, organization_id: str, key: str, younger_than: timedelta) -> KeptAnswer | None:
    return session.scalar(
        select(KeptAnswer).where(
            KeptAnswer.organization_id == organization_id,
            KeptAnswer.key == key,
            KeptAnswer.created_at > func.now() - younger_than,
        )
    )


def keep(session: Session, organization_id: str, key: str, fingerprint: str, answer: dict[str, Any]) -> None:
    """Keep an answer; an older one of the same key is replaced."""
    values = {"fingerprint": fingerprint, "answer": answer}
    statement = insert(KeptAnswer).values(organization_id=organization_id, key=key, **values)
    again = {**values, "created_at": func.now()}
    session.execute(
        statement.on_conflict_do_update(index_elements=[KeptAnswer.organization_id, KeptAnswer.key], set_=again)
    )


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
