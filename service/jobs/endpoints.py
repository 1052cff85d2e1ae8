"""``/v1/fine_tuning/jobs``"""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from service.accounts.caller import Caller, Route
from service.core import sse, stream_slots
from service.core.errors import invalid
from service.core.pagination import Page, page
from service.jobs import repository, service, stream
from service.jobs.schemas import CheckpointObject, EventObject, JobObject, event_seq
from service.usage import service as usage

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=Route)

FRAME = {
    "type": "object",
    "description": "A frame of the stream. `data` is an event as JSON, and `[DONE]` behind the last.",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("")
def list_jobs(caller: Caller, request: Request, after: str | None = None, limit: Limit = 20) -> Page[JobObject]:
    """Newest first. Filter with ``metadata[key]=value``, or ``metadata=null`` for jobs without metadata."""
    metadata, no_metadata = service.metadata_filter(request.query_params.multi_items())
    rows, has_more = repository.page(
        caller.session, metadata=metadata, no_metadata=no_metadata, after=after, limit=limit
    )
    return page([JobObject.of(row) for row in rows], has_more=has_more)


@router.get("/{fine_tuning_job_id}")
def retrieve(caller: Caller, fine_tuning_job_id: str) -> JobObject:
    return JobObject.of(service.retrieve(caller.session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/cancel")
def cancel(caller: Caller, fine_tuning_job_id: str) -> JobObject:
    """The answer has the status that the job will have: one that runs stops within seconds."""
    return JobObject.as_wanted(service.cancel(caller.session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/pause")
def pause(caller: Caller, fine_tuning_job_id: str) -> JobObject:
    """The answer has the status that the job will have: one that runs saves a checkpoint first."""
    return JobObject.as_wanted(service.pause(caller.session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/resume")
def resume(caller: Caller, fine_tuning_job_id: str) -> JobObject:
    return JobObject.of(service.resume(caller.session, fine_tuning_job_id))


@router.get(
    "/{fine_tuning_job_id}/events",
    response_model=Page[EventObject],
    responses={200: {"content": {"text/event-stream": {"schema": FRAME}}}},
)
def events(
    caller: Caller,
    fine_tuning_job_id: str,
    after: Annotated[str | None, Query(description="An event's id or its `seq`.")] = None,
    limit: Limit = 20,
    stream_: Annotated[bool, Query(alias="stream", description="Follow the job as server-sent events.")] = False,
) -> Page[EventObject] | StreamingResponse:
    """Newest first. With ``stream=true``: oldest first from ``after`` on, then live until the job ends."""
    job = service.retrieve(caller.session, fine_tuning_job_id)
    seq = None if after is None else event_seq(job.id, after)
    if after is not None and (seq is None or seq > job.event_count):
        raise invalid(f"'after' must be the id or the seq of an event of this job; '{after}' is neither.", "after")
    if stream_:
        principal = caller.principal
        slot = stream_slots.acquire(principal.key_id, usage.limits(caller.session, principal.organization_id).streams)
        frames = stream.follow(principal.organization_id, principal.key_id, slot, job.id, seq or 0)
        return sse.response(frames)
    rows, has_more = repository.events_before(caller.session, job.id, seq, limit)
    return page([EventObject.of(row) for row in rows], has_more=has_more)


@router.get("/{fine_tuning_job_id}/checkpoints")
def checkpoints(
    caller: Caller, fine_tuning_job_id: str, after: str | None = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """Newest first; those of a running job too."""
    job = service.retrieve(caller.session, fine_tuning_job_id)
    rows, has_more = repository.checkpoint_page(caller.session, job.id, after=after, limit=limit)
    return page([CheckpointObject.of(row) for row in rows], has_more=has_more)
