"""Queries on which projects may use a model of another."""

from collections.abc import Sequence

from sqlalchemy import delete, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.core import pagination
from service.core.ids import new_id
from service.jobs.models import Checkpoint, CheckpointPermission
from service.models.models import TunedModel


def give(session: Session, source: TunedModel | Checkpoint, checkpoint: str, project_ids: Sequence[str]) -> None:
    """Let projects use a model. Those that may already are left as they are."""
    rows = [
        {
            "id": new_id("cp_"),
            "organization_id": source.organization_id,
            "source_project_id": source.project_id,
            "checkpoint": checkpoint,
            "project_id": project_id,
        }
        for project_id in project_ids
    ]
    session.execute(insert(CheckpointPermission).values(rows).on_conflict_do_nothing())


def given(session: Session, checkpoint: str, project_ids: Sequence[str]) -> Sequence[CheckpointPermission]:
    query = select(CheckpointPermission).where(CheckpointPermission.checkpoint == checkpoint)
    query = query.where(CheckpointPermission.project_id.in_(project_ids))
    return session.scalars(query.order_by(CheckpointPermission.sequence.desc())).all()


def page(
    session: Session, checkpoint: str, *, project_id: str | None, after: str | None, limit: int, ascending: bool
) -> tuple[Sequence[CheckpointPermission], bool]:
    query = select(CheckpointPermission).where(CheckpointPermission.checkpoint == checkpoint)
    if project_id is not None:
        query = query.where(CheckpointPermission.project_id == project_id)
    return pagination.fetch(session, query, CheckpointPermission, after=after, limit=limit, ascending=ascending)


def take_back(session: Session, checkpoint: str, id: str) -> CheckpointPermission | None:
    mine = (CheckpointPermission.checkpoint == checkpoint, CheckpointPermission.id == id)
    return session.scalar(delete(CheckpointPermission).where(*mine).returning(CheckpointPermission))


def remove_orphans(session: Session) -> None:
    """Forget permissions for models that are gone: a worker drops checkpoints, and knows nothing of these."""
    name = CheckpointPermission.checkpoint
    there = or_(
        select(TunedModel.id).where(TunedModel.id == name).exists(),
        select(Checkpoint.id).where(Checkpoint.model == name).exists(),
    )
    session.execute(delete(CheckpointPermission).where(~there), execution_options={"synchronize_session": False})
