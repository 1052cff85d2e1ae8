"""Tuned models."""

from sqlalchemy import ColumnElement, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned, Owner, Sequenced
from service.jobs.models import given_to


class TunedModel(Owned, Sequenced, Base):
    """A model some job made. ``path`` is relative to that job's folder; base models are folders and have no row."""

    __tablename__ = "tuned_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), unique=True)
    base_model: Mapped[str]
    path: Mapped[str]

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        """Those that were shared with the project too."""
        return super().owned(owner) | given_to(cls.id, owner)
