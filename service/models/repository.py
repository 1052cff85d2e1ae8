"""Queries on tuned models. Checkpoints can be used as models too; their rows belong to the jobs."""

from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.models.models import TunedModel


def add(session: Session, model: TunedModel) -> None:
    session.add(model)
    session.flush()


def get(session: Session, id: str) -> TunedModel | None:
    return session.scalar(select(TunedModel).where(TunedModel.id == id))


def of_job(session: Session, job_id: str) -> Sequence[TunedModel]:
    return session.scalars(select(TunedModel).where(TunedModel.job_id == job_id)).all()


def hold(session: Session, id: str) -> None:
    """Keep the model ``id``, whatever kind it is, from being removed until the transaction ends."""
    _lock(session, "pg_advisory_xact_lock_shared", id)


def seize(session: Session, id: str) -> None:
    """Wait until nobody holds ``id``, and let nobody hold it until the transaction ends."""
    _lock(session, "pg_advisory_xact_lock", id)


def _lock(session: Session, function: str, id: str) -> None:
    session.execute(text(f"SELECT {function}(hashtextextended(:name, 0))"), {"name": f"model:{id}"})


def remove(session: Session, model: TunedModel) -> None:
    session.delete(model)
    session.flush()


def all_tuned(session: Session) -> Sequence[TunedModel]:
    return session.scalars(select(TunedModel).order_by(TunedModel.sequence.desc())).all()
