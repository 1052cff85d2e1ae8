"""Where bytes live: folders under the data folder, reached only through server-made ids, and private to their owner."""

import contextlib
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from service.core.ids import is_safe
from service.settings import settings

CHUNK = 1024 * 1024
PARTIAL = ".partial"
"""The end of a file's name while it is written."""
FOLDERS = ("files", "uploads", "jobs", "exports")
ROWS = ".jsonl"
"""The end of the names of a job's rows."""
OTHERS = 0o077
"""The rights of everybody but the owner."""

log = logging.getLogger(__name__)


def restrict_umask() -> None:
    """From now on this process, and those it starts, make nothing that others may read or enter.

    Every process of the service calls this first: file modes that each place would have to think of are forgotten.
    """
    os.umask(OTHERS)


def close_to_others() -> None:
    """Take others' rights from what lies in the data folder, where an earlier version, or its maker, gave them any."""
    for folder in (settings().data_dir / name for name in FOLDERS):
        if folder.is_dir() and folder.stat().st_mode & OTHERS:
            take_rights([folder])


def take_rights(paths: Iterable[Path]) -> None:
    """Take others' rights from ``paths`` and from all in them. Links are not followed, and missing paths are none.

    A folder comes after what is in it, so that one that was reached says that all beneath it was.
    """
    for path in paths:
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                take_rights(list(path.iterdir()))
            if mode & OTHERS and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~OTHERS)
        except FileNotFoundError:
            continue
        except PermissionError as error:
            log.warning("others may read %s, and this process may not change that: %s", path, error)


def _under(folder: str, id: str) -> Path:
    if not is_safe(id):
        raise ValueError(f"'{id}' cannot be part of a path")
    return settings().data_dir / folder / id


def file_path(file_id: str) -> Path:
    """The uploaded file ``file_id``."""
    return _under("files", file_id)


def upload_dir(upload_id: str) -> Path:
    """The parts of an upload that is not complete yet."""
    return _under("uploads", upload_id)


def part_path(upload_id: str, part_id: str) -> Path:
    if not is_safe(part_id):
        raise ValueError(f"'{part_id}' cannot be part of a path")
    return upload_dir(upload_id) / part_id


def job_dir(job_id: str) -> Path:
    """Everything that the attempts at a job write: checkpoints, logs, the final model."""
    return _under("jobs", job_id)


def export_dir(export_id: str) -> Path:
    """The files of an export, which are all there or none."""
    return _under("exports", export_id)


def job_data(job_id: str, name: str) -> Path:
    """The rows that a job has for its own, whatever becomes of the file that they came in: ``training``, say."""
    return job_dir(job_id) / f"{name}{ROWS}"


def forget_job_data(job_id: str) -> None:
    """For jobs that have ended: nobody counts these bytes, and nothing reads them any more."""
    for path in job_dir(job_id).glob(f"*{ROWS}"):
        path.unlink(missing_ok=True)
    for path in answers(job_id):
        shutil.rmtree(path, ignore_errors=True)


def answers(job_id: str) -> list[Path]:
    """Folders of answers that attempts at an evaluation keep until the job ends."""
    return [*job_dir(job_id).glob("attempt-*/answered")]


def bytes_in(paths: Iterable[Path]) -> int:
    """Bytes of the files at ``paths`` and beneath them. What is removed meanwhile is none; links are not followed."""
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
            elif stat.S_ISDIR(status.st_mode):
                total += bytes_in(list(path.iterdir()))
    return total


def digest(source: BinaryIO) -> str:
    """SHA-256 of ``source``, in hexadecimal, which is left at its beginning."""
    hash = hashlib.sha256()
    while chunk := source.read(CHUNK):
        hash.update(chunk)
    source.seek(0)
    return hash.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either the old or the new one, readable by its owner alone."""
    with _whole(path, path.with_name(f".{path.name}.{os.getpid()}.partial")) as target:
        target.write(text.encode())


def write_file(path: Path, source: BinaryIO) -> tuple[int, str]:
    """Copy ``source`` to ``path`` so that ``path`` is whole or absent. Returns its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with _whole(path, path.with_suffix(PARTIAL)) as target:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
    return size, digest.hexdigest()


@contextmanager
def _whole(path: Path, partial: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes ``path`` once everything is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
