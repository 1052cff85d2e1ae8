"""Uploaded files and result files."""

from datetime import datetime

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned, Sequenced


class File(Owned, Sequenced, Base):
    """Metadata of a file; its bytes are at ``storage.file_path(id)``. Only a committed row makes them visible."""

    __tablename__ = "files"
    __table_args__ = (
        Index("files_of_organization", "organization_id", "sequence"),
        Index("files_of_project", "project_id", "sequence"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    rows: Mapped[int | None]
    """Data rows of a fine-tuning file."""
    expires_at: Mapped[datetime | None]
