"""A job's metrics as curves of a few hundred points, however many steps it has."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Float, case, cast, extract, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service.jobs.models import Event

TOKENS = ("troll", "tokens")


@dataclass(frozen=True)
class Curves:
    """Columns of equal length. A point is the mean of the steps that it stands for, and lies at the last of them."""

    step: list[float]
    seconds: list[float]
    """Since the job's first event with metrics."""
    tokens: list[float]
    """That were learned from, in all."""
    values: dict[str, list[float | None]]
    """By name; null where no step has it."""
    last: int
    """``seq`` of the newest event that counts."""


def read(session: Session, job_id: str, names: list[str], points: int) -> Curves:
    """The metrics of these ``names`` (``troll.entropy``), in at most ``points`` points of as many steps each."""
    # Put together anew, an event is unpacked once and not for each of its numbers.
    unpacked = Event.data.op("||")(cast({}, JSONB)).label("data")
    events = (
        select(Event.seq, Event.created_at, unpacked)
        .where(Event.job_id == job_id, Event.type == "metrics")
        .offset(0)
        .subquery()
    )
    step = _number(events.c.data, ("step",))
    rows = (
        select(
            step.label("step"),
            events.c.seq,
            extract("epoch", events.c.created_at - func.min(events.c.created_at).over()).label("seconds"),
            func.coalesce(_number(events.c.data, TOKENS), 0.0).label("tokens"),
            func.ntile(points).over(order_by=events.c.seq).label("point"),
            *(_number(events.c.data, tuple(name.split("."))).label(f"v{n}") for n, name in enumerate(names)),
        )
        .where(step.is_not(None))
        .subquery()
    )
    columns: list[ColumnElement[Any]] = [func.max(rows.c[name]) for name in ("step", "seq", "seconds")]
    columns += [func.sum(rows.c.tokens), *(func.avg(rows.c[f"v{n}"]) for n in range(len(names)))]
    found = session.execute(select(*columns).group_by(rows.c.point).order_by(rows.c.point)).all()
    total, tokens = 0.0, []
    for row in found:
        total += row[3]
        tokens.append(total)
    return Curves(
        step=[row[0] for row in found],
        seconds=[float(row[2]) for row in found],
        tokens=tokens,
        values={name: [row[4 + n] for row in found] for n, name in enumerate(names)},
        last=max((row[1] for row in found), default=0),
    )


def _number(data: ColumnElement[Any], path: tuple[str, ...]) -> ColumnElement[Any]:
    """What is stored in ``data`` under ``path``, where that is a number."""
    value = data[path]
    return case((func.jsonb_typeof(value) == "number", cast(value.astext, Float)))
