"""A database and its data folder know each other: both hold the same id, the folder in its file ``installation``.

Files are deleted because no row names them. With another database, or one that was set back to an earlier time, that
would be all of them, or all newer ones. So nothing starts on a folder of another id. And with every sweep a new random
text is written to both: a folder whose text the database does not know has seen a later state of it, or another copy at
work, and for a month nothing is deleted only because no row names it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from service.core import clock, storage
from service.core.db import Login, transaction
from service.core.ids import is_id, random_text
from service.files import repository as files
from service.installation import repository
from service.installation.models import Installation
from service.jobs import repository as jobs
from service.settings import settings
from service.uploads import repository as uploads

FILE = "installation"
CAREFUL_FOR = timedelta(days=30)
PREFIXES = {"files": "file-", "jobs": "ftjob-", "uploads": "upload_", "exports": "export-"}
"""How the ids begin that name what lies in the data folder's folders."""
BATCH = 1000

log = logging.getLogger(__name__)


class MismatchError(Exception):
    """The data folder is not the database's. The message says what was found and what to do."""


@dataclass(frozen=True)
class Marker:
    """What the folder's file says. One that was written by hand has no ``beat``."""

    id: str
    beat: str | None


def tie(session: Session) -> None:
    """See that folder and database belong together, and tie those that evidently do and are not tied yet.

    For a role that sees the files and jobs of all. Raises ``MismatchError``.
    """
    row = repository.locked(session)
    marker = _read()
    if marker is None:
        beat = random_text(16)
        _introduce(session, row)
        row.beats = [beat]
        _write(Marker(row.id, beat))
    elif marker.id != row.id:
        raise _mismatch(row, marker, "")
    else:
        _compare(session, row, marker)
    row.tied_at = row.tied_at or clock.now(session)


def verify(session: Session) -> bool:
    """Whether folder and database are tied; False for new ones. Changes nothing. Raises ``MismatchError``."""
    marker, row = _read(), repository.get(session)
    if marker is None and row.tied_at is None:
        return False
    if marker is None or marker.id != row.id:
        raise _mismatch(row, marker, "")
    return True


def is_careful(session: Session) -> bool:
    """Whether what no row names may be what the database has forgotten. Raises ``MismatchError``."""
    # The folder's side is read first: a beat between the two goes to the database first.
    marker, row = _read(), repository.get(session)
    if marker is None or marker.id != row.id:
        raise _mismatch(row, marker, "")
    if marker.beat not in row.beats:
        return True
    return row.careful_until is not None and row.careful_until > clock.now(session)


def beat(login: Login) -> None:
    """Write a new text to both sides, the database first. Raises ``MismatchError`` and ``OSError``."""
    new = random_text(16)
    with transaction(login) as session:
        row = repository.locked(session)
        marker = _read()
        if marker is None or marker.id != row.id:
            raise _mismatch(row, marker, "")
        _compare(session, row, marker)
        row.beats = [*([marker.beat] if marker.beat else []), new]
    with transaction(login) as session:
        row = repository.locked(session)
        # Another worker may have gone on from here since.
        if row.beats[-1] == new:
            _write(Marker(row.id, new))


def _introduce(session: Session, row: Installation) -> None:
    """Raise ``MismatchError`` unless a folder without an id is as new as the database or holds what that names."""
    held, known = 0, False
    for ids in _batches(_ids()):
        held += len(ids)
        known = known or bool(
            files.existing(session, ids) or jobs.existing(session, ids) or uploads.known(session, ids)
        )
    if not known and (held or row.tied_at is not None or repository.has_files_or_jobs(session)):
        found = f"It holds {held} files and jobs, none of which the database names." if held else "It is empty."
        raise _mismatch(row, None, found)
    if held:
        # As it cannot be known whether the database was set back before.
        row.careful_until = clock.now(session) + CAREFUL_FOR
    log.info("the data folder %s is tied to the database: %s", settings().data_dir, row.id)


def _compare(session: Session, row: Installation, marker: Marker) -> None:
    if marker.beat in row.beats:
        return
    row.careful_until = clock.now(session) + CAREFUL_FOR
    row.beats = [marker.beat] if marker.beat else []
    log.warning(
        "the data folder %s has seen a later state of this database, or another copy of it at work, or was tied to it "
        "by hand: until %s nothing in it is deleted only because no row names it",
        settings().data_dir,
        f"{row.careful_until:%Y-%m-%d}",
    )


def _mismatch(row: Installation, marker: Marker | None, found: str) -> MismatchError:
    folder = settings().data_dir
    theirs = "has no id" if marker is None else f"has the id {marker.id}"
    return MismatchError(
        f"The data folder {folder} {theirs}, the database has the id {row.id}: they do not belong together. {found}"
        f"{' ' if found else ''}Nothing was changed. Check TROLL_DATA_DIR (is the right disk or volume mounted?) and "
        "DATABASE_URL. If you have put the two together on purpose, write the database's id into the folder and "
        f"start again: echo {row.id} > {folder / FILE}"
    )


def _ids() -> Iterator[str]:
    """The names in the data folder that the service may have given."""
    for name, prefix in PREFIXES.items():
        folder = settings().data_dir / name
        if folder.is_dir():
            yield from (path.name for path in folder.iterdir() if is_id(path.name, prefix))


def _batches(ids: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for id in ids:
        batch.append(id)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _path() -> Path:
    return settings().data_dir / FILE


def _read() -> Marker | None:
    try:
        words = _path().read_text().split()
    except FileNotFoundError:
        return None
    return Marker(words[0], words[1] if len(words) > 1 else None) if words else None


def _write(marker: Marker) -> None:
    storage.write_text(_path(), f"{marker.id} {marker.beat}\n")
