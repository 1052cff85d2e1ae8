"""Uploads: files that arrive in parts."""

from datetime import datetime

from sqlalchemy import ColumnElement, ForeignKey, Index, select, text
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned, Owner, Sequenced


class Upload(Owned, Sequenced, Base):
    """``status`` is pending, completed or cancelled; a pending one behind ``expires_at`` has expired."""

    __tablename__ = "uploads"
    __table_args__ = (Index("uploads_pending", "organization_id", postgresql_where=text("status = 'pending'")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    mime_type: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    expires_at: Mapped[datetime]
    file_id: Mapped[str | None]
    file_lifetime_seconds: Mapped[int | None]


class UploadPart(Sequenced, Base):
    """A part whose bytes are whole at ``storage.part_path``."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("parts_of_upload", "upload_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    bytes: Mapped[int]

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        return cls.upload_id.in_(select(Upload.id).where(Upload.owned(owner)))
