"""Organisations, their projects, who belongs to them, and the API keys that act for them."""

from datetime import datetime

from sqlalchemy import ColumnElement, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from service.core.db import Base, Owned, Owner, Sequenced


class OfOrganization(Sequenced):
    """Columns of rows that belong to an organisation as a whole."""

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        return cls.organization_id == owner.organization_id


class Organization(Base):
    """One that was deleted keeps its row: jobs that are being cancelled, and the audit log, still name it."""

    __tablename__ = "organizations"
    __table_args__ = (Index("organizations_named", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    weight: Mapped[float] = mapped_column(server_default="1")
    """Its share of GPU time beside those of the others."""
    gpu_hours_a_month: Mapped[float | None]
    """What its jobs may use in a calendar month of UTC; None does not limit."""
    deleted_at: Mapped[datetime | None]


class Operator(Base):
    """An organisation whose administrators see workers and the queue of the whole installation."""

    __tablename__ = "operators"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    @classmethod
    def owned(cls, owner: Owner) -> ColumnElement[bool]:
        return cls.organization_id == owner.organization_id


class Project(OfOrganization, Base):
    """What files, jobs and models belong to. PostgreSQL makes an organisation's default one with the organisation."""

    __tablename__ = "projects"
    __table_args__ = (Index("projects_of_organization", "organization_id", "sequence"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    archived_at: Mapped[datetime | None]


class User(OfOrganization, Base):
    """A person. ``role`` is owner, of everything in the organisation, or reader, who has what projects give.

    One who was deleted keeps the row, so that keys that were theirs never become nobody's.
    """

    __tablename__ = "users"
    __table_args__ = (
        Index(
            "users_once",
            "organization_id",
            text("lower(email)"),
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index(
            "users_of_provider",
            "organization_id",
            "identity",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str]
    identity: Mapped[str | None]
    """The OIDC provider's issuer and its name for the person, once they have signed in there."""
    name: Mapped[str]
    role: Mapped[str]
    deleted_at: Mapped[datetime | None]


class ProjectUser(OfOrganization, Base):
    """What a user is in a project."""

    __tablename__ = "project_users"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    role: Mapped[str]


class ServiceAccount(Owned, Sequenced, Base):
    """A program that works in a project; its keys live no longer than it does."""

    __tablename__ = "service_accounts"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    deleted_at: Mapped[datetime | None]


class APIKey(OfOrganization, Base):
    """A key's plain text is shown once and never stored; ``hash`` is its HMAC-SHA256 under the server's pepper.

    ``kind`` is project, or admin for a key that administers the organisation and is of no project. ``scopes`` are what
    it may do, all where it is None; one that a user or a service account owns may do no more than its owner.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(server_default="project")
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    service_account_id: Mapped[str | None] = mapped_column(ForeignKey("service_accounts.id"))
    scopes: Mapped[list[str] | None]
    is_session: Mapped[bool] = mapped_column(server_default="false")
    """Whether it is the session of a browser in which its owner signed in, and is shown among no keys."""
    name: Mapped[str]
    hint: Mapped[str]
    """First and last characters, enough to recognise a key in a list."""
    hash: Mapped[str] = mapped_column(unique=True)
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
