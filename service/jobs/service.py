"""Submitting jobs and changing what is wanted of them."""

import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service.accounts.service import Principal
from service.core import broker, live, storage
from service.core.db import after_commit, set_local
from service.core.errors import DomainError, invalid, not_found
from service.core.ids import new_id
from service.files import check, dataset
from service.files import repository as files
from service.files.models import File
from service.files.service import FINE_TUNE
from service.jobs import examination, repository
from service.jobs.models import Event, Job
from service.jobs.repository import EventDraft
from service.jobs.request import AskedReinforcement, AskedSupervised, check_integrations, parse_method
from service.jobs.schemas import CreateJob, EventObject
from service.jobs.spec import JobSpec, Reinforcement, Supervised, resolve, resolve_supervised
from service.jobs.states import TERMINAL, Desired, Status, move
from service.models import service as models
from service.models.service import Model
from service.settings import settings
from service.webhooks import service as webhooks

log = logging.getLogger(__name__)


def submit(session: Session, principal: Principal, request: CreateJob) -> Job:
    """Check a request whole, then create the job: queued, with its own copy of the data. Or raise and make nothing."""
    # Large files take longer to check than an idle transaction is left alone.
    set_local(session, "idle_in_transaction_session_timeout", "0")
    asked = parse_method(request.method, request.hyperparameters, principal.organization_id)
    check_integrations(request.integrations or [], settings().wandb_mode)
    model = models.find(session, request.model, param="model", status=400)
    training = _dataset(session, request.training_file, "training_file", asked, settings().max_training_rows)
    validation = None
    if request.validation_file is not None:
        limit = settings().max_validation_rows
        validation = _dataset(session, request.validation_file, "validation_file", asked, limit)
    elif isinstance(asked, AskedReinforcement):
        raise invalid("Reinforcement fine-tuning needs a validation file.", "validation_file", "missing_parameter")
    _check_quota(session, principal)
    notes = _examine(model, training, validation, asked)
    # Checking files takes its time; a base that was deleted meanwhile is missed here.
    models.hold(session, model.id, param="model")
    spec = JobSpec(
        model=model.id,
        training_file=training.id,
        validation_file=validation.id if validation else None,
        method=_resolve(asked, training.rows or 0),
        seed=request.seed if request.seed is not None else secrets.randbelow(2**31),
        suffix=request.suffix,
        integrations=request.integrations or [],
    )
    job = Job(
        id=new_id("ftjob-"),
        organization_id=principal.organization_id,
        status=Status.QUEUED,
        desired=Desired.RUN,
        spec=spec.model_dump(mode="json"),
        model=model.id,
        training_file=training.id,
        validation_file=spec.validation_file,
        meta=request.metadata,
        total_steps=spec.method.hyperparameters.n_steps,
        event_count=0,
    )
    _keep_data(job.id, training, validation)
    repository.add(session, job)
    tell(
        session,
        job,
        [
            EventDraft(f"Created fine-tuning job: {job.id}"),
            EventDraft(
                ". ".join([f"Files validated: {_counts(training, validation)}; job queued", *notes]),
                level="warn" if notes else "info",
            ),
            *_warnings(training, validation),
        ],
    )
    _ring_after_commit(session, job.id)
    log.info("queued %s", job.id)
    return job


def _resolve(asked: AskedReinforcement | AskedSupervised, training_rows: int) -> Reinforcement | Supervised:
    if isinstance(asked, AskedSupervised):
        return Supervised(hyperparameters=resolve_supervised(asked.hyperparameters, training_rows=training_rows))
    engine = settings().rollout_engine
    resolved = resolve(asked.hyperparameters, training_rows=training_rows, rollout_engine=engine)
    if resolved.old_policy == "sampler" and resolved.rollout_engine != "vllm":
        where = "method.reinforcement.hyperparameters.old_policy"
        raise invalid("Only rollout_engine 'vllm' gives the sampler's distributions.", where)
    return Reinforcement(grader=asked.grader, hyperparameters=resolved)


def _counts(training: File, validation: File | None) -> str:
    rows = f"{training.rows} training rows"
    return f"{rows}, {validation.rows} validation rows" if validation else rows


def retrieve(session: Session, id: str) -> Job:
    job = repository.get(session, id)
    if job is None:
        raise not_found("fine-tuning job", id, "fine_tuning_job_id")
    return job


def cancel(session: Session, id: str) -> Job:
    """A waiting job is cancelled at once; a running one when its worker has heard of it: 10 s more are all it gets."""
    job = _locked(session, id)
    if job.status in TERMINAL:
        raise _wrong_state(job, "cancelled")
    if job.status == Status.RUNNING:
        return _want(session, job, Desired.CANCEL, "Cancellation requested")
    move(job, Status.CANCELLED)
    job.desired, job.finished_at, job.estimated_finish = Desired.CANCEL, files.now(session), None
    webhooks.announce_job(session, job.organization_id, job.id, Status.CANCELLED)
    tell(session, job, [EventDraft("Job cancelled")])
    return job


def pause(session: Session, id: str) -> Job:
    """A queued job is set aside; a running one saves a checkpoint and stops."""
    job = _locked(session, id)
    if job.status == Status.PAUSED:
        return job
    if job.status not in (Status.QUEUED, Status.RUNNING) or job.desired == Desired.CANCEL:
        raise _wrong_state(job, "paused")
    if job.status == Status.RUNNING:
        return _want(session, job, Desired.PAUSE, "Pause requested")
    move(job, Status.PAUSED)
    job.desired = Desired.PAUSE
    tell(session, job, [EventDraft("Job paused")])
    return job


