"""Webhook endpoints of organisations, and the outbox of what is sent to them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, func, select, text
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned, Owner, Sequenced


class WebhookEndpoint(Owned, Sequenced, Base):
    """A URL that wants to hear of events.

    The signing secret is not stored: ``service.webhooks.secret`` derives it from ``salt`` and the pepper.
    ``old_salt`` is that of the secret before, which signs as well until ``old_salt_until``.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("webhook_endpoints_of_organization", "organization_id", "sequence"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    salt: Mapped[str]
    old_salt: Mapped[str | None]
    old_salt_until: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Sequenced, Base):
    """An event on its way to one endpoint, written in the transaction that made the event true.

    ``next_attempt_at`` also hides a delivery from others while one worker is at it.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(
            "webhook_deliveries_due",
            "next_attempt_at",
            postgresql_where=text("delivered_at IS NULL AND given_up_at IS NULL"),
        ),
        Index("webhook_deliveries_of_endpoint", "endpoint_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]
    given_up_at: Mapped[datetime | None]
    last_result: Mapped[str | None]

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        return cls.endpoint_id.in_(select(WebhookEndpoint.id).where(WebhookEndpoint.owned(owner)))
