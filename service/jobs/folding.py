"""Means of a job's metrics over consecutive steps, kept so that a long run's curves are read as fast as a short one's.

They are made by whoever tells the metrics, as soon as there are enough of them, in the same transaction. What an
earlier release told is folded along when the job goes on; until then curves are read from its events.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.contracts.flatten import flatten
from service.jobs.models import Event, Job, MetricBlock

SIZES = (8, 32, 128, 512)
"""How many steps a block is the mean of. A larger one is made of ``EACH`` of the next smaller."""
EACH = 4
FINE = SIZES[0]
AT_ONCE = 32
"""Blocks that are made at a time at most, where many are due."""


def fold(session: Session, job: Job) -> None:
    """Make the smallest blocks that are due of a locked job, and the larger ones of them."""
    last = _last(session, job)
    behind = 0 if last is None else last.last_seq
    due = select(Event.seq).where(Event.job_id == job.id, Event.type == "metrics", Event.seq > behind)
    seqs = session.scalars(due.order_by(Event.seq).limit(AT_ONCE * FINE)).all()
    for first in range(0, len(seqs) - FINE + 1, FINE):
        query = select(Event).where(Event.job_id == job.id, Event.type == "metrics").order_by(Event.seq)
        events = session.scalars(query.where(Event.seq.between(seqs[first], seqs[first + FINE - 1]))).all()
        last = made = _of_events(job, last, events)
        session.add(made)
        for size in SIZES[1:]:
            if (made.number + 1) % EACH:
                break
            session.flush()
            made = _of_blocks(session, job, size, made.number // EACH)
            session.add(made)
    session.flush()


def _last(session: Session, job: Job) -> MetricBlock | None:
    query = select(MetricBlock).where(MetricBlock.job_id == job.id, MetricBlock.size == FINE)
    return session.scalar(query.order_by(MetricBlock.number.desc()).limit(1))


def _of_events(job: Job, before: MetricBlock | None, events: Sequence[Event]) -> MetricBlock:
    # What another version may have told without a step is in no curve.
    rows = [row for event in events if "step" in (row := flatten(event.data or {}))]
    means, counts = _means([(row, dict.fromkeys(row, 1)) for row in rows], FINE)
    number, tokens, step = (0, 0.0, 0.0) if before is None else (before.number + 1, before.tokens, before.step)
    return MetricBlock(
        job_id=job.id,
        size=FINE,
        number=number,
        organization_id=job.organization_id,
        project_id=job.project_id,
        first_step=min((row["step"] for row in rows), default=step),
        step=max((row["step"] for row in rows), default=step),
        last_seq=events[-1].seq,
        told_at=events[-1].created_at,
        tokens=tokens + sum(row.get("troll.tokens", 0) for row in rows),
        means=means,
        counts=counts,
    )


def _of_blocks(session: Session, job: Job, size: int, number: int) -> MetricBlock:
    smaller = size // EACH
    query = select(MetricBlock).where(MetricBlock.job_id == job.id, MetricBlock.size == smaller)
    query = query.where(MetricBlock.number.between(number * EACH, number * EACH + EACH - 1))
    blocks = session.scalars(query.order_by(MetricBlock.number)).all()
    parts = [(block.means, {name: block.counts.get(name, smaller) for name in block.means}) for block in blocks]
    means, counts = _means(parts, size)
    return MetricBlock(
        job_id=job.id,
        size=size,
        number=number,
        organization_id=job.organization_id,
        project_id=job.project_id,
        first_step=min(block.first_step for block in blocks),
        step=max(block.step for block in blocks),
        last_seq=blocks[-1].last_seq,
        told_at=blocks[-1].told_at,
        tokens=blocks[-1].tokens,
        means=means,
        counts=counts,
    )


def _means(
    parts: Sequence[tuple[dict[str, Any], dict[str, int]]], size: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Means by name, and of how many steps they are where that is not all of them."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for values, of in parts:
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * of[name]
            counts[name] = counts.get(name, 0) + of[name]
    means = {name: total / counts[name] for name, total in sums.items()}
    return means, {name: count for name, count in counts.items() if count != size}
