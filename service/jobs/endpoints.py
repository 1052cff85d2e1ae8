"""``/v1/fine_tuning/jobs``"""

import math
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from service.accounts.caller import Caller, Recognized, Route, identified
from service.accounts.known import Principal
from service.accounts.scopes import needs
from service.core import conditional, sse, stream_slots
from service.core.errors import invalid
from service.core.pagination import Page, page
from service.jobs import curves, repository, service, stream, waiting
from service.jobs.schemas import CheckpointObject, CurvesObject, EventObject, JobObject, event_seq
from service.jobs.states import TERMINAL
from service.usage import service as usage

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=Route)

FRAME = {
    "type": "object",
    "description": "A frame of the stream. `data` is an event as JSON, and `[DONE]` behind the last.",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}

Limit = Annotated[int, Query(ge=1, le=1000)]
Name = Annotated[str, StringConstraints(pattern=r"^[\w-]+(\.[\w-]+)*$", max_length=100)]
Wait = Annotated[float, Query(ge=0, le=waiting.LONGEST_SECONDS, description="Seconds to wait for a change.")]


@router.get("")
@needs("read")
def list_jobs(caller: Caller, request: Request, after: str | None = None, limit: Limit = 20) -> Page[JobObject]:
    """Newest first. Filter with ``metadata[key]=value``, or ``metadata=null`` for jobs without metadata."""
    metadata, no_metadata = service.metadata_filter(request.query_params.multi_items())
    rows, has_more = repository.page(
        caller.session, metadata=metadata, no_metadata=no_metadata, after=after, limit=limit
    )
    return page([JobObject.of(row) for row in rows], has_more=has_more)


@router.get("/{fine_tuning_job_id}", response_model=JobObject)
@needs("read")
async def retrieve(
    recognized: Recognized, fine_tuning_job_id: str, wait: Wait = 0, if_none_match: conditional.IfNoneMatch = None
) -> Response:
    """With ``wait``: the job as soon as it differs from what ``If-None-Match`` names, or else from what it is now.

    One that has ended, or that does not change in this time, is answered as it is. A wait is one of the key's streams.
    """
    shown, _ = await identified(recognized, _shown, fine_tuning_job_id)
    if wait:
        shown = await _changed(recognized, fine_tuning_job_id, shown, if_none_match, wait)
    return Response(shown, media_type=conditional.JSON)


async def _changed(
    recognized: Recognized, job_id: str, shown: bytes, if_none_match: str | None, seconds: float
) -> bytes:
    known = if_none_match or conditional.etag(shown)

    async def changed() -> bool:
        nonlocal shown
        shown, ended = await identified(recognized, _shown, job_id)
        return ended or not conditional.is_known(conditional.etag(shown), known)

    slot = await identified(recognized, _slot, recognized)
    await waiting.until(changed, recognized, job_id, slot, seconds)
    return shown


def _shown(session: Session, job_id: str) -> tuple[bytes, bool]:
    """The job as JSON, and whether it has ended."""
    job = service.retrieve(session, job_id)
    return JobObject.of(job).model_dump_json().encode(), job.status in TERMINAL


def _slot(session: Session, principal: Principal) -> str:
    return stream_slots.acquire(principal.key_id, usage.limits(session, principal.organization_id).streams)


@router.post("/{fine_tuning_job_id}/cancel")
@needs("submit")
def cancel(caller: Caller, fine_tuning_job_id: str) -> JobObject:
    """The answer has the status that the job will have: one that runs stops within seconds."""
    return JobObject.as_wanted(service.cancel(caller.session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/pause")
@needs("submit")
def pause(caller: Caller, fine_tuning_job_id: str) -> JobObject:
    """The answer has the status that the job will have: one that runs saves a checkpoint first."""
    return JobObject.as_wanted(service.pause(caller.session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/resume")
@needs("submit")
def resume(caller: Caller, fine_tuning_job_id: str) -> JobObject:
    return JobObject.of(service.resume(caller.session, fine_tuning_job_id))


@router.get(
    "/{fine_tuning_job_id}/events",
    response_model=Page[EventObject],
    responses={200: {"content": {"text/event-stream": {"schema": FRAME}}}},
)
@needs("read")
def events(
    caller: Caller,
    fine_tuning_job_id: str,
    after: Annotated[str | None, Query(description="An event's id or its `seq`.")] = None,
    limit: Limit = 20,
    only: Annotated[
        Literal["message", "answers"] | None,
        Query(description="Those in words, or steps with answers to validation rows. Not while following."),
    ] = None,
    stream_: Annotated[bool, Query(alias="stream", description="Follow the job as server-sent events.")] = False,
) -> Page[EventObject] | StreamingResponse:
    """Newest first. With ``stream=true``: oldest first from ``after`` on, then live until the job ends."""
    job = service.retrieve(caller.session, fine_tuning_job_id)
    seq = None if after is None else event_seq(job.id, after)
    if after is not None and (seq is None or seq > job.event_count):
        raise invalid(f"'after' must be the id or the seq of an event of this job; '{after}' is neither.", "after")
    if stream_:
        principal = caller.principal
        slot = _slot(caller.session, principal)
        return sse.response(stream.follow(principal, slot, job.id, seq or 0))
    rows, has_more = repository.events_before(caller.session, job.id, seq, limit, only=only)
    return page([EventObject.of(row) for row in rows], has_more=has_more)


@router.get("/{fine_tuning_job_id}/metrics")
@needs("read")
def metrics(
    caller: Caller,
    fine_tuning_job_id: str,
    names: Annotated[list[Name], Query(alias="names[]", min_length=1, max_length=128)],
    points: Annotated[int, Query(ge=1, le=2000)] = 400,
    start_step: Annotated[float | None, Query(description="From this step on.")] = None,
    end_step: Annotated[float | None, Query(description="Up to this step.")] = None,
) -> CurvesObject:
    """Metrics by step in at most so many points, each the mean of the steps that it stands for."""
    job = service.retrieve(caller.session, fine_tuning_job_id)
    between = (-math.inf if start_step is None else start_step, math.inf if end_step is None else end_step)
    return CurvesObject.of(curves.read(caller.session, job.id, names, points, between))


@router.get(
    "/{fine_tuning_job_id}/tensorboard",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
@needs("read")
def tensorboard(caller: Caller, fine_tuning_job_id: str) -> StreamingResponse:
    """The job's metrics as an event file of TensorBoard, as far as it is written."""
    file = service.event_file(service.retrieve(caller.session, fine_tuning_job_id))
    headers = {"content-disposition": f'attachment; filename="{file.name}"', "content-length": str(file.size)}
    return StreamingResponse(file.content(), media_type="application/octet-stream", headers=headers)


@router.get("/{fine_tuning_job_id}/checkpoints")
@needs("read")
def checkpoints(
    caller: Caller, fine_tuning_job_id: str, after: str | None = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    """Newest first; those of a running job too."""
    job = service.retrieve(caller.session, fine_tuning_job_id)
    rows, has_more = repository.checkpoint_page(caller.session, job.id, after=after, limit=limit)
    return page([CheckpointObject.of(row) for row in rows], has_more=has_more)
