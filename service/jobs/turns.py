"""Whose job is taken next, found without reading every job that waits.

Jobs that wait are of one kind where they have the same organisation and need the same of a worker. An index holds them
kind by kind, each in the order in which its jobs are taken, so that the kinds and the first job of each are found by
one step through the index for each, however many jobs wait behind them.

The statements are made once: making them takes longer than PostgreSQL takes to answer.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Interval,
    Select,
    Text,
    all_,
    and_,
    any_,
    bindparam,
    case,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.dml import ReturningUpdate

from service.accounts.models import Organization
from service.contracts.engines import ENGINES
from service.jobs import stored
from service.jobs.models import Job
from service.jobs.states import Desired, Status
from service.scheduling.repository import recent_use, used_per_weight, within_budget
from service.usage.models import OrganizationLimits


@dataclass(frozen=True)
class Capacity:
    """What a worker has for a job."""

    engines: Collection[str] = tuple(ENGINES)
    gpu_bytes: int | None = None
    """Memory of its GPUs together; None where it has none, or does not say, which fits any job."""


EVERYTHING = Capacity()

KIND = ("organization_id", "spec_version", "engine", "gpu_bytes")
_ONE: ColumnElement[int] = literal_column("1")
"""Of a parameter in its place PostgreSQL would not know that it is so few."""
# Named otherwise than columns, whose names are those of what an UPDATE sets.
_ORGANIZATION = bindparam("whose", type_=Text)
_MAX_RUNNING = bindparam("max_running", type_=BigInteger)
_ENGINES = bindparam("engines", type_=ARRAY(Text))
_GPU_BYTES = bindparam("has_gpu_bytes", type_=BigInteger)
_ASIDE = bindparam("aside", type_=ARRAY(Text))
_VERSION = bindparam("version", type_=JSONB)
_PASSED = bindparam("passed", type_=ARRAY(Text))


def next_turn(
    session: Session,
    capacity: Capacity,
    *,
    max_running: int,
    aside: Collection[str],
    passed: Collection[str],
    lock: bool,
) -> str | None:
    """The organisation whose turn it is: of those with a job that fits, fewer at work than they may have and GPU time
    left of their budget, the one with the least recent GPU time per weight, then the one whose last turn is longest
    ago, then the one whose job is the oldest.

    An organisation for which nothing else was set may have ``max_running`` at work. Jobs ``aside`` do not count, and
    organisations in ``passed`` had their turn. With ``lock`` it is one that nobody else gives a turn at the moment, and
    nobody does until the transaction ends.
    """
    asked = {**_told(capacity, aside), "max_running": max_running, "passed": list(passed)}
    found: str | None = session.scalar(_next_turn(lock), asked)
    return found


def wait_for_turn(session: Session, organization_id: str) -> None:
    """Wait until nobody else is giving the organisation a turn, and be the one who does until the transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(_lock_number(literal(organization_id)))))


def take(
    session: Session,
    capacity: Capacity,
    organization_id: str,
    *,
    max_running: int,
    aside: Collection[str],
    worker: str,
    gpus: int,
    lease: timedelta,
) -> Job | None:
    """The organisation's next job that fits, given to ``worker``; None where there is none, or too many run already.

    Jobs that somebody else has locked are left to them.
    """
    asked = {"whose": organization_id, "max_running": max_running, "by": worker, "on": gpus, "lease": lease}
    asked |= _told(capacity, aside)
    # What the session knows of the row is what comes back.
    options = {"populate_existing": True, "synchronize_session": False}
    return session.scalar(_take(), asked, execution_options=options)


def another_waits(
    session: Session, capacity: Capacity, than: Job, *, aside: Collection[str], waited: timedelta, max_running: int
) -> bool:
    """Whether an organisation that had less GPU time than that of a job has one that fits and may run, for so long."""
    told = _told(capacity, aside)
    asked = {**told, "waited": waited, "whose": than.organization_id, "max_running": max_running}
    return session.scalar(_another_waits(), asked) is not None


def for_others(session: Session, capacity: Capacity) -> str | None:
    """The id of a job that could be taken and does not fit."""
    found: str | None = session.scalar(_for_others(), _told(capacity, ()))
    return found


def runs(job: Any) -> ColumnElement[bool]:
    # Where a worker was lost and nobody here can say what follows, the job takes no place from others.
    return and_(job.status == as_indexed(Status.RUNNING), job.lease_expires_at > func.now())


def _told(capacity: Capacity, aside: Collection[str]) -> dict[str, Any]:
    return {
        "engines": list(capacity.engines),
        "has_gpu_bytes": capacity.gpu_bytes,
        "aside": list(aside),
        "version": stored.VERSION,
        "waited": timedelta(0),
    }


@cache
def _next_turn(lock: bool) -> Select[Any]:
    kinds = _kinds()
    waiting = (
        select(kinds.c.organization_id, func.min(kinds.c.sequence).label("oldest"))
        .where(_understood(kinds.c), _fits(kinds.c), kinds.c.organization_id != all_(_PASSED))
        .group_by(kinds.c.organization_id)
        .subquery()
    )
    other = aliased(Job)
    last_turn = (
        select(func.max(other.claimed_at))
        .where(other.organization_id == waiting.c.organization_id, other.claimed_at.is_not(None))
        .scalar_subquery()
    )
    used = recent_use()
    taken = func.coalesce(used.c.gpu_seconds, 0.0) / Organization.weight
    # What follows is asked of one organisation after the other, in this order, until one may: hence no simple WHERE.
    turns = (
        select(waiting.c.organization_id)
        .join(Organization, Organization.id == waiting.c.organization_id)
        .outerjoin(used, used.c.organization_id == waiting.c.organization_id)
        .order_by(taken, last_turn.asc().nulls_first(), waiting.c.oldest)
        .offset(literal_column("0"))
        .subquery()
    )
    organization_id = turns.c.organization_id
    job = _first_of(kinds).lateral()
    eligible = select(job.c.id).select_from(kinds).join(job, true())
    eligible = eligible.where(kinds.c.organization_id == organization_id, _understood(kinds.c), _fits(kinds.c))
    may = and_(_is_below_limit(organization_id), within_budget(organization_id), eligible.exists())
    locked = func.pg_try_advisory_xact_lock(_lock_number(organization_id)) if lock else true()
    return select(organization_id).where(case((may, locked), else_=false())).limit(_ONE)


