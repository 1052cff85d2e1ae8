"""Tuned models."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Sequenced


class TunedModel(Sequenced, Base):
    """A model some job made. ``path`` is relative to that job's folder; base models are folders and have no row."""

    __tablename__ = "tuned_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"), unique=True)
    base_model: Mapped[str]
    path: Mapped[str]
