"""Which models a caller may use, and where their weights are."""

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from service.audit import repository as audit
from service.core import storage
from service.core.db import across_projects, after_commit, owner_of
from service.core.errors import DomainError, invalid
from service.jobs import repository as jobs
from service.jobs.models import Checkpoint
from service.models import base, repository
from service.models.base import BaseModel
from service.models.models import TunedModel

CHECKPOINT_MARK = ":ckpt-step-"
MODELS_SHOWN = 20
NAME_SHOWN = 300
"""Models, and characters of a name, that an error shows."""


@dataclass(frozen=True)
class Model:
    """A usable model: a base model, a tuned one, or a checkpoint. ``path`` is a Hugging Face model folder."""

    id: str
    created_at: datetime
    owner: str
    path: Path


def available(session: Session) -> list[Model]:
    """Base models, then the caller's tuned models and checkpoints, newest first."""
    return [
        *(_of_base(model) for model in base.available()),
        *(_of_tuned(model) for model in repository.all_tuned(session)),
        *(_of_checkpoint(checkpoint) for checkpoint in jobs.all_checkpoints(session)),
    ]


def find(session: Session, id: str, *, param: str | None, status: int = 404) -> Model:
    """The model ``id``. Raises ``status`` naming what can be used instead."""
    tuned = repository.get(session, id)
    if tuned is not None:
        return _of_tuned(tuned)
    checkpoint = jobs.checkpoint_named(session, id) if CHECKPOINT_MARK in id else None
    if checkpoint is not None:
        return _of_checkpoint(checkpoint)
    offered = base.find(id)
    if offered is not None:
        return _of_base(offered)
    message = f"The model '{id[:NAME_SHOWN]}' does not exist or is not on the operator's list. {_on_offer()}"
    raise DomainError(status, "model_not_found", message, param)


def _on_offer() -> str:
    names = [model.id for model in base.available()]
    more = f" and {len(names) - MODELS_SHOWN} more" if len(names) > MODELS_SHOWN else ""
    shown = ", ".join(names[:MODELS_SHOWN]) or "none; the operator has not added any"
    return f"Base models on offer: {shown}{more}."


def hold(session: Session, id: str, *, param: str | None, status: int = 400) -> Model:
    """``find``, and the model stays until the transaction ends, so that a job can be created from it."""
    repository.hold(session, id)
    return find(session, id, param=param, status=status)


def delete(session: Session, id: str) -> None:
    """Delete a tuned model, or a checkpoint of a job that has ended, with its weights.

    Raises a 403 for a base model or one of another project, and a 400 for what a job still needs.
    """
    repository.seize(session, id)
    model = find(session, id, param="model")
    tuned = repository.get(session, id)
    checkpoint = jobs.checkpoint_named(session, id)
    owner, made = owner_of(session), tuned or checkpoint
    if made is not None and owner is not None and made.project_id != owner.project_id:
        message = f"The model '{id}' is another project's, which shares it with yours; only that one can delete it."
        raise DomainError(403, "model_not_deletable", message, "model")
    with across_projects(session):
        users = jobs.unfinished_from(session, id)
    if users:
        own = sorted(jobs.existing(session, users))
        user = f"job {own[0]}" if own else "a job of a project that it is shared with"
        raise invalid(f"The model is the base of {user}, which has not ended.", "model", "model_in_use")
    if tuned is not None:
        job_id = tuned.job_id
        repository.remove(session, tuned)
    elif checkpoint is not None:
        job_id = checkpoint.job_id
        _delete_checkpoint(session, checkpoint)
    else:
        message = f"'{id}' is a base model on the operator's list; only tuned models can be deleted."
        raise DomainError(403, "model_not_deletable", message, "model")
    jobs.withdraw(session, id)
    audit.record(session, "model.deleted", id)
    # A checkpoint's weights are in its training state too.
    folder = model.path if tuned is not None else model.path.parent
    jobs.forget_bytes(session, job_id, storage.bytes_in([folder]))
    after_commit(session, lambda: shutil.rmtree(folder, ignore_errors=True))


def _delete_checkpoint(session: Session, checkpoint: Checkpoint) -> None:
    job = jobs.get(session, checkpoint.job_id)
    if job is not None and job.finished_at is None:
        message = f"Job {job.id} has not ended and may go on from this checkpoint."
        raise invalid(message, "model", "model_in_use")
    jobs.remove_checkpoints(session, [checkpoint.id])


def _of_base(model: BaseModel) -> Model:
    return Model(model.id, model.created_at, "system", model.path)


def _of_tuned(model: TunedModel) -> Model:
    return Model(model.id, model.created_at, model.organization_id, storage.job_dir(model.job_id) / model.path)


def _of_checkpoint(checkpoint: Checkpoint) -> Model:
    path = storage.job_dir(checkpoint.job_id) / checkpoint.path / "model"
    return Model(checkpoint.model, checkpoint.created_at, checkpoint.organization_id, path)
