"""Checkpoint permissions on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.core.pagination import Listed
from service.jobs.models import CheckpointPermission

MAX_PROJECTS = 100
"""Projects that are named in one request."""


class GivePermission(BaseModel):
    model_config = ConfigDict(extra="forbid")

    project_ids: Annotated[list[Annotated[str, Field(max_length=255)]], Field(min_length=1, max_length=MAX_PROJECTS)]


class PermissionObject(Listed):
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str

    @classmethod
    def of(cls, row: CheckpointPermission) -> "PermissionObject":
        return cls(id=row.id, created_at=int(row.created_at.timestamp()), project_id=row.project_id)


class DeletedPermission(BaseModel):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool = True
