"""Exports on the wire."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator

from service.contracts.export_formats import Format, GGUFType
from service.contracts.spelling import Spelled
from service.core.pagination import Listed
from service.exports.models import Export

_NAME = "[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
Repository = Annotated[
    str,
    StringConstraints(max_length=193),
    Spelled(
        rf"(?!.*(?:--|\.\.|\.git$)){_NAME}/{_NAME}",
        "a name such as 'owner/model', as hubs take it: letters, digits, '_', '-' and '.', of which the last two stand "
        "alone and not at an end, and no '.git' at the end",
    ),
]


class HubTarget(BaseModel):
    """A repository of the operator's Hugging Face hub, which is made if it is not there."""

    model_config = ConfigDict(extra="forbid")

    repository: Repository
    token: SecretStr = Field(min_length=1, max_length=1000, description="The hub's, with the right to write there.")
    private: bool = Field(True, description="Of a repository that is made.")

    @field_validator("token")
    @classmethod
    def _can_be_sent(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch("[!-~]+", value.get_secret_value()):
            raise ValueError("use only what a header can hold: ASCII, without spaces and line breaks")
        return value


class CreateExport(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Format
    type: GGUFType | None = Field(
        None, description="Of a GGUF file's numbers. Default: what the weights are stored in, which rounds nothing."
    )
    hub: HubTarget | None = Field(None, description="Where to push it to. Then nothing is kept to download.")


class ExportError(BaseModel):
    code: str
    message: str


class HubResult(BaseModel):
    """``url`` and ``revision`` are there once it was pushed."""

    repository: str
    private: bool
    url: str | None = None
    revision: str | None = None


class ExportObject(Listed):
    """A model in another form. ``bytes`` and ``sha256`` are those of its content, a tar."""

    object: Literal["model.export"] = "model.export"
    created_at: int
    model: str
    format: Format
    type: GGUFType | None
    hub: HubResult | None
    status: Literal["queued", "running", "succeeded", "failed"]
    progress: float = Field(description="The share of the work that is done, from 0 to 1.")
    bytes: int | None
    sha256: str | None
    notes: list[str] = Field(description="What is to be known of the export before it is used.")
    error: ExportError | None
    finished_at: int | None
    expires_at: int

    @classmethod
    def of(cls, row: Export) -> "ExportObject":
        fields: dict[str, Any] = {
            name: getattr(row, name)
            for name in ("id", "model", "format", "type", "hub", "status", "progress", "sha256", "notes", "error")
        }
        return cls(
            **fields,
            created_at=int(row.created_at.timestamp()),
            bytes=row.bytes if row.sha256 is not None else None,
            finished_at=int(row.finished_at.timestamp()) if row.finished_at else None,
            expires_at=int(row.expires_at.timestamp()),
        )


class DeletedExport(BaseModel):
    id: str
    object: Literal["model.export"] = "model.export"
    deleted: bool = True
