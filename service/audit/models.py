"""What was done, by whom, when and from where."""

from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owner, Sequenced


class AuditLog(Sequenced, Base):
    """One act, written in the transaction that did it. No login may change or remove it."""

    __tablename__ = "audit_logs"
    __table_args__ = (Index("audit_logs_of_organization", "organization_id", "sequence"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    actor: Mapped[dict[str, Any]]
    """As the API shows it."""
    actor_id: Mapped[str | None]
    """The user, the service account or else the key."""
    actor_email: Mapped[str | None]
    object_id: Mapped[str | None]
    """What it was done to."""
    details: Mapped[dict[str, Any]]
    address: Mapped[str | None]
    request_id: Mapped[str | None]

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        return cls.organization_id == owner.organization_id
