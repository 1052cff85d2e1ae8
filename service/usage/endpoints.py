"""``/v1/organization``: usage and limits."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session

from service.accounts.caller import Caller, Route
from service.accounts.scopes import needs
from service.core import clock
from service.core.db import across_projects
from service.core.errors import invalid
from service.usage import repository, service
from service.usage.repository import Group, Span, Width
from service.usage.schemas import (
    Bucket,
    CompletionsResult,
    GPUBucket,
    GPUResult,
    GPUUsagePage,
    LimitsObject,
    LimitsOfOrganization,
    StorageObject,
    StorageResult,
    UsagePage,
    UsedByOrganization,
)

router = APIRouter(prefix="/v1/organization", tags=["usage"], route_class=Route)

WIDTHS: dict[str, tuple[Width, int, int, int]] = {
    "1m": ("minute", 60, 60, 1440),
    "1h": ("hour", 3600, 24, 168),
    "1d": ("day", 86_400, 7, 31),
}
"""Of each width: its name for PostgreSQL, its seconds, and how many buckets a page has, usually and at most."""
PAGE = re.compile(r"page_(\d{1,10})")
NOT_COUNTED = ("user_ids", "api_key_ids", "batch")
"""What upstream chooses by and is not known here."""
Time = Annotated[int, Query(ge=0, lt=2**33, description="Unix time in seconds.")]


@router.get("/usage/completions")
@needs("admin", "read")
def completions(
    caller: Caller,
    request: Request,
    start_time: Time | None = None,
    end_time: Time | None = None,
    bucket_width: Literal["1m", "1h", "1d"] = "1d",
    group_by: Annotated[list[Group] | None, Query(max_length=10)] = None,
    group_by_: Annotated[list[Group] | None, Query(alias="group_by[]", include_in_schema=False)] = None,
    models: Annotated[list[str] | None, Query(max_length=100)] = None,
    models_: Annotated[list[str] | None, Query(alias="models[]", include_in_schema=False, max_length=100)] = None,
    project_ids: Annotated[list[str] | None, Query(max_length=100)] = None,
    project_ids_: Annotated[
        list[str] | None, Query(alias="project_ids[]", include_in_schema=False, max_length=100)
    ] = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: str | None = None,
) -> UsagePage:
    """Tokens of chats, completions and responses, oldest first. Buckets begin at whole minutes, hours or days of UTC.

    An admin key sees those of all projects, another key those of its own.
    Answers that ended within the last seconds may be missing. Lists may be sent as ``models=a&models=b`` or, as the
    official client does, as ``models[]=a``.
    """
    for name in NOT_COUNTED:
        if {name, f"{name}[]"} & request.query_params.keys():
            raise invalid("Usage is not counted by this here. Leave it out.", name)
    wanted = _wanted(caller.session, start_time, end_time, bucket_width, limit, page)
    rows = repository.tokens_in_buckets(
        caller.session,
        wanted.span,
        models=[*(models or []), *(models_ or [])],
        project_ids=[*(project_ids or []), *(project_ids_ or [])],
        by=list(dict.fromkeys([*(group_by or []), *(group_by_ or [])])),
    )
    found: dict[int, list[CompletionsResult]] = {}
    for bucket, group, tokens in rows:
        found.setdefault(int(bucket.timestamp()), []).append(CompletionsResult.of(group, tokens))
    return UsagePage(
        data=[Bucket(start_time=at, end_time=end, results=found.get(at, [])) for at, end in wanted.buckets],
        has_more=wanted.next_page is not None,
        next_page=wanted.next_page,
    )


@router.get("/usage/gpu_seconds")
@needs("admin", "read")
def gpu_seconds(
    caller: Caller,
    start_time: Time | None = None,
    end_time: Time | None = None,
    bucket_width: Literal["1h", "1d"] = "1d",
    group_by: Annotated[list[Literal["project_id"]] | None, Query(alias="group_by[]", max_length=10)] = None,
    project_ids: Annotated[list[str] | None, Query(alias="project_ids[]", max_length=100)] = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: str | None = None,
) -> GPUUsagePage:
    """GPU time of jobs, oldest first. Buckets begin at whole hours or days of UTC.

    An admin key sees that of all projects, another key that of its own.
    """
    wanted = _wanted(caller.session, start_time, end_time, bucket_width, limit, page)
    rows = repository.gpu_seconds_in_buckets(
        caller.session, wanted.span, project_ids=project_ids or [], by_project=bool(group_by)
    )
    found: dict[int, list[GPUResult]] = {}
    for bucket, project_id, used in rows:
        found.setdefault(int(bucket.timestamp()), []).append(
            GPUResult(gpu_seconds=round(used, 3), project_id=project_id)
        )
    return GPUUsagePage(
        data=[GPUBucket(start_time=at, end_time=end, results=found.get(at, [])) for at, end in wanted.buckets],
        has_more=wanted.next_page is not None,
        next_page=wanted.next_page,
    )


@router.get("/usage/storage")
@needs("admin", "read")
def storage(caller: Caller) -> StorageObject:
    """Bytes that are stored now, by project: an admin key sees all projects, another key its own."""
    return StorageObject(data=[StorageResult.of(each) for each in repository.stored_by_project(caller.session)])


@router.get("/limits")
@needs("admin", "read")
def limits(caller: Caller) -> LimitsObject:
    """What your organization may use, and what it uses."""
    session, id = caller.session, caller.principal.organization_id
    with across_projects(session):
        merged, standing = service.limits(session, id), repository.standing(session, id)
        stored = repository.stored_bytes(session, id)
    return LimitsObject(
        limits=LimitsOfOrganization(
            storage_bytes=merged.storage_bytes or None,
            upload_bytes=merged.upload_bytes,
            queued_jobs=merged.queued_jobs,
            running_jobs=merged.running_jobs,
            streams_per_key=merged.streams,
            requests_per_minute_and_key=merged.requests_a_minute or None,
            chat_tokens_per_day=merged.chat_tokens_a_day or None,
            gpu_seconds_per_month=standing.gpu_seconds_a_month,
        ),
        used=UsedByOrganization(
            storage_bytes=stored,
            queued_jobs=standing.queued_jobs,
            running_jobs=standing.running_jobs,
            chat_tokens_today=service.chat_tokens_today(session, id),
            gpu_seconds_this_month=round(standing.gpu_seconds, 3),
        ),
    )


@dataclass(frozen=True)
class _Wanted:
    """Buckets of a page of usage."""

    span: Span
    buckets: list[tuple[int, int]]
    """When each begins and ends."""
    next_page: str | None


def _wanted(
    session: Session, start_time: int | None, end_time: int | None, width: str, limit: int | None, page: str | None
) -> _Wanted:
    if start_time is None:
        raise invalid("Missing required parameter: 'start_time'.", "start_time", "missing_parameter")
    name, seconds, usual, most = WIDTHS[width]
    if limit is not None and limit > most:
        raise invalid(f"A page has at most {most} buckets of {width}.", "limit")
    begin, end = _from(start_time, page) // seconds * seconds, end_time
    if end is None:
        end = int(clock.now(session).timestamp()) + 1
    if end <= start_time:
        raise invalid("Must be later than 'start_time'.", "end_time")
    starts = range(begin, end, seconds)[: limit or usual]
    following = starts[-1] + seconds if starts else end
    # A page behind the end has no buckets, and nothing is between its begin and its end.
    first, last = (max(starts[0], start_time), min(following, end)) if starts else (end, end)
    return _Wanted(
        Span(name, _time(first), _time(last)),
        [(at, min(at + seconds, end)) for at in starts],
        f"page_{following}" if following < end else None,
    )


def _from(start_time: int, page: str | None) -> int:
    """Where a page begins. Pages are named by the time of their first bucket."""
    if page is None:
        return start_time
    match = PAGE.fullmatch(page)
    if match is None or int(match[1]) < start_time:
        raise invalid("Must be the 'next_page' of an answer to the same question.", "page")
    return int(match[1])


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
