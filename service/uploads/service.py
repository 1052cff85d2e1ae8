"""Uploading a file in parts: they are stored one by one, then joined, checked and kept as one file."""

import hashlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, cast

from sqlalchemy.orm import Session

from service.accounts.known import Principal
from service.core import storage
from service.core.db import across_projects, after_commit, lock
from service.core.errors import DomainError, invalid, not_found
from service.core.ids import new_id
from service.files import repository as files
from service.files import service as file_service
from service.files.models import File
from service.settings import settings
from service.uploads import repository
from service.uploads.models import Upload, UploadPart
from service.uploads.schemas import CreateUpload
from service.usage import service as usage

LIFETIME = timedelta(hours=1)
MAX_PENDING = 100
"""Uploads that an organisation may have pending."""


def create(session: Session, principal: Principal, request: CreateUpload) -> Upload:
    """A new upload, pending for an hour."""
    file_service.check_purpose(request.purpose)
    organization_id = principal.organization_id
    limit = usage.limits(session, organization_id).upload_bytes
    if request.bytes > limit:
        raise invalid(f"An upload may have at most {limit} bytes.", "bytes", "file_too_large")
    # What is announced counts from now on, so that it can be completed.
    usage.check_storage(session, principal.organization_id, request.bytes)
    # Two that are begun at once would each find room for one.
    lock(session, f"uploads/{organization_id}")
    with across_projects(session):
        pending = repository.pending(session, principal.organization_id)
    if pending >= MAX_PENDING:
        message = f"Your organization already has {MAX_PENDING} uploads pending. Complete or cancel some."
        raise DomainError(429, "upload_quota_exceeded", message, headers={"x-should-retry": "false"})
    upload = Upload(
        id=new_id("upload_"),
        organization_id=principal.organization_id,
        project_id=principal.project_id,
        filename=file_service.clean_filename(request.filename),
        purpose=request.purpose,
        bytes=request.bytes,
        mime_type=request.mime_type,
        expires_at=files.now(session) + LIFETIME,
        file_lifetime_seconds=request.expires_after.seconds if request.expires_after else None,
    )
    repository.add(session, upload)
    return upload


@dataclass(frozen=True)
class StoredPart:
    """A part's bytes on disk, of which no row speaks yet."""

    id: str
    path: Path
    bytes: int

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


def check_pending(session: Session, upload_id: str) -> None:
    """Raise a 404 or a 400 for an upload that takes nothing more."""
    _pending(session, repository.get(session, upload_id), upload_id)


def store_part(upload_id: str, source: BinaryIO) -> StoredPart:
    """Copy a part's bytes, in no transaction. Whoever asks must ``add_part`` or discard them."""
    id = new_id("part_")
    path = storage.part_path(upload_id, id)
    size, _ = storage.write_file(path, source)
    if not 1 <= size <= settings().max_part_bytes:
        path.unlink(missing_ok=True)
        raise invalid(f"A part has from 1 to {settings().max_part_bytes} bytes, not {size}.", "data")
    return StoredPart(id, path, size)


def add_part(session: Session, upload_id: str, stored: StoredPart) -> UploadPart:
    """Make stored bytes a part of an upload. Parts may come in any order and at the same time."""
    upload = _pending(session, repository.locked(session, upload_id), upload_id)
    received = repository.bytes_received(session, upload_id)
    if received + stored.bytes > upload.bytes:
        message = f"The parts would have {received + stored.bytes} bytes together; the upload was announced with "
        raise invalid(f"{message}{upload.bytes}.", "data", "upload_size_mismatch")
    part = UploadPart(id=stored.id, upload_id=upload_id, organization_id=upload.organization_id, bytes=stored.bytes)
    repository.add(session, part)
    return part


def ordered_parts(session: Session, upload_id: str, part_ids: Sequence[str]) -> tuple[int, list[Path]]:
    """The announced size of an upload, and its parts' files in the order of ``part_ids``, which have that size."""
    upload = _pending(session, repository.get(session, upload_id), upload_id)
    return upload.bytes, _ordered(session, upload, part_ids)


def join(size: int, paths: Sequence[Path], md5: str | None) -> file_service.Stored:
    """Join parts and check the file, in no transaction: a large one takes minutes.

    Raises ``FileNotFoundError`` when someone else completed or cancelled the upload meanwhile.
    """
    with _Joined(paths) as source:
        stored = file_service.store(cast(BinaryIO, source), size)
    if md5 is not None and md5.lower() != source.md5.hexdigest():
        file_service.discard(stored)
        raise invalid(f"The parts have the MD5 {source.md5.hexdigest()} together.", "md5", "checksum_mismatch")
    return stored


def complete(
    session: Session, principal: Principal, upload_id: str, stored: file_service.Stored
) -> tuple[Upload, File]:
    """Make the joined file visible and end the upload; or, when someone else did so first, raise."""
    upload = _pending(session, repository.locked(session, upload_id), upload_id)
    file = file_service.register(
        session,
        principal,
        stored,
        filename=upload.filename,
        purpose=upload.purpose,
        expires_after_seconds=upload.file_lifetime_seconds,
    )
    upload.status, upload.file_id = "completed", file.id
    _remove_parts(session, upload_id)
    return upload, file


def cancel(session: Session, upload_id: str) -> Upload:
    """End an upload; its parts are deleted."""
    upload = _pending(session, repository.locked(session, upload_id), upload_id)
    upload.status = "cancelled"
    _remove_parts(session, upload_id)
    return upload


def _pending(session: Session, upload: Upload | None, id: str) -> Upload:
    if upload is None:
        raise not_found("upload", id, "upload_id")
    session.refresh(upload)
    status = "expired" if upload.status == "pending" and upload.expires_at <= files.now(session) else upload.status
    if status != "pending":
        raise invalid(f"Upload {id} is {status}. Create a new one.", None, "invalid_upload_state")
    return upload


def _ordered(session: Session, upload: Upload, part_ids: Sequence[str]) -> list[Path]:
    known = repository.parts(session, upload.id)
    unknown = next((id for id in part_ids if id not in known), None)
    if unknown is not None:
        raise invalid(f"'{unknown}' is no part of this upload.", "part_ids", "part_not_found")
    if len(set(part_ids)) < len(part_ids):
        raise invalid("A part is named twice.", "part_ids")
    size = sum(known[id].bytes for id in part_ids)
    if size != upload.bytes:
        message = f"The parts have {size} bytes together; the upload was announced with {upload.bytes}."
        raise invalid(message, "part_ids", "upload_size_mismatch")
    return [storage.part_path(upload.id, id) for id in part_ids]


def _remove_parts(session: Session, upload_id: str) -> None:
    folder = storage.upload_dir(upload_id)
    after_commit(session, lambda: shutil.rmtree(folder, ignore_errors=True))


class _Joined(io.RawIOBase):
    """Files read as if they were one; ``md5`` is that of what was read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.md5 = hashlib.md5(usedforsecurity=False)
        self._paths = list(paths)
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while self._file is not None or self._paths:
            if self._file is None:
                self._file = self._paths.pop(0).open("rb")
            if chunk := self._file.read(size):
                self.md5.update(chunk)
                return chunk
            self._file.close()
            self._file = None
        return b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
