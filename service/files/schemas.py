"""Files on the wire."""

from typing import Literal

from pydantic import BaseModel, Field

from service.core.pagination import Listed
from service.files.models import File


class FileObject(Listed):
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None
    rows: int | None = Field(None, description="Data rows of a fine-tuning file.")

    @classmethod
    def of(cls, row: File) -> "FileObject":
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=int(row.created_at.timestamp()),
            filename=row.filename,
            purpose=row.purpose,
            expires_at=int(row.expires_at.timestamp()) if row.expires_at else None,
            rows=row.rows,
        )


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True
