"""Queries on tuned models. Checkpoints can be used as models too; their rows belong to the jobs."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.models.models import TunedModel


def add(session: Session, model: TunedModel) -> None:
    session.add(model)
    session.flush()


def get(session: Session, id: str) -> TunedModel | None:
    return session.scalar(select(TunedModel).where(TunedModel.id == id))


def remove(session: Session, model: TunedModel) -> None:
    session.delete(model)
    session.flush()


def all_tuned(session: Session) -> Sequence[TunedModel]:
    return session.scalars(select(TunedModel).order_by(TunedModel.sequence.desc())).all()
