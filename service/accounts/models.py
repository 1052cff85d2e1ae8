"""Organisations and the API keys that act for them."""

from datetime import datetime

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Sequenced


class Organization(Base):
    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    weight: Mapped[float] = mapped_column(server_default="1")
    """Its share of GPU time beside those of the others."""
    gpu_hours_a_month: Mapped[float | None]
    """What its jobs may use in a calendar month of UTC; None does not limit."""


class APIKey(Sequenced, Base):
    """A key's plain text is shown once and never stored; ``hash`` is its HMAC-SHA256 under the server's pepper."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    hint: Mapped[str]
    """First and last characters, enough to recognise a key in a list."""
    hash: Mapped[str] = mapped_column(unique=True)
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
