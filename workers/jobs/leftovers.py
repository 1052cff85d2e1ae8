"""What attempts at a job have written and no row names.

A child may be killed between its last write and the row that would have named it, a damaged checkpoint is written again
by a later attempt, and a worker that was thought dead may come back and write on.
"""

import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.orm import Session

from service.core import storage
from service.installation import service as installation
from service.jobs import repository
from service.jobs.models import Job
from service.models import repository as models

NAMES = re.compile(r"attempt-(?P<attempt>\d+)/(checkpoints/(step-\d+|\.step-\d+\.partial)|model|\.model\.partial)")
"""What attempts write beneath a job's folder, beside their logs."""


log = logging.getLogger(__name__)


def of(session: Session, job: Job) -> list[Path]:
    """Leftovers of the attempts that the job's row knows of; none while the database may have been set back.

    Call it while no attempt writes: before one begins, or when the job has ended.
    """
    try:
        if installation.is_careful(session):
            return []
    except (installation.MismatchError, OSError) as error:
        log.error("nothing that attempts at %s have left is removed: %s", job.id, error)
        return []
    folder = storage.job_dir(job.id)
    named = {folder / checkpoint.path for checkpoint in repository.checkpoints(session, job.id)}
    named |= {folder / tuned.path for tuned in models.of_job(session, job.id)}
    found = [*folder.glob("attempt-*/checkpoints/*"), *folder.glob("attempt-*/*model*")]
    return [path for path in found if path not in named and _is_of(path.relative_to(folder), job.attempt)]


def written_bytes(job: Job) -> int:
    """Checkpoints, models and answers that attempts at a job have written and nobody has removed.

    Their logs count for nobody: they are the operator's, and no key could delete them.
    """
    folder = storage.job_dir(job.id)
    models_made = [*folder.glob("attempt-*/checkpoints"), *folder.glob("attempt-*/*model*")]
    return storage.bytes_in([*models_made, *storage.answers(job.id)])


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _is_of(path: Path, newest: int) -> bool:
    """Whether one of the attempts up to ``newest`` has written it."""
    match = NAMES.fullmatch(path.as_posix())
    return match is not None and int(match["attempt"]) <= newest
