"""A job's metrics as curves of a few hundred points, however many steps it has.

What was folded is read in blocks (``service.jobs.folding``), of the size that gives enough points and no more work than
it must; only the newest steps, and those of a short run or a small part of one, are read from events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Float, Select, case, cast, extract, func, literal, select, union_all
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service.jobs.folding import FINE, SIZES
from service.jobs.models import Event, MetricBlock

TOKENS = ("troll", "tokens")
DIGITS = 7
"""Of numbers that are the mean of several steps."""


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
    """The smallest blocks of a part of a job."""

    number: int
    """How many there are."""
    before: int
    """``last_seq`` of the last one before them, behind which the part's events begin."""
    tokens_before: float
    last: int
    """``last_seq`` of the last one, or ``before``."""
    is_newest: bool
    """Whether none follows: events after ``last`` are not folded yet."""


def read(session: Session, job_id: str, names: list[str], points: int, between: tuple[float, float]) -> Curves:
    """The metrics of these ``names`` (``troll.entropy``) of the steps ``between`` two, both included, in at most
    ``points`` points of as many steps each.
    """
    folded = _folded(session, job_id, between)
    parts: list[Select[Any]] = []
    behind, tokens, size = folded.before, folded.tokens_before, 1
    # Of fewer blocks too little would be seen, and as few events are read as fast.
    if 4 * folded.number >= points:
        size = max(each for each in SIZES if each == FINE or folded.number * FINE // each >= points // 2)
        parts = _blocks(session, job_id, names, size, between)
        behind, tokens = folded.last, _tokens_at(session, job_id, folded.last)
    if folded.is_newest or behind < folded.last:
        until = None if folded.is_newest else folded.last
        parts.append(_events(job_id, names, between, behind, until, tokens))
    return _drawn(session, job_id, names, points, size, union_all(*parts).subquery()) if parts else _nothing(names)


def _folded(session: Session, job_id: str, between: tuple[float, float]) -> _Folded:
    fine = (MetricBlock.job_id == job_id, MetricBlock.size == FINE)
    inside = (MetricBlock.step >= between[0], MetricBlock.first_step <= between[1])
    found = session.execute(select(func.count(), func.max(MetricBlock.last_seq)).where(*fine, *inside)).one()
    ahead = select(MetricBlock.last_seq, MetricBlock.tokens).where(*fine, MetricBlock.step < between[0])
    before = session.execute(ahead.order_by(MetricBlock.number.desc()).limit(1)).one_or_none()
    newest = session.scalar(select(func.max(MetricBlock.last_seq)).where(*fine)) or 0
    seq, tokens = (0, 0.0) if before is None else (before[0], before[1])
    last = found[1] or seq
    return _Folded(found[0], seq, tokens, last, last == newest)


def _tokens_at(session: Session, job_id: str, seq: int) -> float:
    query = select(MetricBlock.tokens).where(MetricBlock.job_id == job_id, MetricBlock.last_seq == seq)
    return session.scalar(query.limit(1)) or 0.0


def _blocks(
    session: Session, job_id: str, names: Sequence[str], largest: int, between: tuple[float, float]
) -> list[Select[Any]]:
    """Blocks of the ``largest`` size, and behind them those of smaller ones."""
    parts, behind = [], -1
    for size in reversed(SIZES[: SIZES.index(largest) + 1]):
        parts.append(_blocks_of(job_id, names, size, between, behind))
        last = select(func.max(MetricBlock.last_seq)).where(MetricBlock.job_id == job_id, MetricBlock.size == size)
        last = last.where(MetricBlock.step >= between[0], MetricBlock.first_step <= between[1])
        behind = max(behind, session.scalar(last) or -1)
    return parts


def _blocks_of(job_id: str, names: Sequence[str], size: int, between: tuple[float, float], behind: int) -> Select[Any]:
    """Those of a size after the ``seq`` ``behind``."""
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
        block.job_id == job_id,
        block.size == size,
        block.last_seq > behind,
        block.step >= between[0],
        block.first_step <= between[1],
    )


def _events(
    job_id: str,
    names: Sequence[str],
    between: tuple[float, float],
    behind: int,
    until: int | None,
    tokens: float,
) -> Select[Any]:
    """Events after the ``seq`` ``behind``, when ``tokens`` had been learned from."""
    # Put together anew, an event is unpacked once and not for each of its numbers.
    unpacked = Event.data.op("||")(cast({}, JSONB)).label("data")
    wanted = [Event.job_id == job_id, Event.type == "metrics", Event.seq > behind]
    if until is not None:
        wanted.append(Event.seq <= until)
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
        (learned + tokens).label("tokens"),
        literal(1).label("steps"),
        *columns,
    ).subquery()
    return select(rows).where(rows.c.step.between(*between))


def _drawn(session: Session, job_id: str, names: list[str], points: int, size: int, rows: Any) -> Curves:
    """``rows`` in points, none of them of fewer steps than the ``size`` of the largest blocks but for the last."""
    point: ColumnElement[Any]
    if size == 1:
        point = func.ntile(points).over(order_by=rows.c.seq)
    else:
        # What is not folded yet would be points of single steps beside those of many.
        width = func.greatest(size, func.ceil(cast(func.sum(rows.c.steps).over(), Float) / points))
        point = func.floor((func.sum(rows.c.steps).over(order_by=rows.c.seq) - 1) / width)
    placed = select(rows, point.label("point")).subquery()
    first = select(Event.created_at).where(Event.job_id == job_id, Event.type == "metrics").order_by(Event.seq).limit(1)
    columns: list[ColumnElement[Any]] = [func.max(placed.c.step), func.max(placed.c.seq)]
    columns += [extract("epoch", func.max(placed.c["at"]) - first.scalar_subquery()), func.max(placed.c.tokens)]
    columns.append(func.sum(placed.c.steps))
    for n in range(len(names)):
        value, of = placed.c[f"v{n}"], placed.c[f"n{n}"]
        columns.append(func.sum(value * of) / func.sum(case((value.is_not(None), of))))
    found = session.execute(select(*columns).group_by(placed.c.point).order_by(placed.c.point)).all()
    return Curves(
        step=[row[0] for row in found],
        seconds=[round(float(row[2]), 3) for row in found],
        tokens=[row[3] for row in found],
        values={name: [_shown(row[5 + n], row[4]) for row in found] for n, name in enumerate(names)},
        last=max((row[1] for row in found), default=0),
    )


def _shown(value: float | None, steps: int) -> float | None:
    return value if value is None or steps == 1 else float(f"{value:.{DIGITS}g}")


def _nothing(names: list[str]) -> Curves:
    return Curves([], [], [], {name: [] for name in names}, 0)


def _number(data: ColumnElement[Any], path: tuple[str, ...]) -> ColumnElement[Any]:
    """What is stored in ``data`` under ``path``, where that is a number."""
    value = data[path]
    return case((func.jsonb_typeof(value) == "number", cast(value.astext, Float)))
