"""Uploading, reading and deleting files."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePath
from typing import BinaryIO

from sqlalchemy.orm import Session

from service.accounts.known import Principal
from service.audit import repository as audit
from service.core import storage
from service.core.db import after_commit
from service.core.errors import DomainError, invalid, not_found
from service.core.ids import new_id
from service.files import dataset, repository
from service.files.models import File

FINE_TUNE = "fine-tune"
RESULTS = "fine-tune-results"
EXPIRY_RANGE = (3600, 2_592_000)
FILENAME_LENGTH = 255
HELD_FOR = timedelta(minutes=10)
"""How long storing and checking a file may take before a repeated request is carried out in its place."""


@dataclass(frozen=True)
class Stored:
    """Bytes on disk that were checked and that no row speaks of yet."""

    id: str
    bytes: int
    sha256: str
    rows: int


def check_purpose(purpose: str) -> None:
    if purpose != FINE_TUNE:
        raise invalid(f"Files are taken for the purpose '{FINE_TUNE}' only, not '{purpose}'.", "purpose")


def check_expiry(seconds: int | None) -> None:
    low, high = EXPIRY_RANGE
    if seconds is not None and not low <= seconds <= high:
        raise invalid(f"Must be from {low} to {high} seconds.", "expires_after.seconds")


def store(source: BinaryIO, max_bytes: int) -> Stored:
    """Copy and check the bytes of a fine-tuning file; one that is not valid JSONL is refused whole, with its bad lines.

    Whoever asks must ``register`` or ``discard`` them.
    """
    id = new_id("file-")
    path = storage.file_path(id)
    try:
        size, sha256 = storage.write_file(path, source)
        if size > max_bytes:
            raise DomainError(413, "file_too_large", f"A file may have at most {max_bytes} bytes.", "file")
        report = dataset.check(path)
        if report.problems:
            raise invalid(dataset.summarise(report), "file", code="invalid_file")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Stored(id, size, sha256, report.rows)


def register(
    session: Session,
    principal: Principal,
    stored: Stored,
    *,
    filename: str,
    purpose: str,
    expires_after_seconds: int | None,
) -> File:
    """Make stored bytes a file that its organisation sees."""
    lifetime = None if expires_after_seconds is None else timedelta(seconds=expires_after_seconds)
    file = repository.add(
        session,
        File(
            id=stored.id,
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            filename=clean_filename(filename),
            purpose=purpose,
            bytes=stored.bytes,
            sha256=stored.sha256,
            rows=stored.rows,
            expires_at=repository.now(session) + lifetime if lifetime else None,
        ),
    )
    audit.record(session, "file.created", file.id, data={"filename": file.filename, "bytes": file.bytes})
    return file


def discard(stored: Stored) -> None:
    storage.file_path(stored.id).unlink(missing_ok=True)


def clean_filename(filename: str) -> str:
    """The last part of a client's file name. It is shown, and never used as a path."""
    return PurePath(filename.replace("\0", "")).name[:FILENAME_LENGTH] or "upload"


def retrieve(session: Session, id: str) -> File:
    file = repository.get(session, id)
    if file is None:
        raise not_found("file", id, "file_id")
    return file


def delete(session: Session, id: str) -> None:
    """Delete a file. Jobs that were created with it keep their own copy."""
    if not repository.remove(session, id):
        raise not_found("file", id, "file_id")
    audit.record(session, "file.deleted", id)
    path = storage.file_path(id)
    after_commit(session, lambda: path.unlink(missing_ok=True))
