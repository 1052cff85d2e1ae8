"""From a child's lines to PostgreSQL, in batches, and from there to whoever follows the job."""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from service.contracts.flatten import flatten
from service.core import storage
from service.core.db import after_commit, transaction
from service.core.ids import new_id
from service.files import repository as files
from service.jobs import naming, repository
from service.jobs import service as jobs
from service.jobs.models import Checkpoint, Event, Job
from service.jobs.repository import EventDraft
from service.models import repository as models
from service.settings import settings
from workers import wire
from workers.jobs import leftovers
from workers.jobs.lease import LeaseLostError
from workers.wire import RESUMABLE

BATCH_LINES = 100
BATCH_SECONDS = 0.2

log = logging.getLogger(__name__)


class Sink:
    """The lines of one attempt. Nothing is lost while PostgreSQL is away: lines wait until ``flush`` succeeds."""

    def __init__(self, job_id: str, attempt: int, recorded: Callable[[Sequence[Event]], None] = lambda _: None) -> None:
        """``recorded`` is given each batch of events once it is committed."""
        self.job_id, self.attempt, self._recorded = job_id, attempt, recorded
        self.result: wire.Result | wire.Evaluated | None = None
        self.failure: wire.Failure | None = None
        self._pending: list[wire.Line] = []
        self._since = 0.0

    def add(self, line: wire.Line) -> None:
        line = _storable(line)
        if isinstance(line, wire.Result | wire.Evaluated):
            self.result = line
        elif isinstance(line, wire.Failure):
            self.failure = line
        else:
            if not self._pending:
                self._since = time.monotonic()
            self._pending.append(line)

    def is_due(self) -> bool:
        full = len(self._pending) >= BATCH_LINES
        return full or (bool(self._pending) and time.monotonic() - self._since >= BATCH_SECONDS)

    def flush(self) -> None:
        """Write what waits in one transaction. Raises ``LeaseLostError`` when this attempt no longer runs."""
        if not self._pending:
            return
        with transaction("troll_worker") as session:
            job = repository.fenced(session, self.job_id, self.attempt)
            if job is None:
                raise LeaseLostError(f"{self.job_id} attempt {self.attempt}")
            told = write(session, job, self._pending)
        self._pending = []
        self._recorded(told)


StorableLine = TypeVar("StorableLine", bound=wire.Line)


def _storable(line: StorableLine) -> StorableLine:
    """The line as PostgreSQL can store it: a text there has no NUL, and a model may well sample one."""
    if isinstance(line, wire.Event):
        return line.model_copy(update={"message": _plain(line.message), "data": _plain(line.data)})
    if isinstance(line, wire.Failure):
        return line.model_copy(update={"message": _plain(line.message)})
    return line


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_plain(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def write(session: Session, job: Job, lines: list[wire.Line]) -> list[Event]:
    """Record ``lines`` of the attempt that holds ``job``, whose row is locked. Returns the events that are new."""
    drafts = []
    for line in lines:
        if isinstance(line, wire.Event):
            drafts.append(EventDraft(line.message, line.level, line.type, line.data, line.key))
        elif isinstance(line, wire.Progress):
            _progress(session, job, line)
        elif isinstance(line, wire.Checkpoint):
            _checkpoint(session, job, line)
    return jobs.tell(session, job, drafts)


def _progress(session: Session, job: Job, line: wire.Progress) -> None:
    if line.step > job.step and not job.as_spec().method.trains:
        # What training has come to is in its checkpoints; of an evaluation every step is kept.
        job.strikes = 0
    job.step, job.total_steps, job.trained_tokens = line.step, line.total_steps, line.trained_tokens
    if line.seconds_left is not None:
        job.estimated_finish = files.now(session) + timedelta(seconds=line.seconds_left)


def _checkpoint(session: Session, job: Job, line: wire.Checkpoint) -> None:
    before = repository.checkpoints(session, job.id)
    if not before or line.step > before[0].step:
        job.strikes = 0
    row = Checkpoint(
        id=new_id("ftckpt_"),
        job_id=job.id,
        organization_id=job.organization_id,
        project_id=job.project_id,
        step=line.step,
        attempt=job.attempt,
        path=str(line.path.relative_to(storage.job_dir(job.id))),
        model=naming.checkpoint_model(naming.tuned_model(session, job), line.step),
        metrics=line.metrics,
    )
    repository.record_checkpoint(session, row)
    _keep_best(session, job)


def _keep_best(session: Session, job: Job) -> None:
    """Keep the newest checkpoints, for resuming, and the best, for use; forget the others."""
    rows = repository.checkpoints(session, job.id)
    newest, older = rows[:RESUMABLE], rows[RESUMABLE:]
    ranked = sorted(rows, key=_quality, reverse=True)
    best = {row.id for row in ranked[: settings().checkpoints_kept]}
    dropped = [row for row in older if row.id not in best and not _is_needed(session, row.model)]
    if dropped:
        repository.remove_checkpoints(session, [row.id for row in dropped])
    folder = storage.job_dir(job.id)
    forgotten = [folder / row.path for row in dropped]
    slimmed = [folder / row.path / "state" for row in older if row not in dropped]
    job.stored_bytes = leftovers.written_bytes(job) - storage.bytes_in([*forgotten, *slimmed])
    after_commit(session, lambda: _remove([*forgotten, *slimmed]))
    log.info("%s keeps checkpoints %s", job.id, [row.step for row in [*newest, *older] if row not in dropped])


def _is_needed(session: Session, model: str) -> bool:
    """Whether a job that has not ended trains from ``model``, or another project may use it.

    Until the transaction ends no other job can begin to, and no other project can be let.
    """
    models.seize(session, model)
    return bool(repository.unfinished_from(session, model)) or repository.is_shared(session, model)


def _quality(row: Checkpoint) -> float:
    """The reward or, of supervised jobs, the loss; the same of all where nothing was evaluated."""
    # Of what another version may have stored, only numbers count.
    metrics = flatten(row.metrics)
    if "valid_reward_mean" in metrics:
        return float(metrics["valid_reward_mean"])
    return -float(metrics.get("valid_loss", float("inf")))


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
