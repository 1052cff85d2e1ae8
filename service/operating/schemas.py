"""Workers and the queue on the wire."""

from typing import Literal

from pydantic import BaseModel, Field

from service.accounts.models import Organization
from service.core.pagination import Listed
from service.jobs.models import Job
from service.operating.service import AtWork


class OrganizationName(BaseModel):
    id: str
    name: str

    @classmethod
    def of(cls, row: Organization) -> "OrganizationName":
        return cls(id=row.id, name=row.name)


class RunningJob(BaseModel):
    id: str
    organization: OrganizationName
    project_id: str
    model: str
    step: int
    total_steps: int
    estimated_finish: int | None

    @classmethod
    def of(cls, row: Job, organization: Organization) -> "RunningJob":
        finish = row.estimated_finish
        return cls(
            id=row.id,
            organization=OrganizationName.of(organization),
            project_id=row.project_id,
            model=row.model,
            step=row.step,
            total_steps=row.total_steps,
            estimated_finish=None if finish is None else int(finish.timestamp()),
        )


class WorkerObject(Listed):
    """A training worker. ``id`` is the name that it has for Celery."""

    object: Literal["organization.worker"] = "organization.worker"
    state: Literal["ready", "draining", "away"]
    gpus: int = Field(description="Processes that train one job, each on a GPU of its own where there are GPUs.")
    gpu_bytes: int = Field(description="Memory of these GPUs together; 0 where it has none, or does not say.")
    engines: list[str]
    started_at: int
    seen_at: int
    job: RunningJob | None

    @classmethod
    def of(cls, found: AtWork) -> "WorkerObject":
        worker, job = found.worker, None
        if found.job is not None and found.organization is not None:
            job = RunningJob.of(found.job, found.organization)
        return cls(
            id=worker.name,
            state=found.state,
            gpus=worker.gpus,
            gpu_bytes=worker.gpu_bytes,
            engines=worker.engines,
            started_at=int(worker.started_at.timestamp()),
            seen_at=int(worker.seen_at.timestamp()),
            job=job,
        )


class QueuedJob(Listed):
    object: Literal["organization.queued_job"] = "organization.queued_job"
    organization: OrganizationName
    project_id: str
    model: str
    priority: int
    created_at: int
    queue_position: int | None = Field(description="1 is taken next. As of some seconds ago.")
    estimated_start: int | None
    waits_for: str | None = Field(description="What has to be there before a worker can take it.")

    @classmethod
    def of(cls, row: Job, organization: Organization) -> "QueuedJob":
        start = row.estimated_start
        return cls(
            id=row.id,
            organization=OrganizationName.of(organization),
            project_id=row.project_id,
            model=row.model,
            priority=row.priority,
            created_at=int(row.created_at.timestamp()),
            queue_position=row.queue_position,
            estimated_start=None if start is None else int(start.timestamp()),
            waits_for=row.waits_for,
        )
