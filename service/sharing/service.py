"""Letting other projects of the organisation use a model: ask it, download it, train on from it."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from service.accounts import repository as accounts
from service.audit import repository as audit
from service.core.db import EVERY_PROJECT, across_projects, owner_of
from service.core.errors import DomainError, not_found
from service.jobs import repository as jobs
from service.jobs.models import Checkpoint, CheckpointPermission
from service.models import repository as models
from service.models.models import TunedModel
from service.sharing import repository


def give(session: Session, checkpoint: str, project_ids: Sequence[str]) -> Sequence[CheckpointPermission]:
    """The permissions of these projects to use a model, newest first. Raises a 404 for a project that is not there."""
    # It must not be deleted meanwhile.
    models.hold(session, checkpoint)
    source = own(session, checkpoint)
    wanted = list(dict.fromkeys(project_ids))
    with across_projects(session):
        for id in wanted:
            project = accounts.project(session, id)
            if project is None or project.archived_at is not None:
                raise not_found("project", id, "project_ids")
    before = {row.project_id for row in repository.given(session, checkpoint, wanted)}
    repository.give(session, source, checkpoint, wanted)
    given = repository.given(session, checkpoint, wanted)
    for row in given:
        if row.project_id not in before:
            data = {"project_id": row.project_id, "fine_tuned_model_checkpoint": checkpoint}
            audit.record(session, "checkpoint.permission.created", row.id, project_id=source.project_id, data=data)
    return given


def take_back(session: Session, checkpoint: str, id: str) -> None:
    """Jobs that were created from it go on; nothing else of the project's sees the model any more."""
    own(session, checkpoint)
    row = repository.take_back(session, checkpoint, id)
    if row is None:
        raise not_found("checkpoint permission", id, "permission_id")
    audit.record(session, "checkpoint.permission.deleted", id, project_id=row.source_project_id)


def own(session: Session, id: str) -> TunedModel | Checkpoint:
    """The tuned model or checkpoint ``id`` of the caller's. Raises a 403 for one that was shared with it."""
    found: TunedModel | Checkpoint | None = models.get(session, id) or jobs.checkpoint_named(session, id)
    if found is None:
        message = f"'{id[:300]}' is no tuned model or checkpoint of yours. Base models are for everybody."
        raise DomainError(404, "model_not_found", message, "fine_tuned_model_checkpoint")
    owner = owner_of(session)
    if owner is not None and owner.project_id not in (EVERY_PROJECT, found.project_id):
        message = f"The model '{id}' is another project's, which shares it with yours; only that one may change this."
        raise DomainError(403, "model_of_another_project", message, "fine_tuned_model_checkpoint")
    return found
