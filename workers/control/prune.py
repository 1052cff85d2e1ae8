"""Removes what is known to be dead: expired files and events, and bytes of ours that no row speaks of.

A name that the service does not give is a stranger's and is never touched, nor is a link. While the database may have
been set back to an earlier time (``installation.is_careful``), what it does not name is left where it is.
"""

import logging
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from service.core import clock, storage
from service.core.db import after_commit, transaction
from service.core.ids import is_id
from service.exports import repository as exports
from service.files import repository as files
from service.idempotency import repository as kept_answers
from service.idempotency.once import KEPT_FOR
from service.installation import service as installation
from service.jobs import repository as jobs
from service.settings import settings
from service.sharing import repository as sharing
from service.uploads import repository as uploads
from service.webhooks import repository as webhooks
from workers.jobs import leftovers

BATCH = 1000
JOBS_AT_ONCE = 10
ORPHANED_FOR = timedelta(hours=24)
"""Bytes younger than this may belong to a transaction that is still open, however far apart two clocks are."""
ENDED_FOR = timedelta(hours=1)
"""How long ago a job has ended before what its attempts left is looked for: none of them can be alive by then."""

ENDED_UPLOADS_KEPT = timedelta(hours=24)
EXAMINATIONS_KEPT = timedelta(hours=1)
DELIVERIES_KEPT = timedelta(days=30)

log = logging.getLogger(__name__)
_told: set[Path] = set()
"""Strangers' files that the log has named."""


def prune() -> None:
    """Raises ``installation.MismatchError`` where folder and database do not belong together, and removes nothing."""
    with transaction("troll_control") as session:
        careful, now = installation.is_careful(session), clock.now(session)
    _prune_rows()
    _prune_events()
    expired = _prune_expired()
    orphans = [
        *_orphans("files", files.existing, now),
        *_orphans("jobs", jobs.kept, now),
        *_orphans("uploads", uploads.known, now),
        *_orphans("exports", exports.existing, now),
    ]
    left = [*_left_by_attempts(), *_ended_uploads()]
    if careful:
        log.warning("%d orphans are left alone: the database may have forgotten them", len(orphans))
    else:
        _remove(orphans)
        _remove(left)
        log.info("pruned %d expired files, %d orphans, %d leftovers", expired, len(orphans), len(left))


def _prune_rows() -> None:
    _until_none_is_left(uploads.remove_stale, ENDED_UPLOADS_KEPT)
    _until_none_is_left(kept_answers.remove_old, KEPT_FOR)
    _until_none_is_left(jobs.remove_old_examinations, EXAMINATIONS_KEPT)
    _until_none_is_left(webhooks.remove_old, DELIVERIES_KEPT)
    with transaction("troll_control") as session:
        sharing.remove_orphans(session)


def _prune_events() -> None:
    if days := settings().events_kept_days:
        # A few jobs at a time: each may have a hundred thousand events, and a transaction has 30 seconds.
        removed = _until_none_is_left(jobs.remove_old_events, timedelta(days=days), limit=JOBS_AT_ONCE)
        log.info("removed the events of %d jobs that ended %d days ago", removed, days)


def _prune_expired() -> int:
    def remove(
        session: Session,
        expire: Callable[[Session, int], Sequence[str]],
        path: Callable[[str], Path],
        limit: int,
    ) -> int:
        expired = expire(session, limit)
        after_commit(session, lambda: _remove(map(path, expired)))
        return len(expired)

    removed = _until_none_is_left(remove, exports.remove_expired, storage.export_dir)
    log.info("removed %d expired exports", removed)
    return _until_none_is_left(remove, files.remove_expired, storage.file_path)


def _until_none_is_left(remove: Callable[..., int], *given: object, limit: int = BATCH) -> int:
    """How many ``remove(session, *given, limit)`` removes, in transactions of up to ``limit`` each.

    However much one tenant makes in an hour, the others' is removed in that hour too.
    """
    total = 0
    while True:
        with transaction("troll_control") as session:
            number = remove(session, *given, limit)
        total += number
        if number < limit:
            return total


def _orphans(name: str, existing: Callable[[Session, Sequence[str]], set[str]], now: datetime) -> list[Path]:
    """What lies in a folder under an id of ours, or half-written under one, is old, and has no row."""
    old = [path for path in _ours(name) if _age(path, now) > ORPHANED_FOR]
    orphans: list[Path] = []
    for paths in _batches(old):
        with transaction("troll_control") as session:
            named = existing(session, [_id(path) for path in paths])
        orphans += [path for path in paths if _id(path) not in named or path.name != _id(path)]
    return orphans


def _ended_uploads() -> list[Path]:
    """Folders of uploads whose row says that they are over. A part is only stored for an upload that is not."""
    over: list[Path] = []
    for paths in _batches(_ours("uploads")):
        ids = [path.name for path in paths]
        with transaction("troll_control") as session:
            ended = uploads.known(session, ids) - uploads.existing(session, ids)
        over += [path for path in paths if path.name in ended]
    return over


def _left_by_attempts() -> list[Path]:
    """What attempts at jobs that ended have written and no row names; of a newer version's, others know the names."""
    left: list[Path] = []
    for paths in _batches(_ours("jobs")):
        with transaction("troll_control") as session:
            for job in jobs.ended(session, [path.name for path in paths], ENDED_FOR):
                left += storage.job_dir(job.id).glob(f"*{storage.ROWS}")
                if job.is_readable:
                    left += leftovers.of(session, job)
    return left


def _ours(name: str) -> list[Path]:
    """What the service has put into a folder; strangers' files are told once."""
    root, prefix = settings().data_dir / name, installation.PREFIXES[name]
    found = list(root.iterdir()) if root.is_dir() else []
    ours = [path for path in found if is_id(_id(path), prefix) and _is_plain(path, name)]
    strangers = sorted(set(found) - set(ours) - _told)
    if strangers:
        _told.update(strangers)
        shown = ", ".join(str(path) for path in strangers[:5]) + (", …" if len(strangers) > 5 else "")
        log.warning("%d things in %s are not the service's and are left alone: %s", len(strangers), root, shown)
    return ours


def _is_plain(path: Path, name: str) -> bool:
    """Whether it is what the service makes there, and no link to something else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISREG(mode) if name == "files" else stat.S_ISDIR(mode)


def _age(path: Path, now: datetime) -> timedelta:
    try:
        return now - datetime.fromtimestamp(path.lstat().st_mtime, now.tzinfo)
    except FileNotFoundError:
        return timedelta(0)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _id(path: Path) -> str:
    """The id under which something lies in a folder, whole or half-written."""
    return path.name.removesuffix(storage.PARTIAL)


def _batches(paths: list[Path]) -> Iterable[list[Path]]:
    return (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
