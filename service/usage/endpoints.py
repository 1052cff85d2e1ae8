"""``/v1/organization``: usage and limits."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from service.accounts.caller import Caller, Route
from service.accounts.scopes import needs
from service.core import clock
from service.core.db import across_projects
from service.core.errors import invalid
from service.usage import repository, service
from service.usage.repository import Group
from service.usage.schemas import (
    Bucket,
    CompletionsResult,
    LimitsObject,
    LimitsOfOrganization,
    UsagePage,
    UsedByOrganization,
)

router = APIRouter(prefix="/v1/organization", tags=["usage"], route_class=Route)

WIDTHS: dict[str, tuple[Literal["minute", "hour", "day"], int, int, int]] = {
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
    if start_time is None:
        raise invalid("Missing required parameter: 'start_time'.", "start_time", "missing_parameter")
    for name in NOT_COUNTED:
        if {name, f"{name}[]"} & request.query_params.keys():
            raise invalid("Usage is not counted by this here. Leave it out.", name)
    width, seconds, usual, most = WIDTHS[bucket_width]
    if limit is not None and limit > most:
        raise invalid(f"A page has at most {most} buckets of {bucket_width}.", "limit")
    begin, end = _from(start_time, page) // seconds * seconds, end_time
    if end is None:
        end = int(clock.now(caller.session).timestamp()) + 1
    if end <= start_time:
        raise invalid("Must be later than 'start_time'.", "end_time")
    starts = range(begin, end, seconds)[: limit or usual]
    found: dict[int, list[CompletionsResult]] = {}
    if starts:
        rows = repository.tokens_in_buckets(
            caller.session,
            width=width,
            begin=_time(max(starts[0], start_time)),
            end=_time(min(starts[-1] + seconds, end)),
            models=[*(models or []), *(models_ or [])],
            project_ids=[*(project_ids or []), *(project_ids_ or [])],
            by=list(dict.fromkeys([*(group_by or []), *(group_by_ or [])])),
        )
        for bucket, group, tokens in rows:
            found.setdefault(int(bucket.timestamp()), []).append(CompletionsResult.of(group, tokens))
    following = starts[-1] + seconds if starts else end
    return UsagePage(
        data=[Bucket(start_time=at, end_time=min(at + seconds, end), results=found.get(at, [])) for at in starts],
        has_more=following < end,
        next_page=f"page_{following}" if following < end else None,
    )


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