def resume(session: Session, id: str) -> Job:
    """A paused job is queued again and goes on from its newest checkpoint."""
    job = _locked(session, id)
    if job.status == Status.RUNNING and job.desired == Desired.PAUSE:
        return _want(session, job, Desired.RUN, "Pause withdrawn")
    if job.status != Status.PAUSED:
        raise _wrong_state(job, "resumed")
    move(job, Status.QUEUED)
    job.desired, job.eligible_at = Desired.RUN, files.now(session)
    tell(session, job, [EventDraft("Job resumed; waiting for a worker")])
    _ring_after_commit(session, job.id)
    return job


def tell(session: Session, job: Job, drafts: Sequence[EventDraft]) -> list[Event]:
    """Append events to a locked job and, once they are committed, show them to whoever follows it."""
    events = repository.append_events(session, job, drafts)
    if events:
        session.flush()
        frames = [EventObject.of(event).model_dump(mode="json") for event in events]
        job_id = job.id
        after_commit(session, lambda: live.publish(job_id, frames))
    return events


def _want(session: Session, job: Job, desired: Desired, message: str) -> Job:
    if job.desired != desired:
        job.desired = desired
        tell(session, job, [EventDraft(message)])
    return job


def _locked(session: Session, id: str) -> Job:
    job = repository.locked(session, id)
    if job is None:
        raise not_found("fine-tuning job", id, "fine_tuning_job_id")
    return job


def _wrong_state(job: Job, verb: str) -> DomainError:
    # A 409 would be retried by the official client; the request cannot succeed, so it is a 400.
    return invalid(f"Job {job.id} is {job.status} and cannot be {verb}.", None, "invalid_job_state")


def _dataset(session: Session, id: str, param: str, asked: AskedReinforcement | AskedSupervised, max_rows: int) -> File:
    file = files.get(session, id)
    if file is None:
        raise _gone(id, param)
    if file.purpose != FINE_TUNE:
        raise invalid(f"File '{id}' has purpose '{file.purpose}'; '{FINE_TUNE}' is needed.", param, "invalid_file")
    if (file.rows or 0) > max_rows:
        raise invalid(f"{check.too_many_rows(file.rows or 0, max_rows).capitalize()}.", param, f"invalid_{param}")
    try:
        path = storage.file_path(id)
        if isinstance(asked, AskedSupervised):
            report = dataset.check_for_supervised(path)
        else:
            report = dataset.check_for_reinforcement(path, asked.grader)
    except FileNotFoundError as error:  # It was deleted a moment ago.
        raise _gone(id, param) from error
    if report.problems:
        raise invalid(dataset.summarise(report), param, f"invalid_{param}")
    return file


def _examine(
    model: Model, training: File, validation: File | None, asked: AskedReinforcement | AskedSupervised
) -> list[str]:
    # The lock on this request is held meanwhile: whoever repeats it must not have it carried out twice.
    files = {"training_file": training, "validation_file": validation}
    paths = {param: storage.file_path(file.id) for param, file in files.items() if file is not None}
    if isinstance(asked, AskedSupervised):
        question = examination.Question(method="supervised", model=model.path, files=paths, grader=None)
    else:
        question = examination.Question(model=model.path, files=paths, grader=asked.grader)
    return examination.examine(question)


def _warnings(training: File, validation: File | None) -> list[EventDraft]:
    path = storage.file_path(validation.id) if validation else None
    found = check.warnings(storage.file_path(training.id), path)
    return [EventDraft(f"{text[0].upper()}{text[1:]}", level="warn") for text in found]


def _check_quota(session: Session, principal: Principal) -> None:
    limit = settings().max_queued_jobs
    if repository.count(session, principal.organization_id, Status.QUEUED) >= limit:
        message = f"Your organization already has {limit} jobs queued. Cancel some or wait for them to start."
        raise DomainError(429, "job_quota_exceeded", message, headers={"x-should-retry": "false"})


def _keep_data(job_id: str, training: File, validation: File | None) -> None:
    """Link the files into the job's folder: they may be deleted or expire, and the job still has them."""
    folder = storage.job_dir(job_id)
    folder.mkdir(parents=True)
    for file, param in ((training, "training_file"), (validation, "validation_file")):
        if file is None:
            continue
        try:
            _link(storage.file_path(file.id), folder / param.replace("_file", ".jsonl"))
        except FileNotFoundError as error:
            shutil.rmtree(folder)
            raise _gone(file.id, param) from error


def _gone(id: str, param: str) -> DomainError:
    return DomainError(400, "file_not_found", f"No such file: '{id}'. Upload it with purpose '{FINE_TUNE}'.", param)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Some shared file systems have no hard links.
        shutil.copyfile(source, target)


def _ring_after_commit(session: Session, job_id: str) -> None:
    after_commit(session, lambda: broker.ring(job_id))


def metadata_filter(query: Sequence[tuple[str, str]]) -> tuple[dict[str, str], bool]:
    """The ``metadata[key]=value`` pairs of a query string, and whether ``metadata=null`` asks for jobs without any."""
    pairs: dict[str, Any] = {
        name[len("metadata[") : -1]: value
        for name, value in query
        if name.startswith("metadata[") and name.endswith("]")
    }
    return pairs, ("metadata", "null") in query
