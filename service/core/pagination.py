"""Cursor pages as the official client iterates them."""

from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import Session

from service.core.errors import invalid


class Listed(BaseModel):
    """What every item of a list has."""

    id: str


Item = TypeVar("Item", bound=Listed)
Row = TypeVar("Row")


class Page(BaseModel, Generic[Item]):
    """One page of a list. ``has_more`` is always sent: without it clients keep asking."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page(items: Sequence[Item], *, has_more: bool) -> Page[Item]:
    return Page(
        data=list(items),
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=has_more,
    )


def fetch(
    session: Session,
    query: Select[Row],
    table: Any,
    *,
    after: str | None,
    limit: int,
    ascending: bool = False,
) -> tuple[Sequence[Row], bool]:
    """Rows of ``query`` behind the row with id ``after``, newest first unless ``ascending``; and whether more follow.

    ``query`` must already be restricted to what the caller may see. Raises a 400 when ``after`` is not among it.
    """
    if after is not None:
        cursor = session.scalar(query.with_only_columns(table.sequence).where(table.id == after))
        if cursor is None:
            raise invalid(f"'after' must be the id of an item of this list; '{after}' is not.", "after")
        query = query.where(table.sequence > cursor if ascending else table.sequence < cursor)
    query = query.order_by(table.sequence.asc() if ascending else table.sequence.desc()).limit(limit + 1)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit
