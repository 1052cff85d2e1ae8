"""Creating a job: what is wrong with it is told in the answer, if it is found out in time.

A request is first read against the database. Its files are then read whole, and the control worker counts their rows in
tokens and tries the grader, for ``ANSWER_SECONDS`` in all and while no transaction is open. An error found by then is a
400, and nothing was made. What is not known by then is found out while the job is in ``validating_files``.
"""

import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redis.exceptions import RedisError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.accounts.caller import in_transaction
from service.accounts.known import Principal
from service.audit import repository as audit
from service.contracts.engines import ENGINES
from service.core import ask, broker, storage
from service.core.db import after_commit
from service.core.errors import DomainError, invalid
from service.core.ids import new_id
from service.core.threads import OverloadedError, TookTooLongError, bulk_threads, parsing_threads
from service.files import repository as files
from service.files.models import File
from service.files.service import FINE_TUNE
from service.graders.configured import admit
from service.jobs import check, examination, repository, service, stored
from service.jobs.examination import Findings, Question
from service.jobs.hyperparameters.option import Installation, conflicts, overruled, resolve
from service.jobs.methods.registry import Method
from service.jobs.models import Examination, Job
from service.jobs.repository import EventDraft
from service.jobs.schemas import CreateJob
from service.jobs.spec import JobSpec
from service.jobs.states import Desired, Status
from service.jobs.validation import data_name
from service.models import service as models
from service.models import size
from service.settings import settings
from service.submission import estimate, needs
from service.submission.request import (
    AskedMethod,
    check_integrations,
    inheriting,
    parse_method,
    question_of,
    set_file,
)

