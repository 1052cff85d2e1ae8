"""The administration API on the wire, as ``client.admin.organization`` reads it."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.accounts.models import APIKey, Project, ProjectUser, ServiceAccount, User
from service.accounts.scopes import ROLES, Scope
from service.audit.models import AuditLog
from service.core.pagination import Listed

YEAR = 366 * 86_400
Name = Annotated[str, Field(min_length=1, max_length=255)]
Id = Annotated[str, Field(max_length=255)]
Email = Annotated[str, Field(min_length=3, max_length=320, pattern=r"^[^@\s]+@[^@\s]+$")]
Seconds = Annotated[int, Field(ge=60, le=10 * YEAR)]
ProjectScope = Literal["read", "submit", "manage"]
ProjectRole = Literal["owner", "member", "reader"]
OrganizationRole = Literal["owner", "reader"]
AccountRole = Literal["owner", "member"]


def unix(time: datetime) -> int:
    return int(time.timestamp())


def unix_or_none(time: datetime | None) -> int | None:
    return None if time is None else unix(time)


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool = True


# Projects


class NameProject(Asked):
    name: Name


class ProjectObject(Listed):
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]

    @classmethod
    def of(cls, row: Project) -> "ProjectObject":
        return cls(
            id=row.id,
            name=row.name,
            created_at=unix(row.created_at),
            archived_at=unix_or_none(row.archived_at),
            status="active" if row.archived_at is None else "archived",
        )


# Users


class AddUser(Asked):
    email: Email
    name: Name
    role: OrganizationRole = "reader"


class ChangeUser(Asked):
    role: OrganizationRole


class UserObject(Listed):
    object: Literal["organization.user"] = "organization.user"
    email: str
    name: str
    role: str
    added_at: int
    api_key_last_used_at: int | None = None

    @classmethod
    def of(cls, row: User, last_used_at: datetime | None = None) -> "UserObject":
        return cls(
            id=row.id,
            email=row.email,
            name=row.name,
            role=row.role,
            added_at=unix(row.created_at),
            api_key_last_used_at=unix_or_none(last_used_at),
        )


class AddMember(Asked):
    """A user of the organisation, by one of the two."""

    user_id: Id | None = None
    email: Email | None = None
    role: ProjectRole


class ChangeMember(Asked):
    role: ProjectRole


class MemberObject(Listed):
    object: Literal["organization.project.user"] = "organization.project.user"
    email: str
    name: str
    role: str
    added_at: int

    @classmethod
    def of(cls, row: ProjectUser, user: User) -> "MemberObject":
        return cls(id=user.id, email=user.email, name=user.name, role=row.role, added_at=unix(row.created_at))


# Keys


class MakeAccount(Asked):
    name: Name
    create_service_account_only: bool | None = None
    expires_in_seconds: Seconds | None = None


class ChangeAccount(Asked):
    name: Name | None = None
    role: AccountRole | None = None


class AccountObject(Listed):
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: str
    created_at: int

    @classmethod
    def of(cls, row: ServiceAccount) -> "AccountObject":
        return cls(id=row.id, name=row.name, role=row.role, created_at=unix(row.created_at))


class AccountsKey(BaseModel):
    """A key in the answer that makes it, which is the only one to hold its value."""

    id: str
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    name: str
    created_at: int
    expires_at: int | None
    value: str

    @classmethod
    def made(cls, row: APIKey, plain: str) -> "AccountsKey":
        expires_at = unix_or_none(row.expires_at)
        return cls(id=row.id, name=row.name, created_at=unix(row.created_at), expires_at=expires_at, value=plain)


class AccountWithKey(AccountObject):
    api_key: AccountsKey | None


class MakeAccountsKey(Asked):
    name: Name = "unnamed"
    scopes: list[Scope] | None = None
    expires_in_seconds: Seconds | None = None

    @field_validator("scopes")
    @classmethod
    def _of_projects(cls, scopes: list[Scope] | None) -> list[Scope] | None:
        if scopes is not None and "admin" in scopes:
            raise ValueError("keys of projects have the scopes 'read', 'submit' and 'manage'")
        return scopes


class ChangeKey(Asked):
    """What is left out stays; ``scopes`` of null is everything."""

    name: Name = "unnamed"
    scopes: list[ProjectScope] | None = None


class MakeKey(MakeAccountsKey):
    user_id: Id | None = None
    """Who owns it; nobody without."""


class RotateKey(Asked):
    overlap_seconds: Annotated[int, Field(ge=0, le=90 * 86_400)] | None = None
    """How long the old key is good beside the new one; a day if it is left out."""


class KeyOwnerObject(BaseModel):
    type: Literal["user", "service_account"] | None = None
    user: dict[str, Any] | None = None
    service_account: dict[str, Any] | None = None

    @classmethod
    def of(cls, owner: User | ServiceAccount | None, role: str) -> "KeyOwnerObject":
        if owner is None:
            return cls()
        shown = {"id": owner.id, "name": owner.name, "created_at": unix(owner.created_at), "role": role}
        if isinstance(owner, User):
            return cls(type="user", user=shown | {"email": owner.email})
        return cls(type="service_account", service_account=shown)


class KeyObject(Listed):
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    scopes: list[str] | None
    """What it was given; null where that is everything."""
    owner: KeyOwnerObject
    owner_project_access: Literal["active", "inactive"]

    @classmethod
    def of(cls, row: APIKey, owner: User | ServiceAccount | None, role: str | None) -> "KeyObject":
        """``role`` is the owner's in the project."""
        return cls(
            id=row.id,
            name=row.name,
            redacted_value=row.hint,
            created_at=unix(row.created_at),
            last_used_at=unix_or_none(row.last_used_at),
            expires_at=unix_or_none(row.expires_at),
            scopes=row.scopes,
            owner=KeyOwnerObject.of(owner, role or "none"),
            owner_project_access="active" if owner is None or ROLES[role or "none"] else "inactive",
        )


class KeyWithValue(KeyObject):
    """The answer that makes a key is the only one to hold its value."""

    value: str


class MakeAdminKey(Asked):
    name: Name
    expires_in_seconds: Seconds | None = None


class AdminKeyObject(Listed):
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: dict[str, Any] = Field(default_factory=dict)
    """Nobody: whoever has the key administers the organisation."""

    @classmethod
    def of(cls, row: APIKey, **more: Any) -> Self:
        return cls(
            id=row.id,
            name=row.name,
            redacted_value=row.hint,
            created_at=unix(row.created_at),
            last_used_at=unix_or_none(row.last_used_at),
            expires_at=unix_or_none(row.expires_at),
            **more,
        )


class AdminKeyWithValue(AdminKeyObject):
    value: str


# The audit log


class AuditLogObject(Listed):
    """What the act was done to, and with what, is under the name of its ``type``."""

    model_config = ConfigDict(extra="allow")

    type: str
    effective_at: int
    project: dict[str, Any] | None
    actor: dict[str, Any]
    address: str | None
    request_id: str | None

    @classmethod
    def of(cls, row: AuditLog) -> "AuditLogObject":
        detail: dict[str, Any] = {row.type: {"id": row.object_id, **row.details}}
        return cls(
            id=row.id,
            type=row.type,
            effective_at=unix(row.created_at),
            project=None if row.project_id is None else {"id": row.project_id},
            actor=row.actor,
            address=row.address,
            request_id=row.request_id,
            **detail,
        )
