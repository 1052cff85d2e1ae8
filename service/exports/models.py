"""Exports of models: the work to be done, and what came of it."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned, Sequenced


class Export(Owned, Sequenced, Base):
    """A model in another form, made by a control worker in a folder of its own, which goes when the export expires.

    ``status`` is queued, running, succeeded or failed. ``attempt`` counts how often a worker has begun it, and fences:
    whoever lost the lease changes nothing.
    """

    __tablename__ = "exports"
    __table_args__ = (
        Index("exports_open", "sequence", postgresql_where=text("status IN ('queued', 'running')")),
        Index("exports_of_model", "project_id", "model", "sequence"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    source: Mapped[str]
    """The model's folder."""
    format: Mapped[str]
    type: Mapped[str | None]
    """Of a GGUF file; until it is made, as it was asked for."""
    hub: Mapped[dict[str, Any] | None]
    """``repository`` and ``private``, and once it is there ``url`` and ``revision``."""
    sealed_token: Mapped[str | None]
    """The hub's, as ``service.exports.seal`` writes it; none once the export has ended."""
    status: Mapped[str] = mapped_column(server_default="queued")
    progress: Mapped[float] = mapped_column(server_default="0")
    bytes: Mapped[int]
    """Of what is kept; until that is known, what it takes at most."""
    sha256: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    notes: Mapped[list[str]] = mapped_column(server_default="[]")
    attempt: Mapped[int] = mapped_column(server_default="0")
    lease_expires_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime]