ANSWER_SECONDS = 2.5
"""How long a request waits for what is found out about its job."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """A job that the database has nothing against. Its folder is there, with links to its files; no row is."""

    id: str
    request: CreateJob
    asked: AskedMethod
    organization_id: str
    project_id: str
    training: File | None
    validation: File | None
    sets: list[File]
    """Of the validation sets, in their order."""
    question: Question

    def discard(self) -> None:
        shutil.rmtree(storage.job_dir(self.id), ignore_errors=True)


@dataclass(frozen=True)
class Examined:
    """A draft, and what is known of it: all, or ``found`` is None and ``question`` is left to a control worker."""

    draft: Draft
    question: Question
    found: Findings | None


async def prepare(known: Principal, request: CreateJob) -> Examined:
    """Find out about a job what can be found out in time. Raises a 400 for what forbids it, and leaves nothing."""
    until = time.monotonic() + ANSWER_SECONDS
    # Reading a grader takes a processor's time, and no transaction is open meanwhile.
    admitted = partial(admit, organization_id=known.organization_id)
    asked = await parsing_threads.run_to_end(
        known.organization_id, parse_method, request.method, request.hyperparameters, admitted
    )
    draft = await in_transaction(known, _draft, known, request, asked)
    try:
        return await _examine(known, draft, until)
    except BaseException:
        draft.discard()
        raise


async def _examine(known: Principal, draft: Draft, until: float) -> Examined:
    question = draft.question
    checked = await _check_files(known, question, until)
    if checked is None:
        return Examined(draft, question, None)
    question = question.model_copy(update={"files_checked": True, "warnings": checked.warnings})
    if not await _control_worker_alive():
        untried = " and the grader was not tried" if question.grader else ""
        note = f"Rows were not counted in tokens{untried}: No control worker is running"
        return Examined(draft, question, Findings(notes=[note], warnings=checked.warnings))
    await in_transaction(known, _ask, draft, question)
    found = await examination.answer_to(draft.id, until)
    if found is not None:
        _raise_refusal(found)
    return Examined(draft, question, found)


async def _control_worker_alive() -> bool:
    try:
        return await run_in_threadpool(ask.alive)
    except RedisError:
        # It is not known; a control worker that is there finds the question in the database.
        return True


async def _check_files(known: Principal, question: Question, until: float) -> Findings | None:
    """What is found in the files; None when they are too large to be read in time, or too many others are read."""
    seconds = max(0.1, until - time.monotonic())
    try:
        checked = await bulk_threads.run(
            known.organization_id, examination.check_files, question, until, seconds=seconds
        )
    except (TimeoutError, OverloadedError, TookTooLongError):
        return None
    _raise_refusal(checked)
    return checked


def create(session: Session, examined: Examined) -> Job:
    """The job: queued, or in ``validating_files`` while something is still to be found out about it.

    Raises a 400 for what was found out meanwhile and a 429 when too many jobs wait.
    """
    draft = examined.draft
    organization_id = draft.organization_id
    repository.lock_quota(session, organization_id)
    service.check_quota(session, organization_id)
    # Finding out takes its time; a base that was deleted meanwhile is missed here.
    base = models.hold(session, draft.request.model, param="model")
    found = examined.found or _found_meanwhile(session, examined)
    job = _row(draft)
    job.gpu_bytes = needs.gpu_bytes(
        size.parameters(base.path),
        job.as_spec(),
        memory_share=settings().rollout_memory_share,
        tensor_parallel=settings().rollout_tensor_parallel,
        processes=settings().processes_per_job,
    )
    job.estimated_gpu_seconds = estimate.gpu_seconds(session, job.as_spec())
    repository.add(session, job)
    audit.record(session, "fine_tuning.job.created", job.id, data={"model": job.model})
    other = overruled(draft.asked.hyperparameters, job.as_spec().method.hyperparameters)
    drafts = [EventDraft(f"Created fine-tuning job: {job.id}"), *(EventDraft(text, "warn") for text in other)]
    service.tell(session, job, drafts)
    if found is None:
        files_told = " and ".join(file.id for file in (draft.training, draft.validation) if file is not None)
        service.tell(session, job, [EventDraft(f"Validating files: {files_told}")])
    else:
        service.validated(session, job, examined.question.counts, found)
    log.info("%s %s", job.status, job.id)
    return job


def _found_meanwhile(session: Session, examined: Examined) -> Findings | None:
    """What the control worker found since nobody waits for it any more; until then it is left to it."""
    row = repository.examination_locked(session, examined.draft.id)
    if row is None:
        _ask(session, examined.draft, examined.question)
        return None
    found = None if row.answer is None else examination.read_answer(row.answer)
    if found is not None:
        _raise_refusal(found)
    return found


def _ask(session: Session, draft: Draft, question: Question) -> None:
    """Have the control worker find out."""
    row = Examination(
        id=draft.id,
        organization_id=draft.organization_id,
        project_id=draft.project_id,
        question=stored.write(question),
    )
    repository.add_examination(session, row)
    after_commit(session, broker.ring_examinations)


def _raise_refusal(found: Findings) -> None:
    refused = examination.refusal(found)
    if refused is not None:
        raise refused


def _draft(session: Session, known: Principal, request: CreateJob, asked: AskedMethod) -> Draft:
    """Read a request against the database, and make the job's folder with its files."""
    check_integrations(request.integrations or [], known.organization_id, known.project_id)
    model = models.find(session, request.model, param="model", status=400)
    training = _training_file(session, request, asked)
    validation = None
    if request.validation_file is not None and not asked.kind.trains:
        why = "An evaluation's files are its validation_sets: name this one there, and leave validation_file out."
        raise invalid(why, "validation_file")
    if request.validation_file is not None:
        validation = _file(session, request.validation_file, "validation_file", settings().max_validation_rows)
    elif asked.kind.needs_validation_file:
        why = f"{asked.type.capitalize()} fine-tuning needs a validation file."
        raise invalid(why, "validation_file", "missing_parameter")
    sets = [
        _file(session, each.file, set_file(asked, number), settings().max_validation_rows)
        for number, each in enumerate(asked.validation_sets)
    ]
    asked = inheriting(asked, model.path)
    _resolve(asked, training, sets)
    service.check_quota(session, known.organization_id)
    id = new_id("ftjob-")
    given = [Given("training_file", "training", training)] if training else []
    given += [Given("validation_file", "validation", validation)] if validation else []
    given += [Given(set_file(asked, n), data_name(n), file) for n, file in enumerate(sets)]
    paths = _keep_data(id, given)
    question = question_of(asked, model.path, paths, files_checked=False)
    question = question.model_copy(update={"counts": _counts(asked, training, validation, sets)})
    # They are all of one project.
    owner = training or sets[0]
    return Draft(id, request, asked, owner.organization_id, owner.project_id, training, validation, sets, question)