@cache
def _take() -> ReturningUpdate[Job]:
    kinds = _kinds(of_one=True)
    job = _first_of(kinds).with_for_update(skip_locked=True).lateral()
    first = select(job.c.id).select_from(kinds).join(job, true()).where(_understood(kinds.c), _fits(kinds.c))
    first = first.order_by(job.c.priority.desc(), job.c.sequence).limit(_ONE)
    return (
        update(Job)
        .where(Job.id == first.scalar_subquery(), _is_below_limit(_ORGANIZATION))
        .values(
            status=Status.RUNNING,
            attempt=Job.attempt + 1,
            strikes=Job.strikes + 1,
            worker=bindparam("by"),
            claimed_at=func.clock_timestamp(),
            gpus=bindparam("on", type_=BigInteger),
            counted_at=func.clock_timestamp(),
            lease_expires_at=func.now() + bindparam("lease", type_=Interval),
            started_at=func.coalesce(Job.started_at, func.now()),
        )
        .returning(Job)
    )


@cache
def _another_waits() -> Select[Any]:
    kinds = _kinds()
    job, other = _first_of(kinds).lateral(), kinds.c.organization_id
    less = used_per_weight(other) < used_per_weight(_ORGANIZATION)
    query = select(job.c.id).select_from(kinds).join(job, true()).where(_understood(kinds.c), _fits(kinds.c))
    may = and_(_is_below_limit(other), within_budget(other))
    return query.where(other != _ORGANIZATION, may, less).limit(_ONE)


@cache
def _for_others() -> Select[Any]:
    kinds = _kinds()
    job = _first_of(kinds).lateral()
    return select(job.c.id).select_from(kinds).join(job, true()).where(~_fits(kinds.c)).limit(_ONE)


def _kinds(of_one: bool = False) -> CTE:
    """The kinds of jobs that wait, of all organisations or one: each is the next in the index behind the one before."""
    job, other = aliased(Job), aliased(Job)
    first = select(*_of(job, KIND), job.sequence).where(_waits(job)).order_by(*_order(job)).limit(_ONE)
    behind = select(*_of(other, KIND), other.sequence).where(_waits(other))
    if of_one:
        first = first.where(job.organization_id == _ORGANIZATION)
        behind = behind.where(other.organization_id == _ORGANIZATION)
    kinds = select(first.subquery()).cte("kinds", recursive=True)
    behind = behind.where(tuple_(*_of(other, KIND)) > tuple_(*_of(kinds.c, KIND)))
    following = behind.order_by(*_order(other)).limit(_ONE).lateral()
    return kinds.union_all(select(following).select_from(kinds).join(following, true()))


def _first_of(kinds: CTE) -> Select[str, int, int]:
    """The job of a kind that is taken next."""
    job = aliased(Job)
    same = [getattr(job, name) == kinds.c[name] for name in KIND]
    may = job.eligible_at <= func.now() - bindparam("waited", type_=Interval)
    query = select(job.id, job.priority, job.sequence).where(_waits(job), *same, may, job.id != all_(_ASIDE))
    return query.order_by(*_order(job)).limit(_ONE)


def _order(job: Any) -> list[Any]:
    """The index's. Its first columns are named even where they are the same, or PostgreSQL would sort."""
    return [*_of(job, KIND), job.priority.desc(), job.sequence]


def _waits(job: Any) -> ColumnElement[bool]:
    """Whether a job is in the index ``jobs_waiting``."""
    return and_(job.status == as_indexed(Status.QUEUED), job.desired == as_indexed(Desired.RUN))


def as_indexed(word: Status | Desired) -> ColumnElement[str]:
    """``word`` as an index's condition says it. Of a parameter PostgreSQL does not know that it is the same."""
    return literal_column(f"'{word}'")


def _fits(kind: Any) -> ColumnElement[bool]:
    """Whether a worker has what jobs of a kind need."""
    enough = or_(_GPU_BYTES.is_(None), kind.gpu_bytes <= _GPU_BYTES)
    return and_(or_(kind.engine == "", kind.engine == any_(_ENGINES)), enough)


def _understood(kind: Any) -> ColumnElement[bool]:
    # Compared as JSON: a version that is no number would end the query of all others.
    understood: ColumnElement[bool] = kind.spec_version <= _VERSION
    return understood


def _is_below_limit(organization_id: Any) -> ColumnElement[bool]:
    """Whether an organisation has fewer jobs at work than it may."""
    other = aliased(Job)
    query = select(func.count()).where(other.organization_id == organization_id, runs(other))
    own = select(OrganizationLimits.running_jobs).where(OrganizationLimits.organization_id == organization_id)
    return query.scalar_subquery() < func.coalesce(own.scalar_subquery(), _MAX_RUNNING)


def _of(row: Any, names: Collection[str]) -> list[Any]:
    return [getattr(row, name) for name in names]


def _lock_number(organization_id: Any) -> ColumnElement[int]:
    return func.hashtextextended(func.concat("fine_tuning_jobs.claim/", organization_id), 0)
