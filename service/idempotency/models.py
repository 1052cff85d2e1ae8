"""Requests whose answer is kept, so that the same request sent again changes nothing."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned


class KeptAnswer(Owned, Base):
    """``key`` is the caller's ``Idempotency-Key`` behind ``key:``, or the request's fingerprint behind ``body:``.

    Without an ``answer`` the request is still carried out, by ``holder``, who has until ``held_until``.
    """

    __tablename__ = "kept_answers"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    answer: Mapped[dict[str, Any] | None]
    holder: Mapped[str | None]
    held_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
