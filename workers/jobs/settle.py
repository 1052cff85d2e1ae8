"""The end of an attempt: one transaction that makes the outcome true, or nothing."""

import csv
import io
import logging
from datetime import timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from service.contracts.flatten import flatten
from service.core import broker, clock, storage
from service.core.db import after_commit
from service.core.ids import new_id
from service.files import repository as files
from service.files.models import File
from service.files.service import RESULTS
from service.jobs import naming, repository
from service.jobs import service as jobs
from service.jobs.models import Job
from service.jobs.repository import EventDraft
from service.jobs.states import Desired, Status, move
from service.models import repository as models
from service.models.models import TunedModel
from service.settings import settings
from workers import wire
from workers.jobs.outcome import Action, Outcome

MESSAGE_LENGTH = 2000
HISTORY_PART = 500
"""Steps' events that are in memory at a time."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 30.0, 900.0
log = logging.getLogger(__name__)


def settle(session: Session, job: Job, outcome: Outcome, result: wire.Result | wire.Evaluated | None = None) -> None:
    """Bring ``job``, whose row is locked and running, to where ``outcome`` says."""
    log.info("%s attempt %d: %s %s", job.id, job.attempt, outcome.action, outcome.code)
    if outcome.action is Action.SUCCEED:
        assert result is not None
        _succeed(session, job, result)
    elif outcome.action is Action.FAIL:
        _fail(session, job, outcome)
    elif outcome.action is Action.CANCEL:
        jobs.end(session, job, Status.CANCELLED)
        jobs.tell(session, job, [EventDraft("Job cancelled")])
    elif outcome.action is Action.PAUSE:
        _pause(session, job, outcome)
    else:
        _queue_again(session, job, outcome)


def _succeed(session: Session, job: Job, result: wire.Result | wire.Evaluated) -> None:
    made = []
    if isinstance(result, wire.Result):
        made = [_made(session, job, result.model_path)]
        job.trained_tokens = result.trained_tokens
    job.step = result.step
    job.result_files = [_result_file(session, job).id]
    jobs.end(session, job, Status.SUCCEEDED)
    jobs.tell(session, job, [*made, EventDraft("The job has successfully completed")])


def _made(session: Session, job: Job, path: Path) -> EventDraft:
    """Record the model that the job has made in the folder ``path``."""
    model = TunedModel(
        id=naming.tuned_model(session, job),
        organization_id=job.organization_id,
        project_id=job.project_id,
        job_id=job.id,
        base_model=job.model,
        path=str(path.relative_to(storage.job_dir(job.id))),
    )
    models.add(session, model)
    job.fine_tuned_model = model.id
    return EventDraft(f"New fine-tuned model created: {model.id}")


def _fail(session: Session, job: Job, outcome: Outcome) -> None:
    message = outcome.message[:MESSAGE_LENGTH]
    job.error = {"code": outcome.code, "message": message, "param": outcome.param}
    jobs.end(session, job, Status.FAILED)
    jobs.tell(session, job, [EventDraft(f"The job failed: {message}", level="error", data={"code": outcome.code})])


def _pause(session: Session, job: Job, outcome: Outcome) -> None:
    job.strikes, job.estimated_finish = 0, None
    move(job, Status.PAUSED)
    job.desired = Desired.PAUSE
    draft = EventDraft("Job paused")
    if outcome.message:
        reason = outcome.message[:MESSAGE_LENGTH].rstrip(".")
        text = f"Job paused: {reason}. Resume it when that is mended; it goes on from where it is"
        draft = EventDraft(text, level="warn", data={"code": outcome.code})
    jobs.tell(session, job, [draft])


def _wait(session: Session, job: Job, outcome: Outcome) -> EventDraft:
    """Make the job eligible again later: the later, the more often it has waited since its newest checkpoint."""
    newest = next((checkpoint.step for checkpoint in repository.checkpoints(session, job.id)), 0)
    key = f"waits-{newest}-"
    times = repository.count_events(session, job.id, key)
    seconds = min(FIRST_WAIT_SECONDS * 2**times, LONGEST_WAIT_SECONDS)
    job.strikes = max(0, job.strikes - 1)
    job.eligible_at = clock.now(session) + timedelta(seconds=seconds)
    reason = outcome.message[:MESSAGE_LENGTH].rstrip(".")
    text = f"{reason}. The job waits and is tried again in {seconds:.0f} seconds, from its newest checkpoint"
    return EventDraft(text, level="warn", data={"code": outcome.code}, key=f"{key}{times}")


def _queue_again(session: Session, job: Job, outcome: Outcome) -> None:
    move(job, Status.QUEUED)
    job.estimated_finish = None
    if outcome.action is Action.REQUEUE:
        job.strikes = 0
        draft = EventDraft("The worker stopped; the job waits for one and goes on from its newest checkpoint")
    elif outcome.action is Action.WAIT:
        draft = _wait(session, job, outcome)
    else:
        seconds = settings().retry_delay_seconds * max(0, job.strikes - 1)
        job.eligible_at = clock.now(session) + timedelta(seconds=seconds)
        reason = outcome.message[:MESSAGE_LENGTH].rstrip(".")
        draft = EventDraft(f"{reason}; the job will be tried again from its newest checkpoint", level="warn")
    jobs.tell(session, job, [draft])
    job_id = job.id
    after_commit(session, lambda: broker.ring(job_id))


def _result_file(session: Session, job: Job) -> File:
    """The job's metrics as a CSV, one row for each step, as OpenAI's result files are."""
    history = repository.metric_events(session, job.id, HISTORY_PART)
    rows = [row for part in history for event in part if (row := flatten(event.data or {}))]
    named = job.as_spec().method.result_columns
    if named is not None:
        rows = [{ours: row[theirs] for ours, theirs in named.items() if theirs in row} for row in rows]
    columns = list(named or dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    id = new_id("file-")
    size, sha256 = storage.write_file(storage.file_path(id), io.BytesIO(text.getvalue().encode()))
    file = File(
        id=id,
        organization_id=job.organization_id,
        project_id=job.project_id,
        filename=f"step_metrics_{job.id}.csv",
        purpose=RESULTS,
        bytes=size,
        sha256=sha256,
    )
    return files.add(session, file)
