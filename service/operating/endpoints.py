"""``/v1/organization``: workers and the queue, with an admin key."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.accounts.caller import Caller, Route
from service.accounts.scopes import needs
from service.core.pagination import Page, page
from service.operating import service
from service.operating.schemas import QueuedJob, WorkerObject

router = APIRouter(prefix="/v1/organization", tags=["operating"], route_class=Route)


@router.get("/workers")
@needs("admin")
def list_workers(caller: Caller) -> Page[WorkerObject]:
    """Training workers, what they have and what they run. Empty unless your organization operates the installation."""
    return page([WorkerObject.of(each) for each in service.workers(caller.session)], has_more=False)


@router.post("/workers/{worker}/drain")
@needs("admin")
def drain_worker(caller: Caller, worker: str) -> WorkerObject:
    """Give a worker no further job. The one that it has goes on to its end."""
    return WorkerObject.of(service.set_draining(caller.session, worker, draining=True))


@router.post("/workers/{worker}/resume")
@needs("admin")
def resume_worker(caller: Caller, worker: str) -> WorkerObject:
    """Give a drained worker jobs again."""
    return WorkerObject.of(service.set_draining(caller.session, worker, draining=False))


@router.get("/queue")
@needs("admin")
def list_queue(
    caller: Caller, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Page[QueuedJob]:
    """Jobs that wait for a worker, the next first: your organization's, or all where it operates the installation."""
    rows, more = service.queue(caller.session, after=after, limit=limit)
    return page([QueuedJob.of(job, organization) for job, organization in rows], has_more=more)
