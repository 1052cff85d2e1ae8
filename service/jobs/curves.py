"""A job's metrics as curves of a few hundred points, however many steps it has.

What was folded is read in blocks (``service.jobs.folding``), of the size that gives enough points and no more work than
it must; only the newest steps, and those of a short run or a small part of one, are read from events.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service.jobs.folding import FINE, SIZES
from service.jobs.models import Event, MetricBlock

TOKENS = ("troll", "tokens")
DIGITS = 7
"""Of numbers that are the mean of several steps."""
STATEMENTS_KEPT = 64
_JOB = bindparam("id_of_job", type_=Text)
_LOW, _HIGH = bindparam("low", type_=Float), bindparam("high", type_=Float)
_BEHIND, _UNTIL = bindparam("behind", type_=BigInteger), bindparam("until", type_=BigInteger)
_TOKENS = bindparam("tokens_before", type_=Float)
_POINTS, _SIZE = bindparam("points", type_=Integer), bindparam("size_of_largest", type_=BigInteger)
_NEVER = 2**62
"""A ``seq`` behind all others."""


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


@dataclass(frozen=True)
class _Folded:
    """The blocks of a part of a job."""

    number: int
    """How many of the smallest there are."""
    last: Mapping[int, tuple[int, float]]
    """By size, the ``last_seq`` of the last one, and the tokens that had been learned from by then."""
    before: tuple[int, float]
    """The same of the smallest one before the part, behind which its events begin."""
    is_newest: bool
    """Whether none follows: later events are not folded yet."""


def read(session: Session, job_id: str, names: list[str], points: int, between: tuple[float, float]) -> Curves:
    """The metrics of these ``names`` (``troll.entropy``) of the steps ``between`` two, both included, in at most
    ``points`` points of as many steps each.
    """
    folded = _folded(session, job_id, between)
    sizes: tuple[int, ...] = ()
    (behind, tokens), until = folded.before, folded.last.get(FINE, folded.before)[0]
    # Of fewer blocks too little would be seen, and as few events are read as fast.
    if 4 * folded.number >= points:
        largest = max(each for each in SIZES if each == FINE or folded.number * FINE // each >= points // 2)
        sizes = tuple(each for each in SIZES if each <= largest and each in folded.last)
        behind, tokens = folded.last[FINE]
    with_events = folded.is_newest or behind < until
    if not sizes and not with_events:
        return Curves([], [], [], {name: [] for name in names}, 0)
    asked: dict[str, Any] = {"id_of_job": job_id, "low": between[0], "high": between[1], "points": points}
    asked |= {"behind": behind, "until": _NEVER if folded.is_newest else until, "tokens_before": tokens}
    asked |= {f"behind_{size}": _behind(folded, size, sizes) for size in sizes}
    asked["size_of_largest"] = max(sizes, default=1)
    found = session.execute(_statement(tuple(names), sizes, with_events), asked).all()
    return Curves(
        step=[row[0] for row in found],
        seconds=[round(float(row[2]), 3) for row in found],
        tokens=[row[3] for row in found],
        values={name: [_shown(row[5 + n], row[4]) for row in found] for n, name in enumerate(names)},
        last=max((row[1] for row in found), default=0),
    )


def _folded(session: Session, job_id: str, between: tuple[float, float]) -> _Folded:
    block, low, high = MetricBlock, *between
    columns = (block.size, func.count(), func.max(block.last_seq), func.max(block.tokens))
    inside = (block.job_id == job_id, block.step >= low, block.first_step <= high)
    found = session.execute(select(*columns).where(*inside).group_by(block.size)).all()
    last = {size: (seq, tokens) for size, _, seq, tokens in found}
    number = next((count for size, count, _, _ in found if size == FINE), 0)
    fine = (block.job_id == job_id, block.size == FINE)
    before = (0, 0.0)
    if low > -math.inf:
        ahead = select(block.last_seq, block.tokens).where(*fine, block.step < low)
        row = session.execute(ahead.order_by(block.number.desc()).limit(1)).one_or_none()
        before = before if row is None else (row[0], row[1])
    newest = last.get(FINE, before)[0]
    if high < math.inf:
        newest = session.scalar(select(func.max(block.last_seq)).where(*fine)) or 0
    return _Folded(number, last, before, last.get(FINE, before)[0] == newest)


def _behind(folded: _Folded, size: int, sizes: tuple[int, ...]) -> int:
    """Up to which ``seq`` larger blocks reach, so that those of a ``size`` begin behind it."""
    return max((folded.last[each][0] for each in sizes if each > size), default=-1)


# Statements are made once: making them takes longer than PostgreSQL takes to answer.


@lru_cache(STATEMENTS_KEPT)
def _statement(names: tuple[str, ...], sizes: tuple[int, ...], with_events: bool) -> Select[Any]:
    """Points of blocks of these ``sizes``, the larger ones first, and of the events behind them."""
    parts = [_blocks(names, size) for size in sizes] + ([_events(names)] if with_events else [])
    rows = union_all(*parts).subquery()
    point: ColumnElement[Any] = func.ntile(_POINTS).over(order_by=rows.c.seq)
    if sizes:
        # What is not folded yet would be points of single steps beside those of many.
        width = func.greatest(_SIZE, func.ceil(cast(func.sum(rows.c.steps).over(), Float) / _POINTS))
        point = func.floor((func.sum(rows.c.steps).over(order_by=rows.c.seq) - 1) / width)
    placed = select(rows, point.label("point")).subquery()
    first = select(Event.created_at).where(Event.job_id == _JOB, Event.type == "metrics").order_by(Event.seq).limit(1)
    columns: list[ColumnElement[Any]] = [func.max(placed.c.step), func.max(placed.c.seq)]
    columns += [extract("epoch", func.max(placed.c["at"]) - first.scalar_subquery()), func.max(placed.c.tokens)]
    columns.append(func.sum(placed.c.steps))
    for n in range(len(names)):
        value, of = placed.c[f"v{n}"], placed.c[f"n{n}"]
        columns.append(func.sum(value * of) / func.sum(case((value.is_not(None), of))))
    return select(*columns).group_by(placed.c.point).order_by(placed.c.point)


def _blocks(names: tuple[str, ...], size: int) -> Select[Any]:
    block = MetricBlock
    columns: list[ColumnElement[Any]] = []
    for n, name in enumerate(names):
        columns.append(cast(block.means[name].astext, Float).label(f"v{n}"))
        columns.append(func.coalesce(cast(block.counts[name].astext, Float), float(size)).label(f"n{n}"))
    return select(
        block.step.label("step"),
        block.last_seq.label("seq"),
        block.told_at.label("at"),
        block.tokens.label("tokens"),
        literal(size).label("steps"),
        *columns,
    ).where(
        block.job_id == _JOB,
        block.size == size,
        block.last_seq > bindparam(f"behind_{size}", type_=BigInteger),
        block.step >= _LOW,
        block.first_step <= _HIGH,
    )


def _events(names: tuple[str, ...]) -> Select[Any]:
    # Put together anew, an event is unpacked once and not for each of its numbers.
    unpacked = Event.data.op("||")(cast({}, JSONB)).label("data")
    wanted = (Event.job_id == _JOB, Event.type == "metrics", Event.seq > _BEHIND, Event.seq <= _UNTIL)
    events = select(Event.seq, Event.created_at, unpacked).where(*wanted).offset(0).subquery()
    step = _number(events.c.data, ("step",))
    learned = func.sum(func.coalesce(_number(events.c.data, TOKENS), 0.0)).over(order_by=events.c.seq)
    columns: list[ColumnElement[Any]] = []
    for n, name in enumerate(names):
        columns += [_number(events.c.data, tuple(name.split("."))).label(f"v{n}"), literal(1.0).label(f"n{n}")]
    rows = select(
        step.label("step"),
        events.c.seq,
        events.c.created_at.label("at"),
        (learned + _TOKENS).label("tokens"),
        literal(1).label("steps"),
        *columns,
    ).subquery()
    return select(rows).where(rows.c.step.between(_LOW, _HIGH))


def _shown(value: float | None, steps: int) -> float | None:
    return value if value is None or steps == 1 else float(f"{value:.{DIGITS}g}")


def _number(data: ColumnElement[Any], path: tuple[str, ...]) -> ColumnElement[Any]:
    """What is stored in ``data`` under ``path``, where that is a number."""
    value = data[path]
    return case((func.jsonb_typeof(value) == "number", cast(value.astext, Float)))
