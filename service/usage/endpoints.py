"""``/v1/organization/usage``"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from service.accounts.caller import Caller, Route
from service.core import clock
from service.core.errors import invalid
from service.usage import repository
from service.usage.schemas import Bucket, CompletionsResult, UsagePage

router = APIRouter(prefix="/v1/organization/usage", tags=["usage"], route_class=Route)

WIDTHS: dict[str, tuple[Literal["minute", "hour", "day"], int, int, int]] = {
    "1m": ("minute", 60, 60, 1440),
    "1h": ("hour", 3600, 24, 168),
    "1d": ("day", 86_400, 7, 31),
}
"""Of each width: its name for PostgreSQL, its seconds, and how many buckets a page has, usually and at most."""
PAGE = re.compile(r"page_(\d{1,10})")
Time = Annotated[int, Query(ge=0, lt=2**33, description="Unix time in seconds.")]


@router.get("/completions")
def completions(
    caller: Caller,
    start_time: Time,
    end_time: Time | None = None,
    bucket_width: Literal["1m", "1h", "1d"] = "1d",
    group_by: Annotated[list[Literal["model", "project_id"]] | None, Query()] = None,
    models: Annotated[list[str] | None, Query(max_length=100)] = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
    page: str | None = None,
) -> UsagePage:
    """Tokens of chats, completions and responses, oldest first. Buckets begin at whole minutes, hours or days of UTC.

    Answers that ended within the last seconds may be missing.
    """
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
            caller.principal.organization_id,
            width=width,
            begin=_time(max(starts[0], start_time)),
            end=_time(min(starts[-1] + seconds, end)),
            models=models or [],
            by_model="model" in (group_by or []),
        )
        for bucket, model, tokens in rows:
            found.setdefault(int(bucket.timestamp()), []).append(CompletionsResult.of(model, tokens))
    following = starts[-1] + seconds if starts else end
    return UsagePage(
        data=[Bucket(start_time=at, end_time=min(at + seconds, end), results=found.get(at, [])) for at in starts],
        has_more=following < end,
        next_page=f"page_{following}" if following < end else None,
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