def _training_file(session: Session, request: CreateJob, asked: AskedMethod) -> File | None:
    """Raises a 400 where it is missing, or there is nothing to train."""
    id = request.training_file
    if not asked.kind.trains:
        if id is not None:
            raise invalid("An evaluation trains on nothing: leave training_file out.", "training_file")
        return None
    if id is None:
        raise invalid("Missing required parameter: 'training_file'.", "training_file")
    return _file(session, id, "training_file", settings().max_training_rows)


def _counts(asked: AskedMethod, training: File | None, validation: File | None, sets: Sequence[File]) -> str:
    rows = [f"{training.rows} training rows"] if training else []
    rows += [f"{validation.rows} validation rows"] if validation else []
    rows += [f"{file.rows} rows of {each.name}" for each, file in zip(asked.validation_sets, sets, strict=True)]
    return ", ".join(rows)


def _row(draft: Draft) -> Job:
    request = draft.request
    spec = JobSpec(
        model=request.model,
        training_file=draft.training.id if draft.training else None,
        validation_file=draft.validation.id if draft.validation else None,
        method=_resolve(draft.asked, draft.training, draft.sets),
        seed=request.seed if request.seed is not None else secrets.randbelow(2**31),
        suffix=request.suffix,
        integrations=request.integrations or [],
    )
    return Job(
        id=draft.id,
        organization_id=draft.organization_id,
        project_id=draft.project_id,
        status=Status.VALIDATING,
        desired=Desired.RUN,
        spec=stored.write(spec),
        model=spec.model,
        training_file=spec.training_file or "",
        validation_file=spec.validation_file,
        meta=request.metadata,
        priority=request.priority,
        total_steps=spec.method.total_steps,
        event_count=0,
    )


def _resolve(asked: AskedMethod, training: File | None, sets: Sequence[File]) -> Method:
    ours = settings()
    here = Installation(ours.rollout_engine, ours.processes_per_job, ours.rollout_tensor_parallel)
    resolved = resolve(asked.hyperparameters, training_rows=training.rows or 0 if training else 0, installation=here)
    for name, why in conflicts(resolved, here):
        raise invalid(why, f"method.{asked.type}.hyperparameters.{name}")
    given = {
        "hyperparameters": resolved,
        "grader": asked.grader,
        "response_format": asked.response_format,
        "validation_sets": [
            each.resolved(file.rows or 0, resolved) for each, file in zip(asked.validation_sets, sets, strict=True)
        ],
    }
    method = asked.kind.model_validate({part: given[part] for part in asked.kind.parts()})
    for number, each in enumerate(method.sets):
        fault = each.fault(ENGINES[resolved.rollout_engine])
        if fault is not None:
            name, why = fault
            raise invalid(why, f"method.{asked.type}.validation_sets[{number}].{name}")
    return method


def _file(session: Session, id: str, param: str, max_rows: int) -> File:
    file = files.get(session, id)
    if file is None:
        raise _gone(id, param)
    if file.purpose != FINE_TUNE:
        raise invalid(f"File '{id}' has purpose '{file.purpose}'; '{FINE_TUNE}' is needed.", param, "invalid_file")
    if (file.rows or 0) > max_rows:
        why = f"{check.too_many_rows(file.rows or 0, max_rows).capitalize()}."
        raise invalid(why, param, f"invalid_{param.rpartition('.')[2]}")
    return file


@dataclass(frozen=True)
class Given:
    """A file that a field ``param`` of the request names, and what the job calls its rows."""

    param: str
    data: str
    file: File


def _keep_data(job_id: str, given: Sequence[Given]) -> dict[str, Path]:
    """Link files into the job's folder: they may be deleted or expire, and the job still has them until it ends."""
    folder = storage.job_dir(job_id)
    folder.mkdir(parents=True)
    for each in given:
        try:
            _link(storage.file_path(each.file.id), storage.job_data(job_id, each.data))
        except OSError as error:
            shutil.rmtree(folder)
            if isinstance(error, FileNotFoundError):  # It was deleted a moment ago.
                raise _gone(each.file.id, each.param) from error
            raise
    return {each.param: storage.job_data(job_id, each.data) for each in given}


def _gone(id: str, param: str) -> DomainError:
    return DomainError(400, "file_not_found", f"No such file: '{id}'. Upload it with purpose '{FINE_TUNE}'.", param)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Some shared file systems have no hard links.
        shutil.copyfile(source, target)
