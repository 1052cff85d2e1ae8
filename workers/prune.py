"""Removes what no row speaks of: expired files, and bytes whose transaction never committed."""

import logging
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from service.core import storage
from service.core.db import transaction
from service.files import repository as files
from service.idempotency import repository as kept_answers
from service.idempotency.once import KEPT_FOR
from service.jobs import repository as jobs
from service.settings import settings
from service.uploads import repository as uploads
from service.webhooks import repository as webhooks

BATCH = 1000
ORPHAN_SECONDS = 24 * 3600.0
"""Bytes younger than this may belong to a transaction that is still open."""

ENDED_UPLOADS_KEPT = timedelta(hours=24)
EXAMINATIONS_KEPT = timedelta(hours=1)
DELIVERIES_KEPT = timedelta(days=30)

log = logging.getLogger(__name__)


def prune() -> None:
    with transaction("troll_control") as session:
        expired = files.remove_expired(session, BATCH)
    for id in expired:
        storage.file_path(id).unlink(missing_ok=True)
    prune_uploads()
    old_files = {path.stem: path for path in _old("files")}
    old_jobs = {path.name: path for path in _old("jobs")}
    with transaction("troll_control") as session:
        orphans = [old_files[id] for id in old_files.keys() - files.existing(session, list(old_files))]
        abandoned = [old_jobs[id] for id in old_jobs.keys() - jobs.existing(session, list(old_jobs))]
    for path in orphans:
        path.unlink(missing_ok=True)
    for path in abandoned:
        shutil.rmtree(path, ignore_errors=True)
    if expired or orphans or abandoned:
        counts = len(expired), len(orphans), len(abandoned)
        log.info("pruned %d expired files, %d orphans, %d abandoned folders", *counts)


def prune_uploads() -> None:
    """Remove what uploads leave behind. A part is only ever stored for an upload whose row is committed."""
    with transaction("troll_control") as session:
        uploads.remove_stale(session, ENDED_UPLOADS_KEPT, BATCH)
        kept_answers.remove_old(session, KEPT_FOR, BATCH)
        jobs.remove_old_examinations(session, EXAMINATIONS_KEPT, BATCH)
        webhooks.remove_old(session, DELIVERIES_KEPT, BATCH)
    root = settings().data_dir / "uploads"
    folders = {path.name: path for path in root.iterdir()} if root.is_dir() else {}
    with transaction("troll_control") as session:
        over = folders.keys() - uploads.existing(session, list(folders))
    for id in over:
        shutil.rmtree(folders[id], ignore_errors=True)


def _old(folder: str) -> Iterator[Path]:
    root = settings().data_dir / folder
    if not root.is_dir():
        return
    limit = time.time() - ORPHAN_SECONDS
    yield from (path for path in root.iterdir() if path.stat().st_mtime < limit)
