"""Uploads on the wire."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.files.models import File
from service.files.schemas import FileObject
from service.files.service import EXPIRY_RANGE
from service.uploads.models import Upload, UploadPart


class ExpiresAfter(BaseModel):
    """When the file is to be deleted, counted from its creation."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=EXPIRY_RANGE[0], le=EXPIRY_RANGE[1])


class CreateUpload(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(ge=1, le=2**62, description="Size of the whole file.")
    filename: str = Field(min_length=1, max_length=1024)
    mime_type: str = Field(max_length=255)
    purpose: str = Field(max_length=64)
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    model_config = ConfigDict(extra="forbid")

    part_ids: list[str] = Field(
        min_length=1, max_length=100_000, fail_fast=True, description="In the order of the file."
    )
    md5: str | None = Field(None, description="Of the whole file, in hexadecimal.")


class UploadObject(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None

    @classmethod
    def of(cls, row: Upload, file: File | None = None) -> "UploadObject":
        return cls.model_validate(
            {
                "id": row.id,
                "bytes": row.bytes,
                "created_at": int(row.created_at.timestamp()),
                "expires_at": int(row.expires_at.timestamp()),
                "filename": row.filename,
                "purpose": row.purpose,
                "status": row.status,
                "file": FileObject.of(file) if file else None,
            }
        )


class PartObject(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, row: UploadPart) -> "PartObject":
        return cls(id=row.id, created_at=int(row.created_at.timestamp()), upload_id=row.upload_id)
