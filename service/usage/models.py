"""What organisations may use, where that is not what the installation allows everybody, and the tokens they used."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned


class OrganizationLimits(Base):
    """Limits of one organisation; None is the installation's, see ``service.usage.service.Limits``."""

    __tablename__ = "organization_limits"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    storage_bytes: Mapped[int | None]
    upload_bytes: Mapped[int | None]
    queued_jobs: Mapped[int | None]
    running_jobs: Mapped[int | None]
    streams: Mapped[int | None]
    requests_a_minute: Mapped[int | None]
    chat_tokens_a_day: Mapped[int | None]


class TokenUsage(Base):
    """Tokens of chats, completions and responses of one model that ended in the minute that begins at ``minute``."""

    __tablename__ = "token_usage"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    minute: Mapped[datetime] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    requests: Mapped[int]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]


class ProjectTokenUsage(Owned, Base):
    """The same of one project. Those of all projects together may lack what an older release has counted."""

    __tablename__ = "project_token_usage"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    minute: Mapped[datetime] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    requests: Mapped[int]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
